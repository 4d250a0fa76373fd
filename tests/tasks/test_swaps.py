"""Transforms in a line: patterns with holes, guards, and the small rules."""

from __future__ import annotations

import ast
import random

import pytest
from judging import judge_all

from jaxrl.errors import UserError
from jaxrl.tasks import load_task, transforms
from jaxrl.tasks.rewriting import programs, swaps, verbs
from sandbox.trees import tree_text


def applied(source: str, before: str, after: str, *guards) -> str:
    return verbs.apply(source, [verbs.make(before, after, *guards)])


@pytest.mark.parametrize(
    ("before", "after", "source", "expected"),
    [
        ("not $a == $b", "$a != $b", "x = not y == z + 1", "x = y != z + 1"),
        ("$a + $a", "$a * 2", "x = f(y) + f(y)", "x = f(y) * 2"),
        ("$a + $a", "$a * 2", "x = y + z", "x = y + z"),  # twice the same
        ("$a + 0", "$a", "x = (y + 0) + 0", "x = y"),  # inner ones first
        ("$a = $a + $b", "$a += $b", "if c:\n    x.y = x.y + 2", "if c:\n    x.y += 2"),
        ("$a < $b", "$b > $a", "x = a < b < c", "x = a < b < c"),  # a chain is another tree
        ("type($a) == int", "isinstance($a, int)", "x = type(y[0]) == int", "x = isinstance(y[0], int)"),
        ("f($a)", "$a", "x = f(y, z)", "x = f(y, z)"),
        ("f($a)", "g($a)", "x = f(f(1))", "x = g(g(1))"),
        ("$a ** 2", "$a * $a", "x = y ** 2.0", "x = y ** 2.0"),
        ("$a ** 2", "$a * $a", "x = y ** True", "x = y ** True"),
    ],
)
def test_swaps(before, after, source, expected):
    assert tree_text(applied(source, before, after)) == tree_text(expected)


def test_guards():
    source = "x = 3 ** 2 + f(1) ** 2 + y ** 2 + z.w ** 2"
    pattern = ("$a ** 2", "$a * $a")
    for guard, expected in (
        (verbs.name("a"), "x = 3 ** 2 + f(1) ** 2 + y * y + z.w ** 2"),
        (verbs.no_call("a"), "x = 3 * 3 + f(1) ** 2 + y * y + z.w * z.w"),
        (verbs.no_constant("a"), "x = 3 ** 2 + f(1) * f(1) + y * y + z.w * z.w"),
    ):
        assert tree_text(applied(source, *pattern, guard)) == tree_text(expected)


def test_wrong_patterns_are_errors():
    for before, after in (("$a +", "$a"), ("$a = 1", "$a"), ("$a; $b", "$a")):
        with pytest.raises((SyntaxError, ValueError)):
            verbs.make(before, after)
    with pytest.raises(KeyError):
        applied("x = y + 1", "$a + 1", "$b")


def test_nothing_changes_nothing():
    assert applied("x = y  # a comment", "$a + 1", "$a") == "x = y  # a comment"


def test_the_rules():
    assert len(swaps.RULES) == len(set(swaps.RULES)) == 78 and len(swaps.HELD_OUT) == 15
    kept = set(swaps.RULES) - set(swaps.HELD_OUT)
    for scheme, _, guard in ((r.split()[0], "", r.split()[-1]) for r in swaps.HELD_OUT):  # seen in others
        assert any(r.startswith(scheme) for r in kept) and any(r.endswith(guard) for r in kept)
    for rule in swaps.RULES:
        pairs = swaps.draw_pairs(rule, 2, 1, random.Random(rule), 0)
        assert [p.before != p.after for p in pairs] == [True, True, False]
        lazy = swaps.line(rule, guarded=False)
        found: list[verbs.Swap] = []
        names = {"swap": lambda *given, found=found: found.append(verbs.make(*given))}
        exec(lazy, names)
        assert [verbs.apply(p.before, found) for p in pairs[:2]] == [p.after for p in pairs[:2]]
        assert verbs.apply(pairs[2].before, found) != pairs[2].before  # what is shown to stay needs the guard


def test_answers_are_judged(pool):
    settings = {"train_problems": 80, "held_out_problems": 15, "demonstrations": 24, "neutral": 1, "explain": False}
    task = load_task(transforms.Settings(problems="swaps", held_out_rules=swaps.HELD_OUT, **settings), 0)
    assert {p.meta["rule"] for p in task.held_out} == set(swaps.HELD_OUT)
    assert not {p.meta["rule"] for p in task.train} & set(swaps.HELD_OUT)
    shown = [*task.demonstrations][::3]
    assert all(r.solved for r in judge_all(task, shown, [str(p.demonstration) for p in shown], pool))
    lazy = judge_all(task, shown, [swaps.line(p.meta["rule"], guarded=False) for p in shown], pool)
    assert all(10 / 16 <= r.value < 1 for r in lazy)
    none = judge_all(task, [shown[0]] * 3, ["", "swap(", 'swap("$a", "$b")'], pool)
    assert [r.value for r in none] == [0, 0, 0]  # the programs that must stay are 6 of 16, but no change is made


def test_settings_that_do_nothing_are_refused():
    for settings, message in (
        ({"lazy_demonstrations": 0.5}, "lazy_demonstrations = 0.5 must be 0 with task.problems = 'rules'"),
        ({"problems": "swaps", "broken_penalty": 0.5}, "broken_penalty = 0.5 must be 0 with task.problems = 'swaps'"),
        (
            {"problems": "swaps", "style": "rewrite", "lazy_demonstrations": 0.5},
            "must be 0 with task.style = 'rewrite'",
        ),
        ({"problems": "swaps", "rules": ("strength",)}, "rules: 'strength' does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            load_task(transforms.Settings(**settings), 0)


def test_verbs_stand_on_their_own():
    """The file goes into the sandbox, where nothing of ours can be imported."""
    tree = ast.parse(swaps.VERBS["verbs.py"])
    modules = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not any("jaxrl" in str(m) for m in modules) and set(programs.RULES).isdisjoint(swaps.RULES)
