"""Traces of one test: what they say of a program, what they leave out, and that nothing of them decides anything."""

from __future__ import annotations

import pytest

from sandbox.trace import described, trace_program, traced_lines
from sandbox.verdict import AssertTest, CallTest, CheckTest, Limits, ReferenceTest, StdioTest, Test

LOOP = "def f(x):\n    total = 0\n    while True:\n        total += 1\n"


def traced(pool, code: str, test: Test, most: int = 20, limits: Limits = Limits()) -> list[str]:
    program = trace_program(code, test, limits)
    assert program is not None
    return traced_lines(pool.run([program])[0], test, most)


def test_variables_line_by_line(pool):
    code = "def f(x):\n  y = x + 1\n  return y * 2"
    assert traced(pool, code, CallTest("f", (3,), 7)) == ["line 2: y = 4", "returned 8, expected 7"]


def test_calls_loops_and_caught_errors(pool):
    code = (
        "def g(v):\n    if v > 1:\n        raise ValueError('large')\n    return v\n"
        "def f(x):\n    kept = []\n    for v in x:\n        try:\n            kept.append(g(v))\n"
        "        except ValueError:\n            print('no')\n    return sum([k for k in kept])\n"
    )
    assert traced(pool, code, CallTest("f", ([1, 2],), 3)) == [
        "line 6: kept = []", "line 7: v = 1", "line 9: g(v = 1)", "g returned 1", "line 9: kept = [1]", "line 7: v = 2",
        "line 9: g(v = 2)", "line 3: ValueError: large", "line 9: ValueError: large", "returned 1, expected 3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "test", "lines"),
    [
        ("def f(x): return x + 1", AssertTest("assert f(1) == 3"), ["returned 2"]),
        (
            "def f(x):\n    y = -x\n    return y",
            CheckTest("def check(g):\n    assert g(1) == 1", "f"),
            ["line 2: y = -1", "returned -1"],
        ),
        ("import sys\nn = int(input())\nprint(2 * n)", StdioTest("4\n", "9\n"), ["line 2: n = 4"]),
        ("class Solution:\n    def f(self, x):\n        return x.y", CallTest("f", (1,), 1),
         ["line 3: AttributeError: 'int' object has no attribute 'y'"]),
        ("1 / 0", CallTest("f", (1,), 1), []),  # it fails before the test
    ],
)  # fmt: skip
def test_every_form_of_test(pool, code, test, lines):
    assert traced(pool, code, test) == lines


def test_a_trace_is_short(pool):
    """At most 200 events, of long values the beginning, of many lines the first and the last."""
    lines = traced(pool, LOOP, CallTest("f", (1,), 1), 6)
    assert lines[:4] == ["line 2: total = 0", "line 4: total = 1", "line 4: total = 2", lines[3]] and len(lines) == 7
    assert lines[3].startswith("... ") and lines[-1] == "stopped after 200 events"
    assert traced(pool, LOOP, CallTest("f", (1,), 1), 1)[-1] == "stopped after 200 events"
    (line, _) = traced(pool, "def f(x):\n    y = x * 500\n    return 1", CallTest("f", ("a",), 1))
    assert line == f"line 2: y = {repr('a' * 500)[:57]}..."


def test_what_resists_tracing(pool):
    sleeps = "def f(x):\n    y = 1\n    while True: pass\n"
    quick = Limits(wall_s=1.0, cpu_s=0.5)
    wild = "class A:\n    def __repr__(self): raise KeyError\ndef f(x):\n    a = A()\n    return object()"
    assert traced(pool, wild, CallTest("f", (1,), 1)) == [
        "line 4: a = <A: KeyError in its repr>", "returned <object object>, expected 1",
    ]  # fmt: skip
    assert traced(pool, sleeps, CallTest("f", (1,), 1), limits=quick)[0] == "line 2: y = 1"
    blocks = "def f(x):\n    y = 1\n    return sum(range(10 ** 12))\n"
    assert traced(pool, blocks, CallTest("f", (1,), 1), limits=quick) == ["line 2: y = 1", "ended: timeout"]
    assert traced(pool, "import os\ndef f(x): os._exit(0)", CallTest("f", (1,), 1)) == []


def test_tests_that_are_no_script_have_no_trace():
    assert trace_program("x", CallTest("f", (float("nan"),), 1)) is None
    assert trace_program("x", ReferenceTest("f", ((1,),), expected=(2,))) is None


def test_tests_on_one_line():
    assert described(CallTest("f", ([1], "a"), 2, {"k": 3})) == "f([1], 'a', k=3) gives 2"
    assert described(StdioTest("1\n", "2\n")) == r"input '1\n' gives '2\n'"
    assert described(AssertTest("assert f(1) \\\n == 2")) == "assert f(1) \\ == 2"
    assert described(ReferenceTest("f", ((1,), (2,)))) == "f of 2 inputs"
