"""One run of a program in a worker: moves messages and output, and holds it to its limits."""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandbox.examiner import leaves_no_trace
from sandbox.launch import Started, WorkerError, WorkerProcess, drain
from sandbox.plain import TRUSTED_FRAME, FrameReader, frame
from sandbox.results import CLAIMS, Outcome, value_result
from sandbox.verdict import Limits

GRACE_S = 0.3
EXAMINER_USES, SETTLE_S = 5000, 0.1  # programs before an examiner is replaced; wait for one that is behind


class StandingExaminer:
    """An examiner's process that stays, in a worker of its own: for test code that leaves no trace in it."""

    def __init__(self, template: WorkerProcess):
        self._template, self._worker, self._uses = template, None, 0

    def meet(self, started: Started) -> socket.socket:
        """Hands over a run's channel to its candidate; the channel to the examiner."""
        if not self._worker:
            self._worker = self._template.clone()
            limits = Limits(processes=1)
            self._examiner = self._worker.run("examiner", {}, limits, b"")
        assert started.channel and self._examiner.channel
        self._examiner.channel.setblocking(True)
        socket.send_fds(self._examiner.channel, [b"c"], [started.channel.fileno()])
        started.channel.close()
        started.channel = None
        return self._examiner.channel

    def settle(self, done: bool) -> None:
        """After a run: waits until the examiner has seen its end, or ends an examiner that does not."""
        self._uses += 1
        channel, reader = self._examiner.channel, FrameReader()
        with contextlib.suppress(OSError, ValueError):
            assert channel
            channel.settimeout(SETTLE_S)
            while not done and (data := channel.recv(1 << 18)):
                done = any("done" in m for m in reader.feed(data))
        if not done or self._uses > EXAMINER_USES:
            self.stop()

    def stop(self) -> None:
        if self._worker:
            self._examiner.close()
            self._worker.stop()
            self._worker, self._uses = None, 0


class Run:
    """One run of a program in a worker."""

    def __init__(
        self,
        worker: WorkerProcess,
        examiner: StandingExaminer,
        request: dict[str, Any],
        limits: Limits,
        deadline: float,
    ):
        self.examiner = examiner
        self.worker, self.limits, self.deadline = worker, limits, deadline
        keys = ("code", "files", "command", "filename")
        self.program = {key: request[key] for key in keys if key in request}
        self.stop, self.command = request["stop"], request.get("command")

    def script(self, test: dict[str, Any]) -> Outcome:
        """The program alone, with a text as stdin."""
        stdin = test["stdin"].encode("utf-8", "surrogatepass")
        started = self.worker.run("command" if self.command else "script", self.program, self.limits, stdin)
        outcome = Outcome()

        def receive(message: Any, send: Callable[[bytes], None]) -> None:
            if isinstance(message, dict):
                if self.command and "no_command" in message:
                    outcome.failed = {"no_command": str(message["no_command"])}
                elif not self.command and isinstance(message.get("failed"), dict):
                    outcome.failed = message["failed"]

        self._watch(started, started.channel, receive, outcome)
        return outcome

    def calls(self, tests: list[dict[str, Any]]) -> Outcome:
        """Calls of the program's functions, whose values are compared here."""
        started = self.worker.run("functions", self.program, self.limits, b"")
        outcome, asked = Outcome(), False

        def receive(message: Any, send: Callable[[bytes], None]) -> None:
            nonlocal asked
            if not isinstance(message, dict):
                raise ValueError("no message")
            if "failed" in message:
                outcome.failed = message["failed"] if isinstance(message["failed"], dict) else {}
            elif "loaded" in message and asked and not outcome.results:
                return  # of a copy that the program has made of itself
            elif asked:
                outcome.results.append(value_result(tests[len(outcome.results)], message))
            number = len(outcome.results)
            stop = self.stop and number and outcome.results[-1]["status"] != "passed"
            if outcome.failed is not None or stop or number == len(tests):
                outcome.done = outcome.complete = True
            else:
                test = tests[number]
                call = {"call": test["function"], "args": test["args"], "kwargs": test["kwargs"]}
                asked = True
                send(frame(call, TRUSTED_FRAME))

        self._watch(started, started.channel, receive, outcome)
        return outcome

    def examined(self, tests: list[dict[str, Any]]) -> Outcome:
        """Test code in an examiner's process, which calls the program's process."""
        outcome = Outcome()

        def receive(message: Any, send: Callable[[bytes], None]) -> None:
            if "failed" in message:
                outcome.failed, outcome.done = message["failed"], True
            elif "done" in message:
                outcome.done = True
                stopped = self.stop and any(r["status"] != "passed" for r in outcome.results)
                outcome.complete = stopped or len(outcome.results) == len(tests)
            else:
                kept = ("status", "message", "form", "traceback")
                result = {key: message[key] for key in kept if key in message}
                outcome.results.append(result | ({"input": message["call"]} if message.get("call") else {}))

        request = frame({"tests": tests, "stop": self.stop}, TRUSTED_FRAME)
        if all(leaves_no_trace(t["code"]) for t in tests):
            started = self.worker.run("functions", self.program, self.limits, b"")
            channel = self.examiner.meet(started)
            self._watch(started, channel, receive, outcome, request, channel_stays=True)
            self.examiner.settle(outcome.done)
            return outcome
        ours, theirs = socket.socketpair()
        with ours:
            started = self.worker.run("functions", self.program, self.limits, b"", theirs)
            self._watch(started, ours, receive, outcome, request)
        return outcome

    def in_process(self, tests: list[dict[str, Any]]) -> Outcome:
        """Test code in the program's own process; a result counts when it carries the nonce."""
        started = self.worker.run("in_process", self.program, self.limits, b"")
        outcome, nonce, asked = Outcome(), os.urandom(16).hex(), False

        def receive(message: Any, send: Callable[[bytes], None]) -> None:
            nonlocal asked
            if isinstance(message, dict) and "loaded" in message and not asked:
                asked = True
                plain = [{"code": t["code"], "type": t["type"], "entry_point": t.get("entry_point")} for t in tests]
                data = marshal.dumps((nonce, plain, self.stop))
                send(len(data).to_bytes(4, "little") + data)
            elif isinstance(message, dict) and isinstance(message.get("failed"), dict):
                outcome.failed, outcome.done = message["failed"], True
            elif isinstance(message, str):
                said, status, text = bytes.fromhex(message).decode("utf-8", "replace").split(" ", 2)
                if said != nonce or status not in (*CLAIMS, "passed", "done"):
                    raise ValueError("a result without the nonce")
                if status == "done":
                    outcome.done = outcome.complete = True
                elif len(outcome.results) < len(tests):
                    outcome.results.append({"status": status, "message": text})

        self._watch(started, started.channel, receive, outcome)
        return outcome

    def _watch(
        self,
        started: Started,
        channel: socket.socket | None,
        receive: Callable[[Any, Callable[[bytes], None]], None],
        outcome: Outcome,
        first: bytes = b"",
        channel_stays: bool = False,
    ) -> None:
        """Moves messages and output until the run is done or ends, or a limit is reached; then ends it."""
        assert channel
        channel.setblocking(False)
        watched = _Watched(
            started, channel, receive, outcome, self.limits.output_kb << 10, bytearray(first), channel_stays
        )
        try:
            while not (outcome.done or outcome.cause or outcome.ended):
                watched.step(self.worker.control, self.worker, self.deadline)
            if not outcome.ended:
                # Less than all: it fell silent, perhaps because it is ending.
                silent = outcome.done and outcome.failed is None and not outcome.complete
                left = max(self.deadline - time.monotonic(), 0.0)
                grace = min(GRACE_S, left + 0.1) if silent else 0.0
                outcome.ended = _report(self.worker.end(started.id, grace))
            watched.finish()
            if not outcome.cause and not started.was_read():
                raise WorkerError("a program's process ended before it had read its program")
        finally:
            started.close()
        if outcome.ended["status"] == signal.SIGKILL and not outcome.ended["cause"] and self.worker.cgroup:
            outcome.memory_killed = self.worker.cgroup.killed_again()


