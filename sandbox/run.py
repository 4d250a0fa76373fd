"""One run of a program in a worker: collects its output and answers, and enforces its limits."""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandbox import script
from sandbox.examiner import LOST
from sandbox.launch import Started, WorkerError, WorkerProcess, drain
from sandbox.plain import AnswersReader, FrameReader, parse, written
from sandbox.results import CLAIMS, Outcome, Result, TaskError, claim, ended_early, fill, output_limit, tampered
from sandbox.values import READING_ERRORS, DataTest, Progress
from sandbox.verdict import NOT_RUN, Limits

TICK_S, GRACE_S = 0.05, 0.3  # between checks of a program's answers; for a process that has stopped answering
EXIT_ONE = 1 << 8  # the wait status of a process that ended with exit status 1
Program = dict[str, Any]


def run_calls(
    worker: WorkerProcess, program: Program, limits: Limits, deadline: float, tests: list[DataTest], stop: bool
) -> tuple[list[Result], Outcome]:
    """Results of tests that are data; fewer than tests if the program may end at the first failure (`stop`)."""
    calls = [(number, *call) for number, test in enumerate(tests) for call in test.calls]
    started = worker.run("calls", program, limits, calls=marshal.dumps(calls))
    progress = Progress(tests, stop, limits, deadline)
    reader = AnswersReader(started.answers)

    def look() -> str:
        try:
            for data in reader.new():
                progress.take(data)
        except READING_ERRORS:
            progress.failed = progress.failed or tampered()
        return "done" if progress.decided else "late" if progress.late() else ""

    watch = Watch(started, worker, limits, deadline)
    with watch.closing():
        outcome = watch.until_end(look)
    results = progress.results
    if progress.failed:
        return fill(results, len(tests), progress.failed), outcome
    if outcome.cause == "output_limit" and not progress.over_limit and len(results) == len(tests):
        results[-1] = output_limit(limits)  # it did not report what it printed, or has printed more since
    stopped = stop and any(r["status"] != "passed" for r in results)
    if stopped or len(results) == len(tests):
        return results, outcome
    first = ended_early(outcome, limits)
    if outcome.cause == "late":
        first = {"status": "timeout", "message": "a call took more than its time"}
    if progress.over_limit:
        first = {**first, "status": "output_limit", "message": NOT_RUN}
    return fill(results, len(tests), first | {"input": progress.present_call()}), outcome


def run_script(
    worker: WorkerProcess, program: Program, limits: Limits, deadline: float, stdin: str
) -> tuple[Result | None, Outcome]:
    """Runs the program alone with a text as stdin; None if it succeeded. Raises TaskError for a missing command."""
    command = program.get("command")
    started = worker.run(
        "command" if command else "script", program, limits, stdin=stdin.encode("utf-8", "surrogatepass")
    )
    watch = Watch(started, worker, limits, deadline)
    watch.room["stderr"] += script.MAX_TRACEBACK
    with watch.closing():
        outcome = watch.until_end()
        messages = [parse(data) for data in AnswersReader(started.answers).new()] if command else []
    if messages:  # from the sandbox, before the command replaced it in the process
        raise TaskError(f"the command could not be started: {messages[0]['no_command']}")
    if script.length_without_traceback(outcome.stderr) > limits.output_kb << 10:
        outcome.cause = outcome.cause or "output_limit"
    if outcome.cause or outcome.ended["cause"] or not outcome.ended["status"]:
        return ended_early(outcome, limits) if outcome.cause or outcome.ended["cause"] else None, outcome
    if not command and outcome.ended["status"] == EXIT_ONE and (failed := script.printed_exception(outcome.stderr)):
        return claim(failed), outcome
    return ended_early(outcome, limits), outcome


