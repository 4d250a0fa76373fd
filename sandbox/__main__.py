"""The sandbox from the command line.

python -m sandbox score < requests.jsonl > verdicts.jsonl     one answer line for each request line, in order
python -m sandbox doctor                                      which layers of isolation are active here, and why not
python -m sandbox repl                                        a session: code in, value and output out
python -m sandbox attack [--grader CMD] [NAMES...]            hostile programs against this sandbox or another grader
"""

from __future__ import annotations

import argparse
import code
import collections
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from sandbox import attack, requests
from sandbox.cage import CageError
from sandbox.launch import WorkerError, WorkerProcess, python_environment
from sandbox.layers import LAYERS, LEAST, LEVELS, IsolationError, missing
from sandbox.pool import Pool
from sandbox.session import Sessions
from sandbox.verdict import Limits

# What a program cannot reach or do where a layer is active, for `doctor`.
PROTECTS = {
    "user": "user ids of the host",
    "pid": "other processes",
    "mount": "the file system, /proc and /sys",
    "network": "interfaces, and abstract sockets of the host and of other workers and sessions",
    "ipc": "System V memory and queues of others",
    "uts": "the host name",
    "uid": "the worker's user id",
    "capabilities": "privileges over the machine",
    "no_new_privs": "setuid programs",
    "seccomp": "other processes' memory, namespaces, keys, inotify, asynchronous I/O, file locks, large pipes",
    "landlock": "writing outside of its folder, TCP, signals",
    "rlimits": "address space, CPU, files, queues, pending signals and cores of the host",
    "cgroup": "memory, processes and CPU of a worker together",
    "signals": "signals to worker, judge and others",
    "leftovers": "files that stay after its end",
    "processes": "the number of processes left to others",
    "memory": "unlimited memory for commands such as Node",
    "oom": "the kernel's choice of worker or judge when memory is short",
    "dumpable": "the memory of worker and judge",
}
WAITING = 256  # requests read ahead of the answers written


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 for a machine that isolates too little or a forged pass, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m sandbox", description=__doc__.split("\n")[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser("score", help="JSON lines of programs and tests in, JSON lines of verdicts out")
    score.add_argument("--workers", type=int, default=0, help="programs at a time (0: one per core)")
    repl = commands.add_parser("repl", help="a stateful interpreter in the sandbox")
    doctor = commands.add_parser("doctor", help="show the layers of isolation")
    attacks = commands.add_parser("attack", help="hostile programs against this sandbox or another grader")
    attack.add_arguments(attacks)
    for command in (score, repl, doctor, attacks):
        least = f"least isolation that is accepted: {', '.join(LEVELS)}, or layers with commas"
        command.add_argument("--least", default=LEAST, help=f"{least} (default {LEAST})")
    options = parser.parse_args(arguments)
    try:
        if options.command == "doctor":
            return _doctor(options.least)
        if options.command == "attack":
            return attack.main(options, options.least)
        return _score(options.workers, options.least) if options.command == "score" else _repl(options.least)
    except (IsolationError, WorkerError, CageError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (BrokenPipeError, KeyboardInterrupt):
        sys.stderr.close()  # nobody reads any more: no message at the interpreter's end
        return 1


def _score(workers: int, least: str) -> int:
    """Reads ahead so that all cores are busy, but not without bound."""
    pending: collections.deque[tuple[Any, Future | str]] = collections.deque()

    def write_first() -> None:
        request_id, result = pending.popleft()
        line = result if isinstance(result, str) else requests.answer(request_id, result.result())
        print(line, flush=not pending)

    with Pool(workers, least=least) as pool:
        for number, line in enumerate(sys.stdin.buffer, start=1):
            if not line.strip():
                continue
            try:
                request_id, program = requests.read_request(line)
                pending.append((request_id, pool.submit(program)))
            except requests.RequestError as error:
                pending.append((None, requests.refusal(number, error)))
            while pending and (len(pending) > WAITING or isinstance(pending[0][1], str) or pending[0][1].done()):
                write_first()
        while pending:
            write_first()
    return 0


def _doctor(least: str) -> int:
    worker = WorkerProcess(python_environment(), (), "")
    cgroup = str(worker.cgroup) if worker.cgroup else ""
    worker.stop()
    for name in LAYERS:
        state = worker.layers.get(name, "not tried")
        mark = "active " if state == "on" else "missing"
        how = f" {cgroup.removeprefix('on ')}" if name == "cgroup" and cgroup else ""
        print(f"{mark}  {name:<14}{PROTECTS[name]}{how}" + ("" if state == "on" else f": {state}"))
    for level in LEVELS:
        lacking = missing(worker.layers, level)
        print(f"\nlevel {level!r}: " + ("reached" if not lacking else "lacks " + "; ".join(lacking)), end="")
    print()
    return 1 if missing(worker.layers, least) else 0


def _repl(least: str) -> int:
    with Sessions(Limits(wall_s=30, cpu_s=30), least=least) as sessions, sessions.open() as session:
        for source in _inputs():
            result = session.run(source)
            print(result.stdout, end="")
            print(result.stderr + result.traceback, end="", file=sys.stderr)
            if result.value is not None:
                print(result.value)
            if result.status not in ("passed", "runtime_error", "syntax_error"):
                lost = "; its variables are lost" if result.restarted else ""
                print(f"[{result.status}{lost}]", file=sys.stderr)
    return 0


def _inputs() -> Iterator[str]:
    """Statements, as Python's own prompt would gather them; without a terminal, all of stdin at once."""
    if not sys.stdin.isatty():
        yield sys.stdin.read()
        return
    lines: list[str] = []
    while True:
        try:
            lines.append(input("... " if lines else ">>> "))
            if code.compile_command("\n".join(lines)) is None:
                continue
        except (SyntaxError, ValueError, OverflowError):
            pass  # the session says what is wrong
        except (EOFError, KeyboardInterrupt):
            print()
            return
        yield "\n".join(lines)
        lines = []


if __name__ == "__main__":
    sys.exit(main())
