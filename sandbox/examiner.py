"""The process that runs test code. It shares nothing with the candidate's process but a socket for plain values.

Names of the program that the test uses become proxies: a call travels to the candidate's process, its result comes
back as a copy made of Python's own types, and what the test then asserts is decided here. So the candidate can
patch, exit, search its memory or lie about equality as it likes: it can only answer with a value.

    proxy       functions of the program are called with and return plain values, iterators, functions
    objects     the test uses a class of the program's (a capitalized name): objects stay there, attributes and
                methods are asked for; two objects are equal only when they are the same one
    in_process  the test looks into the program's process (mock, inspect, ...) or hands it objects of its own classes:
                run there, after the program, with a nonce (sandbox/candidate.py); a weaker form, so the verdict says it
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import importlib
import os
import socket
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from sandbox.candidate import PURE_MODULES, failure
from sandbox.plain import EXAMINER_FRAME, TRUSTED_FRAME, Unplain, decode, encode, read_frame, write_frame

CANDIDATE, JUDGE = 3, 4  # file descriptors
MAX_SAID = 10_000  # characters that the candidate may say of its failures
_INSIDE = ("unittest.mock", "mock", "inspect", "gc", "dis", "ctypes", "importlib", "builtins")
_LITERALS = (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.UnaryOp, ast.USub, ast.Load)
# What test code may not use if it is to leave no trace in the process that runs it.
_IMPURE_NAMES = (
    "exec", "eval", "open", "compile", "input", "setattr", "delattr", "globals", "locals", "vars", "breakpoint",
    "__import__", "__builtins__", "getattr", "type", "super", "print", "help", "exit", "quit",
)  # fmt: skip


@functools.lru_cache(4096)
def looks_inside(code: str) -> bool:
    """Whether test code needs the program in its own process. Depends on the test only, never on the candidate."""
    if not any(name in code for name in ("mock", "inspect", "gc", "dis", "ctypes", "importlib", "builtins", "globals")):
        return False
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError):
        return False
    modules = [m for node in nodes for m in _modules(node)]
    inside = any(m == name or m.startswith(name + ".") for m in modules for name in _INSIDE)
    return inside or any(isinstance(node, ast.Name) and node.id == "globals" for node in nodes)


@functools.lru_cache(4096)
def leaves_no_trace(code: str) -> bool:
    """Whether test code can run in a process that stays for others: it imports only pure modules, sets nothing but
    its own names and items, and uses none of the ways around that."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError):
        return False
    for node in nodes:
        if any(m.partition(".")[0] not in PURE_MODULES for m in _modules(node)):
            return False
        if isinstance(node, ast.Name) and node.id in _IMPURE_NAMES:
            return False
        if isinstance(node, ast.Attribute) and (node.attr.startswith("__") or not isinstance(node.ctx, ast.Load)):
            return False
        if isinstance(node, (ast.ClassDef, ast.AsyncFunctionDef, ast.Global, ast.While)):
            return False
    return True


def _modules(node: ast.AST) -> list[str]:
    """The modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [a.name for a in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
    return []


class NeedsInProcess(BaseException):
    """The test hands the candidate something that is no plain value; not an Exception, so that tests let it pass."""


class CandidateEnded(BaseException):
    """Nobody answers any more: the candidate's process has ended, or sends what is no answer."""


def main() -> None:
    """Runs one program's tests."""
    _examine(CANDIDATE, JUDGE, read_frame(JUDGE, TRUSTED_FRAME))


def stand() -> None:
    """Runs the tests of many programs, one after the other; each time a socket to the candidate comes first."""
    judge = socket.socket(fileno=CANDIDATE)
    while True:
        data, fds, _, _ = socket.recv_fds(judge, 1, 1)
        if not data:
            return
        _examine(fds[0], CANDIDATE, read_frame(CANDIDATE, TRUSTED_FRAME))
        os.close(fds[0])


