"""What a program does in one test, line by line: feedback for a model, in the style of LDB (arXiv 2402.16906).

A trace is a request of its own, and never decides anything: the program runs once more with sandbox/tracer.py before
it, in the same kind of jail. It sees the test, so only public tests may be traced.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from sandbox.verdict import AssertTest, CallTest, CheckTest, Limits, Program, StdioTest, Test, Verdict

_TRACER = Path(__file__).with_name("tracer.py")
_LEFT_OUT = "..."  # in the middle of an output that is too long for a verdict


def trace_program(code: str, test: Test, limits: Limits = Limits()) -> Program | None:
    """The program that traces `code` in this test; None for a test that cannot be written down as a script."""
    if isinstance(test, CallTest):
        kind, given = "call", (test.function, test.args, test.kwargs)
    elif isinstance(test, (AssertTest, CheckTest)):
        kind, given = "test", (test.code, getattr(test, "entry_point", ""))
    elif isinstance(test, StdioTest):
        kind, given = "script", None
    else:
        return None
    if not _literal(given):
        return None
    script = f"{_TRACER.read_text()}\n\nrun({kind!r}, {code!r}, {given!r})\n"
    return Program(script, (StdioTest(test.stdin if isinstance(test, StdioTest) else "", ""),), limits)


def traced_lines(verdict: Verdict, test: Test, most: int) -> list[str]:
    """The lines of a trace, at most `most` and one for what is left out between the first and the last of them."""
    text = verdict.stdout
    lines = text.splitlines()
    if isinstance(test, CallTest) and lines and lines[-1].startswith("returned "):
        lines[-1] += f", expected {test.expected!r:.60}"
    if verdict.status in ("timeout", "memory", "killed"):
        lines.append(f"ended: {verdict.status}")
    if len(lines) <= most:
        return lines
    first = most // 2
    return [*lines[:first], f"{_LEFT_OUT} {len(lines) - most} lines {_LEFT_OUT}", *lines[len(lines) - most + first :]]


def described(test: Test) -> str:
    """A test on one line, as those that pass are shown: f(3) gives 4."""
    if isinstance(test, CallTest):
        given = [*map(repr, test.args), *(f"{name}={value!r}" for name, value in test.kwargs.items())]
        return f"{test.function}({', '.join(given)}) gives {test.expected!r}"
    if isinstance(test, StdioTest):
        return f"input {test.stdin!r} gives {test.stdout!r}"
    text = test.code if isinstance(test, (AssertTest, CheckTest)) else f"{test.function} of {len(test.inputs)} inputs"
    return " ".join(text.split())


def _literal(value: Any) -> bool:
    """Whether its repr gives it back."""
    try:
        return ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