def run_examined(
    worker: WorkerProcess, examiner: WorkerProcess, program: Program, limits: Limits, deadline: float,
    tests: list[dict[str, Any]], stop: bool,
) -> tuple[list[Result], Outcome]:  # fmt: skip
    """Runs test code in an examiner's process, which has the program's process make the test's calls."""
    ours, theirs = socket.socketpair()
    started = worker.run("served", program, limits, channel=ours)
    watch = Watch(started, worker, limits, deadline)
    with watch.closing():
        printed = started.stdout, started.stderr
        testing = examiner.run("examiner", {"tests": tests, "stop": stop}, limits, channel=theirs, printed=printed)
        watch.examined_by(testing, examiner)
        outcome = watch.until_end()
        messages = [parse(data) for data in AnswersReader(testing.answers).new()]
    kept = ("status", "message", "traceback", "input")
    results: list[Result] = []
    for message in messages:
        if "task" in message:
            raise TaskError(message["task"])
        if message.get("printed", 0) > limits.output_kb << 10:
            return fill(results, len(tests), output_limit(limits)), outcome
        if "failed" in message:
            return fill(results, len(tests), claim(message["failed"])), outcome
        if "status" in message:
            results.append({key: message[key] for key in kept if key in message})
    stopped = stop and any(r["status"] != "passed" for r in results)
    if outcome.cause == "output_limit":
        return fill(results[: len(tests) - 1], len(tests), output_limit(limits)), outcome
    if stopped or len(results) == len(tests):
        return results, outcome
    first = watch.examiners_end() or ended_early(outcome, limits)
    return fill(results, len(tests), first | {"input": tests[len(results)]["code"][:200]}), outcome


def run_in_process(
    worker: WorkerProcess, program: Program, limits: Limits, deadline: float, tests: list[dict[str, Any]], stop: bool
) -> tuple[list[Result], Outcome]:
    """Runs test code in the program's own process; a result counts only if it carries the nonce."""
    started = worker.run("in_process", program, limits)
    nonce, loaded, failed, results, done = os.urandom(16).hex(), False, None, [], False

    def receive(message: Any) -> bytes:
        nonlocal loaded, failed, done
        if isinstance(message, dict) and "loaded" in message and not loaded:
            loaded = True
            plain = [{"code": t["code"], "type": t["type"], "entry_point": t.get("entry_point")} for t in tests]
            data = marshal.dumps((nonce, plain, stop))
            return len(data).to_bytes(4, "little") + data
        if isinstance(message, dict) and "failed" in message:
            failed = claim(message["failed"])
        elif isinstance(message, str):
            sent, status, printed, text = bytes.fromhex(message).decode("utf-8", "replace").split(" ", 3)
            if sent != nonce or status not in (*CLAIMS, "wrong_answer", "passed", "done"):
                raise ValueError("a result without the nonce")
            if status == "done":
                done = True
            elif len(results) < len(tests):
                over = int(printed) > limits.output_kb << 10
                results.append(output_limit(limits) if over else {"status": status, "message": text})
        return b""

    watch = Watch(started, worker, limits, deadline)
    talk = _Talk(started.channel, receive)
    watch.talk = talk
    with watch.closing():
        outcome = watch.until_end(lambda: "done" if done or failed or talk.broken else "")
    if outcome.cause == "output_limit":
        return fill(results[: len(tests) - 1], len(tests), output_limit(limits)), outcome
    if talk.broken or failed:
        return fill([], len(tests), failed or tampered()), outcome
    if done and (len(results) == len(tests) or stop):
        return results, outcome
    return fill(results, len(tests), ended_early(outcome, limits)), outcome


@dataclass
class _Talk:
    """The channel to the program's own process, for forms that need one."""

    channel: socket.socket | None
    receive: Callable[[Any], bytes]
    reader: FrameReader = field(default_factory=FrameReader)
    unsent: bytearray = field(default_factory=bytearray)
    broken: bool = False
    closed: bool = False

    def step(self, events: int) -> None:
        assert self.channel
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
        self.closed = not data
        try:
            for message in self.reader.feed(data):
                self.unsent += self.receive(message)
        except READING_ERRORS:
            self.broken = True


