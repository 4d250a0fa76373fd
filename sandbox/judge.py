"""The process that decides. It runs outside the jail, has workers inside, and judges one program at a time.

Only here do a program's answers meet the expected ones. Reads requests from stdin and writes verdicts to stdout as
frames (sandbox/plain.py); sandbox/pool.py starts one judge for each core.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import re
import time
from typing import Any

from sandbox import kernel, reference, run
from sandbox.compare import same_output
from sandbox.examiner import modules_of
from sandbox.launch import WorkerError, WorkerProcess
from sandbox.layers import IsolationError
from sandbox.plain import TRUSTED_FRAME, decode, parse, read_bytes, read_frame, write_frame
from sandbox.results import MAX_SHOWN, Outcome, Result, TaskError, cut_middle, digest
from sandbox.values import DataTest, NeedsExaminer, data_test
from sandbox.verdict import CallTest, Limits

MAX_OUTPUT = 2000  # characters kept of stdout and stderr
ATTEMPTS = 2
REFERENCE_LIMITS = Limits(wall_s=600, cpu_s=600, memory_mb=4096, output_kb=1 << 14)
REFERENCE_MB = 256  # inputs and values of references kept in memory
_NUMPY = re.compile(r"\b(numpy|scipy|pandas)\b")
_TRUTH = "\n\ndef truth_of_check(*given):\n    return bool(check(*given))\n"  # `check` may return a match of re
_PROBE = {"type": "call", **vars(CallTest("f", expected=1)), "args": []}
_HONEST = {"code": "def f(): return 1", "tests": (_PROBE,), "stop": False, "files": {}, "limits": vars(Limits())}


def main() -> None:
    """Serves until stdin ends."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # this process' memory holds what is expected
    start = read_frame(0, TRUSTED_FRAME)
    with contextlib.suppress(OSError):  # the core is no longer available to us
        os.sched_setaffinity(0, {start["core"]})
    try:
        judge = Judge(start["python"], start["least"], start["references"])
    except (IsolationError, WorkerError) as error:
        write_frame(1, {"error": str(error), "isolation": isinstance(error, IsolationError)})
        return
    write_frame(1, {"layers": judge.layers, "pid": os.getpid()})
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            write_frame(1, judge.judge(marshal.loads(read_bytes(0, TRUSTED_FRAME))), TRUSTED_FRAME)
    judge.stop()


