"""A program judged by stdin and stdout, run as `python program.py` runs it: by Python itself (see sandbox/boot).

Differences from a newly started Python: the hash seed is 0, TZ is UTC, `random` starts from the seed 0, and usual
modules are in `sys.modules` already.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import io
import os
import re
import sys
import types
from typing import Any, NoReturn, TextIO

from sandbox.isolation import PROGRAM, STDIN

_HIDDEN: list[str] = []  # names of the modules that a worker has loaded
_NEEDED = ("sys", "builtins", "__main__")
_COMPILE_ERRORS = ("SyntaxError", "IndentationError", "TabError", "RecursionError")
_HEADER = "Traceback (most recent call last):\n"
_CHANNEL = 3
_STARTED_WITH = sys.orig_argv[-1]  # the program's path, as named to the worker's Python
MAX_TRACEBACK = 1 << 20  # bytes of stderr beyond what the program may print
_FLUSH_C = ctypes.PyDLL(None).fflush  # of the C library's streams


class Handover(ImportError):
    """Ends the import of `sitecustomize` in which the worker lives; Python's site module lets this one pass."""

    def __init__(self) -> None:
        super().__init__("Python takes over", name="sitecustomize")


def only_usual_finders() -> None:
    """Removes what an environment's .pth files have added to the import system, which leads out of the jail."""
    usual = ("_frozen_importlib", "_frozen_importlib_external", "zipimport")
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__module__", "") in usual]
    sys.path_hooks[:] = [hook for hook in sys.path_hooks if getattr(hook, "__module__", "") in usual]
    sys.path_importer_cache.clear()


def prepare(worker: object) -> None:
    """Makes a worker's process ready for `hand_over` in its children.

    Freeing the worker's objects would write to almost every page of memory, each of which would be copied first. So a
    script's process never frees them: neither when it leaves the worker's frames nor at its end.
    """
    _HIDDEN.extend(name for name in sys.modules if name not in _NEEDED)
    kept = [worker, sys.modules[__name__] if __name__ in sys.modules else globals(), *sys.modules.values()]
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    atexit.register(_before_the_end)
    sys.path_importer_cache[_STARTED_WITH] = None  # as Python itself records that a file is not a folder of modules


def hand_over(code: str) -> NoReturn:
    """Makes `code` the program that this process' Python is about to run. Raises Handover."""
    fd = os.open("program.py", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    data = memoryview(code.encode("utf-8", "surrogatepass"))
    while data:
        data = data[os.write(fd, data) :]
    os.close(fd)
    os.close(_CHANNEL)
    if "/dev/" in code and _STARTED_WITH == PROGRAM:
        _copy_stdin()
    del sys.path[0]  # Python puts the program's folder there
    # A module made after the worker's gc.freeze(), so that Python frees at its end what is in it.
    module = types.ModuleType("__main__")
    vars(module).update(vars(sys.modules["__main__"]), __annotations__={})
    sys.modules["__main__"] = module
    raise Handover


def _copy_stdin() -> None:
    """For /dev/stdin and /dev/fd/0, which lead there: the links of Linux itself need /proc, which a jail lacks."""
    fd, place = os.open(STDIN, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644), 0
    with contextlib.suppress(OSError):  # larger than files may be
        while sent := os.sendfile(fd, 0, place, 1 << 20):
            place += sent
    os.close(fd)


def _before_the_end() -> None:
    """Runs after all of the program's own exit functions."""
    program = sys.modules["__main__"].__dict__
    # Python takes __file__ from a program that has ended without SystemExit, and notes an exception as sys.last_type.
    ended_well = "__file__" not in program and not hasattr(sys, "last_type")
    for name in _HIDDEN:
        sys.modules.pop(name, None)
    usual = sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__
    if ended_well and usual and type(sys.stdout) is type(sys.stderr) is io.TextIOWrapper:
        sys.__dict__["last"] = _Last(sys.stdout, sys.stderr)  # the dictionary that Python clears last but one


class _Last:
    """Python frees this one when nothing of the program's is left: what it would still do concerns only itself."""

    def __init__(self, *streams: TextIO):
        self.streams, self.flush_all, self.exit, self.errors = streams, _FLUSH_C, os._exit, Exception

    def __del__(self) -> None:
        try:
            for stream in self.streams:
                if not stream.closed:
                    stream.flush()
        except self.errors:  # Python continues, with its exit status for this case
            return
        self.flush_all(None)
        self.exit(0)


def length_without_traceback(stderr: bytes) -> int:
    """Bytes before a traceback, which 1,000 frames make longer than what a program may print."""
    start = stderr.find(_HEADER.encode())
    return start if start >= 0 else len(stderr)


def printed_exception(stderr: bytes) -> dict[str, Any] | None:
    """The exception that ended a program, from Python's output, as a claim; None if there is none.

    The program can print such text itself, and so choose between kinds of failure.
    """
    text = stderr.decode("utf-8", "replace")
    start = text.rfind(_HEADER)
    compiled = start < 0
    lines = text[max(start, 0) :].splitlines()
    found = [i for i, line in enumerate(lines) if re.match(r"[A-Za-z_][\w.]*(: |$)", line)]
    if not found:
        return None
    last = found[-1] if compiled else found[0]
    kind = lines[last].partition(":")[0].rpartition(".")[2]
    status = "memory" if kind.endswith("MemoryError") else "runtime_error"
    if compiled and kind not in _COMPILE_ERRORS:
        return None
    where = re.findall(r'File ".*?program\.py", line (\d+)', "\n".join(lines[:last]))
    place = f" (program.py, line {where[-1]})" if where else ""
    return {
        "type": kind,
        "status": "syntax_error" if compiled else status,
        "message": lines[last][:400] + place,
        "traceback": text[max(start, 0) :],
    }
