"""Synthesis: seeds, replies and tests that are used or counted, the filter, and the template's known truth."""

from __future__ import annotations

import ast
import asyncio
import json
import random
from collections import Counter

import pytest

from jaxrl.errors import UserError
from jaxrl.tasks import load_task
from jaxrl.tasks.functions import Settings
from jaxrl.tasks.mutants import every_mutant, mutants
from jaxrl.tasks.rows import DataError
from jaxrl.tasks.synthesis.questions import asked, candidate, filtered, read_reply, read_test
from jaxrl.tasks.synthesis.seeds import Seed, read_seeds
from jaxrl.tasks.synthesis.template import (
    as_assert,
    template_reference,
    template_reply,
    template_seed,
    validity,
    with_more_tests,
)
from rollouts.episode import Problem
from rollouts.services import Services
from sandbox.verdict import AssertTest, CallTest, Program

FILE = '''
import os

def short(x): return x

@cached
def double(x):
    """Twice."""
    return 2 * x

def nothing(x):
    print(x)
    os.sep

def test_double(x):
    y = double(x)
    return y == 2

async def later(x):
    y = x
    return y

class Box:
    def get(self):
        x = 1
        return x
'''


def test_functions_are_cut_out_of_files(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.py").write_text(FILE)
    (tmp_path / "b.py").write_text("@cached\ndef double(x):\n    '''Twice.'''\n    return 2*x\n")  # the same program
    (tmp_path / "c.py").write_text("def f(:\n")
    rejected: Counter[str] = Counter()
    (seed,) = read_seeds(str(tmp_path), 0, rejected)
    assert ast.unparse(ast.parse(seed.code)) == "@cached\ndef double(x):\n    'Twice.'\n    return 2 * x".replace(
        "'Twice.'", '"""Twice."""'
    )
    assert rejected == {
        "seed: file is not Python": 1, "seed: duplicate": 1, "seed: not 3 to 80 lines": 1,
        "seed: takes or returns nothing": 1, "seed: a test, or async": 2,
    }  # fmt: skip


def test_rows_of_code(tmp_path):
    path = tmp_path / "seeds.jsonl"
    rows = [{"code": "x = 1"}, {"code": "def f(:"}, {"code": "def f(x):\n    return x", "id": 3, "instruction": "Do."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rejected: Counter[str] = Counter()
    assert read_seeds(str(path), 0, rejected) == [Seed("3", "seeds", "def f(x):\n    return x", "Do.")]
    assert rejected == {"seed: no function or class": 1, "seed: not Python": 1}
    assert "The code was written for this:\nDo." in asked(Seed("3", "seeds", "def f(x):\n    return x", "Do."), 20)
    path.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(DataError, match=r"has no seeds .seed: no function or class: 1"):
        read_seeds(str(path), 0, Counter())


TESTS = [f"assert f({i}) == {i}" for i in range(5)]
GOOD = json.dumps({"question": "Write f(x).", "tests": TESTS})


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (GOOD, None),
        (f"Here:\n```json\n{GOOD}\n```\nDone.", None),
        (GOOD.replace("Write f(x).", "Write f(x),\n{1}."), None),  # a line break inside of a text
        ("I cannot.", "no JSON object"),
        (GOOD[:-3], "no JSON object"),  # cut off
        (json.dumps({"question": "Write f.", "tests": "none"}), "no question, or no tests"),
        (json.dumps({"question": " ", "tests": TESTS}), "no question, or no tests"),
        (GOOD.replace("Write", "\\u00c9crire"), "question is not ASCII"),
        (GOOD.replace("Write f(x)", "Implement a Stack class"), "asks for a class"),
        (json.dumps({"question": "Write f.", "tests": TESTS[:3]}), "fewer than 4 usable tests"),
    ],
)
def test_replies(reply, reason):
    rejected: Counter[str] = Counter()
    found = read_reply(reply, rejected)
    assert rejected == ({f"reply: {reason}": 1} if reason else {})
    assert (found is None) == (reason is not None) and (found is None or found[1] == TESTS)


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ("assert f(1) == 1", None),
        ("assert f([1, {'a': (2,)}], k=None) is None", None),
        ("assert not f(-1.5)", None),
        ("assert abs(f(2) - 1.41) < 1e-2", None),
        ("assert math.isclose(f(2), 1.41)", None),
        ("assert sorted(f(set())) == []", None),
        ("import math\nassert f(1) == math.pi", None),
        ("f(1) == 1", "not one assert"),
        ("assert f(1) == 1; assert f(2) == 2", "not one assert"),
        ("x = [1]\nassert f(x) == 1", "not one assert"),
        ("assert f(1 == ", "not one assert"),
        ("assert f(g(1)) == 1", "more than one call"),
        ("assert f(1) == f(2)", "more than one call"),
        ("assert 1 == 1", "calls no function"),
        ("assert f(x) == 1", "arguments are not constant"),
        ("assert f([i for i in range(3)]) == 3", "arguments are not constant"),
        ("assert f(*[1, 2]) == 3", "arguments are not constant"),
        ("assert f(**{'a': 2}) == 3", "arguments are not constant"),
        ("assert f(1) == expected", "the expected value is not constant"),
        ("assert f(1) == [i for i in range(3)]", "the expected value is not constant"),
        ("assert Stack(1).push(1) == 1", "uses an object's methods"),
    ],
)
def test_tests(test, reason):
    assert read_test(test) == (("f", None) if reason is None else (None, reason))