def _examine(candidate_fd: int, judge_fd: int, request: dict[str, Any]) -> None:
    """Sends the judge a result for each test."""
    candidate = Remote(candidate_fd)
    try:
        first = candidate.receive()
        if "loaded" not in first:
            failed = first.get("failed")
            failed = failed if isinstance(failed, dict) else {}
            cut = {key: str(failed.get(key, ""))[-MAX_SAID:] for key in ("status", "type", "message", "traceback")}
            write_frame(judge_fd, {"failed": cut, "done": True})
            return
        for test in request["tests"]:
            result = run_test(test, candidate)
            if result["status"] == "ended":
                break
            write_frame(judge_fd, result)
            if request["stop"] and result["status"] != "passed":
                break
    except CandidateEnded:
        pass
    write_frame(judge_fd, {"done": True})


def run_test(test: dict[str, Any], candidate: Remote) -> dict[str, Any]:
    """{"status", "form", ...}; status "ended" when the candidate's process has gone."""
    candidate.objects_used, candidate.last_call = False, ""
    try:
        compiled, names = _compiled(test["code"])
        scope = candidate.look(names)
        scope |= {"__name__": "test"}
        exec(compiled, scope)
        if test["type"] == "check":
            scope["check"](candidate.function(test["entry_point"]))
        result: dict[str, Any] = {"status": "passed"}
    except CandidateEnded:
        result = {"status": "ended"}
    except NeedsInProcess:
        result = {"status": "in_process"}
    except BaseException as error:
        result = failure(error)
        if isinstance(error, _FromCandidate):
            result |= {"traceback": error.traceback, "message": error.text}
        elif result["status"] == "wrong_answer" and candidate.last_call:
            result["call"] = candidate.last_call
    return result | {"form": "objects" if candidate.objects_used else "proxy"}


