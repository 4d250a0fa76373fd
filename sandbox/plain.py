"""Plain values as JSON, and the frames that carry them between processes that do not trust each other.

Decoding builds only values of Python's own types, so that it never runs code of the sender.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import importlib
import itertools
import json
import os
import re
import struct
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

# Largest frames, in bytes, from a hostile process and from our own side.
MAX_FRAME, TRUSTED_FRAME = 64 << 20, 1 << 30
# The first byte of an answer tells its kind: a value, an exception, bytes printed to stdout and stderr so far.
# Other answers are JSON objects: {"loaded": true}, {"failed": ...}.
VALUE, ERROR, PRINTED = b"v", b"e", b"p"
_SMALL = 1 << 63  # larger ints travel in hexadecimal: decimal has a length limit and is slow

_SEQUENCES: dict[str, Callable[[Any], Any]] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque, "iterator": iter,
    "keys": lambda items: dict.fromkeys(items).keys(),
}  # fmt: skip
_MAPPINGS: dict[str, Callable[[Any], Any]] = {
    "dict": dict, "Counter": lambda items: collections.Counter(dict(items)), "OrderedDict": collections.OrderedDict,
    "defaultdict": lambda items: collections.defaultdict(None, items),
}  # fmt: skip
_AS_TEXT: dict[type, tuple[str, Callable[[Any], str]]] = {
    decimal.Decimal: ("Decimal", str),
    fractions.Fraction: ("Fraction", str),
    datetime.datetime: ("datetime", lambda v: v.isoformat()),
    datetime.date: ("date", lambda v: v.isoformat()),
    datetime.time: ("time", lambda v: v.isoformat()),
}
_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "Decimal": decimal.Decimal,
    "Fraction": lambda text: fractions.Fraction(*map(int, text.split("/"))),  # Fraction("1e999999999") never ends
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
}
_KINDS: dict[type, str] = {
    list: "list", tuple: "tuple", set: "set", frozenset: "frozenset", collections.deque: "deque",
    collections.Counter: "Counter", collections.OrderedDict: "OrderedDict", collections.defaultdict: "defaultdict",
    dict: "dict", type({}.keys()): "keys", type({}.values()): "iterator", type({}.items()): "iterator",
    map: "iterator", filter: "iterator", zip: "iterator", reversed: "iterator", enumerate: "iterator",
    type(x for x in ()): "iterator", type(iter([])): "iterator", type(iter(())): "iterator", type(iter("")): "iterator",
    type(iter(range(0))): "iterator", type(iter({})): "iterator", type(iter(set())): "iterator",
    **{kind: "iterator" for name, kind in vars(itertools).items() if isinstance(kind, type) and name[0] != "_"},
}  # fmt: skip
# Made once: json.dumps with settings, and json.loads of bytes, would be prepared again in each call.
# Each NaN is a new object: Python calls lists equal that share one NaN object.
to_json, _from_json = json.JSONEncoder(separators=(",", ":")).encode, json.JSONDecoder(parse_constant=float).decode
_BASES: tuple[type, ...] = (dict, list, tuple, set, frozenset, int, float, str)
MAX_ITEMS = 1 << 20  # taken from an iterator, which may have no end
_JSON_TYPES = {bool, float, str, type(None)}  # those that need no look at their value
_USUAL_DTYPES = ("bool", "int64", "float64", "complex128")  # what numpy.array gives for lists of Python's numbers
_DTYPE = re.compile(r"[<>|=][biufcSU]\d{1,4}")


class NeedsObject(BaseException):
    """An operation needs the object itself, not its description; not an Exception, so that tests do not catch it."""


class Unplain:
    """Stands for a value that is not plain data: unequal to all plain data, without any operation."""

    def __init__(self, kind: str):
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind} object>"

    def __eq__(self, other: object) -> bool:
        return self._operate() if isinstance(other, Unplain) else False

    def _operate(self, *_: object) -> Any:
        raise NeedsObject

    __hash__ = __bool__ = __len__ = __iter__ = __str__ = __int__ = __float__ = __getitem__ = _operate  # type: ignore
    __add__ = __sub__ = __mul__ = __truediv__ = __neg__ = __abs__ = __round__ = _operate
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __lt__ = __le__ = __gt__ = __ge__ = _operate


class Array(Unplain):
    """Stands for a NumPy array where NumPy is not loaded: whose ==, truth and + are not those of a list."""

    def __init__(self, items: Any):
        super().__init__("ndarray")
        self.items = items

    def __repr__(self) -> str:
        return f"array({self.items!r})"

    __eq__ = Unplain._operate  # type: ignore[assignment]
    __hash__ = Unplain._operate  # type: ignore[assignment]


class Function(Unplain):
    """Stands for something that can be called, but not from here."""

    __call__ = Unplain._operate


class Instance(Unplain):
    """A process' description of an object of its own class: equal to others of the same class and attributes."""

    def __init__(self, kind: str, attributes: dict[str, Any]):
        super().__init__(kind)
        self.attributes = attributes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Instance) and (self.kind, self.attributes) == (other.kind, other.attributes)

    __hash__ = Unplain._operate  # type: ignore[assignment]


