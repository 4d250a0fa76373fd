"""Runs a command for its owner, and kills it and everything that it started when the owner ends, for any reason.

The owner starts this file as a program, in a session of its own, and holds the write end of its standard input. The
command line arrives there as one line of JSON (not as arguments, where `pkill -f vllm` would match the
supervisor too). The owner has ended when the pipe is closed or the parent process has changed. Processes whose parents
die become children of the supervisor (PR_SET_CHILD_SUBREAPER, prctl(2)), so that none escapes by starting its own
session or process group. The exit code is the command's; what it leaves running is killed, too.

It uses only the standard library, without site-packages, so that it starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LOOK_S = 0.5  # between checks of the parent
_TICKS = os.sysconf("SC_CLK_TCK")


class Entry(NamedTuple):
    """One process in /proc."""

    parent: int
    state: str  # R, S, D, T, Z ...
    cpu_s: float  # its own, and that of its ended children


def processes() -> dict[int, Entry]:
    """All visible processes, see proc_pid_stat(5)."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                found[int(name)] = Entry(int(fields[1]), fields[0], sum(map(int, fields[11:15])) / _TICKS)
    return found


def descendants(pid: int, among: dict[int, Entry] | None = None) -> list[int]:
    """The processes below `pid`, without `pid` and zombies, parents before children."""
    among = processes() if among is None else among
    children: dict[int, list[int]] = {}
    for child, entry in among.items():
        children.setdefault(entry.parent, []).append(child)
    found = [pid]
    for parent in found:  # found grows during the loop
        found += children.get(parent, [])
    return [p for p in found[1:] if among[p].state != "Z"]


def cpu_seconds(pid: int) -> float:
    """CPU time of the processes below `pid`, and of their children that have ended."""
    among = processes()
    return sum(among[p].cpu_s for p in descendants(pid, among))


def kill_descendants(pid: int, wait_s: float = 30.0) -> None:
    """Kills all processes below `pid`, repeatedly until none is left, since some may be starting others.

    Removes their blocks of multiprocessing.shared_memory, which vLLM leaves behind. Gives up after wait_s, because a
    process that waits for a driver cannot be killed.
    """
    blocks: set[Path] = set()
    deadline = time.monotonic() + wait_s
    while (found := descendants(pid)) and time.monotonic() < deadline:
        for process in found:
            blocks |= _shared_memory(process)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if pid == os.getpid():
            _reap()
        time.sleep(0.01)
    for path in blocks:
        path.unlink(missing_ok=True)


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Has the kernel send a signal when the thread that started this process ends; exits if that has happened."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def _shared_memory(pid: int) -> set[Path]:
    """The blocks of multiprocessing.shared_memory that a process has mapped."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        names = [line.split()[-1] for line in lines if "/dev/shm/psm_" in line]
        return {Path(name) for name in names if name.startswith("/dev/shm/")}
    return set()


def _reap() -> dict[int, int]:
    """The exit codes of children that have ended, by process."""
    codes = {}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(ended[1])
            codes[ended[0]] = code if code >= 0 else 128 - code  # a signal, as in a shell
    return codes


def _start(command: list[str]) -> int:
    """Starts the command in this process group; the kernel kills it if this process is killed."""
    supervisor = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        die_with_parent(supervisor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (*STOPPING, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores the last two
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def _end(code: int) -> NoReturn:
    kill_descendants(os.getpid())
    os._exit(code)


def main(owner: int) -> NoReturn:
    """Runs the command that the process `owner` sends, until the command or the owner ends."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in STOPPING:
        signal.signal(number, lambda number, _: _end(128 + number))
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # with a handler, it writes to the pipe
    line = sys.stdin.readline()
    if not line.endswith("\n"):  # the owner ended before it sent the command
        os._exit(1)
    started = _start(json.loads(line))
    while os.getppid() == owner:
        readable = select.select([0, woken], [], [], LOOK_S)[0]
        if 0 in readable and not os.read(0, 1):
            break
        if woken in readable:
            os.read(woken, 4096)
        codes = _reap()
        if started in codes:
            _end(codes[started])
    _end(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
