"""Results of tests, as plain data: from what a program claims, and from how its run ended."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from dataclasses import dataclass, field
from typing import Any

from sandbox.plain import decode
from sandbox.verdict import NOT_RUN, Limits

MAX_SHOWN = 200  # characters kept of values
CLAIMS = ("runtime_error", "syntax_error", "memory")  # what a program may say of itself
Result = dict[str, Any]


class TaskError(Exception):
    """A test cannot be judged, whatever the program: its reference, checker or imports are broken."""


@dataclass
class Outcome:
    """How one run of a program ended, and what it printed."""

    cause: str = ""  # done, timeout, output_limit: ended from here
    ended: dict[str, Any] = field(default_factory=dict)  # the worker's report
    stdout: bytes = b""
    stderr: bytes = b""


def shown(value: Any) -> str:
    """An encoded value for people."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], list) and len(value[1]) > MAX_SHOWN:
        value = [value[0], value[1][:MAX_SHOWN]]  # more would be cut below
    if len(text := json.dumps(value)) > 100 * MAX_SHOWN:  # not decoded: see sandbox/compare.py
        return cut_middle(text, MAX_SHOWN)
    return shown_value(decode(value))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def shown_value(value: Any) -> str:
    try:
        return cut_middle(repr(value), MAX_SHOWN)
    except ValueError:  # Python's limit for the digits of an int
        return "a number of very many digits"


def claim(failed: Any) -> Result:
    """What a program says of its own failure; only some statuses are its to name."""
    failed = failed if isinstance(failed, dict) else {}
    status = failed.get("status")
    result: Result = {"status": status if status in CLAIMS else "runtime_error"}  # an assert of its own is one too
    result["message"] = str(failed.get("message", ""))[:500]
    return result | {"traceback": str(failed.get("traceback", ""))[-4000:]}


def tampered() -> Result:
    return {"status": "runtime_error", "message": "the program has tampered with its answers"}


def output_limit(limits: Limits) -> Result:
    return {"status": "output_limit", "message": f"more than {limits.output_kb} kB of output"}


def ended_early(outcome: Outcome, limits: Limits) -> Result:
    """The result of the test during which the run ended."""
    if outcome.cause == "output_limit":
        return output_limit(limits)
    if outcome.cause == "timeout":
        return {"status": "timeout", "message": "wall time limit"}
    status, cause = outcome.ended["status"], outcome.ended["cause"]
    if cause == "memory":
        return {"status": "memory", "message": "all processes together took more memory than allowed"}
    if cause == "processes":
        return {"status": "killed", "message": "more processes than allowed"}
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    over = outcome.ended["cpu_s"] >= 0.95 * limits.cpu_s
    if cause == "cpu" or number == signal.SIGXCPU or (number == signal.SIGKILL and over):
        return {"status": "timeout", "message": "CPU time limit"}
    if cause == "end" and number == signal.SIGKILL:
        return {"status": "runtime_error", "message": "the program stopped answering"}
    if number:
        return {"status": "killed", "message": f"ended by {signal_name(number)}"}
    code = os.waitstatus_to_exitcode(status)
    return {"status": "runtime_error", "message": f"the program ended with exit status {code}"}


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def fill(results: list[Result], count: int, first: Result) -> list[Result]:
    """Results for `count` tests: after those that there are, `first`, and that the others were not run."""
    missing = count - len(results)
    status = first["status"] if first["status"] in ("timeout", "output_limit", "memory") else "runtime_error"
    later = {"status": status, "message": NOT_RUN}
    return results + [first] * min(missing, 1) + [later] * (missing - 1)


def cut_middle(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 2 :]}"
