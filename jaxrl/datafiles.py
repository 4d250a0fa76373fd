"""Rows of problem data: local .jsonl, .json, .parquet (also .gz), or a data set of the hub."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple


class DataError(ValueError):
    """Data that cannot be read; the message names the file and the line."""


class Row(NamedTuple):
    """One row and where it stands, for error messages."""

    where: str  # FILE:LINE or NAME[INDEX]
    fields: dict[str, Any]

    def get(self, *names: str) -> Any:
        """The first of these fields that the row has. Raises DataError naming what it has instead."""
        for name in names:
            if name in self.fields:
                return self.fields[name]
        raise DataError(f"{self.where}: row has no field {names[0]!r} (it has: {', '.join(self.fields)})")


def read_rows(source: str, split: str = "train") -> list[Row]:
    """All rows of a file or a hub data set.

    Raises DataError for a missing file (naming the nearest), a line that is not JSON (file and line), or a data set
    that cannot be loaded.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return list(_file_rows(path))
    if path.suffix in (".jsonl", ".json", ".gz", ".parquet") or source.startswith((".", "/", "~")) or "/" not in source:
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, names, 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise DataError(f"data file {source!r} does not exist{hint}")
    return list(_hub_rows(source, split))


def _file_rows(path: Path) -> Iterator[Row]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        import pyarrow.parquet

        for i, fields in enumerate(pyarrow.parquet.read_table(path).to_pylist()):
            yield Row(f"{path}[{i}]", fields)
        return
    text = _text(path)
    if name.endswith(".json"):
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
        rows = list(data.values()) if isinstance(data, dict) else data
        for i, fields in enumerate(rows):
            yield _row(f"{path}[{i}]", fields)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON: {error.msg}") from None
            yield _row(f"{path}:{number}", fields)


def _row(where: str, fields: Any) -> Row:
    if not isinstance(fields, dict):
        raise DataError(f"{where}: a row must be a JSON object, this is a {type(fields).__name__}")
    return Row(where, fields)


def _text(path: Path) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _hub_rows(name: str, split: str) -> Iterator[Row]:
    import datasets

    try:
        data = datasets.load_dataset(name, split=split)
    except Exception as error:  # datasets raises many kinds: no network, no such name, no such split
        raise DataError(f"data set {name!r} could not be loaded: {str(error).splitlines()[0]}") from None
    for i, fields in enumerate(data):
        yield Row(f"{name}[{i}]", dict(fields))