def test_the_first_usable_test_names_the_function():
    tests = ["nonsense", *TESTS, "assert g(1) == 1", "assert f(0)==0", 3]
    rejected: Counter[str] = Counter()
    reply = json.dumps({"question": "Write f.", "tests": tests})
    row = candidate(Seed("s1", "mine", "def f(x): return x"), reply, rejected)
    assert row == {"id": "s1", "source": "mine", "question": "Write f.", "test_cases": TESTS, "inferences": []}
    assert rejected == {
        "test: not one assert": 1, "test: calls another function": 1, "test: duplicate": 1, "test: not a text": 1
    }  # fmt: skip


@pytest.mark.parametrize(("passes", "paper", "code"), [(15, 15, 15), (5, 5, 5), (4, None, 4), (3, None, None)])
def test_both_rules_of_the_filter(passes, paper, code):
    """20 tests of which the reference passes some: the paper keeps 5 or more, the code more than 3."""
    row = {"id": "q", "question": "?", "test_cases": [f"assert f({i}) == 0" for i in range(20)], "inferences": []}
    for least, kept in ((5, paper), (4, code)):
        rejected: Counter[str] = Counter()
        found = filtered(row, [i < passes for i in range(20)], "text", "m", least, rejected)
        assert rejected["test: the reference program fails it"] == 20 - passes
        assert rejected[f"question: fewer than {least} tests kept"] == (kept is None)
        assert (found is None) == (kept is None)
        if found is not None:
            assert (
                found["test_cases"] == row["test_cases"][:passes]
                and found["removed_tests"] == row["test_cases"][passes:]
            )
            assert found["inferences"][0]["pass_rate"] == 1 and not row["inferences"]


def test_the_templates_truth(pool):
    """Its right asserts are those that the problem's own program passes, run one by one."""
    task = load_task(Settings(train_problems=12), 0)

    async def made():
        return [await with_more_tests(task.train[i], 12, Services(pool)) for i in range(12)]

    problems = asyncio.run(made())
    assert {len(p.tests) for p in problems} == {12}
    rows, right = [], []
    for problem in problems:
        reply = template_reply(problem, 0.25, random.Random(problem.id))
        row = candidate(template_seed(problem), reply, Counter())
        assert row is not None
        code = str(problem.demonstration).removeprefix("```python\n").removesuffix("```")
        (verdict,) = pool.run([Program(code, tuple(map(AssertTest, row["test_cases"])))])
        right += [t.status == "passed" for t in verdict.tests]
        rows.append(row)
    assert validity(rows, problems) == pytest.approx(sum(right) / len(right)) and 0.6 < validity(rows, problems) < 0.9


def test_wrong_values_differ_and_wrong_references_are_mutants():
    rng = random.Random(0)
    for expected in (3, 0, True, None, "", "ab", [], [1, 2], "a", 1.5):
        test = as_assert(CallTest("f", (1,), expected), 1.0, rng)
        assert ast.literal_eval(test.partition(" == ")[2]) != expected
    problem = load_task(Settings(train_problems=1), 0).train[0]
    assert template_reference(problem, 0.0, rng) != template_reference(problem, 1.0, rng)
    with pytest.raises(UserError, match="needs a right program and tests that are calls"):
        asyncio.run(with_more_tests(Problem("p", tests=(AssertTest("assert f(1) == 1"),)), 4, Services()))


CODE = """
def f(x, y):
    total = 0
    for v in x[1:]:
        if v > 2 and not y:
            total += v * 2
    return max(total, -1) if x else None
"""


def test_mutants_are_programs_that_differ_in_one_place():
    original = ast.parse(CODE)
    found = set(every_mutant(original))
    for wanted in (
        "v >= 2",
        "v > 3",
        "v > 2 or",
        "total -= ",
        "v + 2",
        "x[:]",
        "min(total",
        "total = 1",
        "pass",
        "not not y",
    ):
        assert any(wanted in text for text in found), wanted
    assert ast.unparse(original) not in found and all(ast.parse(text) for text in found)
    assert ast.unparse(ast.parse(CODE)) == ast.unparse(original)  # it is not changed itself
    assert mutants(CODE, random.Random(0), 5) == mutants(CODE, random.Random(0), 5) != []
    assert mutants("def f():\n    'Add 1 to 2 > 1.'\n    return x", random.Random(0), 9) == []  # text for people
    assert mutants("def f(:", random.Random(0), 5) == []
