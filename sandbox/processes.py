"""What a worker sees of its run's processes, through a descriptor of the host's /proc: its jail has none.

Numbers of processes are those of the host.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterable

# Memory that is a process' own. The pages of programs and libraries, which processes share, do not count.
_RESIDENT = re.compile(rb"^Rss(?:Anon|Shmem):\s+(\d+)", re.M)
_PROPORTIONAL = re.compile(rb"^Pss_(?:Anon|Shmem):\s+(\d+)", re.M)


def descendants(proc: int) -> list[int]:
    """All living processes below the caller."""
    found: list[int] = []
    waiting = ["self"]
    while waiting:
        folder = f"{waiting.pop()}/task"
        with contextlib.suppress(OSError):
            for task in _names(proc, folder):
                children = _read(proc, f"{folder}/{task}/children").split()
                found += map(int, children)
                waiting += [child.decode() for child in children]
    return found


def kill_descendants(proc: int) -> None:
    """Sends SIGKILL to all processes below the caller, however fast they fork.

    They are stopped first, pass after pass until a pass finds nothing new. A stopped process cannot fork, and at the
    process limit nothing can start until something ends.
    """
    stopped: set[int] = set()
    while new := set(descendants(proc)) - stopped:
        signal_all(new, signal.SIGSTOP)
        stopped |= new
    signal_all(stopped, signal.SIGKILL)


def signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def threads_of_all(proc: int) -> int:
    """Threads of all users on this machine, now."""
    return int(_read(proc, "loadavg").split()[3].split(b"/")[1])


def memory_kb(proc: int, at_most_kb: int) -> int:
    """Of all processes below the caller together, each page once where that is more than `at_most_kb` otherwise."""
    pids = descendants(proc)
    total = sum(_sum(proc, f"{pid}/status", _RESIDENT) for pid in pids)
    if total <= at_most_kb:
        return total
    # Pages that a process shares with its forks count for each above. The exact sum takes milliseconds.
    exact = [_sum(proc, f"{pid}/smaps_rollup", _PROPORTIONAL) for pid in pids]
    return sum(exact) if all(exact) else total


def visible(proc: int) -> bool:
    """Whether a child of the caller, made for this, can be seen."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        return any(_sum(proc, f"{child}/status", _RESIDENT) for child in descendants(proc))
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def _sum(proc: int, path: str, pattern: re.Pattern[bytes]) -> int:
    """0 for a process that has ended, or of which this cannot be read."""
    with contextlib.suppress(OSError):
        return sum(map(int, pattern.findall(_read(proc, path))))
    return 0


def _read(proc: int, path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY, dir_fd=proc)
    try:
        data = b""
        while part := os.read(fd, 1 << 16):
            data += part
        return data
    finally:
        os.close(fd)


def _names(proc: int, path: str) -> list[str]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)
