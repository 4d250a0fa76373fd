"""What runs in the process of a hostile program: the program, and what makes the calls of its tests.

Nothing here decides anything. What this process writes is a value to be compared elsewhere, or the claim to have
failed; it holds no test code and no expected value (except in the in-process form, which the verdict then names).
"""

from __future__ import annotations

import builtins
import contextlib
import io
import linecache
import marshal
import os
import signal
import sys
import types
from typing import Any

from sandbox import script
from sandbox.answers import answer_calls, report_printed
from sandbox.failure import failure
from sandbox.interpreter import interpret
from sandbox.plain import frame, write_frame, written
from sandbox.served import Server

CHANNEL, PROGRAM = 3, 4  # file descriptors


# Made before the fork, as is all that can be: what a fresh process makes or changes costs it a copy of each page.
_out, _err = (io.BufferedWriter(io.FileIO(fd, "w", closefd=False)) for fd in (1, 2))
_STDOUT = io.TextIOWrapper(_out, "utf-8", "surrogateescape")
_STDERR = io.TextIOWrapper(_err, "utf-8", "backslashreplace", line_buffering=True)
_LOADED = frame({"loaded": True})
_FRAMES = 23  # of the stack, which are not the program's own


def main(kind: str) -> None:
    """Reads the program and runs it as `kind`; never returns to what called it. Raises `script.Handover`."""
    size, data = os.fstat(PROGRAM).st_size, b""
    while len(data) < size:
        data += os.read(PROGRAM, size - len(data))
    os.close(PROGRAM)
    length = 8 + int.from_bytes(data[:8], "little")
    program: dict[str, Any] = marshal.loads(data[8:length])
    for name, text in program["files"].items():
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "w", encoding="utf-8", errors="surrogatepass") as f:
            f.write(text)
    if kind == "command":
        _execute(program)
    if kind == "script":
        script.hand_over(program["code"])
    sys.setrecursionlimit(1000 + _FRAMES)
    if kind == "calls":
        _calls(program["code"], data[length:])
    else:
        {"served": _served, "in_process": _in_process, "session": _session}[kind](program["code"])
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


def _calls(code: str, calls: bytes) -> None:
    """Makes the calls that came with the program."""
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = _STDOUT, _STDERR
    namespace, failed = _load(code, "program")
    reported = report_printed(CHANNEL, [0, 0])
    if failed:
        write_frame(CHANNEL, {"failed": failed})
        return
    os.write(CHANNEL, _LOADED)
    answer_calls(marshal.loads(calls), namespace, CHANNEL, reported)


def _served(code: str) -> None:
    """Answers an examiner."""
    namespace, failed = _load(code, "program")
    _flush()
    if failed:
        write_frame(CHANNEL, {"failed": failed})
        return
    write_frame(CHANNEL, {"loaded": True})
    Server(namespace, CHANNEL).serve()


def _in_process(code: str) -> None:
    """Program and test code in one process: for tests that look into the program's process itself.

    The tests come after the program has run, their builtins are those from before it, and each result carries a
    nonce that came with the tests. A program that prepares for exactly this form can still deceive it.
    """
    # Names of this module can be replaced by the program; these copies only by one that searches for them.
    read, loads, write, run, build, size = os.read, marshal.loads, os.write, exec, compile, len
    pristine, describe, unsettrace, unsetprofile = dict(vars(builtins)), failure, sys.settrace, sys.setprofile
    flush, printed = _flush, written

    def send(text: str) -> None:
        data = b'"' + text.encode("utf-8", "replace").hex().encode() + b'"'
        write(CHANNEL, size(data).to_bytes(4, "little") + data)

    namespace, failed = _load(code, "program")
    flush()
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
        flush()
        send(f"{nonce} {result['status']} {max(printed(1, 2))} {result.get('message', '')}")
        if stop and result["status"] != "passed":
            break
    send(f"{nonce} done 0 ")
    signal.pause()  # ended from outside, so that nothing runs at this process' exit


def _session(code: str) -> None:
    interpret(CHANNEL)


def _flush() -> None:
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
