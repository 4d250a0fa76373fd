"""Runs a piece of the judge's own work in a forked process, so that data of a program can only cost that much."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from typing import Any


class OutOfBounds(Exception):
    """The work took more time or memory than it may."""


def bounded(work: Callable[[], Any], seconds: float, memory_mb: int) -> Any:
    """What `work` returns, which must be JSON data. Raises OutOfBounds, and RuntimeError if `work` raises.

    A comparison in C cannot be interrupted from within its process; this one ends with its process.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(work, theirs, memory_mb)
    os.close(theirs)
    data, deadline = bytearray(), time.monotonic() + seconds
    poll = select.poll()
    poll.register(ours, select.POLLIN)
    try:
        while poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            if not (part := os.read(ours, 1 << 16)):
                break
            data += part
        else:
            raise OutOfBounds("time")
    finally:
        os.close(ours)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not data:
        raise OutOfBounds("memory")
    result = json.loads(data)
    if "raised" in result:
        raise RuntimeError(result["raised"])
    return result["returned"]


def _child(work: Callable[[], Any], pipe: int, memory_mb: int) -> None:
    try:
        with open("/proc/self/statm") as f:
            size = int(f.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (memory_mb << 20), size + (memory_mb << 20)))
        try:
            data = json.dumps({"returned": work()})
        except MemoryError:
            os._exit(1)
        except BaseException as error:  # NeedsObject too
            data = json.dumps({"raised": f"{type(error).__name__}: {error}"[:500]})
        view = memoryview(data.encode())
        while view:
            view = view[os.write(pipe, view) :]
    finally:
        os._exit(1)
