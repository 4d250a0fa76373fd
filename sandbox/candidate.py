"""What runs in the process of a hostile program: the program, and a loop that answers calls with plain values.

Nothing here decides anything. Whatever this process says is a value to be compared elsewhere, or the claim to have
failed; it holds no test code and no expected value (but for the in-process form, which the verdict then names).
"""

from __future__ import annotations

import ast
import atexit
import builtins
import contextlib
import itertools
import linecache
import marshal
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any

from sandbox.plain import EXAMINER_FRAME, MAX_FRAME, TRUSTED_FRAME, decode, encode, is_iterator, read_frame, write_frame

CHANNEL, PROGRAM = 3, 4  # file descriptors
# Modules whose functions and classes an examiner can use instead of the program's: they leave no trace in a process.
PURE_MODULES = (
    "math", "cmath", "itertools", "functools", "collections", "string", "re", "heapq", "_heapq", "bisect", "_bisect",
    "copy", "json", "fractions", "datetime", "typing", "operator", "_operator", "statistics",
)  # fmt: skip
MAX_MESSAGE, MAX_TRACEBACK, MAX_VALUE = 500, 4000, 1 << 20  # characters
_SANDBOX = os.path.dirname(os.path.abspath(__file__))
_MUTABLE = ("list", "dict", "set", "bytearray", "deque", "Counter", "OrderedDict", "defaultdict")


