"""In the process of a hostile program: does for an examiner what its test asks, one request at a time.

The examiner (sandbox/examiner.py) has the test; this process has the program. Requests are of a fixed set: look
names up, call something, apply an operator, read or set an attribute. Answers are plain values, or handles of objects
that stay here. Nothing is decided here.

    {"do": "look", "names"}                                        what the program's names stand for
    {"do": "call", "on", "args", "kwargs", "stdin", "captured"}    `on` is a handle
    {"do": OPERATION, "on", "args"}                                see OPERATIONS
"""

from __future__ import annotations

import builtins
import contextlib
import io
import itertools
import operator
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from sandbox.answers import find
from sandbox.failure import failure
from sandbox.plain import MAX_FRAME, TRUSTED_FRAME, attributes_of, decode, encode, is_iterator, read_frame, write_frame

_MUTABLE = ("list", "dict", "set", "bytearray", "deque", "Counter", "OrderedDict", "defaultdict")
OPERATIONS: dict[str, Callable[..., Any]] = {
    "get": getattr, "set": setattr, "len": len, "bool": bool, "str": str, "int": int, "float": float, "iter": iter,
    "next": next, "isinstance": isinstance, "neg": operator.neg, "getitem": operator.getitem,
    "setitem": operator.setitem, "delitem": operator.delitem, "add": operator.add, "sub": operator.sub,
    "mul": operator.mul, "truediv": operator.truediv, "attributes": attributes_of, "type": type, "repr": repr,
    "enter": lambda value: value.__enter__(), "exit": lambda value: value.__exit__(None, None, None),
}  # fmt: skip


class Server:
    """Answers one examiner through a socket until nobody asks any more."""

    def __init__(self, namespace: dict[str, Any], channel: int):
        self.namespace, self.channel = namespace, channel
        self.objects: list[Any] = []  # what was given out, by handle
        self.handles: dict[tuple[int, ...], int] = {}

    def serve(self) -> None:
        with contextlib.suppress(EOFError):
            while True:
                self.respond(read_frame(self.channel, TRUSTED_FRAME))

    def respond(self, request: dict[str, Any]) -> None:
        try:
            answer = self.answer(request)
        except BaseException as error:
            answer = {"error": failure(error)}
            with contextlib.suppress(BaseException):  # a KeyError's key, an OSError's number
                answer["error"]["args"] = encode(error.args)
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        try:
            write_frame(self.channel, answer, MAX_FRAME)
        except ValueError as error:
            write_frame(self.channel, {"error": failure(error)})

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "look":
            names = [n for n in request["names"] if _has(self.namespace, n)]
            return {"value": {name: self.encode(find(self.namespace, name)) for name in names}}
        on = request["on"]
        owner = self.objects[on]
        args = [decode(a, self.from_examiner) for a in request["args"]]
        if request["do"] == "take":
            return {"value": self.encode(self.take(on, *args))}
        if request["do"] != "call":
            return {"value": self.encode(OPERATIONS[request["do"]](owner, *args))}
        kwargs = {k: decode(v, self.from_examiner) for k, v in request["kwargs"].items()}
        with _Streams(request) as streams:
            result = owner(*args, **kwargs)
        return {"value": self.result(result, args), "changed": self.changed(request["args"], args), **streams.used}

    def result(self, value: Any, args: list[Any]) -> Any:
        """A call's value; an argument that is handed back is the test's own object."""
        for i, given in enumerate(args):
            if value is given and isinstance(value, (list, dict, set, bytearray)):
                return ["given", i]
        return ["stream", [self.handle(value), ""]] if is_iterator(value) else self.encode(value)

    def changed(self, given: list[Any], now: list[Any]) -> dict[str, Any]:
        """The arguments that the call has changed, by position."""
        changed = {}
        for i, (before, value) in enumerate(zip(given, now)):
            if isinstance(before, list) and before[0] in _MUTABLE and (after := self.encode(value)) != before:
                changed[str(i)] = after
        return changed

    def take(self, number: int, count: int) -> list[Any]:
        """The next items of an iterator, `count` at most; an error after some of them is raised the next time."""
        items: list[Any] = []
        try:
            for item in itertools.islice(self.objects[number], count):
                items.append(item)
        except Exception as error:
            if not items:
                raise
            self.objects[number] = _raising(error)
        return items

    def encode(self, value: Any) -> Any:
        return encode(value, self.encode_other)

    def encode_other(self, value: Any) -> Any:
        """For values of other types than Python's own: a namedtuple, a handle, or None for what has a plain base."""
        kind = type(value)
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return ["namedtuple", [kind.__name__, list(kind._fields), [self.encode(v) for v in value]]]
        if isinstance(value, (dict, list, tuple, set, frozenset, int, float, str)):
            return None
        if isinstance(value, type):
            return ["class", [self.handle(value), kind.__name__, value.__name__]]
        plain_callables = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
        is_function = isinstance(value, plain_callables) or hasattr(value, "__wrapped__")
        return ["function" if is_function else "object", [self.handle(value), kind.__name__]]

    def handle(self, value: Any) -> int:
        """The same number for the same object, which is kept alive; a method is made anew each time it is read."""
        is_method = isinstance(value, types.MethodType)
        key = (id(value.__self__), id(value.__func__)) if is_method else (id(value),)
        if key not in self.handles:
            self.objects.append(value)
            self.handles[key] = len(self.objects) - 1
        return self.handles[key]

    def from_examiner(self, kind: str, content: Any) -> Any:
        if kind == "builtin":
            return getattr(builtins, content)
        if kind == "callback":
            return lambda *args: self.call_back(content, args)
        return self.objects[content]

    def call_back(self, number: int, args: tuple[Any, ...]) -> Any:
        """Calls a function of the test's from within a call by the test; that function may call this process again."""
        write_frame(self.channel, {"callback": number, "args": [self.encode(a) for a in args]})
        while "do" in (answer := read_frame(self.channel, TRUSTED_FRAME)):
            self.respond(answer)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return decode(answer["value"], self.from_examiner)


class _Streams:
    """During one call: the test's stdin, where it has set one, and what was printed, where it listens."""

    def __init__(self, request: dict[str, Any]):
        self.stdin, self.captured = request.get("stdin"), request.get("captured")
        self.used: dict[str, Any] = {}

    def __enter__(self) -> _Streams:
        self.before = sys.stdin, sys.stdout
        if self.stdin is not None:
            sys.stdin = self.given = io.StringIO(self.stdin)
        if self.captured:
            sys.stdout = self.printed = io.StringIO()
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdin, sys.stdout = self.before
        if self.stdin is not None:
            self.used["read"] = self.given.tell()
        if self.captured:
            self.used["printed"] = self.printed.getvalue()


def _has(namespace: dict[str, Any], name: str) -> bool:
    with contextlib.suppress(NameError):
        find(namespace, name)
        return True
    return False


def _raising(error: Exception) -> Iterator[Any]:
    raise error
    yield
