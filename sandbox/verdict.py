"""What goes into the sandbox and what comes out: programs with tests and limits, verdicts.

Tests are plain data, so that they can cross a process boundary or come from a JSON line (sandbox/requests.py):

    {"type": "assert", "code": "assert add(1, 2) == 3"}
    {"type": "check", "code": "def check(candidate): ...", "entry_point": "add"}
    {"type": "call", "function": "add", "args": [1, 2], "kwargs": {}, "expected": 3}
    {"type": "stdio", "stdin": "1 2\\n", "stdout": "3\\n"}
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import marshal
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sandbox.plain import encode

Status = Literal[
    "passed", "wrong_answer", "runtime_error", "syntax_error", "timeout", "memory", "output_limit", "killed",
    "sandbox_error",
]  # fmt: skip
STATUSES: tuple[str, ...] = get_args(Status)
# How a test was kept from the program: its calls were made and their values compared elsewhere ("values"), its output
# was ("output"), its code ran in an examiner's process ("examined"), or in the program's own ("in_process").
Form = Literal["values", "output", "examined", "in_process", ""]

NOT_RUN = "not run: the program had ended"  # message of a test after that


@dataclass(frozen=True)
class AssertTest:
    """Python statements about the program's names; an exception is a failure.

    form: "auto", or "in_process" for tests that only work inside of the program's process (they patch what it uses, or
        hand it objects of their own classes). A program that is made for it can deceive a test in its own process.
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
    normal: "python": both values are texts of Python programs and compare by their syntax trees (sandbox/trees.py).
    """

    function: str
    args: tuple[Any, ...] = ()
    expected: Any = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-6
    order: Literal["same", "any", "set"] = "same"
    normal: Literal["", "python"] = ""


@dataclass(frozen=True)
class StdioTest:
    """The program reads `stdin` and must print `stdout` (trailing blanks of lines and trailing lines ignored).

    compare: "lines", "stripped" (blanks before lines and blank lines ignored too, numbers by value), "tokens" (any
        white space between words), "words" (as tokens, and upper case is lower case) or "exact".
    tolerance: where not 0, words that are numbers may differ by it (absolute or relative) from one with a fraction.
    checker: Python code that defines `check(stdin, stdout, expected) -> bool`, for problems with many right answers.
    """

    stdin: str
    stdout: str
    compare: Literal["lines", "stripped", "tokens", "words", "exact"] = "lines"
    tolerance: float = 0.0
    checker: str = ""


@dataclass(frozen=True)
class ReferenceTest:
    """`function` must give, for each of `inputs`, what a reference gives; values compare as in EvalPlus 0.3.

    A value is right if it is == to the reference's, or else of the same type and close to it (numpy.allclose with rtol
    1e-7 and `atol`). An atol of 0 becomes 1e-6 at the first input whose right value is made of floats, and stays so.

    Args:
        inputs: the arguments of each call, plain values (sandbox/plain.py).
        reference: code that defines `function`; it runs once, in a jail of its own, and its values are kept on disk.
        expected: the right values themselves, where there is no reference.
        rule: a condition on args, out, expected, match (whether out == expected) and atol that decides instead of ==,
            in the part of Python that sandbox/evaluate.py knows.
        only_rule: what the rule refuses is not looked at for closeness.
        seconds: a call may take that long, or four times as long as the reference's.
    """

    function: str
    inputs: tuple[tuple[Any, ...], ...]
    reference: str = ""
    expected: tuple[Any, ...] = ()
    atol: float = 0.0
    rule: str = ""
    only_rule: bool = False
    seconds: float = 4.0

    @functools.cached_property
    def payload(self) -> bytes:
        """All of it, for the judge. Raises ValueError for inputs that are not plain values."""
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        content["expected"] = [encode(value, _not_plain) for value in self.expected]
        try:
            return marshal.dumps(content | {"encoded": False})
        except ValueError:  # a Counter, say
            inputs = [[encode(arg, _not_plain) for arg in args] for args in self.inputs]
            return marshal.dumps(content | {"inputs": inputs, "encoded": True})

    @functools.cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.payload).hexdigest()


def _not_plain(value: Any) -> Any:
    raise ValueError(f"{value!r:.80} is not a plain value")


Test = AssertTest | CheckTest | CallTest | StdioTest | ReferenceTest


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
    digest: where `actual` was cut, of all of it: tells long values or outputs apart. Of a program that a call gave it
        is that of its syntax tree.
    """

    __test__ = False  # not a pytest class

    status: Status
    message: str = ""
    form: Form = ""
    input: str = ""
    expected: str = ""
    actual: str = ""
    digest: str = ""


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