@dataclass
class _Watched:
    """The descriptors of a run, and what came through them."""

    started: Started
    channel: socket.socket
    receive: Callable[[Any, Callable[[bytes], None]], None]
    outcome: Outcome
    room: int
    unsent: bytearray
    channel_stays: bool  # it leads to an examiner that outlives the run
    reader: FrameReader = field(default_factory=FrameReader)
    closed: set[int] = field(default_factory=set)

    def step(self, control: socket.socket, worker: WorkerProcess, deadline: float) -> None:
        poll = select.poll()
        channel = self.channel.fileno()
        for fd in {self.started.stdout, self.started.stderr, channel} - self.closed:
            poll.register(fd, select.POLLIN | (select.POLLOUT if fd == channel and self.unsent else 0))
        poll.register(control, select.POLLIN)
        left = deadline - time.monotonic()
        ready = dict(poll.poll(max(left, 0) * 1000)) if left > 0 else {}
        for fd, name in ((self.started.stdout, "stdout"), (self.started.stderr, "stderr")):
            if fd in ready:
                self.take(name, fd, os.read(fd, 65536))
        if channel in ready:
            self.speak(ready[channel])
        if control.fileno() in ready and not self.outcome.done:
            message = worker.receive(1.0)
            if message.get("id") == self.started.id:
                self.outcome.ended = _report(message)
        elif left <= 0 and not self.outcome.done:
            self.outcome.cause = "timeout"

    def take(self, name: str, fd: int, data: bytes) -> None:
        if not data:
            self.closed.add(fd)
        kept = getattr(self.outcome, name) + data
        setattr(self.outcome, name, kept[: self.room])
        if len(kept) > self.room:
            self.outcome.cause = "output_limit"

    def speak(self, events: int) -> None:
        if events & select.POLLOUT and self.unsent:
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                del self.unsent[: self.channel.send(self.unsent)]
        if not events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return
        try:
            data = self.channel.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.closed.add(self.channel.fileno())
            if self.channel_stays:
                raise WorkerError("the examiner has ended")
        self.hear(data)

    def hear(self, data: bytes) -> None:
        """Takes the messages in `data`; a message that makes no sense ends the run as the program's failure."""
        try:
            for message in self.reader.feed(data):
                if not self.outcome.done:
                    self.receive(message, self.unsent.extend)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            self.outcome.failed = {"message": "the program has tampered with its answers"}
            self.outcome.done = True

    def finish(self) -> None:
        """What came between the last look and the end; nobody is left who could write more."""
        with contextlib.suppress(OSError):
            while not self.outcome.done and (data := self.channel.recv(1 << 18)):
                self.hear(data)
        for fd, name in ((self.started.stdout, "stdout"), (self.started.stderr, "stderr")):
            if not self.outcome.cause and (data := drain(fd, self.room + 1)):
                self.take(name, fd, data)


def _report(message: dict[str, Any]) -> dict[str, Any]:
    if "ended" not in message:
        raise WorkerError(message.get("failed", "the worker could not start the program"))
    return message["ended"]
