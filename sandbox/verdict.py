"""What goes into the sandbox and what comes out: programs with tests and limits, verdicts.

Tests are plain data, so that they can cross a process boundary or come from a JSON line (sandbox/requests.py):

    {"type": "assert", "code": "assert add(1, 2) == 3"}
    {"type": "check", "code": "def check(candidate): ...", "entry_point": "add"}
    {"type": "call", "function": "add", "args": [1, 2], "kwargs": {}, "expected": 3}
    {"type": "stdio", "stdin": "1 2\\n", "stdout": "3\\n"}
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Status = Literal[
    "passed", "wrong_answer", "runtime_error", "syntax_error", "timeout", "memory", "output_limit", "killed",
    "sandbox_error",
]  # fmt: skip
STATUSES: tuple[str, ...] = get_args(Status)
# How a test was kept from the program: see sandbox/examiner.py for assert and check tests. The answers to call and
# stdio tests are compared outside ("values", "output").
Form = Literal["values", "output", "proxy", "objects", "in_process", ""]


@dataclass(frozen=True)
class AssertTest:
    """Python statements run after the program with its names; an exception is a failure.

    form: "auto" or, for tests that only work inside of the program's process, "in_process".
    """

    code: str
    form: Literal["auto", "in_process"] = "auto"


@dataclass(frozen=True)
class CheckTest:
    """`code` defines `check(candidate)`, called with the program's `entry_point` (HumanEval's form)."""

    code: str
    entry_point: str
    form: Literal["auto", "in_process"] = "auto"


@dataclass(frozen=True)
class CallTest:
    """`function(*args, **kwargs)` must be `expected`, floats within `tolerance` (absolute and relative).

    order: "any": a list's items may stand in any order; "set": and any number of times.
    """

    function: str
    args: tuple[Any, ...] = ()
    expected: Any = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-6
    order: Literal["same", "any", "set"] = "same"


@dataclass(frozen=True)
class StdioTest:
    """The program reads `stdin` and must print `stdout` (trailing blanks of lines and trailing lines ignored).

    compare: "lines", "tokens" (any white space between words) or "exact".
    tolerance: where not 0, words that are numbers may differ by it (absolute or relative).
    checker: Python code that defines `check(stdin, stdout, expected) -> bool`, for problems with many right answers.
    """

    stdin: str
    stdout: str
    compare: Literal["lines", "tokens", "exact"] = "lines"
    tolerance: float = 0.0
    checker: str = ""


Test = AssertTest | CheckTest | CallTest | StdioTest


@dataclass(frozen=True)
class Limits:
    """Bounds on one program, all of its tests together."""

    wall_s: float = 10.0
    cpu_s: float = 4.0
    memory_mb: int = 1024  # address space of each process above Python's own; all together where there are cgroups
    output_kb: int = 64  # stdout and stderr, each
    processes: int = 16  # and threads


@dataclass(frozen=True)
class Program:
    """A candidate's source code and what it must pass. `tests` must not be empty.

    Args:
        files: other files of the program, by relative path.
        command: for other languages: the command that runs the source, {filename} standing for its file's name, as in
            ("node", "{filename}"); such a program has stdio tests only.
        filename: name of the file that the command gets.
    """

    code: str
    tests: tuple[Test, ...]
    limits: Limits = Limits()
    stop_at_first_failure: bool = False
    files: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    filename: str = "program"


@dataclass(frozen=True)
class TestResult:
    """One test's outcome.

    message: a short reason for people (last traceback line; expected and actual).
    form: how the test was kept from the program.
    input, expected, actual: for a test that failed, as far as they are known; long ones cut.
    """

    __test__ = False  # not a pytest class

    status: Status
    message: str = ""
    form: Form = ""
    input: str = ""
    expected: str = ""
    actual: str = ""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one program: the first failing test's status, or passed.

    `sandbox_error` means that the sandbox failed, not the program: such a verdict is never a reward.
    stdout, stderr and the traceback are cut; memory_mb is the peak of the program's own process.
    """

    status: Status
    tests: tuple[TestResult, ...] = ()
    stdout: str = ""
    stderr: str = ""
    traceback: str = ""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    memory_mb: float = 0.0

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    @property
    def pass_fraction(self) -> float:
        """Share of the tests passed, in [0, 1]."""
        return sum(t.status == "passed" for t in self.tests) / max(len(self.tests), 1)

    @property
    def first_failure(self) -> TestResult | None:
        return next((t for t in self.tests if t.status != "passed"), None)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a samples file."""
        return dataclasses.asdict(self) | {"passed": self.passed}