def is_iterator(value: Any) -> bool:
    """Whether it is plain data that can be read only once."""
    return _KINDS.get(type(value)) == "iterator" and hasattr(value, "__next__")


def encode(value: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """JSON data, exact in type: [kind, content] for anything except None, bool, ints below 2**63, float and str.

    Subclasses (namedtuple, IntEnum, ...) become their base; NumPy arrays and scalars lists and numbers; objects of
    other classes their attributes.

    Args:
        other: encodes values of types other than Python's and NumPy's; None: as above.
    """
    kind = type(value)
    if value is None or kind in (bool, float, str):
        return value
    if kind is int:
        return value if -_SMALL < value < _SMALL else ["int", hex(value)]
    if name := _KINDS.get(kind):
        if name in _MAPPINGS:
            return [name, [[encode(k, other), encode(v, other)] for k, v in value.items()]]
        if name != "iterator" and _are_direct(value):
            return [name, list(value)]
        return [name, [encode(v, other) for _, v in zip(range(MAX_ITEMS), value)]]
    if kind is complex:
        return ["complex", [value.real, value.imag]]
    if kind is range:
        return ["range", [value.start, value.stop, value.step]]
    if kind in (bytes, bytearray):
        return [kind.__name__, value.hex()]
    if kind in _AS_TEXT:
        name, text = _AS_TEXT[kind]
        return [name, text(value)]
    if kind is datetime.timedelta:
        return ["timedelta", [value.days, value.seconds, value.microseconds]]
    return _encode_other(value, other)


def _are_direct(items: Any) -> bool:
    """Whether all items have JSON types; found without a Python loop."""
    kinds = set(map(type, items))
    if int not in kinds or not kinds <= _JSON_TYPES | {int}:
        return kinds <= _JSON_TYPES
    ints = items if kinds <= {int, bool} else [v for v in items if type(v) is int]
    return min(ints) > -_SMALL and max(ints) < _SMALL


def _encode_other(value: Any, other: Callable[[Any], Any] | None) -> Any:
    kind = type(value)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)) and value.dtype.kind in "biufcSU":
        if not isinstance(value, numpy.ndarray):
            return encode(value.item())
        items = encode(value.tolist())
        return ["ndarray", items] if value.dtype.name in _USUAL_DTYPES else ["typed", [value.dtype.str, items]]
    pathlib: Any = sys.modules.get("pathlib")
    if pathlib is not None and isinstance(value, pathlib.PurePath):
        return ["path", str(value)]
    if other and (data := other(value)) is not None:
        return data
    for base in _BASES:
        if isinstance(value, base):
            return encode(base(value), other)
    if isinstance(value, type) or callable(value):
        return ["function", str(getattr(value, "__name__", kind.__name__))]
    if (attributes := attributes_of(value)) is None:
        return ["object", kind.__name__]
    return ["instance", [kind.__name__, [[k, encode(v, other)] for k, v in attributes.items()]]]


def attributes_of(value: Any) -> dict[str, Any] | None:
    """The attributes that define an object of a program's class; None where they do not define it."""
    enum: Any = sys.modules.get("enum")
    if enum is not None and isinstance(value, enum.Enum):
        return {"name": value.name, "value": value.value}
    if any(isinstance(vars(base).get("__new__"), types.BuiltinFunctionType) for base in type(value).__mro__[:-1]):
        return None  # a class written in C, or one derived from it: it holds more than its attributes
    names = [n for base in type(value).__mro__ for n in _names(getattr(base, "__slots__", ()))]
    if not names and not hasattr(value, "__dict__"):
        return None
    found = {n: getattr(value, n) for n in names if n != "__dict__" and hasattr(value, n)}
    return {str(k): v for k, v in (found | getattr(value, "__dict__", {})).items()}


def _names(slots: Any) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots)