class Watch:
    """Reads the descriptors of one run until it ends or reaches a limit."""

    def __init__(self, started: Started, worker: WorkerProcess, limits: Limits, deadline: float):
        self.started, self.worker, self.limits, self.deadline = started, worker, limits, deadline
        self.room: dict[str, int] = dict.fromkeys(("stdout", "stderr"), limits.output_kb << 10)
        self.streams = {started.stdout: "stdout", started.stderr: "stderr"}
        self.pipes = self.streams if started.ends else {}
        self.outcome = Outcome()
        self.talk: _Talk | None = None
        self.testing: tuple[Started, WorkerProcess] | None = None
        self.testing_ended: dict[str, Any] = {}

    def examined_by(self, testing: Started, examiner: WorkerProcess) -> None:
        self.testing = testing, examiner

    def examiners_end(self) -> Result | None:
        """The result of a test that crashed its examiner or exhausted its time."""
        if self.outcome.cause or os.waitstatus_to_exitcode(self.testing_ended["status"]) in (0, LOST):
            return None
        if self.testing_ended["cause"] == "cpu":
            return {"status": "timeout", "message": "CPU time limit, in the test"}
        return {"status": "runtime_error", "message": "what the program gave was too much for the test"}

    @contextlib.contextmanager
    def closing(self):
        """Ends everything, however the block is left."""
        try:
            yield
        finally:
            if not self.outcome.ended:
                with contextlib.suppress(WorkerError):
                    self.worker.end(self.started.id)
            for started in (self.started, *(self.testing or ())[:1]):
                started.close()

    def until_end(self, look: Callable[[], str] = lambda: "") -> Outcome:
        """Collects output; ends the run when a limit is reached or `look` gives a reason.

        Args:
            look: called every TICK_S seconds and at messages; returns "" while the run should continue.
        """
        if self.talk and self.talk.channel:
            self.talk.channel.setblocking(False)
        while not (self.outcome.cause or self._over()):
            self._step()
            self.outcome.cause = self.outcome.cause or look() or self._printed_too_much()
        self._end()
        look()
        if not self.outcome.cause and not self.started.was_read():
            raise WorkerError("a program's process ended before it had read its program")
        return self.outcome

    def _over(self) -> bool:
        return bool(self.testing_ended if self.testing else self.outcome.ended)

    def _step(self) -> None:
        poll = select.poll()
        for fd in self.pipes:
            poll.register(fd, select.POLLIN)
        workers = [self.worker, *(self.testing or ())[1:]]
        for worker in workers:
            poll.register(worker.control, select.POLLIN)
        channel = self.talk.channel if self.talk and not self.talk.closed else None
        if channel and self.talk:
            poll.register(channel, select.POLLIN | (select.POLLOUT if self.talk.unsent else 0))
        left = self.deadline - time.monotonic()
        if left <= 0:
            self.outcome.cause = "timeout"
            return
        ready = dict(poll.poll(min(left, TICK_S) * 1000))
        for fd in self.pipes.keys() & ready.keys():
            self._take(self.pipes[fd], os.read(fd, 65536))
        if channel and self.talk and channel.fileno() in ready:
            self.talk.step(ready[channel.fileno()])
        for worker in workers:
            if worker.control.fileno() in ready:
                self._hear(worker, worker.receive(1.0))

    def _hear(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        if worker is self.worker and message.get("id") == self.started.id:
            self.outcome.ended = _report(message)
        elif self.testing and worker is self.testing[1] and message.get("id") == self.testing[0].id:
            self.testing_ended = _report(message)

    def _take(self, name: str, data: bytes) -> None:
        kept = getattr(self.outcome, name) + data
        setattr(self.outcome, name, kept[: self.room[name]])
        if len(kept) > self.room[name]:
            self.outcome.cause = "output_limit"

    def _printed_too_much(self) -> str:
        over = not self.pipes and max(written(*self.streams)) > self.limits.output_kb << 10
        return "output_limit" if over else ""

    def _end(self) -> None:
        """Ends what still runs, then collects the last output, which can no longer grow."""
        if not self.outcome.ended:
            # A process that its examiner has lost may be about to end; then its own exit status counts.
            lost = self.testing_ended and os.waitstatus_to_exitcode(self.testing_ended["status"]) == LOST
            self.outcome.ended = _report(self.worker.end(self.started.id, GRACE_S if lost else 0.0))
        if self.testing and not self.testing_ended:
            self.testing_ended = _report(self.testing[1].end(self.testing[0].id))
        if self.talk and self.talk.channel:
            with contextlib.suppress(OSError):
                self.talk.step(select.POLLIN)
        for fd, name in self.streams.items():
            room = self.room[name] + 1
            if data := drain(fd, room) if fd in self.pipes else os.pread(fd, min(written(fd)[0], room), 0):
                self._take(name, data)


def _report(message: dict[str, Any]) -> dict[str, Any]:
    if "ended" not in message:
        raise WorkerError(message.get("failed", "the worker could not start the program"))
    return message["ended"]
