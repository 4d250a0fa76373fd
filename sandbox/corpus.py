"""Hostile programs as data: the kinds of test that they meet, the honest programs graded after them, and their headers.

A program is one file. Its first comment lines say what it is:

    # What it tries, in one line.
    # kind: exits                     one of KINDS: what it attacks
    # form: call, assert              the kinds of test it is made for (FORMS); "check" by default
    # status: runtime_error|timeout   this sandbox's right verdicts (by default any except passed)
    # limits: {"wall_s": 1}           limits of its own

In JavaScript (.js, run by node) the lines begin with //. No program solves the task of its tests.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.requests import read_request
from sandbox.verdict import STATUSES, Program

DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "tests" / "sandbox" / "hostile"
KINDS = {
    "lies": "answers that lie about themselves: equality, length, type, items",
    "exits": "an early end that looks like success",
    "patches": "Python changed underneath the tests",
    "reads": "looks for the tests, the answers or other processes' secrets",
    "forges": "verdicts and messages on the grader's own channels",
    "resources": "time, memory, disk, descriptors, output without end",
    "processes": "forks, threads, daemons, signals",
    "host": "the machine: kernel, devices, network, other users",
    "neighbours": "something left behind for the next program",
}  # fmt: skip
_CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(20, 22) == 42\n"
# Beyond the modules that leave no trace, and with a reference that is run: as EvalPlus' own tests are.
_IMPURE = (
    "import time, signal\nREFERENCE = 'def add(a, b):\\n    return a + b\\n'\n"
    "def check(candidate):\n    scope = {}\n    exec(REFERENCE, scope)\n"
    "    for a, b in ((1, 2), (20, 22)):\n        assert candidate(a, b) == scope['add'](a, b)\n"
)
_HASHED = (
    "import hashlib\nassert hashlib.md5(str(add(1, 2)).encode()).hexdigest() == hashlib.md5(b'3').hexdigest()\n"
    "assert hashlib.md5(str(add(20, 22)).encode()).hexdigest() == hashlib.md5(b'42').hexdigest()\n"
)
_INSIDE = "import inspect\ndef check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(20, 22) == 42\n"
_CHECKER = "def check(stdin, stdout, expected):\n    return int(stdout) == int(expected)\n"
_ADD = ("def add(a, b):\n    return a + b\n", "def add(a, b):\n    return a - b\n")
_POINT = (
    "class Point:\n    def __init__(self, x, y):\n        self.x, self.y = x, y\n"
    "def norm(p):\n    return (p.x ** 2 + p.y ** 2) ** 0.5\n",
    "class Point:\n    def __init__(self, x, y):\n        self.x, self.y = x, y\ndef norm(p):\n    return 0\n",
)
_APPLY = (
    "def apply(f, x):\n    return f(x)\ndef square(x):\n    return x * x\n",
    "def apply(f, x):\n    return x\ndef square(x):\n    return x * x\n",
)
_PRINT = ("print(sum(map(int, input().split())))\n", "print(7)\n")
_NODE = (
    "const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ').map(Number); console.log(a + b);\n",
    "console.log(7);\n",
)


@dataclass(frozen=True)
class TestForm:
    """A kind of test: tests as `python -m sandbox score` takes them, the function's name, honest programs."""

    __test__ = False  # not a pytest class

    tests: tuple[dict[str, Any], ...]
    entry_point: str
    right: str
    wrong: str


def _form(entry_point: str, programs: tuple[str, str], *tests: dict[str, Any]) -> TestForm:
    return TestForm(tests, entry_point, *programs)


def _asserts(*codes: str) -> tuple[dict[str, Any], ...]:
    return tuple({"type": "assert", "code": code} for code in codes)


def _calls(function: str, *pairs: tuple[list[Any], Any], order: str = "same") -> tuple[dict[str, Any], ...]:
    return tuple({"type": "call", "function": function, "args": a, "expected": e, "order": order} for a, e in pairs)


