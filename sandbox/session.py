"""A stateful interpreter for tool use: code in, output and the last expression's value out.

Each session is a process in its own jail, cloned from one warm worker, so that hundreds can be alive: between calls a
session's processes are stopped, and it holds only the memory that it has written.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sandbox.launch import Started, WorkerError, WorkerProcess, drain, python_environment
from sandbox.layers import LEAST, required_layers
from sandbox.plain import TRUSTED_FRAME, FrameReader, frame
from sandbox.verdict import Limits, Status

GRACE_S = 0.1  # between the interrupt at a call's time limit and the end of a session that ignores it
SESSION_LIMITS = Limits(wall_s=10.0, cpu_s=10.0, memory_mb=1024, output_kb=64, processes=16)


@dataclass(frozen=True)
class CallResult:
    """The result of one call.

    status: "passed" when the code ran to its end; else as for programs.
    value: repr of the last expression's value; None when there is none.
    restarted: the session's process has ended; its variables are lost, and the next call starts a new one.
    """

    status: Status
    value: str | None = None
    stdout: str = ""
    stderr: str = ""
    traceback: str = ""
    wall_s: float = 0.0
    restarted: bool = False


class Sessions:
    """Opens sessions. Raises IsolationError when this machine gives less isolation than `least`.

    Args:
        limits: of each call (wall_s, cpu_s, output_kb) and of each session (memory_mb, processes).
        preload: modules that all sessions find in memory, if they are installed.
        concurrency: calls that run at a time; 0: two for each core. More is good for calls that wait, and makes those
            that compute run into their wall time.
    """

    def __init__(
        self,
        limits: Limits = SESSION_LIMITS,
        preload: tuple[str, ...] = ("numpy",),
        least: str = LEAST,
        concurrency: int = 0,
    ):
        required_layers(least)
        self.limits, self._preload, self._least = limits, preload, least
        self._start()
        self.layers = self._template.layers
        self._lock = threading.Lock()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._threads = ThreadPoolExecutor(
            concurrency or 2 * len(os.sched_getaffinity(0)), thread_name_prefix="session"
        )

    def open(self) -> Session:
        """A new session, with no variables."""
        session = Session(self)
        self._sessions.add(session)
        return session

    def close(self) -> None:
        """Ends all sessions."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for session in list(self._sessions):
            session.close()
        self._template.stop()

    def __enter__(self) -> Sessions:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self._template = WorkerProcess(python_environment(), self._preload, self._least)

    def _template_ended(self) -> bool:
        poll = select.poll()
        poll.register(self._template.control, 0)  # only that the other end is closed
        return bool(poll.poll(100))  # milliseconds, for a process that is just being killed

    def _clone(self) -> WorkerProcess:
        """A worker for a session; of a new template where the old one has died, and with it all its sessions."""
        with self._lock:
            try:
                return self._template.clone()
            except (WorkerError, OSError):
                if not self._template_ended():
                    raise
            self._template.stop()
            self._start()
            return self._template.clone()