def decode(value: Any, other: Callable[[str, Any], Any] | None = None) -> Any:
    """The inverse of `encode`. Raises ValueError, TypeError or ArithmeticError for data that `encode` does not make.

    Args:
        other: gives the value for a kind that is not plain; by default an Unplain.
    """
    if not isinstance(value, list):
        if isinstance(value, dict):
            raise ValueError("a JSON object is not an encoded value")
        return value
    kind, content = value
    if kind in _SEQUENCES:
        direct = isinstance(content, list) and not {list, dict} & set(map(type, content))
        return _SEQUENCES[kind](content if direct else [decode(v, other) for v in content])
    if kind in _MAPPINGS:
        return _MAPPINGS[kind]([(decode(k, other), decode(v, other)) for k, v in content])
    if kind in _FROM_TEXT:
        return _FROM_TEXT[kind](content)
    if kind == "complex":
        return complex(*content)
    if kind == "range":
        return range(*content)
    if kind == "timedelta":
        return datetime.timedelta(*content)
    if kind in ("ndarray", "typed"):
        return _decode_array(*(content if kind == "typed" else ("", content)))
    if kind == "path":
        return importlib.import_module("pathlib").PurePosixPath(content)
    if other:
        return other(kind, content)
    if kind == "instance":
        return Instance(str(content[0])[:80], {str(k): decode(v) for k, v in content[1]})
    return (Function if kind == "function" else Unplain)(str(content)[:80])


def _decode_array(dtype: str, items: Any) -> Any:
    """A NumPy array, or an Array where NumPy is not loaded."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return Array(decode(items))
    if dtype and not _DTYPE.fullmatch(dtype):
        raise ValueError("the dtype is not one of plain numbers or texts")
    array = numpy.array(decode(items), dtype or None)
    if array.dtype.kind == "O":
        raise ValueError("an array of objects is not a plain value")
    return array


def frame(value: Any, limit: int = MAX_FRAME) -> bytes:
    """A value's JSON with its length before it. Raises ValueError for more than `limit` bytes."""
    data = to_json(value).encode()
    if len(data) > limit:
        raise ValueError(f"the value has {len(data)} bytes; the limit is {limit}")
    return struct.pack("<I", len(data)) + data


def write_frame(fd: int, value: Any, limit: int = MAX_FRAME) -> None:
    """Raises ValueError for too large a value, OSError when the reader has gone."""
    _write(fd, frame(value, limit))


def write_bytes(fd: int, data: bytes) -> None:
    """A frame of any content. Raises ValueError for too large a frame, OSError when the reader has gone."""
    if len(data) > TRUSTED_FRAME:
        raise ValueError(f"a frame of {len(data)} bytes; the limit is {TRUSTED_FRAME}")
    _write(fd, struct.pack("<I", len(data)) + data)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_frame(fd: int, limit: int = MAX_FRAME) -> Any:
    """Raises EOFError at the end, ValueError for what is not a frame."""
    return parse(read_bytes(fd, limit))


def read_bytes(fd: int, limit: int = MAX_FRAME) -> bytes:
    """A frame's content. Raises EOFError at the end, ValueError for too large a frame."""
    (length,) = struct.unpack("<I", _read(fd, 4))
    if length > limit:
        raise ValueError(f"a frame of {length} bytes; the limit is {limit}")
    return _read(fd, length)


class FrameReader:
    """Assembles the frames that arrive in pieces from an untrusted process."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The frames that are now complete. Raises ValueError for what is not a frame."""
        self._data += data
        frames = []
        while len(self._data) >= 4:
            (length,) = struct.unpack_from("<I", self._data)
            if length > MAX_FRAME:
                raise ValueError(f"a frame of {length} bytes; the limit is {MAX_FRAME}")
            if len(self._data) < 4 + length:
                break
            frames.append(parse(bytes(self._data[4 : 4 + length])))
            del self._data[: 4 + length]
        return frames


def answer_frame(kind: bytes, content: Any) -> bytes:
    """An answer as `AnswersReader` takes it. Raises ValueError when it is too large."""
    data = kind + to_json(content).encode()
    if len(data) > MAX_FRAME:
        raise ValueError(f"the value has {len(data)} bytes; the limit is {MAX_FRAME}")
    return struct.pack("<I", len(data)) + data


class AnswersReader:
    """Reads the answers that an untrusted process has appended to a file so far."""

    def __init__(self, fd: int):
        self._fd, self._place = fd, 0

    def new(self) -> Iterator[bytes]:
        """The complete answers that are new. Raises ValueError for what is not a frame."""
        while len(head := os.pread(self._fd, 4, self._place)) == 4:
            (length,) = struct.unpack("<I", head)
            if not 0 < length <= MAX_FRAME:
                raise ValueError(f"an answer of {length} bytes; the limit is {MAX_FRAME}")
            data = os.pread(self._fd, length, self._place + 4)
            if len(data) < length:
                return
            self._place += 4 + length
            yield data


def written(*files: int) -> list[int]:
    """Bytes written to each file so far (all its writers share the offset); 0 for what is not a file."""
    counts = []
    for fd in files:
        try:
            counts.append(os.lseek(fd, 0, os.SEEK_CUR))
        except OSError:
            counts.append(0)
    return counts


def _read(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def parse(data: bytes) -> Any:
    """JSON from an untrusted process; any error is a ValueError."""
    try:
        return _from_json(data.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
