"""Many programs at once: one judge (sandbox/judge.py) with its own worker for each core."""

from __future__ import annotations

import asyncio
import contextlib
import json
import marshal
import os
import queue
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sandbox.launch import ROOT, WorkerError, python_command, python_environment
from sandbox.layers import LEAST, IsolationError, required_layers
from sandbox.plain import TRUSTED_FRAME, encode, read_frame, write_bytes
from sandbox.reference import cache_folder
from sandbox.verdict import CallTest, Limits, Program, ReferenceTest, StdioTest, Test, TestResult, Verdict


class Pool:
    """Judges programs on all cores; safe to use from many threads and event loops at once.

    Args:
        workers: programs at a time; 0: one per core.
        limits: for programs that have the default limits.
        least: the least isolation that is accepted, a level or names of layers (sandbox/layers.py).

    Raises IsolationError when this machine gives less, ValueError for an unknown layer and for workers < 0.
    """

    def __init__(self, workers: int = 0, limits: Limits | None = None, least: str = LEAST):
        required_layers(least)
        if workers < 0:
            raise ValueError(f"workers = {workers} must be >= 0 (0: one per core)")
        self._limits = limits
        count = workers or len(os.sched_getaffinity(0))
        self._idle: queue.SimpleQueue[_JudgeProcess] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="sandbox")
        self._judges: list[_JudgeProcess] = []
        try:
            self._judges += self._threads.map(lambda core: _JudgeProcess(least, core), _cores(count))
        except BaseException:
            self.close()
            raise
        for judge in self._judges:
            self._idle.put(judge)
        self.workers = count
        self.layers = self._judges[0].layers
        self._took_s: dict[str, float] = {}  # CPU seconds of a program for a reference test, by the test's digest
        self.sandbox_errors = 0  # verdicts that were the sandbox's fault, since the start

    def run(self, programs: Sequence[Program]) -> list[Verdict]:
        """The verdicts, in the order of the programs. Raises ValueError for a program that `check_program` refuses.

        Those whose reference tests took long before are judged first, so that none is left for the end.
        """
        by_time = sorted(range(len(programs)), key=lambda i: -self._expected_s(programs[i]))
        futures = {i: self.submit(programs[i]) for i in by_time}
        return [futures[i].result() for i in range(len(programs))]

    async def run_async(self, program: Program) -> Verdict:
        """One program's verdict. Raises ValueError for a program that `check_program` refuses."""
        return await asyncio.wrap_future(self.submit(program))

    def submit(self, program: Program) -> Future[Verdict]:
        """A future of the program's verdict."""
        check_program(program)
        return self._threads.submit(self._judge, program)

    def close(self) -> None:
        """Ends the workers; programs that are waiting are not run."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for judge in self._judges:
            judge.stop()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _expected_s(self, program: Program) -> float:
        return sum(self._took_s.get(t.digest, 0.0) for t in program.tests if isinstance(t, ReferenceTest))

    def _judge(self, program: Program) -> Verdict:
        limits = self._limits if self._limits and program.limits == Limits() else program.limits
        judge = self._idle.get()
        try:
            verdict = _judged(judge, program, limits)
            self.sandbox_errors += verdict.status == "sandbox_error"
            for test in program.tests:
                if isinstance(test, ReferenceTest):
                    self._took_s[test.digest] = verdict.cpu_s / len(program.tests)
            return verdict
        finally:
            self._idle.put(judge)


def _judged(judge: _JudgeProcess, program: Program, limits: Limits) -> Verdict:
    """The program's verdict. A judge that dies is replaced, and the program judged again.

    If that judge dies as well, the program is to blame, unless an honest program kills it too.
    """
    for _ in range(2):
        with contextlib.suppress(OSError, EOFError, ValueError):
            return judge.verdict(program, limits)
        try:
            judge.restart()
        except (IsolationError, WorkerError, OSError) as error:  # the next program tries again
            return Verdict("sandbox_error", stderr=f"the sandbox's process cannot be restarted: {error}")
    with contextlib.suppress(OSError, EOFError, ValueError):
        if judge.verdict(Program("def f(): return 1", (CallTest("f", (), 1),)), Limits()).passed:
            return Verdict("killed", stderr="the program brought down the process that judged it")
    return Verdict("sandbox_error", stderr="the sandbox's process died three times")


def _cores(count: int) -> list[int]:
    """The core of each judge. Its processes take turns: on one core they need not wake each other across cores,
    which doubles the rate, and a program with many threads cannot slow others down."""
    cores = sorted(os.sched_getaffinity(0))
    return [cores[i * len(cores) // count if count <= len(cores) else i % len(cores)] for i in range(count)]


def check_program(program: Program) -> None:
    """Raises ValueError, saying what is wrong, for a program that cannot have a verdict."""
    if not program.tests:
        raise ValueError("a program without tests has no verdict; give it at least one test")
    if program.command and any(not isinstance(t, StdioTest) for t in program.tests):
        raise ValueError("a program with a command of its own can only have stdio tests")
    for test in program.tests:
        if isinstance(test, ReferenceTest):
            if not test.reference and len(test.expected) != len(test.inputs):
                raise ValueError("a reference test needs a reference, or one expected value for each of its inputs")
            _ = test.payload  # raises ValueError for inputs that cannot be sent
    for name in program.files:
        if os.path.isabs(name) or ".." in name.split("/") or not name:
            raise ValueError(f"file {name!r} must be a relative path without '..'")


class _JudgeProcess:
    """A judge's process and the pipes to it."""

    def __init__(self, least: str, core: int) -> None:
        self._least, self._core = least, core
        self._start()

    def _start(self) -> None:
        # A new interpreter, not a fork: the parent may have threads and gigabytes of arrays.
        self._process = subprocess.Popen(
            python_command("judge"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            # The order of a program's sets is the same each time.
            env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self._lock = threading.Lock()
        start = {"python": python_environment(), "least": self._least, "core": self._core}
        start["references"] = cache_folder()
        try:
            hello: dict[str, Any] = self.ask(json.dumps(start).encode())
        except (OSError, EOFError):
            hello = {"error": "the sandbox's process ended at its start"}
        if "error" in hello:
            self.stop()
            raise (IsolationError if hello.get("isolation") else WorkerError)(hello["error"])
        self.layers: dict[str, str] = hello["layers"]
        self.pid: int = hello["pid"]

    def verdict(self, program: Program, limits: Limits) -> Verdict:
        """Raises OSError or EOFError when the judge is gone."""
        request = _request(program, limits)
        while "needs" in (answer := self.ask(marshal.dumps(request))):
            for test, data in zip(program.tests, request["tests"]):
                if isinstance(test, ReferenceTest) and test.digest == answer["needs"]:
                    data["payload"] = test.payload
        return _verdict(answer)

    def ask(self, request: bytes) -> dict[str, Any]:
        """Raises OSError or EOFError when the judge is gone."""
        with self._lock:
            assert self._process.stdin and self._process.stdout
            write_bytes(self._process.stdin.fileno(), request)
            return read_frame(self._process.stdout.fileno(), TRUSTED_FRAME)

    def stop(self) -> None:
        """Ends the judge: it ends its workers when its stdin is closed."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the worker ends with the control socket
            self._process.wait()

    def restart(self) -> None:
        self._process.kill()
        self.stop()
        self._start()


def _request(program: Program, limits: Limits) -> dict[str, Any]:
    return {
        "code": program.code,
        "tests": [_test(t) for t in program.tests],
        "limits": vars(limits),
        "stop": program.stop_at_first_failure,
        "files": program.files,
        "command": program.command,
        "filename": program.filename,
    }


def _test(test: Test) -> dict[str, Any]:
    if isinstance(test, ReferenceTest):  # its content is sent when the judge asks for it
        return {"type": "reference", "digest": test.digest}
    if isinstance(test, CallTest):
        values = {"args": [encode(a) for a in test.args], "kwargs": {k: encode(v) for k, v in test.kwargs.items()}}
        return {"type": "call", **vars(test), **values, "expected": encode(test.expected)}
    return {"type": type(test).__name__.removesuffix("Test").lower(), **vars(test)}


def _verdict(answer: dict[str, Any]) -> Verdict:
    tests = tuple(TestResult(**{"message": "", **result}) for result in answer.pop("tests", ()))
    return Verdict(**answer, tests=tests)
