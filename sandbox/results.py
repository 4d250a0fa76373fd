"""Results of tests, as plain data: from values that were compared, from claims, and from how a run ended."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, field
from typing import Any

from sandbox.compare import matches
from sandbox.plain import decode
from sandbox.verdict import Limits

MAX_SHOWN = 200  # characters kept of values
CLAIMS = ("wrong_answer", "runtime_error", "syntax_error", "memory")  # what a program may say of itself
Result = dict[str, Any]


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


def value_result(test: dict[str, Any], answer: dict[str, Any]) -> Result:
    """Compares what the program gave with what was expected."""
    if "error" in answer:
        return claim(answer["error"]) | {"input": _call_text(test)}
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
    return cut_middle(f"{test['function']}({', '.join(parts)})", MAX_SHOWN)


def _shown(value: Any) -> str:
    """An encoded value for people."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], list) and len(value[1]) > MAX_SHOWN:
        value = [value[0], value[1][:MAX_SHOWN]]  # more would be cut below
    if len(text := json.dumps(value)) > 100 * MAX_SHOWN:  # not decoded: see `compare`
        return cut_middle(text, MAX_SHOWN)
    plain = decode(value)
    try:
        return cut_middle(repr(plain), MAX_SHOWN)
    except ValueError:  # Python's limit for the digits of an int
        return "a number of very many digits"


def claim(failed: Any) -> Result:
    """What a program says of its own failure; only some statuses are its to name."""
    failed = failed if isinstance(failed, dict) else {}
    status = failed.get("status")
    result: Result = {"status": status if status in CLAIMS[1:] else "runtime_error"}
    if failed.get("type") == "AssertionError" and status == "wrong_answer":
        result["status"] = "runtime_error"  # an assert of the program's own
    result["message"] = str(failed.get("message", ""))[:500]
    return result | {"traceback": str(failed.get("traceback", ""))[-4000:]}


def ended_early(outcome: Outcome, limits: Limits) -> Result:
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


def cut_middle(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 2 :]}"