def prepare() -> None:
    """Makes the standard streams anew, once for all programs: they write to whatever is descriptor 0, 1, 2."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)


def main(kind: str) -> None:
    """Reads the program and runs it as `kind`; never returns to what called it."""
    data = b""
    while part := os.read(PROGRAM, 1 << 20):
        data += part
    os.close(PROGRAM)
    program = marshal.loads(data)
    for name, text in program["files"].items():
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "w", encoding="utf-8", errors="surrogatepass") as f:
            f.write(text)
    if kind == "command":
        _execute(program)
    {"script": _script, "functions": _functions, "in_process": _in_process, "session": _session}[kind](program["code"])
    os._exit(0)


def _execute(program: dict[str, Any]) -> None:
    command = [part.replace("{filename}", program["filename"]) for part in program["command"]]
    with open(program["filename"], "w", encoding="utf-8", errors="surrogatepass") as f:
        f.write(program["code"])
    try:
        os.execvp(command[0], command)
    except OSError as error:
        write_frame(CHANNEL, {"no_command": f"{command[0]}: {error.strerror}"})
        os._exit(127)


def _load(code: str, module_name: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Runs the program; its namespace, and the failure if there was one."""
    module = types.ModuleType(module_name)
    sys.modules[module_name] = module
    linecache.cache["program.py"] = (len(code), None, code.splitlines(keepends=True), "program.py")
    try:
        compiled = compile(code, "program.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return module.__dict__, failure(error) | {"status": "syntax_error"}
    try:
        exec(compiled, module.__dict__)
    except BaseException as error:
        return module.__dict__, failure(error)
    return module.__dict__, None


def _script(code: str) -> None:
    """The program as `__main__`, with what Python does at its end; the exit status tells the rest."""
    _, failed = _load(code, "__main__")
    exit_code = 0
    if failed and failed["type"] == "SystemExit" and failed["exit_code"] is not None:
        exit_code, failed = failed["exit_code"], None
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException as error:
        failed = failed or failure(error)
    if failed:
        with contextlib.suppress(OSError, ValueError):
            write_frame(CHANNEL, {"failed": failed})
            sys.stderr.write(failed["traceback"])
            sys.stderr.flush()
        exit_code = 1
    os._exit(exit_code)


def _functions(code: str) -> None:
    """Answers calls until nobody asks any more."""
    namespace, failed = _load(code, "program")
    if failed:
        _flush()
        write_frame(CHANNEL, {"failed": failed})
        return
    write_frame(CHANNEL, {"loaded": True})
    objects: list[Any] = []  # what was given out as a handle
    with contextlib.suppress(EOFError):
        while True:
            request = read_frame(CHANNEL, TRUSTED_FRAME)
            try:
                answer = _answer(request, namespace, objects)
            except BaseException as error:
                answer = {"error": failure(error)}
                with contextlib.suppress(BaseException):  # a KeyError's key, an OSError's number
                    answer["error"]["args"] = encode(error.args)
            _flush()
            try:
                write_frame(CHANNEL, answer, EXAMINER_FRAME if request.get("keep") else MAX_FRAME)
            except ValueError as error:
                write_frame(CHANNEL, {"error": failure(error)})


def _answer(request: dict[str, Any], namespace: dict[str, Any], objects: list[Any]) -> dict[str, Any]:
    def handle(value: Any) -> Any:
        objects.append(value)
        return [_handle_kind(value), [len(objects) - 1, type(value).__name__]]

    def from_examiner(kind: str, content: Any) -> Any:
        if kind == "builtin":
            return getattr(builtins, content)
        if kind == "callback":
            return lambda *args: _call_back(content, args, handle)
        return objects[content]

    if "look" in request:
        return {"kinds": {name: _kind(namespace[name], handle) for name in request["look"] if name in namespace}}
    owner = objects[request["on"]] if request.get("on") is not None else None
    if "get" in request:
        return {"value": encode(getattr(owner, request["get"]), handle)}
    if "take" in request:
        return {"value": encode(_take(objects, request["on"], request["take"]), handle)}
    if "set" in request:
        setattr(owner, request["set"], decode(request["value"], from_examiner))
        return {"value": None}
    args = [decode(a, from_examiner) for a in request["args"]]
    kwargs = {k: decode(v, from_examiner) for k, v in request["kwargs"].items()}
    name = request["call"]
    if owner is None:
        function = namespace[name]
    else:
        function = owner if name is None else getattr(owner, name)
    result = function(*args, **kwargs)
    if request.get("keep") and is_iterator(result):
        value = ["stream", handle(result)[1]]
    else:
        value = encode(result, handle)
    if not request.get("keep"):
        return {"value": value}
    changed: dict[str, Any] = {}
    for i, (given, now) in enumerate(zip(request["args"], args)):
        if isinstance(given, list) and given[0] in _MUTABLE and (after := encode(now, handle)) != given:
            changed[str(i)] = after
    return {"value": value, "changed": changed}


def _take(objects: list[Any], number: int, count: int) -> list[Any]:
    """The next items of an iterator, `count` at most; an error after some of them is raised the next time."""
    items: list[Any] = []
    try:
        for item in itertools.islice(objects[number], count):
            items.append(item)
    except Exception as error:
        if not items:
            raise
        objects[number] = _raising(error)
    return items


def _raising(error: Exception) -> Iterator[Any]:
    raise error
    yield


def _handle_kind(value: Any) -> str:
    if isinstance(value, type):
        return "class"
    plain_callables = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
    return "function" if isinstance(value, plain_callables) or hasattr(value, "__wrapped__") else "object"


def _kind(value: Any, handle: Callable[[Any], Any]) -> Any:
    """What a name of the program stands for."""
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    home, name = getattr(value, "__module__", None), getattr(value, "__name__", "")
    if home in PURE_MODULES and getattr(sys.modules.get(home), name, None) is value:
        return ["imported", [home, name]]
    if isinstance(value, type):
        bases = [base.__name__ for base in value.__mro__ if base.__module__ == "builtins"]
        return ["exception" if issubclass(value, BaseException) else "class", [handle(value)[1][0], bases[0]]]
    if callable(value):
        return ["function", None]
    return ["value", encode(value, handle)]


def _call_back(number: int, args: tuple[Any, ...], handle: Callable[[Any], Any]) -> Any:
    """Calls a function of the test's from within a call by the test."""
    write_frame(CHANNEL, {"callback": number, "args": [encode(a, handle) for a in args]})
    answer = read_frame(CHANNEL, TRUSTED_FRAME)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return decode(answer["value"])


def _in_process(code: str) -> None:
    """Program and test code in one process: for tests that look into the program's process itself.

    The tests come after the program has run, their builtins are those from before it, and each result carries a
    nonce that came with the tests. A program that prepares for exactly this form can still deceive it.
    """
    # Names of this module can be replaced by the program; these copies only by one that searches for them.
    read, loads, write, run, build, size = os.read, marshal.loads, os.write, exec, compile, len
    pristine, describe, unsettrace, unsetprofile = dict(vars(builtins)), failure, sys.settrace, sys.setprofile

    def send(text: str) -> None:
        data = b'"' + text.encode("utf-8", "replace").hex().encode() + b'"'
        write(CHANNEL, size(data).to_bytes(4, "little") + data)

    namespace, failed = _load(code, "program")
    if failed:
        write_frame(CHANNEL, {"failed": failed})
        return
    write(CHANNEL, b'\x0f\0\0\0{"loaded":true}')
    length, data = int.from_bytes(read(CHANNEL, 4), "little"), b""
    while size(data) < length:
        data += read(CHANNEL, 1 << 20)
    nonce, tests, stop = loads(data)
    for test in tests:
        unsettrace(None)
        unsetprofile(None)
        result = {"status": "passed"}
        try:
            scope = {**namespace, "__builtins__": pristine, "__name__": "test"}
            run(build(test["code"], "test.py", "exec", dont_inherit=True), scope)
            if test["type"] == "check":
                scope["check"](namespace[test["entry_point"]])
        except BaseException as error:
            result = describe(error)
        send(f"{nonce} {result['status']} {result.get('message', '')}")
        if stop and result["status"] != "passed":
            break
    send(f"{nonce} done ")
    signal.pause()  # ended from outside, so that nothing runs at this process' exit


def _session(code: str) -> None:
    """A read-eval-print loop over the channel; variables live from call to call."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    write_frame(CHANNEL, {"loaded": True})
    number = 0
    with contextlib.suppress(EOFError):
        while True:
            request = read_frame(CHANNEL, TRUSTED_FRAME)
            number += 1
            try:
                answer = _evaluate(request["code"], f"<call {number}>", module.__dict__)
            except BaseException as error:  # an interrupt that came late, between two statements of this loop
                answer = {"failed": failure(error)}
            with contextlib.suppress(BaseException):
                _flush()
            write_frame(CHANNEL, answer)


def _evaluate(code: str, filename: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """{"value": repr of the last expression's value, or None} or {"failed": ...}."""
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    try:
        tree = ast.parse(code, filename)
        last = tree.body[-1] if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        tree.body = tree.body[:-1] if last else tree.body
        statements = compile(tree, filename, "exec", dont_inherit=True)
        expression = compile(ast.Expression(last.value), filename, "eval") if isinstance(last, ast.Expr) else None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return {"failed": failure(error) | {"status": "syntax_error"}}
    try:
        exec(statements, namespace)
        value = eval(expression, namespace) if expression else None
        if value is not None:
            namespace["_"] = value
        return {"value": None if value is None else _cut(repr(value))}
    except BaseException as error:
        return {"failed": failure(error)}


def _cut(text: str) -> str:
    """What is surely taken as an answer: the beginning and the end."""
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE // 2] + "..." + text[-MAX_VALUE // 2 :]


def failure(error: BaseException) -> dict[str, Any]:
    """What was raised: a status, a message with the place, the traceback without the sandbox's own frames."""
    statuses = {MemoryError: "memory", AssertionError: "wrong_answer"}
    kind = type(error)
    data: dict[str, Any] = {"type": kind.__name__, "status": "runtime_error", "message": kind.__name__, "traceback": ""}
    data["status"] = next((s for e, s in statuses.items() if issubclass(kind, e)), "runtime_error")
    data["bases"] = [base.__name__ for base in kind.__mro__ if base.__module__ == "builtins"]
    if isinstance(error, SystemExit):
        code = error.code
        data["exit_code"] = 0 if code is None else code & 0xFF if isinstance(code, int) else None
    with contextlib.suppress(BaseException):
        data["text"] = str(error)[:MAX_MESSAGE]
        own = [f for f in traceback.extract_tb(error.__traceback__) if os.path.dirname(f.filename) != _SANDBOX]
        last = traceback.format_exception_only(error)
        where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        data["message"] = (last[-1].strip()[: MAX_MESSAGE - 100] or kind.__name__) + where
        head = "Traceback (most recent call last):\n" if own else ""
        data["traceback"] = (head + "".join(traceback.format_list(own) + last))[-MAX_TRACEBACK:]
    return data


def _flush() -> None:
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