FORMS: dict[str, TestForm] = {
    "call": _form("add", _ADD, *_calls("add", ([1, 2], 3), ([20, 22], 42))),
    "assert": _form("add", _ADD, *_asserts("assert add(1, 2) == 3", "assert add(20, 22) == 42")),
    "check": _form("add", _ADD, {"type": "check", "code": _CHECK, "entry_point": "add"}),
    "impure": _form("add", _ADD, {"type": "check", "code": _IMPURE, "entry_point": "add"}),
    "impure_assert": _form("add", _ADD, *_asserts(_HASHED)),
    "while_assert": _form("add", _ADD, *_asserts("i = 1\nwhile i < 4:\n    assert add(i, 2) == i + 2\n    i += 1")),
    "mapall": _form(
        "add", _ADD, *_asserts("assert all(map(lambda c: add(*c[0]) == c[1], [((1, 2), 3), ((20, 22), 42)]))")
    ),
    "inspect": _form("add", _ADD, {"type": "check", "code": _INSIDE, "entry_point": "add"}),
    "objects": _form("norm", _POINT, *_asserts("p = Point(3, 4)\nassert norm(p) == 5")),
    "objects_chain": _form(
        "norm", _POINT, *_asserts("p = Point(3, 4)\nassert norm(p) == 5", "assert norm(Point(6, 8)) == 10")
    ),
    "higher": _form("apply", _APPLY, *_asserts("assert apply(square, 3) == 9", "assert apply(square, 12) == 144")),
    "rounded": _form("add", _ADD, *_asserts("assert round(add(1, 2)) == 3", "assert round(add(20, 22)) == 42")),
    "order_any": _form(
        "numbers",
        ("def numbers(n):\n    return [i + 0.5 for i in range(n)]\n", "def numbers(n):\n    return [0.5] * n\n"),
        *_calls("numbers", ([1000], [i + 0.5 for i in range(1000)]), order="any"),
    ),
    "order_set": _form(
        "numbers",
        ("def numbers(n):\n    return [1, 2, 3]\n", "def numbers(n):\n    return [4]\n"),
        *_calls("numbers", ([3], [1, 2, 3]), ([3], [1, 2, 3]), ([3], [1, 2, 3]), order="set"),
    ),
    "large_set": _form(
        "numbers",
        ("def numbers(n):\n    return set(range(n))\n", "def numbers(n):\n    return set()\n"),
        *_asserts("assert numbers(20000) == set(range(20000))"),
    ),
    "secret": _form(
        "guess", ("", "def guess():\n    return 0\n"), *_calls("guess", ([], "expected-" + os.urandom(8).hex()))
    ),
    "stdio": _form(
        "",
        _PRINT,
        {"type": "stdio", "stdin": "1 2\n", "stdout": "3\n"},
        {"type": "stdio", "stdin": "20 22\n", "stdout": "42\n"},
    ),
    "checker": _form(
        "",
        _PRINT,
        {"type": "stdio", "stdin": "1 2\n", "stdout": "3\n", "checker": _CHECKER},
        {"type": "stdio", "stdin": "20 22\n", "stdout": "42\n", "checker": _CHECKER},
    ),
}
_secret = FORMS["secret"]  # the program cannot guess the answer
FORMS["secret"] = TestForm(
    _secret.tests, "guess", f"def guess():\n    return {_secret.tests[0]['expected']!r}\n", _secret.wrong
)
NODE_STDIO = _form("", _NODE, *FORMS["stdio"].tests)
ATTACK_LIMITS = {"wall_s": 4.0, "cpu_s": 3.0}
HONEST_LIMITS = {"wall_s": 10.0, "cpu_s": 5.0}


class CorpusError(ValueError):
    """A folder without programs, or a wrong header; the message has the file, the value and what is allowed."""


@dataclass(frozen=True)
class Hostile:
    """One program of the corpus, with its header."""

    name: str
    code: str
    what: str
    kind: str
    forms: tuple[str, ...]
    statuses: frozenset[str] = frozenset()
    limits: dict[str, float] = field(default_factory=dict)
    command: tuple[str, ...] = ()


def read_corpus(folder: Path = DEFAULT_FOLDER, names: tuple[str, ...] = ()) -> list[Hostile]:
    """The programs of a folder, or those that are named, by name. Raises CorpusError."""
    files = {p.stem: p for p in sorted(folder.glob("*")) if p.suffix in (".py", ".js")} if folder.is_dir() else {}
    if not files:
        raise CorpusError(
            f"--corpus {folder} holds no hostile programs (*.py, *.js); name the repository's tests/sandbox/hostile, "
            "which an installed package does not contain"
        )
    if unknown := [name for name in names if name not in files]:
        raise CorpusError(f"no hostile program {unknown[0]!r} in {folder}, which has {', '.join(files)}")
    return [read_program(files[name]) for name in names or files]


def read_program(path: Path) -> Hostile:
    """A program with what its header says. Raises CorpusError for a header that is wrong."""
    code = path.read_text(encoding="utf-8")
    mark = "//" if path.suffix == ".js" else "#"
    header: dict[str, str] = {}
    lines = code.split("\n")
    if not lines[0].startswith(f"{mark} ") or re.match(rf"{mark} (kind|form|status|limits):", lines[0]):
        raise CorpusError(f"{path}: the first line must be a comment that says what the program tries")
    for line in lines[1:]:
        found = re.match(rf"{mark} (kind|form|status|limits): (.+)$", line)
        if not found:
            break
        header[found[1]] = found[2].strip()
    kind = header.get("kind", "")
    if kind not in KINDS:
        raise CorpusError(f"{path}: kind {kind!r} must be one of {', '.join(KINDS)}")
    forms = tuple(name.strip() for name in header.get("form", "check").split(","))
    statuses = frozenset(header["status"].split("|")) if "status" in header else frozenset()
    for what, given, allowed in (("form", forms, FORMS), ("status", statuses, STATUSES)):
        if wrong := sorted(set(given) - set(allowed)):
            raise CorpusError(f"{path}: {what} {wrong[0]!r} must be one of {', '.join(allowed)}")
    try:
        limits = json.loads(header.get("limits", "{}"))
    except ValueError:
        raise CorpusError(f"{path}: limits {header['limits']!r} must be a JSON object") from None
    command = ("node", "{filename}") if mark == "//" else ()
    return Hostile(path.stem, code, lines[0][len(mark) :].strip(), kind, forms, statuses, limits, command)


def form_of(name: str, command: tuple[str, ...] = ()) -> TestForm:
    """The tests of a form, with honest programs in the language of the command."""
    return NODE_STDIO if command and name == "stdio" else FORMS[name]


def request(form: TestForm, code: str, limits: dict[str, float], command: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a grader reads: a request of `python -m sandbox score`, and the entry point."""
    extra = {"command": list(command), "filename": "p.js"} if command else {}
    data = {"program": code, "tests": list(form.tests), "entry_point": form.entry_point}
    return data | {"limits": limits, **extra}


def as_program(data: dict[str, Any]) -> Program:
    """The same for this sandbox's own pool."""
    fields = {key: value for key, value in data.items() if key != "entry_point"}
    return read_request(json.dumps(fields).encode())[1]
