"""Programs compared by their syntax trees, in the judge."""

from __future__ import annotations

import ast

import pytest

from sandbox.requests import RequestError, read_request
from sandbox.trees import compare, tree_digest, tree_text
from sandbox.verdict import CallTest, Limits, Program


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x=1", "x = (1)  # one", True),
        ("'a'", '"a"', True),
        ("u'a'", "'a'", True),
        ("x = 'a' 'b'", "x = 'ab'", True),
        ("if a:\n  f()", "if a: f()", True),
        ("x = 1 # type: int", "x = 1", True),
        ("def f():\n 'a'\n return 1", "def f():\n return 1", False),
        ("x = 1", "x = 1.0", False),
        ("x = 1", "x = True", False),
        ("a and b and c", "(a and b) and c", False),
        ("x = -1", "x = - 1", True),
    ],
)
def test_what_counts(one, other, same):
    assert (tree_text(one) == tree_text(other)) == (tree_digest(one) == tree_digest(other)) == same


@pytest.mark.parametrize("text", ["x =", "x = \0", "(" * 5000 + ")" * 5000, "-" * 100_000 + "1", "if a:\nf()"])
def test_what_is_not_python_has_no_tree(text):
    assert tree_text(text) is None and tree_digest(text) == ""


def test_a_failure_shows_programs_whole():
    wrong = compare("t", ["x = 1"], "x = 3", "x = 2")
    assert wrong and wrong["message"] == "t of\nx = 1\ngave\nx = 3\nexpected\nx = 2"
    assert wrong["digest"] == tree_digest("x=3") and wrong["actual"] == "x = 3"
    assert compare("t", ["x = 1"], "x=2", "x = 2") is None
    broken = compare("t", ["x = 1"], "x =", "x = 2")
    assert broken and "not Python" in broken["message"] and "digest" not in broken
    number = compare("t", [], 3, "3")
    assert number and "gave no text" in number["message"]


TESTS = tuple(
    CallTest("t", (before,), after, normal="python") for before, after in [("a", "b"), ("b", "b"), ("c", "b")]
)


@pytest.mark.parametrize(
    ("code", "statuses"),
    [
        ("def t(s): return 'b'", ["passed"] * 3),
        ("def t(s): return '( b )  # b'", ["passed"] * 3),
        ("def t(s): return s", ["wrong_answer", "passed", "wrong_answer"]),
        ("def t(s): return 'b ='", ["wrong_answer"] * 3),
        ("def t(s): return ['list', [s]]", ["wrong_answer"] * 3),
        ("def t(s): return b'b'", ["wrong_answer"] * 3),
        ("class S(str):\n def __eq__(self, o): return True\ndef t(s): return S('z')", ["wrong_answer"] * 3),
        ("def t(s): return '(' * 200_000 if s == 'a' else 'b'", ["wrong_answer", "passed", "passed"]),
        ("def t(s): return '\\ud800'", ["wrong_answer"] * 3),
        ("def t(s): return {'a': 1}[s]", ["wrong_answer", "runtime_error", "runtime_error"]),
        ("import ast\nast.dump = lambda *a: ''\nast.parse = lambda *a: ''\ndef t(s): return 'z'", ["wrong_answer"] * 3),
    ],
)
def test_verdicts(pool, code, statuses):
    (verdict,) = pool.run([Program(code, TESTS)])
    assert [t.status for t in verdict.tests] == statuses
    assert all(t.digest in ("", tree_digest(t.actual)) for t in verdict.tests if t.status == "wrong_answer")


def test_digests_tell_what_was_left_alone(pool):
    (verdict,) = pool.run([Program("def t(s): return s + '\\n'", TESTS)])
    assert verdict.tests[0].digest == tree_digest("a") and verdict.tests[2].digest == tree_digest("c")


def test_a_tree_that_takes_too_long_to_make_is_a_failure(pool):
    """A text of megabytes costs its own time alone."""
    code = "def t(s): return 'x = [' + '1,' * 4_000_000 + ']'"
    (verdict, honest) = pool.run([Program(code, TESTS[:1], Limits(wall_s=2)), Program("def t(s): return 'b'", TESTS)])
    assert verdict.status in ("timeout", "wrong_answer") and honest.passed


def test_requests_have_it():
    line = (
        b'{"program": "", "tests": [{"type": "call", "function": "t", "args": ["a"], "expected": "b", "normal": "%s"}]}'
    )
    assert read_request(line % b"python")[1].tests == TESTS[:1]
    with pytest.raises(RequestError, match=r"tests\[0\]\.normal: must be one of , python"):
        read_request(line % b"ruby")


def test_every_node_of_a_tree_counts():
    source = ast.unparse(
        ast.parse("def f(a, *b, c=1, **d):\n    return [x for x in a if x] + [f'{a!r:>{c}}', lambda: 1]")
    )
    assert tree_text(source) == tree_text(source + "\n\n") and "kind" not in str(tree_text("u'a'"))
