"""The process that decides. It stands outside of the jail, has a worker inside, and judges one program at a time.

Only here meet what a program has said and what was expected. Reads requests from stdin and writes verdicts to stdout
as frames (sandbox/plain.py); sandbox/pool.py starts one for each core.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import re
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandbox.compare import matches, same_output
from sandbox.examiner import leaves_no_trace, looks_inside
from sandbox.isolation import IsolationError
from sandbox.launch import Started, WorkerError, WorkerProcess, drain
from sandbox.plain import TRUSTED_FRAME, FrameReader, decode, frame, read_frame, write_frame
from sandbox.verdict import Limits

MAX_SHOWN, MAX_OUTPUT = 200, 2000  # characters kept of values, of stdout and stderr
ATTEMPTS = 2
GRACE_S = 0.05
EXAMINER_USES, SETTLE_S = 5000, 0.1  # programs before an examiner is replaced; wait for one that is behind
CLAIMS = ("wrong_answer", "runtime_error", "syntax_error", "memory")  # what a program may say of itself
_NUMPY = re.compile(r"\b(numpy|scipy|pandas)\b")
Result = dict[str, Any]


def main() -> None:
    """Serves until stdin ends."""
    start = read_frame(0, TRUSTED_FRAME)
    os.sched_setaffinity(0, {start["core"]})
    try:
        judge = Judge(start["python"], start["least"])
    except (IsolationError, WorkerError) as error:
        write_frame(1, {"error": str(error), "isolation": isinstance(error, IsolationError)})
        return
    write_frame(1, {"layers": judge.layers, "pid": os.getpid()})
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            write_frame(1, judge.judge(read_frame(0, TRUSTED_FRAME)), TRUSTED_FRAME)
    judge.stop()


@dataclass
class Outcome:
    """One run of a program: what its tests gave so far, and how it ended."""

    results: list[Result] = field(default_factory=list)
    done: bool = False
    complete: bool = False  # every test that was to run has a result
    failed: Result | None = None  # the program itself failed, before its tests
    cause: str = ""  # timeout, output_limit: ended from here
    ended: dict[str, Any] = field(default_factory=dict)  # the worker's report
    memory_killed: bool = False
    stdout: bytes = b""
    stderr: bytes = b""


class Judge:
    """Judges programs, each in a fresh process of a warm worker; a worker that fails is replaced."""

    def __init__(self, python: dict[str, Any], least: str):
        self._python, self._least = python, least
        self._templates: list[WorkerProcess] = []
        self._workers: dict[tuple[str, ...], tuple[WorkerProcess, StandingExaminer]] = {}
        self.layers = self._worker(())[0].layers

    def stop(self) -> None:
        for worker, examiner in self._workers.values():
            examiner.stop()
            worker.stop()
        for template in self._templates:
            template.stop()
        self._workers, self._templates = {}, []

    def judge(self, request: dict[str, Any]) -> dict[str, Any]:
        """The verdict's fields. A worker's failure is tried again; after that it is a sandbox_error."""
        message = ""
        for _ in range(ATTEMPTS):
            try:
                return self._judge(request)
            except (WorkerError, IsolationError, OSError) as error:
                message = str(error)
                self.stop()
        return {"status": "sandbox_error", "stderr": message}

    def _worker(self, preload: tuple[str, ...]) -> tuple[WorkerProcess, StandingExaminer]:
        """The worker that has these modules in memory, started when it is first needed."""
        if preload not in self._workers:
            template = WorkerProcess(self._python, preload, self._least)
            self._templates.append(template)
            self._workers[preload] = template.clone(), StandingExaminer(template)
        return self._workers[preload]

    def _judge(self, request: dict[str, Any]) -> dict[str, Any]:
        tests, limits = request["tests"], Limits(**request["limits"])
        start = time.monotonic()
        deadline, cpu_left = start + limits.wall_s, limits.cpu_s
        verdict: dict[str, Any] = {
            "tests": [],
            "stdout": "",
            "stderr": "",
            "traceback": "",
            "cpu_s": 0.0,
            "memory_mb": 0.0,
        }
        for group in _groups(request):
            if request["stop"] and any(r["status"] != "passed" for r in verdict["tests"]):
                break
            left = Limits(limits.wall_s, max(cpu_left, 0.01), limits.memory_mb, limits.output_kb, limits.processes)
            results, outcome = self._run_group(request, group, left, deadline)
            verdict["tests"] += results
            cpu_left -= outcome.ended.get("cpu_s", 0.0)
            verdict["cpu_s"] += outcome.ended.get("cpu_s", 0.0)
            verdict["memory_mb"] = max(verdict["memory_mb"], outcome.ended.get("memory_kb", 0) / 1024)
            verdict["stdout"] = _cut_middle(outcome.stdout.decode("utf-8", "replace"), MAX_OUTPUT)
            verdict["stderr"] = outcome.stderr.decode("utf-8", "replace")[-MAX_OUTPUT:]
        failures = [r for r in verdict["tests"] if r["status"] != "passed"]
        if len(verdict["tests"]) < len(tests) and not failures:
            raise WorkerError("the sandbox gave too few results")
        for result in verdict["tests"]:
            trace = result.pop("traceback", "")
            verdict["traceback"] = verdict["traceback"] or trace
        verdict["status"] = failures[0]["status"] if failures else "passed"
        return verdict | {"wall_s": time.monotonic() - start}

    def _run_group(
        self, request: dict[str, Any], tests: list[dict[str, Any]], limits: Limits, deadline: float
    ) -> tuple[list[Result], Outcome]:
        """The results of tests that share one process of the program (see `_groups`)."""
        run = _Run(*self._worker(_preload(request, tests)), request, limits, deadline)
        kind = tests[0]["form"]
        if kind == "output":
            outcome = run.script(tests[0])
            return [self._output_result(tests[0], outcome, limits, deadline)], outcome
        outcome = {"values": run.calls, "proxy": run.examined, "in_process": run.in_process}[kind](tests)
        if any(r["status"] == "in_process" for r in outcome.results):  # the test handed over objects of its own
            again = [t | {"form": "in_process"} for t in tests]
            return self._run_group(request, again, limits, deadline)
        results = [{"form": kind, **r} for r in outcome.results]
        missing = len(tests) - len(results)
        if outcome.failed:
            results += [{**_claim(outcome.failed), "form": kind}] * missing
        elif missing and not (request["stop"] and any(r["status"] != "passed" for r in results)):
            first = _ended_early(outcome, limits) | {
                "form": kind,
                "input": tests[len(results)].get("code", "")[:MAX_SHOWN],
            }
            status = first["status"] if first["status"] in ("timeout", "output_limit") else "runtime_error"
            later = {"status": status, "message": "not run: the program had ended", "form": kind}
            results += [first] + [later] * (missing - 1)
        return results, outcome

    def _output_result(self, test: dict[str, Any], outcome: Outcome, limits: Limits, deadline: float) -> Result:
        result: Result = {"form": "output", "input": _cut_middle(test["stdin"], MAX_SHOWN)}
        if outcome.failed and "no_command" in outcome.failed:
            return result | {"status": "sandbox_error", "message": outcome.failed["no_command"]}
        if outcome.failed:
            return result | _claim(outcome.failed)
        if outcome.cause or outcome.ended["cause"] or outcome.ended["status"]:
            return result | _ended_early(outcome, limits)
        actual = outcome.stdout.decode("utf-8", "replace")
        if test["checker"]:
            call = {
                "form": "values",
                "function": "check",
                "args": [test["stdin"], actual, test["stdout"]],
                "kwargs": {},
            }
            call |= {"expected": True, "tolerance": 0.0, "order": "same"}
            checker = {"code": test["checker"], "files": {}, "stop": False}
            (said,), _ = self._run_group(checker, [call], limits, deadline)
            right = said["status"] == "passed"
            if said["status"] not in ("passed", "wrong_answer"):
                raise WorkerError(f"the checker failed: {said.get('message')}")
        else:
            right = same_output(actual, test["stdout"], test["compare"], test["tolerance"])
        if right:
            return {"status": "passed", "form": "output"}
        shown, expected = _cut_middle(actual, MAX_SHOWN), _cut_middle(test["stdout"], MAX_SHOWN)
        message = f"printed {shown!r}, expected {expected!r}"
        return result | {"status": "wrong_answer", "message": message, "expected": expected, "actual": shown}


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


class _Run:
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
        outcome = Outcome()

        def receive(message: Any, send: Callable[[bytes], None]) -> None:
            if not isinstance(message, dict):
                raise ValueError("no message")
            if "failed" in message:
                outcome.failed = message["failed"] if isinstance(message["failed"], dict) else {}
            elif "loaded" not in message or outcome.results:
                outcome.results.append(_value_result(tests[len(outcome.results)], message))
            number = len(outcome.results)
            stop = self.stop and number and outcome.results[-1]["status"] != "passed"
            if outcome.failed is not None or stop or number == len(tests):
                outcome.done = outcome.complete = True
            else:
                test = tests[number]
                call = {"call": test["function"], "args": test["args"], "kwargs": test["kwargs"]}
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
            self._watch(started, channel, receive, outcome, request)
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
        outcome, nonce = Outcome(), os.urandom(16).hex()

        def receive(message: Any, send: Callable[[bytes], None]) -> None:
            if isinstance(message, dict) and "loaded" in message and not outcome.results:
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
    ) -> None:
        """Moves messages and output until the run is done or ends, or a limit is reached; then ends it."""
        assert channel
        channel.setblocking(False)
        watched = _Watched(started, channel, receive, outcome, self.limits.output_kb << 10, bytearray(first))
        try:
            while not (outcome.done or outcome.cause or outcome.ended):
                watched.step(self.worker.control, self.worker, self.deadline)
            if not outcome.ended:
                # Less than all: it fell silent, perhaps because it is ending.
                grace = GRACE_S if outcome.done and outcome.failed is None and not outcome.complete else 0.0
                outcome.ended = _report(self.worker.end(started.id, grace))
            watched.finish()
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


def _groups(request: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The tests, in order, as groups that share one process of the program: neighbours of the same form."""
    groups: list[list[dict[str, Any]]] = []
    for test in request["tests"]:
        form = {"call": "values", "stdio": "output"}.get(test["type"], "proxy")
        if form == "proxy" and (test["form"] == "in_process" or looks_inside(test["code"])):
            form = "in_process"
        test = {**test, "form": form}
        if groups and groups[-1][0]["form"] == form != "output":
            groups[-1].append(test)
        else:
            groups.append([test])
    return groups


