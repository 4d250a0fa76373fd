"""What goes into the sandbox and what comes out: programs with tests and limits, verdicts.

Tests are plain data, so that they can cross a process boundary or come from a JSON line:

    {"type": "assert", "code": "assert add(1, 2) == 3"}
    {"type": "check", "code": "def check(candidate): ...", "entry_point": "add"}
    {"type": "call", "function": "add", "args": [1, 2], "kwargs": {}, "expected": 3}
    {"type": "stdio", "stdin": "1 2\\n", "stdout": "3\\n"}
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal[
    "passed", "wrong_answer", "runtime_error", "syntax_error", "timeout", "memory", "output_limit", "killed",
    "sandbox_error",
]  # fmt: skip


@dataclass(frozen=True)
class AssertTest:
    """Python statements run after the program in its namespace; an exception is a failure."""

    code: str


@dataclass(frozen=True)
class CheckTest:
    """`code` defines `check(candidate)`, called with the program's `entry_point` (HumanEval's form)."""

    code: str
    entry_point: str


@dataclass(frozen=True)
class CallTest:
    """`function(*args, **kwargs) == expected`, floats within `tolerance` (absolute and relative)."""

    function: str
    args: tuple[Any, ...] = ()
    expected: Any = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-6


@dataclass(frozen=True)
class StdioTest:
    """The program reads `stdin` and must print `stdout` (trailing blanks of lines and trailing lines ignored)."""

    stdin: str
    stdout: str


Test = AssertTest | CheckTest | CallTest | StdioTest


@dataclass(frozen=True)
class Limits:
    """Bounds on one program, all of its tests together."""

    wall_s: float = 5.0
    cpu_s: float = 3.0
    memory_mb: int = 1024
    output_kb: int = 64
    processes: int = 16


@dataclass(frozen=True)
class Program:
    """A candidate's source code and what it must pass. `tests` must not be empty."""

    code: str
    tests: tuple[Test, ...]
    limits: Limits = Limits()
    stop_at_first_failure: bool = False


@dataclass(frozen=True)
class TestResult:
    """One test's outcome; `message` is a short reason for people (last traceback line, expected and actual)."""

    __test__ = False  # not a pytest class

    status: Status
    message: str = ""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one program: the first failing test's status, or passed.

    `sandbox_error` means that the sandbox failed, not the program: such a verdict is never a reward.
    """

    status: Status
    tests: tuple[TestResult, ...] = ()
    stdout: str = ""
    stderr: str = ""
    wall_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    @property
    def pass_fraction(self) -> float:
        """Share of the tests passed, in [0, 1]."""
        return sum(t.status == "passed" for t in self.tests) / max(len(self.tests), 1)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a samples file."""
        return dataclasses.asdict(self) | {"passed": self.passed}
