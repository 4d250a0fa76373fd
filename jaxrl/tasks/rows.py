"""Rows of problem data: local .jsonl or .json (also .gz), .parquet, a data set of the hub, or one file of it.

A row's values are read by their type: `row.text("prompt")` is a text, or a DataError that says where it is not.
"""

from __future__ import annotations

import gzip
import json
import keyword
import zlib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl.errors import UserError

HUB_FILE = "hf://datasets/"  # begins the name of one file of a hub data set
PARQUET_ROWS = 64  # read at a time: a row of contest data may have megabytes of tests
_GZIP = b"\x1f\x8b"  # how its files begin (RFC 1952)


class DataError(UserError):
    """Data that cannot be read; the message names the file and the line."""


class Row(NamedTuple):
    """One row, or an object inside it, and where it stands, for error messages.

    A field may have several names: the first one that the row has, and that is not null, counts. All
    methods raise DataError for a field that is not there or has another type; of `optional_text` and `optional_texts` a
    field that is not there or null is "" or empty.
    """

    where: str  # FILE:LINE or NAME[INDEX], and where in the row
    fields: dict[str, Any]

    def get(self, *names: str) -> Any:
        """The value, whatever it is."""
        return self._find(names)[1]

    def text(self, *names: str) -> str:
        return self._typed(names, str, "a text")

    def name(self, *names: str) -> str:
        """A text or a whole number, as text: an id."""
        field, value = self._find(names)
        if not isinstance(value, str) and type(value) is not int:
            raise DataError(f"{self.where}: {field} must be a text or a whole number, is {described(value)}")
        return str(value)

    def identifier(self, *names: str) -> str:
        """The name of a Python function."""
        field, value = self._find(names)
        if not isinstance(value, str) or not value.isidentifier() or keyword.iskeyword(value):
            raise DataError(f"{self.where}: {field} must be the name of a function, is {described(value)}")
        return value

    def number(self, *names: str) -> float:
        field, value = self._find(names)
        if type(value) not in (int, float):
            raise DataError(f"{self.where}: {field} must be a number, is {described(value)}")
        return value

    def values(self, *names: str) -> list[Any]:
        """A list of anything."""
        return self._typed(names, list, "a list")

    def texts(self, *names: str) -> list[str]:
        field, values = self._find(names)
        if not isinstance(values, list):
            raise DataError(f"{self.where}: {field} must be a list of texts, is {described(values)}")
        for i, value in enumerate(values):
            if not isinstance(value, str):
                raise DataError(f"{self.where}: {field}[{i}] must be a text, is {described(value)}")
        return values

    def part(self, *names: str) -> Row:
        """An object, or JSON text of one."""
        field, value = self._decoded(names)
        if not isinstance(value, dict):
            raise DataError(f"{self.where}: {field} must be an object, is {described(value)}")
        return Row(f"{self.where}: {field}", value)

    def parts(self, *names: str) -> list[Row]:
        """A list of objects, or JSON text of one."""
        field, values = self._decoded(names)
        if not isinstance(values, list):
            raise DataError(f"{self.where}: {field} must be a list of objects, is {described(values)}")
        for i, value in enumerate(values):
            if not isinstance(value, dict):
                raise DataError(f"{self.where}: {field}[{i}] must be an object, is {described(value)}")
        return [Row(f"{self.where}: {field}[{i}]", value) for i, value in enumerate(values)]

    def optional_text(self, *names: str) -> str:
        return self.text(*names) if self._has(names) else ""

    def optional_texts(self, *names: str) -> list[str]:
        return self.texts(*names) if self._has(names) else []

    def _has(self, names: tuple[str, ...]) -> bool:
        return any(self.fields.get(name) is not None for name in names)

    def _find(self, names: tuple[str, ...]) -> tuple[str, Any]:
        there = [name for name in names if name in self.fields]
        for name in [name for name in there if self.fields[name] is not None] + there:
            return name, self.fields[name]
        raise DataError(f"{self.where}: row has no field {names[0]!r} (it has: {', '.join(self.fields)})")

    def _typed(self, names: tuple[str, ...], kind: type, wanted: str) -> Any:
        field, value = self._find(names)
        if not isinstance(value, kind):
            raise DataError(f"{self.where}: {field} must be {wanted}, is {described(value)}")
        return value

    def _decoded(self, names: tuple[str, ...]) -> tuple[str, Any]:
        """The value, or what it is JSON text of: files often have text where the hub's rows have objects."""
        field, value = self._find(names)
        if not isinstance(value, str):
            return field, value
        try:
            return field, json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(f"{self.where}: {field} is not JSON: {described(value)}") from None