def _preload(request: dict[str, Any], tests: list[dict[str, Any]]) -> tuple[str, ...]:
    """NumPy lies in memory only for programs that name it: its pages make every fork slower."""
    texts = [request["code"], *(t["code"] for t in tests if "code" in t)]
    return ("numpy",) if any(_NUMPY.search(text) for text in texts) else ()


def _value_result(test: dict[str, Any], answer: dict[str, Any]) -> Result:
    """Compares what the program gave with what was expected."""
    if "error" in answer:
        return _claim(answer["error"]) | {"input": _call_text(test)}
    try:
        if matches(answer["value"], test["expected"], test["tolerance"], test["order"]):
            return {"status": "passed"}
        actual = _shown(answer["value"])
    except (KeyError, ValueError, TypeError, ArithmeticError, RecursionError):
        return {"status": "wrong_answer", "message": "the program gave no readable value"}
    call, expected = _call_text(test), _shown(test["expected"])
    message = f"{call} gave {actual}, expected {expected}"
    return {"status": "wrong_answer", "message": message, "input": call, "expected": expected, "actual": actual}


def _call_text(test: dict[str, Any]) -> str:
    parts = [_shown(a) for a in test["args"]] + [f"{k}={_shown(v)}" for k, v in test["kwargs"].items()]
    return _cut_middle(f"{test['function']}({', '.join(parts)})", MAX_SHOWN)