@functools.lru_cache(256)
def _compiled(code: str) -> tuple[types.CodeType, list[str]]:
    """The code, and the names that it must get from the program: those that it reads and does not set itself."""
    tree = ast.parse(code, "test.py")
    compiled = compile(tree, "test.py", "exec", dont_inherit=True)
    own = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    own |= {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    own |= {(a.asname or a.name).partition(".")[0] for n in ast.walk(tree) for a in getattr(n, "names", ())
            if isinstance(a, ast.alias)}  # fmt: skip
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    names = {n for n in read if not hasattr(builtins, n) and n not in own}
    return compiled, sorted(names | _tested_builtins(tree))


def _tested_builtins(tree: ast.AST) -> set[str]:
    """Builtins' names that a test must mean as the program's, as in `assert sum(10, 15) == 6`.

    Only where a builtin is called with literals, and nothing else is called at all: were a program's own `abs` or
    `all` taken for a test's, it could decide the test.
    """
    nodes = list(ast.walk(tree))
    called = {n.func.id if isinstance(n.func, ast.Name) else "" for n in nodes if isinstance(n, ast.Call)}
    if len(called) != 1 or not hasattr(builtins, next(iter(called))):
        return set()
    arguments = [a for n in nodes if isinstance(n, ast.Call) for a in (*n.args, *(k.value for k in n.keywords))]
    return called if all(isinstance(n, _LITERALS) for a in arguments for n in ast.walk(a)) else set()


class Remote:
    """The candidate's process as seen from here."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.callbacks: list[Callable[..., Any]] = []
        self.exceptions: dict[str, type[BaseException]] = {}
        self.objects_used = False
        self.last_call = ""

    def receive(self) -> dict[str, Any]:
        try:
            answer = read_frame(self.fd, EXAMINER_FRAME)
        except (EOFError, OSError, ValueError, MemoryError):
            raise CandidateEnded from None
        if not isinstance(answer, dict):
            raise CandidateEnded
        return answer

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises what the candidate raised, as an exception of the nearest builtin kind."""
        try:
            write_frame(self.fd, request, TRUSTED_FRAME)
        except OSError:
            raise CandidateEnded from None
        while "callback" in (answer := self.receive()):
            write_frame(self.fd, self._called_back(answer))
        if "error" in answer:
            raise self._exception(answer["error"])
        return answer

    def look(self, names: list[str]) -> dict[str, Any]:
        """What the program's names stand for, as proxies, modules and values."""
        kinds = self.ask({"look": names}).get("kinds", {}) if names else {}
        scope: dict[str, Any] = {}
        try:
            for name, (kind, content) in kinds.items():
                if name not in names:
                    continue
                if kind == "function" or (kind == "class" and not name[:1].isupper()):
                    scope[name] = self.function(name)
                elif kind == "class":
                    self.objects_used = True
                    scope[name] = RemoteClass(self, int(content[0]), name)
                elif kind == "exception":
                    scope[name] = self.exceptions[name] = type(name, (_builtin_exception([content[1]]),), {})
                elif kind == "module":
                    scope |= _imported(name, str(content))
                elif kind == "imported" and content[0] in PURE_MODULES:
                    value = getattr(importlib.import_module(content[0]), str(content[1]))
                    if getattr(value, "__module__", None) == content[0]:
                        scope[name] = value
                elif kind == "value":
                    scope[name] = self.decode(content)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
            raise CandidateEnded from None
        return scope

    def function(self, name: str) -> Callable[..., Any]:
        def proxy(*args: Any, **kwargs: Any) -> Any:
            return self.call(None, name, args, kwargs)

        proxy.__name__ = proxy.__qualname__ = name
        return proxy

    def call(self, on: int | None, name: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        encoded = [self.encode(a) for a in args]
        self.last_call = _call_text(name, args, kwargs)
        named = {k: self.encode(v) for k, v in kwargs.items()}
        answer = self.ask({"on": on, "call": name, "args": encoded, "kwargs": named, "keep": True})
        try:
            value = self.decode(answer["value"])
            for i, after in answer.get("changed", {}).items():
                _change(args[int(i)], self.decode(after))
        except (KeyError, ValueError, TypeError, ArithmeticError, RecursionError, AttributeError):
            raise CandidateEnded from None
        return value

    def encode(self, value: Any) -> Any:
        return encode(value, self._encode_other)

    def decode(self, value: Any) -> Any:
        return decode(value, self._decode_other)

    def _encode_other(self, value: Any) -> Any:
        if isinstance(value, (RemoteObject, RemoteClass, Opaque)):
            return ["handle", value._handle]
        if getattr(builtins, getattr(value, "__name__", ""), None) is value:
            return ["builtin", value.__name__]
        if callable(value) and not isinstance(value, type):
            self.callbacks.append(value)
            return ["callback", len(self.callbacks) - 1]
        raise NeedsInProcess

    def _decode_other(self, kind: str, content: Any) -> Any:
        number, name = int(content[0]), str(content[1])
        if kind == "stream":
            return self._stream(number)
        if kind == "function":
            return lambda *args, **kwargs: self.call(number, None, args, kwargs)
        if kind == "object" and self.objects_used:
            return RemoteObject(self, number, name)
        return Opaque(number, name)

    def _stream(self, number: int) -> Iterator[Any]:
        """The items of an iterator of the program's, which may have no end: asked for one by one, and many in parts."""
        taken = 0
        while items := self.decode(self.ask({"on": number, "take": max(1, min(taken // 16, 1 << 16))}).get("value")):
            yield from items
            taken += len(items)

    def _called_back(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            function = self.callbacks[request["callback"]]
            args = [self.decode(a) for a in request["args"]]
        except (KeyError, IndexError, ValueError, TypeError, ArithmeticError, RecursionError):
            raise CandidateEnded from None
        try:
            return {"value": self.encode(function(*args))}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"[:200]}

    def _exception(self, data: Any) -> BaseException:
        data = data if isinstance(data, dict) else {}
        name, text = str(data.get("type", "")), str(data.get("text", ""))
        base = self.exceptions.get(name) or _builtin_exception(data.get("bases"))
        kind = type(name or "Error", (_FromCandidate, base), {"__str__": lambda self: text})
        try:
            error = kind(*decode(data["args"]))
        except Exception:  # no arguments, or not those that a UnicodeDecodeError and its like insist on
            error = kind.__new__(kind, text)
        error.traceback, error.text = (str(data.get(key, ""))[-MAX_SAID:] for key in ("traceback", "message"))
        return error


class _FromCandidate:
    """Marks an exception that was raised by the program."""

    traceback = text = ""


class Opaque(Unplain):
    """An object of the program's where the test uses none of its classes: equal to nothing, without attributes."""

    def __init__(self, handle: int, kind: str):
        super().__init__(kind)
        self._handle = handle


class RemoteObject:
    """An object that stays in the candidate's process. Equality is identity; there is no ordering."""

    def __init__(self, remote: Remote, handle: int, kind: str):
        object.__setattr__(self, "_remote", remote)
        object.__setattr__(self, "_handle", handle)
        object.__setattr__(self, "_kind", kind)

    def __getattr__(self, name: str) -> Any:
        return self._remote.decode(self._remote.ask({"on": self._handle, "get": name}).get("value"))

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote.ask({"on": self._handle, "set": name, "value": self._remote.encode(value)})

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<{self._kind} object>"

    def __iter__(self) -> Iterator[Any]:
        items: Any = self._call("__iter__")  # an object that has __next__, or an iterator
        return items

    def __len__(self) -> int:
        try:
            return self._call("__len__")
        except AttributeError:  # what list() and bool() take for "has none"
            raise TypeError(f"object of type {self._kind!r} has no len()") from None

    def __bool__(self) -> bool:
        for name in ("__bool__", "__len__"):
            with contextlib.suppress(AttributeError):
                return bool(self._call(name))
        return True

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self._remote.call(self._handle, name, args, kwargs)


def _forward(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: self._call(name, *args, **kwargs)


def _arithmetic(name: str) -> Callable[..., Any]:
    """With a plain value it must give an object: the difference in abs(f(x) - 6.0) is not the program's to say."""

    def apply(self: RemoteObject, other: Any) -> Any:
        value = self._call(name, other)
        if not isinstance(value, RemoteObject) and not isinstance(other, RemoteObject):
            raise TypeError(f"{name} of a {self._kind} object and a {type(other).__name__} gave no object")
        return value

    return apply


for _name in ("call", "getitem", "setitem", "delitem", "str", "neg", "next"):
    setattr(RemoteObject, f"__{_name}__", _forward(f"__{_name}__"))
for _name in ("add", "sub", "mul", "truediv"):
    setattr(RemoteObject, f"__{_name}__", _arithmetic(f"__{_name}__"))


class RemoteClass(RemoteObject):
    """A class of the program's that the test names."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._remote.call(self._handle, None, args, kwargs)

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, RemoteObject) and value._kind == self._kind


def _imported(name: str, module: str) -> dict[str, Any]:
    """A module that the program has imported, as this process has it."""
    if module in sys.stdlib_module_names or module.partition(".")[0] in ("numpy", "scipy", "pandas"):
        try:
            return {name: importlib.import_module(module)}
        except ImportError:
            pass
    return {}


def _builtin_exception(names: Any) -> type[BaseException]:
    for name in names if isinstance(names, list) else ():
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, BaseExceptionGroup):
            return kind
    return Exception


def _change(value: Any, after: Any) -> None:
    """Makes an argument what the candidate has made of its copy."""
    if isinstance(value, (list, bytearray)):
        value[:] = after
    elif isinstance(value, (dict, set)):
        value.clear()
        value.update(after)
    elif hasattr(value, "extend"):
        value.clear()
        value.extend(after)


def _call_text(name: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    parts = [*map(_short, args), *(f"{k}={_short(v)}" for k, v in kwargs.items())]
    return f"{name or 'it'}({', '.join(parts)})"


def _short(value: Any, limit: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
