"""Many programs at once: a few worker processes, each of which forks a child for every program."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sandbox import worker
from sandbox.compare import equal, same_output
from sandbox.verdict import AssertTest, CallTest, CheckTest, Limits, Program, StdioTest, Test, TestResult, Verdict


class Pool:
    """Runs programs in worker processes; safe to use from many threads and event loops at once.

    Args:
        workers: processes; 0: one per core.
        limits: for programs that have the default limits.
    """

    def __init__(self, workers: int = 0, limits: Limits | None = None):
        self._limits = limits
        count = workers or os.cpu_count() or 1
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = [_Worker() for _ in range(count)]
        for w in self._workers:
            self._idle.put(w)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="sandbox")
        self.layers = self._workers[0].layers

    def run(self, programs: Sequence[Program]) -> list[Verdict]:
        """The verdicts, in the order of the programs. Raises ValueError for a program without tests."""
        return [f.result() for f in [self._submit(p) for p in programs]]

    async def run_async(self, program: Program) -> Verdict:
        """One program's verdict. Raises ValueError for a program without tests."""
        return await asyncio.wrap_future(self._submit(program))

    def close(self) -> None:
        """Ends the workers; programs that are waiting are not run."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for w in self._workers:
            w.stop()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, program: Program) -> Future[Verdict]:
        if not program.tests:
            raise ValueError("a program without tests has no verdict; give it at least one test")
        kinds = {isinstance(t, StdioTest) for t in program.tests}
        if len(kinds) > 1:
            raise ValueError("stdio tests cannot be mixed with tests of other kinds in one program")
        return self._threads.submit(self._judge, program)

    def _judge(self, program: Program) -> Verdict:
        limits = self._limits if self._limits and program.limits == Limits() else program.limits
        request = {
            "code": program.code,
            "tests": [_without_expected(t) for t in program.tests],
            "limits": vars(limits),
            "stop": program.stop_at_first_failure and not isinstance(program.tests[0], StdioTest),
        }
        w = self._idle.get()
        try:
            for _ in range(2):  # a worker that died is no fault of the program's: once more with a fresh one
                with contextlib.suppress(OSError, ValueError):
                    return _verdict(program, w.ask(request))
                w.restart()
            return Verdict("sandbox_error", stderr="the sandbox's worker died twice")
        finally:
            self._idle.put(w)


class _Worker:
    """A worker process and the pipes to it."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        # A new interpreter, not a fork: the parent may have threads and gigabytes of arrays.
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(worker.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0", "PATH": os.environ.get("PATH", "")},
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self._lock = threading.Lock()
        self.layers: dict[str, str] = self._read()["layers"]

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises OSError or ValueError when the worker is gone."""
        with self._lock:
            assert self._process.stdin
            worker.write_frame(self._process.stdin, request)
            return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        header = self._process.stdout.read(4)
        if len(header) < 4:
            raise OSError("the sandbox's worker ended")
        return json.loads(self._process.stdout.read(struct.unpack("<I", header)[0]))

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()

    def restart(self) -> None:
        self.stop()
        self._start()


def _without_expected(test: Test) -> dict[str, Any]:
    """What the candidate's process needs of a test: never the expected value of a call or stdio test."""
    match test:
        case AssertTest(code):
            return {"type": "assert", "code": code}
        case CheckTest(code, entry_point):
            return {"type": "check", "code": code, "entry_point": entry_point}
        case CallTest():
            return {
                "type": "call",
                "function": test.function,
                "args": worker.encode(list(test.args)),
                "kwargs": worker.encode(dict(test.kwargs)),
            }
        case StdioTest(stdin, _):
            return {"type": "stdio", "stdin": stdin}


def _verdict(program: Program, answer: dict[str, Any]) -> Verdict:
    results = tuple(_result(t, r) for t, r in zip(program.tests, answer["results"]))
    failed = next((r for r in results if r.status != "passed"), None)
    if len(results) < len(program.tests) and failed is None:
        failed = TestResult("sandbox_error", "the sandbox gave too few results")
    return Verdict(
        status=failed.status if failed else "passed",
        tests=results,
        stdout=answer["stdout"],
        stderr=answer["stderr"],
        wall_s=answer["wall_s"],
        cpu_s=answer["cpu_s"],
    )


def _result(test: Test, result: dict[str, Any]) -> TestResult:
    """Compares what the candidate gave with what was expected."""
    status, message = result["status"], result.get("message", "")
    if status == "not_run":
        return TestResult("runtime_error", message)
    if status != "ran":
        return TestResult(status, message)
    if isinstance(test, CallTest):
        try:
            actual = worker.decode(result["value"])
        except (KeyError, TypeError, ValueError):  # only tampering makes such a value
            return TestResult("runtime_error", "the program sent no readable value")
        if not equal(actual, test.expected, test.tolerance):
            call = ", ".join([*map(repr, test.args), *(f"{k}={v!r}" for k, v in test.kwargs.items())])
            return TestResult(
                "wrong_answer",
                f"{test.function}({_short(call)}) gave {_short(repr(actual))}, expected {_short(repr(test.expected))}",
            )
    if isinstance(test, StdioTest) and not same_output(str(result["value"]), test.stdout):
        return TestResult(
            "wrong_answer", f"printed {_short(repr(result['value']))}, expected {_short(repr(test.stdout))}"
        )
    return TestResult("passed")


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