def _shown(value: Any) -> str:
    """An encoded value for people."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], list) and len(value[1]) > MAX_SHOWN:
        value = [value[0], value[1][:MAX_SHOWN]]  # more would be cut below
    return _cut_middle(repr(decode(value)), MAX_SHOWN)


def _claim(failed: Any) -> Result:
    """What a program says of its own failure; only some statuses are its to name."""
    failed = failed if isinstance(failed, dict) else {}
    status = failed.get("status")
    result: Result = {"status": status if status in CLAIMS[1:] else "runtime_error"}
    if failed.get("type") == "AssertionError" and status == "wrong_answer":
        result["status"] = "runtime_error"  # an assert of the program's own
    result["message"] = str(failed.get("message", ""))[:500]
    return result | {"traceback": str(failed.get("traceback", ""))[-4000:]}


def _ended_early(outcome: Outcome, limits: Limits) -> Result:
    """The result of the test during which the run ended."""
    status, cause = outcome.ended["status"], outcome.ended["cause"]
    if outcome.cause == "output_limit":
        return {"status": "output_limit", "message": f"more than {limits.output_kb} kB of output"}
    if outcome.cause == "timeout":
        return {"status": "timeout", "message": "wall time limit"}
    if outcome.memory_killed:
        return {"status": "memory", "message": "all processes together took more memory than allowed"}
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    over = outcome.ended["cpu_s"] >= 0.95 * limits.cpu_s
    if cause == "cpu" or number == signal.SIGXCPU or (number == signal.SIGKILL and over):
        return {"status": "timeout", "message": "CPU time limit"}
    if cause == "end" and number == signal.SIGKILL:
        return {"status": "runtime_error", "message": "the program stopped answering"}
    if number:
        return {"status": "killed", "message": f"ended by {signal.Signals(number).name}"}
    return {
        "status": "runtime_error",
        "message": f"the program ended with exit status {os.waitstatus_to_exitcode(status)}",
    }


def _cut_middle(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 2 :]}"
