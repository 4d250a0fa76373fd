"""The process that decides. It stands outside of the jail, has a worker inside, and judges one program at a time.

Only here meet what a program has said and what was expected. Reads requests from stdin and writes verdicts to stdout
as frames (sandbox/plain.py); sandbox/pool.py starts one for each core.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import Any

from sandbox.compare import same_output
from sandbox.examiner import looks_inside
from sandbox.isolation import IsolationError
from sandbox.launch import WorkerError, WorkerProcess
from sandbox.plain import TRUSTED_FRAME, read_frame, write_frame
from sandbox.results import MAX_SHOWN, Outcome, Result, claim, cut_middle, ended_early
from sandbox.run import Run, StandingExaminer
from sandbox.verdict import Limits

MAX_OUTPUT = 2000  # characters kept of stdout and stderr
ATTEMPTS = 2
_NUMPY = re.compile(r"\b(numpy|scipy|pandas)\b")


def main() -> None:
    """Serves until stdin ends."""
    start = read_frame(0, TRUSTED_FRAME)
    with contextlib.suppress(OSError):  # the core has been taken from us since
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
        run = Run(*self._worker(_preload(request, tests)), request, limits, deadline)
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
            results += [{**claim(outcome.failed), "form": kind}] * missing
        elif missing and not (request["stop"] and any(r["status"] != "passed" for r in results)):
            first = ended_early(outcome, limits) | {
                "form": kind,
                "input": tests[len(results)].get("code", "")[:MAX_SHOWN],
            }
            status = first["status"] if first["status"] in ("timeout", "output_limit") else "runtime_error"
            later = {"status": status, "message": "not run: the program had ended", "form": kind}
            results += [first] + [later] * (missing - 1)
        return results, outcome

    def _output_result(self, test: dict[str, Any], outcome: Outcome, limits: Limits, deadline: float) -> Result:
        result: Result = {"form": "output", "input": cut_middle(test["stdin"], MAX_SHOWN)}
        if outcome.failed and "no_command" in outcome.failed:
            return result | {"status": "sandbox_error", "message": outcome.failed["no_command"]}
        if outcome.failed:
            return result | claim(outcome.failed)
        if outcome.cause or outcome.ended["cause"] or outcome.ended["status"]:
            return result | ended_early(outcome, limits)
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
            if said["status"] == "syntax_error":
                raise WorkerError(f"the checker is no Python: {said['message']}")
            if said["status"] != "wrong_answer" and not right:  # an output that it cannot read is no right one
                result["message"] = f"the checker refused the output: {said['message']}"
        else:
            right = same_output(actual, test["stdout"], test["compare"], test["tolerance"])
        if right:
            return {"status": "passed", "form": "output"}
        shown, expected = cut_middle(actual, MAX_SHOWN), cut_middle(test["stdout"], MAX_SHOWN)
        message = f"printed {shown!r}, expected {expected!r}"
        return {"message": message} | result | {"status": "wrong_answer", "expected": expected, "actual": shown}


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