def described(value: Any) -> str:
    """A value as an error message shows it."""
    if isinstance(value, str):
        return f"the text {value[:40]!r}{'...' if len(value) > 40 else ''}"
    kinds: dict[type, str] = {dict: "an object", list: "a list", type(None): "null", bool: str(value).lower()}
    kinds |= {int: f"the number {value!s:.20}", float: f"the number {value}"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def read_rows(source: str, split: str = "train") -> list[Row]:
    """All rows of a file or a hub data set; one at least. Raises DataError as `stream_rows` does."""
    return list(stream_rows(source, split))


def stream_rows(source: str, split: str = "train", subset: str = "") -> Iterator[Row]:
    """The rows of a file or a hub data set, one at least, without all of them in memory.

    `source` is a local file, the name of a hub data set, or hf://datasets/OWNER/NAME/FILE: one file of it. `subset`
    is the configuration of a hub data set. Raises DataError for a missing file (naming the nearest), a file that is
    damaged or empty, a line that is not a JSON object (file and line), or a data set that cannot be loaded.
    """
    path = expanded(source)
    local = path.suffix in (".jsonl", ".json", ".gz", ".parquet") or source.startswith((".", "/", "~"))
    if source.startswith(HUB_FILE):
        rows = _file_rows(_downloaded(source))
    elif path.is_file():
        rows = _file_rows(path)
    elif local or "/" not in source:
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, names, 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near and not path.exists() else ""
        raise DataError(f"data file {source!r} {'is a folder' if path.is_dir() else 'does not exist'}{hint}")
    else:
        rows = _hub_rows(source, split, subset)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError(f"{source}: holds no rows")


def expanded(source: str) -> Path:
    """The path with ~ as the user's folder. Raises DataError where nobody says which that is."""
    try:
        return Path(source).expanduser()
    except RuntimeError:
        raise DataError(f"{source!r}: the user's folder is not known; set HOME, or give the whole path") from None


def _file_rows(path: Path) -> Iterator[Row]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        yield from _parquet_rows(path)
        return
    if name.endswith(".json") and (data := _json(path, "".join(_lines(path)))) is not None:
        single = isinstance(data, dict) and not all(isinstance(value, dict) for value in data.values())
        rows = [data] if single or not isinstance(data, (dict, list)) else data
        for i, fields in enumerate(rows.values() if isinstance(rows, dict) else rows):
            yield _row(f"{path}[{i}]", fields)
        return
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON: {error.msg}") from None
            except (ValueError, RecursionError) as error:  # a number of 5,000 digits; lists in lists
                raise DataError(f"{path}:{number}: cannot be read: {error}") from None
            yield _row(f"{path}:{number}", fields)


def _json(path: Path, text: str) -> Any:
    """The value of a .json file; None for one that holds a JSON object a line, or nothing."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        first, _, rest = text.strip().partition("\n")
        if not text.strip() or (rest and error.msg == "Extra data" and first.startswith("{")):
            return None
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    count = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(PARQUET_ROWS):
            for fields in batch.to_pylist():
                yield Row(f"{path}[{count}]", fields)
                count += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {_first_line(error)}") from None


def _row(where: str, fields: Any) -> Row:
    if not isinstance(fields, dict):
        raise DataError(f"{where}: a row must be a JSON object, is {described(fields)}")
    return Row(where, fields)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, plain or gzip, without a byte order mark."""
    offset = 0
    try:
        with path.open("rb") as file:
            compressed = path.suffix == ".gz" or file.peek(2).startswith(_GZIP)
            for line in gzip.GzipFile(fileobj=file) if compressed else file:
                yield line.decode("utf-8" if offset else "utf-8-sig")
                offset += len(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read: byte {offset + error.start} is not UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        damaged = "" if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) else "damaged gzip: "
        raise DataError(f"{path}: cannot be read: {damaged}{error}") from None


def _downloaded(source: str) -> Path:
    """The local copy of a hub data set's file."""
    import huggingface_hub

    parts = source.removeprefix(HUB_FILE).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise DataError(f"data file {source!r} must be {HUB_FILE}OWNER/NAME/FILE")
    try:
        return Path(huggingface_hub.hf_hub_download("/".join(parts[:2]), parts[2], repo_type="dataset"))
    except Exception as error:  # huggingface_hub raises many kinds: no network, no such name, no such file
        raise DataError(f"data file {source!r} could not be loaded: {_first_line(error)}") from None


def _hub_rows(name: str, split: str, subset: str = "") -> Iterator[Row]:
    import datasets

    try:
        data = datasets.load_dataset(name, *([subset] if subset else []), split=split)
    except Exception as error:  # datasets raises many kinds: no network, no such name, no such split
        raise DataError(f"data set {name!r} could not be loaded: {_first_line(error)}") from None
    for i, fields in enumerate(data):
        yield Row(f"{name}[{i}]", dict(fields))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
