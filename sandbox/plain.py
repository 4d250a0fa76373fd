"""Plain values as JSON, and the frames in which they travel between processes that do not trust each other.

Decoding builds only values of Python's own types, so whoever decodes runs no code of the sender.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import itertools
import json
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

# Bytes taken from a hostile process by the judge, by an examiner (whose own memory is limited), from one's own side.
MAX_FRAME, EXAMINER_FRAME, TRUSTED_FRAME = 8 << 20, 64 << 20, 1 << 30
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
# Made once: json.dumps with settings, and json.loads of bytes, prepare themselves anew in each call.
_to_json, _from_json = json.JSONEncoder(separators=(",", ":")).encode, json.JSONDecoder().decode
_BASES: tuple[type, ...] = (dict, list, tuple, set, frozenset, int, float, str)
MAX_ITEMS = 1 << 20  # taken from an iterator, which may have no end


class Unplain:
    """Stands for a value that is no plain data: equal to nothing but itself."""

    def __init__(self, kind: str):
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind} object>"


def is_iterator(value: Any) -> bool:
    """Whether it is plain data that is used up by reading it."""
    return _KINDS.get(type(value)) == "iterator" and hasattr(value, "__next__")


def encode(value: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """JSON data, exact in type: [kind, content] for anything but None, bool, ints below 2**63, float and str.

    Subclasses (namedtuple, IntEnum, ...) become their base; NumPy arrays and scalars lists and numbers.

    Args:
        other: gives the data for a value that is not plain; by default ["object", its type's name].
    """
    kind = type(value)
    if value is None or kind in (bool, float, str):
        return value
    if kind is int:
        return value if -_SMALL < value < _SMALL else ["int", hex(value)]
    if name := _KINDS.get(kind):
        if name in _MAPPINGS:
            return [name, [[encode(k, other), encode(v, other)] for k, v in value.items()]]
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
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)) and value.dtype.kind in "biufcSU":
        return ["ndarray", encode(value.tolist())] if isinstance(value, numpy.ndarray) else encode(value.item())
    for base in _BASES:
        if isinstance(value, base):
            return encode(base(value), other)
    return other(value) if other else ["object", kind.__name__]


def decode(value: Any, other: Callable[[str, Any], Any] | None = None) -> Any:
    """The inverse of `encode`. Raises ValueError, TypeError or ArithmeticError for data that `encode` does not make.

    Args:
        other: gives the value for a kind that is not plain; by default an Unplain.
    """
    if not isinstance(value, list):
        if isinstance(value, dict):
            raise ValueError("a JSON object is no encoded value")
        return value
    kind, content = value
    if kind in _SEQUENCES:
        return _SEQUENCES[kind]([decode(v, other) for v in content])
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
    if kind == "ndarray":
        numpy: Any = sys.modules.get("numpy")
        if numpy is None:
            return decode(content)
        array = numpy.array(decode(content))
        if array.dtype.kind == "O":
            raise ValueError("an array of objects is no plain value")
        return array
    return other(kind, content) if other else Unplain(str(content)[:80])


def frame(value: Any, limit: int = MAX_FRAME) -> bytes:
    """A value's JSON with its length before it. Raises ValueError for more than `limit` bytes."""
    data = _to_json(value).encode()
    if len(data) > limit:
        raise ValueError(f"the value has {len(data)} bytes; at most {limit} are taken")
    return struct.pack("<I", len(data)) + data


def write_frame(fd: int, value: Any, limit: int = MAX_FRAME) -> None:
    """Raises ValueError for too large a value, OSError when nobody reads."""
    data = memoryview(frame(value, limit))
    while data:
        data = data[os.write(fd, data) :]


def read_frame(fd: int, limit: int = MAX_FRAME) -> Any:
    """Raises EOFError at the end, ValueError for what is no frame."""
    (length,) = struct.unpack("<I", _read(fd, 4))
    if length > limit:
        raise ValueError(f"a frame of {length} bytes; at most {limit} are taken")
    return parse(_read(fd, length))


class FrameReader:
    """Puts together the frames that arrive in pieces from a process that is not trusted."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The frames that are now complete. Raises ValueError for what is no frame."""
        self._data += data
        frames = []
        while len(self._data) >= 4:
            (length,) = struct.unpack_from("<I", self._data)
            if length > MAX_FRAME:
                raise ValueError(f"a frame of {length} bytes; at most {MAX_FRAME} are taken")
            if len(self._data) < 4 + length:
                break
            frames.append(parse(bytes(self._data[4 : 4 + length])))
            del self._data[: 4 + length]
        return frames


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
    """JSON from a process that is not trusted: whatever is wrong with it is a ValueError."""
    try:
        return _from_json(data.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