class Session:
    """One interpreter. Calls on one session must not overlap; sessions are independent of each other."""

    def __init__(self, sessions: Sessions):
        self._sessions = sessions
        self._worker: WorkerProcess | None = None
        self._run: Started | None = None

    def run(self, code: str, limits: Limits | None = None) -> CallResult:
        """Runs code with the variables of the calls before. `limits`: wall_s, cpu_s and output_kb of this call.

        A call that takes too long is interrupted (KeyboardInterrupt) and keeps its variables if it obeys at once.
        """
        limits = limits or self._sessions.limits
        start = time.monotonic()
        try:
            self._ensure(start + 30)
            return self._call(code, limits, start)
        except (WorkerError, OSError) as error:
            self.reset()
            return CallResult("sandbox_error", stderr=str(error), wall_s=time.monotonic() - start, restarted=True)

    async def run_async(self, code: str, limits: Limits | None = None) -> CallResult:
        """The same from an event loop; at most `concurrency` calls run at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._sessions._threads, self.run, code, limits)

    def reset(self) -> None:
        """Forgets all variables and files."""
        if self._worker:
            if self._run:
                self._run.close()
            self._worker.stop()
        self._worker = self._run = None

    close = reset

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ensure(self, deadline: float) -> None:
        """Starts the session's process if there is none."""
        if self._run:
            return
        self._worker = self._sessions._clone()
        self._run = self._worker.run("session", {"code": "", "files": {}}, self._sessions.limits)
        assert self._run.channel
        self._run.channel.settimeout(deadline - time.monotonic())
        if not self._run.channel.recv(1 << 16):
            raise WorkerError("the session's process ended at its start")

    def _call(self, code: str, limits: Limits, start: float) -> CallResult:
        assert self._worker and self._run and self._run.channel
        worker, run, channel = self._worker, self._run, self._run.channel
        worker.send({"do": "resume", "cpu_s": limits.cpu_s})
        channel.settimeout(limits.wall_s)
        call = _Call(run, limits.output_kb << 10)
        with contextlib.suppress(OSError):  # it ended while it was idle; seen below
            channel.sendall(frame({"code": code}, TRUSTED_FRAME))
        channel.setblocking(False)
        cause, interrupted, deadline = "", False, start + limits.wall_s
        while call.answer is None and not cause:
            left = deadline - time.monotonic()
            if left <= 0 and not interrupted:
                worker.send({"do": "interrupt"})
                interrupted, deadline = True, deadline + GRACE_S
            elif left <= 0:
                cause = "timeout"
            else:
                cause = call.step(worker, left)
        call.drain()
        if cause or interrupted:
            status: Any = cause or "timeout"
        elif "failed" in (answer := call.answer or {}):
            status = answer["failed"].get("status") if isinstance(answer["failed"], dict) else ""
            status = status if status in ("wrong_answer", "syntax_error", "memory") else "runtime_error"
            status = "runtime_error" if status == "wrong_answer" else status
        else:
            status = "passed"
        if cause:
            self.reset()
        else:
            worker.send({"do": "suspend"})
        return call.result(status, time.monotonic() - start, restarted=bool(cause))


class _Call:
    """The output and the answer of one call."""

    def __init__(self, run: Started, room: int):
        self.run, self.room, self.reader = run, room, FrameReader()
        self.output = {run.stdout: bytearray(), run.stderr: bytearray()}
        self.ended: set[int] = set()  # what the program has closed
        self.answer: dict[str, Any] | None = None

    def step(self, worker: WorkerProcess, left: float) -> str:
        """Reads available output; returns why the session has ended, or "" while it runs."""
        assert self.run.channel
        poll = select.poll()
        for fd in (*(self.output.keys() - self.ended), self.run.channel, worker.control):
            poll.register(fd, select.POLLIN)
        ready = dict(poll.poll(left * 1000))
        for fd, data in self.output.items():
            if fd in ready:
                some = os.read(fd, 65536)
                data += some
                self.ended |= set() if some else {fd}
            if len(data) > self.room:
                return "output_limit"
        if self.run.channel.fileno() in ready:
            try:
                for message in self.reader.feed(self.run.channel.recv(1 << 18)):
                    self.answer = message if isinstance(message, dict) else {"failed": {}}
            except (OSError, ValueError):
                return "killed"
        if worker.control.fileno() in ready:
            ended = worker.receive(1.0).get("ended", {})
            return {"cpu": "timeout", "memory": "memory"}.get(ended.get("cause", ""), "killed")
        return ""

    def drain(self) -> None:
        for fd, data in self.output.items():
            data += drain(fd, max(self.room - len(data), 0))

    def result(self, status: Status, wall_s: float, restarted: bool) -> CallResult:
        texts = [bytes(data[: self.room]).decode("utf-8", "replace") for data in self.output.values()]
        answer = self.answer or {}
        failed = answer.get("failed") if isinstance(answer.get("failed"), dict) else {}
        value = answer.get("value")
        return CallResult(
            status,
            value if isinstance(value, str) else None,
            *texts,
            traceback=str((failed or {}).get("traceback", ""))[: self.room],
            wall_s=wall_s,
            restarted=restarted,
        )
