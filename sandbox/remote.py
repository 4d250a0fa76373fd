"""The program's process as an examiner's test sees it: functions to call, values, and objects that stay there.

Answers are decoded into Python's own types, so no code of the program runs here. Of an object that stays there a test
can read and set attributes, call it, and apply the operators of `OPERATIONS` in sandbox/served.py; its special methods
are never looked up by name. Equality is decided here: an object equals itself, and others of the same class and
attributes; a function or class equals itself alone. Objects have no order.
"""

from __future__ import annotations

import builtins
import io
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from sandbox.plain import MAX_FRAME, TRUSTED_FRAME, Instance, Unplain, decode, encode, read_frame, write_frame

MAX_FAILURE = 4000  # characters of the program's own description of a failure
DECODING_ERRORS = (KeyError, ValueError, TypeError, ArithmeticError, RecursionError, AttributeError, LookupError)


class NotPlain(BaseException):
    """The test passes the program what cannot leave its process; not an Exception, so that tests do not catch it."""


class CandidateEnded(BaseException):
    """The program's process has ended, or its message is not an answer."""


class FromCandidate:
    """Marks an exception that was raised by the program."""

    traceback = text = ""


class Remote:
    """The candidate's process as seen from here."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.callbacks: list[Callable[..., Any]] = []
        self.exceptions: dict[str, type[BaseException]] = {}
        self.objects: dict[tuple[str, int], RemoteObject] = {}  # by handle: what is one object there is one here
        self.last_call = ""
        self.describing = False  # objects for a message, which must not ask the program
        self.ended: BaseException | None = None  # what ends every test, also one that has caught it
        self.streams = sys.stdin, sys.stdout
        self.iterators: weakref.WeakKeyDictionary[Iterator[Any], int] = weakref.WeakKeyDictionary()  # their handles
        self.read_ahead: set[int] = set()  # handles of iterators of which the test does not have all that was taken

    def receive(self) -> dict[str, Any]:
        try:
            answer = read_frame(self.fd, MAX_FRAME)
        except (EOFError, OSError, ValueError, MemoryError):
            raise self._end() from None
        if not isinstance(answer, dict):
            raise self._end()
        return answer

    def _end(self, error: BaseException | None = None) -> BaseException:
        self.ended = self.ended or error or CandidateEnded()
        return self.ended

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises what the program raised, as an exception of the nearest kind that the test knows."""
        try:
            write_frame(self.fd, request, TRUSTED_FRAME)
        except OSError:
            raise self._end() from None
        while "callback" in (answer := self.receive()):
            called_back = self._called_back(answer)
            try:
                write_frame(self.fd, called_back)
            except OSError:
                raise self._end() from None
        if "error" in answer:
            raise self._exception(answer["error"])
        return answer

    def operate(self, operation: str, on: int, *args: Any) -> Any:
        answer = self.ask({"do": operation, "on": on, "args": [self.encode(a) for a in args]})
        return self._decoded(answer.get("value"))

    def look(self, names: list[str], handled: list[str]) -> dict[str, Any]:
        """What the program's names stand for. Those that the test handles as exceptions are classes of its own."""
        for name in handled:
            self.exceptions[name] = type(name, (Exception,), {})
        wanted = [name for name in names if name not in handled]
        values = self.ask({"do": "look", "names": wanted}).get("value") if wanted else {}
        if not isinstance(values, dict):
            raise self._end()
        scope = {name: self._decoded(values[name]) for name in wanted if name in values}
        return scope | {name: self.exceptions[name] for name in handled}

    def call(self, on: int, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = "") -> Any:
        self.describing = True
        try:
            self.last_call = _call_text(name, args, kwargs)
        finally:
            self.describing = False
        request = {"do": "call", "on": on, "args": [self.encode(a) for a in args]}
        request["kwargs"] = {k: self.encode(v) for k, v in kwargs.items()}
        answer = self.ask(request | self._streams())
        try:
            value = answer["value"]
            given = isinstance(value, list) and value[0] == "given"
            value = args[value[1]] if given else self.decode(value)
            for i, after in answer.get("changed", {}).items():
                _change(args[int(i)], self.decode(after))
            self._told(answer)
        except DECODING_ERRORS:
            raise self._end() from None
        return value

    def _streams(self) -> dict[str, Any]:
        """The test's stdin where it has set one, and whether it listens to what is printed."""
        streams: dict[str, Any] = {}
        if sys.stdin is not self.streams[0] and isinstance(sys.stdin, io.StringIO):
            place = sys.stdin.tell()
            streams["stdin"] = sys.stdin.read()
            sys.stdin.seek(place)
        if sys.stdout is not self.streams[1]:
            streams["captured"] = True
        return streams

    def _told(self, answer: dict[str, Any]) -> None:
        if isinstance(read := answer.get("read"), int) and isinstance(sys.stdin, io.StringIO) and read >= 0:
            sys.stdin.read(read)
        if isinstance(printed := answer.get("printed"), str):
            sys.stdout.write(printed)

    def encode(self, value: Any) -> Any:
        if isinstance(value, types.GeneratorType) and self.iterators.get(value, -1) not in {-1, *self.read_ahead}:
            return ["handle", self.iterators[value]]
        return encode(value, self._encode_other)

    def decode(self, value: Any) -> Any:
        return decode(value, self._decode_other)

    def _decoded(self, value: Any) -> Any:
        try:
            return self.decode(value)
        except DECODING_ERRORS:
            raise self._end() from None

    def _encode_other(self, value: Any) -> Any:
        if isinstance(value, RemoteObject):
            return ["handle", value._handle]
        if getattr(builtins, getattr(value, "__name__", ""), None) is value:
            return ["builtin", value.__name__]
        if isinstance(value, type) and value.__module__ not in ("test", "__main__"):
            # Perhaps the class of what the program gave: it must not choose that its test is broken.
            raise TypeError(f"the test hands the program the class {value.__name__}; {_IN_PROCESS}")
        if isinstance(value, type):
            raise self._end(NotPlain(f"the test hands the program its own class {value.__name__}; {_IN_PROCESS}"))
        if callable(value):
            self.callbacks.append(value)
            return ["callback", len(self.callbacks) - 1]
        if type(value).__module__ in ("test", "__main__"):
            text = f"the test hands the program an object of its own class {type(value).__name__}; {_IN_PROCESS}"
            raise self._end(NotPlain(text))
        return None

    def _decode_other(self, kind: str, content: Any) -> Any:
        if kind == "namedtuple":
            name, fields, items = content
            return Named(str(name), [str(f) for f in fields], [self.decode(v) for v in items])
        if kind == "instance":
            return Instance(str(content[0])[:80], {str(k): self.decode(v) for k, v in content[1]})
        if kind not in ("stream", "function", "class", "object"):
            return Unplain(str(content)[:80])
        number, name = int(content[0]), str(content[1])
        if kind == "stream":
            stream = self._stream(number)
            self.iterators[stream] = number
            return stream
        made = {"function": RemoteFunction, "class": RemoteClass, "object": RemoteObject}[kind]
        if (kind, number) not in self.objects:
            self.objects[kind, number] = made(self, number, str(content[2]) if kind == "class" else name)
        return self.objects[kind, number]

    def _stream(self, number: int) -> Iterator[Any]:
        """The items of a (possibly endless) iterator of the program: requested one by one at first, then in batches."""
        taken, count = 0, 1
        while items := self.operate("take", number, count):
            yield from items
            taken += len(items)
            if (count := max(1, min(taken // 16, 1 << 16))) > 1:
                self.read_ahead.add(number)

    def _called_back(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            function = self.callbacks[request["callback"]]
            args = [self.decode(a) for a in request["args"]]
        except DECODING_ERRORS:
            raise self._end() from None
        try:
            return {"value": self.encode(function(*args))}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"[:200]}

    def _exception(self, data: Any) -> BaseException:
        data = data if isinstance(data, dict) else {}
        names = [str(n)[:100] for n in data["bases"]] if isinstance(data.get("bases"), list) else []
        text = str(data.get("text", ""))[:MAX_FAILURE]
        base = next((self.exceptions[n] for n in names if n in self.exceptions), None) or _builtin_exception(names)
        kind = type(names[0] if names else "Error", (FromCandidate, base), {"__str__": lambda self: text})
        try:
            error = kind(*decode(data["args"]))
        except Exception:  # no arguments, or not those that a UnicodeDecodeError and its like insist on
            error = kind.__new__(kind, text)
        error.traceback, error.text = (str(data.get(key, ""))[-MAX_FAILURE:] for key in ("traceback", "message"))
        return error


_IN_PROCESS = 'a test that needs this must say form="in_process"'


class Named(tuple):
    """A namedtuple of the program's: a tuple whose items have names as well."""

    def __new__(cls, name: str, fields: list[str], items: list[Any]) -> Named:
        made = super().__new__(cls, items)
        made.__dict__.update({"_fields": tuple(fields), "_name": name})
        return made

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_fields", ()):
            return self[self._fields.index(name)]
        raise AttributeError(f"{self._name!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"{self._name}({', '.join(f'{f}={v!r}' for f, v in zip(self._fields, self))})"


class RemoteObject:
    """An object that stays in the program's process."""

    def __init__(self, remote: Remote, handle: int, kind: str):
        for name, value in (("_remote", remote), ("_handle", handle), ("_kind", kind)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"{self._kind!r} object has no attribute {name!r}")
        return self._remote.operate("get", self._handle, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote.operate("set", self._handle, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._remote.call(self._handle, args, kwargs, self._kind)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RemoteObject):
            return False
        same, by_itself = self._handle == other._handle, isinstance(self, (RemoteFunction, RemoteClass))
        if same or by_itself or self._kind != other._kind:
            return same
        mine, theirs = (o._remote.operate("attributes", o._handle) for o in (self, other))
        return mine is not None and bool(mine == theirs)

    def __hash__(self) -> int:
        return hash(self._handle)

    def __repr__(self) -> str:
        return f"<{self._kind} object>" if self._remote.describing else self._remote.operate("repr", self._handle)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._remote.operate("iter", self._handle)
        return _Items(iterator) if isinstance(iterator, RemoteObject) else iter(iterator)

    def __len__(self) -> int:
        return self._remote.operate("len", self._handle)

    def __bool__(self) -> bool:
        return self._remote.operate("bool", self._handle) is True

    def __exit__(self, *_: object) -> bool:
        return bool(self._remote.operate("exit", self._handle))


class _Items:
    """An iterator that stays there."""

    def __init__(self, iterator: RemoteObject):
        self.iterator = iterator

    def __iter__(self) -> _Items:
        return self

    def __next__(self) -> Any:
        return next(self.iterator)  # type: ignore[call-overload]


def _operator(name: str, of_plain: bool = True) -> Callable[..., Any]:
    def apply(self: RemoteObject, *args: Any) -> Any:
        value = self._remote.operate(name, self._handle, *args)
        if not of_plain and not isinstance(value, RemoteObject) and not isinstance(args[0], RemoteObject):
            # The difference in abs(f(x) - 6.0) is not the program's to say.
            raise TypeError(f"{name} of a {self._kind} object and a {type(args[0]).__name__} gave no object")
        return value

    return apply


for _name in ("getitem", "setitem", "delitem", "str", "int", "float", "neg", "next", "enter"):
    setattr(RemoteObject, f"__{_name}__", _operator(_name))
for _name in ("add", "sub", "mul", "truediv"):
    setattr(RemoteObject, f"__{_name}__", _operator(_name, of_plain=False))


class RemoteFunction(RemoteObject):
    """A function of the program's."""


class RemoteClass(RemoteObject):
    """A class of the program's."""

    @property
    def __name__(self) -> str:
        return self._kind

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, RemoteObject) and self._remote.operate("isinstance", value._handle, self) is True


def type_of(value: Any) -> Any:
    """What `type` means to a test."""
    return value._remote.operate("type", value._handle) if isinstance(value, RemoteObject) else type(value)


def _builtin_exception(names: list[str]) -> type[BaseException]:
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, BaseExceptionGroup):
            return kind
    return Exception


def _change(value: Any, after: Any) -> None:
    """Makes an argument what the program has made of its copy."""
    if isinstance(value, (list, bytearray)):
        value[:] = after
    elif isinstance(value, (dict, set)):
        value.clear()
        value.update(after)
    elif hasattr(value, "extend"):
        value.clear()
        value.extend(after)


def _call_text(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    parts = [*map(_short, args), *(f"{k}={_short(v)}" for k, v in kwargs.items())]
    return f"{name or 'it'}({', '.join(parts)})"


def _short(value: Any, limit: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