class Judge:
    """Judges programs, each in a fresh process of a warm worker; a worker that fails is replaced."""

    def __init__(self, python: dict[str, Any], least: str, references: str = ""):
        self._python, self._least, self._folder = python, least, references
        self._templates: dict[tuple[str, ...], WorkerProcess] = {}
        self._workers: dict[tuple[str, ...], WorkerProcess] = {}
        self._references: dict[str, tuple[dict[str, Any], reference.Expected]] = {}
        self.layers = self._worker("candidate").layers
        if self.layers["leftovers"] != "on":
            self._folder = ""  # a folder that programs can write to cannot be trusted later

    def stop(self) -> None:
        for worker in (*self._workers.values(), *self._templates.values()):
            worker.stop()
        self._workers, self._templates = {}, {}

    def judge(self, request: dict[str, Any]) -> dict[str, Any]:
        """The verdict's fields, or {"needs": digest} for a reference whose content has not arrived yet.

        A worker that fails is replaced, and the program judged again. If that fails as well, the program is to blame,
        unless an honest program fails too: then the sandbox is at fault.
        """
        message = ""
        for _ in range(ATTEMPTS):
            try:
                return self._judge(request)
            except TaskError as error:
                return {"status": "sandbox_error", "stderr": str(error)}
            except (WorkerError, IsolationError, OSError) as error:
                message = str(error)
                self.stop()
        with contextlib.suppress(WorkerError, IsolationError, OSError):
            if self._judge(_HONEST)["status"] == "passed":
                return {"status": "killed", "stderr": f"the program brought down the process that ran it: {message}"}
        self.stop()
        return {"status": "sandbox_error", "stderr": message}

    def _worker(self, role: str, preload: tuple[str, ...] = (), modules: tuple[str, ...] = ()) -> WorkerProcess:
        """The worker of this role with these modules in memory, started when first needed."""
        key = role, *preload, *modules
        if key not in self._workers:
            if preload not in self._templates:
                self._templates[preload] = WorkerProcess(self._python, preload, self._least)
            self._workers[key] = self._templates[preload].clone(role, modules)
        return self._workers[key]

    def _judge(self, request: dict[str, Any]) -> dict[str, Any]:
        limits = Limits(**request["limits"])
        tests: list[dict[str, Any]] = []
        for test in request["tests"]:
            known = self._reference(test) if test["type"] == "reference" else (test, None)
            if known is None:
                return {"needs": test["digest"]}
            tests.append({**known[0], **_form(*known)})
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
        groups = _groups(tests)
        while groups:
            group = groups.pop(0)
            if request["stop"] and any(r["status"] != "passed" for r in verdict["tests"]):
                break
            left = Limits(limits.wall_s, max(cpu_left, 0.01), limits.memory_mb, limits.output_kb, limits.processes)
            try:
                results, outcome = self._run_group(request, group, left, deadline)
            except NeedsExaminer:
                groups = (
                    _groups([t if t["type"] not in ("assert", "check") else {**t, "form": "examined"} for t in group])
                    + groups
                )
                continue
            verdict["tests"] += [{"form": group[0]["form"], **r} for r in results]
            cpu_left -= outcome.ended.get("cpu_s", 0.0)
            verdict["cpu_s"] += outcome.ended.get("cpu_s", 0.0)
            verdict["memory_mb"] = max(verdict["memory_mb"], outcome.ended.get("memory_kb", 0) / 1024)
            verdict["stdout"] = cut_middle(outcome.stdout.decode("utf-8", "replace"), MAX_OUTPUT)
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
        program = {key: request[key] for key in ("code", "files", "command", "filename") if key in request}
        preload = _preload(request, tests)
        worker, form = self._worker("candidate", preload), tests[0]["form"]
        if form == "output":
            failed, outcome = run.run_script(worker, program, limits, deadline, tests[0]["stdin"])
            return [self._output_result(tests[0], failed, outcome, limits, deadline)], outcome
        if form == "values":
            return run.run_calls(worker, program, limits, deadline, [t["data"] for t in tests], request["stop"])
        plain = [{key: t.get(key) for key in ("type", "code", "entry_point")} for t in tests]
        if form == "in_process":
            return run.run_in_process(worker, program, limits, deadline, plain, request["stop"])
        modules = tuple(sorted({m for t in tests for m in modules_of(t["code"])}))
        examiner = self._worker("examiner", preload, modules)
        return run.run_examined(worker, examiner, program, limits, deadline, plain, request["stop"])

    def _output_result(
        self, test: dict[str, Any], failed: Result | None, outcome: Outcome, limits: Limits, deadline: float
    ) -> Result:
        result: Result = {"input": cut_middle(test["stdin"], MAX_SHOWN)}
        if failed:
            return result | failed
        actual = outcome.stdout.decode("utf-8", "replace")
        if test["checker"]:
            right, message = self._checked(test, actual, limits, deadline)
            result |= {"message": message} if message else {}
        else:
            right = same_output(actual, test["stdout"], test["compare"], test["tolerance"])
        if right:
            return {"status": "passed"}
        shown, expected = cut_middle(actual, MAX_SHOWN), cut_middle(test["stdout"], MAX_SHOWN)
        message = f"printed {shown!r}, expected {expected!r}"
        result |= {"digest": digest(actual)} if len(actual) > MAX_SHOWN else {}
        return {"message": message} | result | {"status": "wrong_answer", "expected": expected, "actual": shown}

    def _checked(self, test: dict[str, Any], actual: str, limits: Limits, deadline: float) -> tuple[bool, str]:
        """The verdict of the test's checker on an output. Raises TaskError for a checker that does not work."""
        accepted, failed = self._ask_checker(test, actual, limits, deadline)
        if failed and failed["status"] == "runtime_error":
            # It cannot read this output, which is therefore wrong. But it must be able to read a right one.
            if test["stdout"] and self._ask_checker(test, test["stdout"], limits, deadline)[1]:
                raise TaskError(f"the checker fails for the expected output too: {failed['message']}")
            return False, f"the checker refused the output: {failed['message']}"
        if failed and failed["status"] == "timeout":
            return False, "the checker took too long"
        return bool(accepted), ""

    def _ask_checker(
        self, test: dict[str, Any], actual: str, limits: Limits, deadline: float
    ) -> tuple[Any, Result | None]:
        values: list[Any] = []

        def check(number: int, answers: list[bytes]) -> None:
            values.append(decode(parse(answers[number][1:])))

        given = test["stdin"], actual, test["stdout"]
        calls = [("check", None, {}, False), ("truth_of_check", given, {}, False)]
        call = DataTest(calls, check, [], True, True)
        checker = {"code": test["checker"] + _TRUTH, "files": {}}
        worker = self._worker("candidate", ("numpy",) if _NUMPY.search(test["checker"]) else ())
        deadline = max(deadline, time.monotonic() + 1.0)
        (result,), _ = run.run_calls(worker, checker, limits, deadline, [call], False)
        if not values:
            raise TaskError(f"the checker does not work: {result['message']}")
        return (values[1] if len(values) > 1 else None), (None if result["status"] == "passed" else result)

    def _reference(self, test: dict[str, Any]) -> tuple[dict[str, Any], reference.Expected] | None:
        """A test's inputs and right values; None if its content must be sent first."""
        digest = test["digest"]
        if digest not in self._references:
            if "payload" not in test:
                return None
            content = {"type": "reference", **marshal.loads(test["payload"])}
            expected = reference.load(self._folder, digest)
            if expected is None:
                expected = self._right_values(content)
                reference.store(self._folder, digest, expected)
            self._references[digest] = content, expected
            size = sum(len(c["inputs"]) + sum(map(len, e.values)) for c, e in self._references.values())
            while size > REFERENCE_MB << 20 and len(self._references) > 1:
                self._references.pop(next(iter(self._references)))
                size = sum(len(c["inputs"]) + sum(map(len, e.values)) for c, e in self._references.values())
        return self._references[digest]

    def _right_values(self, test: dict[str, Any]) -> reference.Expected:
        """What the test expects. Raises TaskError when its reference does not work."""
        if not test["reference"]:
            return reference.given_values(test)
        times: list[float] = []
        values: list[Any] = []

        def note(number: int, answers: list[bytes]) -> None:
            values.append(parse(answers[number][1:]))
            times.append(time.monotonic())

        calls = DataTest([(test["function"], a, {}, test["encoded"]) for a in test["inputs"]], note, [], True, True)
        program = {"code": test["reference"], "files": {}}
        worker = self._worker("candidate", ("numpy",) if _NUMPY.search(test["reference"]) else ())
        start = time.monotonic()
        deadline = start + REFERENCE_LIMITS.wall_s
        (result,), _ = run.run_calls(worker, program, REFERENCE_LIMITS, deadline, [calls], False)
        if result["status"] != "passed":
            raise TaskError(f"the test's reference does not work: {result['message']}")
        seconds = [now - before for before, now in zip([start, *times], times)]
        return reference.expected_values(test["atol"], values, seconds)


def _form(test: dict[str, Any], expected: reference.Expected | None) -> dict[str, Any]:
    """How the test is judged, which depends on the test alone."""
    if test["type"] == "stdio":
        return {"form": "output"}
    if test.get("form") == "in_process":
        return {"form": "in_process"}
    data = data_test(test, expected)
    return {"form": "values", "data": data} if data else {"form": "examined"}


def _groups(tests: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The tests, in order, as groups that share one process of the program: neighbours of the same form."""
    groups: list[list[dict[str, Any]]] = []
    for test in tests:
        if groups and groups[-1][0]["form"] == test["form"] != "output":
            groups[-1].append(test)
        else:
            groups.append([test])
    return groups


def _preload(request: dict[str, Any], tests: list[dict[str, Any]]) -> tuple[str, ...]:
    """Modules to preload: NumPy only for programs that name it, since its pages make every fork slower."""
    texts = [request["code"], *(t["code"] for t in tests if "code" in t)]
    return ("numpy",) if any(_NUMPY.search(text) for text in texts) else ()
