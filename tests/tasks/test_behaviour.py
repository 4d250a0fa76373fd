"""Votes by behaviour: programs that do the same vote together, against running them in plain Python."""

from __future__ import annotations

import ast
import json
import random
from typing import Any

import pytest
from judging import MBPP, judge, judge_all

from jaxrl.algorithms import set_objectives
from jaxrl.config import TaskConfig
from jaxrl.tasks import Task, load_task
from jaxrl.tasks.behaviour import by_behaviour, mutated, normal_value, public_inputs, with_mutations
from jaxrl.tasks.functions import voting_inputs
from jaxrl.tasks.rewards import judge_program
from rollouts.episode import Problem
from sandbox.verdict import AssertTest, CallTest, CheckTest, StdioTest, Test


def task_of(*public: Test, hidden: Test | None = None) -> tuple[Task, Problem]:
    problem = Problem("p", tests=(hidden or public[0],), public_tests=public)
    plain = Task("own", [problem], [problem], judge_program, extract=lambda problem, text: text)
    return by_behaviour(plain), problem


def answers(pool, programs: list[str], *public: Test, hidden: Test | None = None) -> list[Any]:
    task, problem = task_of(*public, hidden=hidden)
    return [r.answer for r in judge_all(task, [problem] * len(programs), programs, pool)]


def partition(values: list[Any]) -> list[int]:
    """The number of each value's class, in the order in which classes come."""
    shown = [repr(v) for v in values]
    return [list(dict.fromkeys(shown)).index(text) for text in shown]


def test_programs_vote_by_what_they_return_and_not_by_their_text_or_their_rightness(pool):
    programs = [
        "def f(x):\n    return [v * 2 for v in x]",
        "def f(items):  # in other words\n    for i, v in enumerate(items): items[i] = v + v\n    return items",
        "def f(x): return [v ** 2 for v in x]",  # the same on [2] alone
        "def f(x): return [v * v for v in x]",
        "def f(x): return tuple(v * 2 for v in x)",
        "def f(x): raise ValueError",
        "def f(x) return",
        "g = 1",
    ]
    found = answers(pool, programs, CallTest("f", ([2],), [999]))  # no program is right
    assert found[0] == found[1] and found[2] == found[3] and len({*found[:5]}) == 3
    assert found[5:] == [None, None, None]


def test_values_are_compared_as_tests_compare_them(pool):
    programs = ["def f(n): return 0.1 * 3 + n", "def f(n): return 0.3 + n", "def f(n): return 0.31 + n"]
    found = answers(pool, programs, CallTest("f", (1,)))
    assert found[0] == found[1] != found[2]
    # The order in which a set is shown is an accident of the process that shows it.
    programs = [f"def f(n): return {{'a{i}', 'b', 'c', 'd'}} | {{'e', 'f'}}" for i in (0, 0, 0, 1)]
    found = answers(pool, programs, CallTest("f", (1,)))
    assert found[0] == found[1] == found[2] != found[3]
    assert normal_value("{2: 1.0, 1: {'b', 'a'}}") == normal_value("{1: {'a', 'b'}, 2: 1}") != normal_value("{1: 1}")
    assert normal_value("<not a literal>") == "<not a literal>"


def test_long_values_and_outputs_that_differ_in_the_middle_alone_differ(pool):
    programs = [f"def f(n): return [0] * 400 + [{i}] + [0] * 400" for i in (1, 1, 2)]
    found = answers(pool, programs, CallTest("f", (1,)))
    assert found[0] == found[1] != found[2]
    programs = [f"print(input() + 'x' * 400 + '{i}' + 'x' * 400)" for i in (1, 1, 2)]
    found = answers(pool, programs, StdioTest("1\n", "?"))
    assert found[0] == found[1] != found[2]


def test_scripts_vote_by_what_they_print(pool):
    programs = [
        "n = int(input())\nprint(n + 1)",
        "print(int(input()) + 1, end=' \\n\\n')",
        "print(int(input()) + 2)",
        "1/0",
    ]
    found = answers(pool, programs, StdioTest("1\n", "?"), StdioTest("5\n", "?"))
    assert found[0] == found[1] != found[2] and found[3] is None


def test_without_inputs_the_text_votes(pool):
    hidden = CallTest("f", (1,), 2)
    found = answers(pool, ["def f(n): return n+1", "def f(n):\n    return n + 1"], hidden=hidden)
    assert found[0] == found[1] == "def f(n):\n    return n + 1"


def test_the_calls_of_asserts_are_inputs():
    asserts = AssertTest(
        "import math\nassert f([1, 2], key='a') == 3\nassert set(f((1,))) == {2}\n"
        "assert math.isclose(f(x), 1)\nassert f([1, 2], key='a')"
    )
    check = CheckTest("def check(candidate):\n    assert candidate(-1, None) == 2", "g")
    _, problem = task_of(asserts, check)
    assert [(t.function, t.args, t.kwargs) for t in public_inputs(problem) if isinstance(t, CallTest)] == [
        ("f", ([1, 2],), {"key": "a"}), ("f", ((1,),), {}), ("g", (-1, None), {}),
    ]  # fmt: skip


def test_mutations_keep_types_and_are_a_function_of_the_problem():
    values = [True, 5, 2.5, "abc", [1, 2, 3], (1, "a"), {1, 2}, {"k": [1]}, None, [], ""]
    for seed in range(200):
        for value in values:
            changed = mutated(value, random.Random(seed))
            assert type(changed) is type(value)
            assert ast.literal_eval(repr(changed)) == changed
    calls = [CallTest("f", ([3, 1, 2], 5))]
    one, same, other = (with_mutations(calls, random.Random(seed)) for seed in ("a", "a", "b"))
    assert one == same != other and len(one) == 9 and one[0] == calls[0]
    assert len({repr(t.args) for t in one if isinstance(t, CallTest)}) > 5


@pytest.mark.parametrize("number", [0, 7, 11])
def test_functions_are_told_apart_as_by_running_them(pool, number):
    """The demonstration, the same with other names, without each of its lines, and with each constant off by one."""
    task = load_task(TaskConfig("functions", held_out_problems=16, answers="behaviour"), 0)
    problem = task.held_out[number]
    lines = str(problem.demonstration).split("\n    ")
    programs = [str(problem.demonstration), "\n    ".join([lines[0], "pass", *lines[1:]])]
    programs += ["\n    ".join(lines[:i] + lines[i + 1 :]) for i in range(1, len(lines) - 1)]
    programs += ["\n    ".join([*lines[:i], lines[i].replace(d, str(int(d) + 1), 1), *lines[i + 1 :]])
                 for i in range(1, len(lines)) for d in "123" if d in lines[i]]  # fmt: skip
    rewards = judge_all(task, [problem] * len(programs), programs, pool)
    expected = []
    for program in programs:
        space: dict[str, Any] = {}
        exec(program, space)
        inputs = voting_inputs(problem, random.Random(f"behaviour {problem.id}"))
        expected.append([repr(space["f"](*ast.literal_eval(repr(t.args)))) for t in inputs])
    assert partition([r.answer for r in rewards]) == partition(expected)
    assert rewards[0].solved and rewards[0].answer == rewards[1].answer and len(set(partition(expected))) > 1
    assert not {repr(t.args) for t in problem.tests if isinstance(t, CallTest)} >= {
        repr(t.args) for t in voting_inputs(problem, random.Random(0))
    }


def test_the_majority_is_one_of_behaviour(pool):
    """Three right programs of three texts outvote two equal wrong ones."""
    programs = ["def f(n): return n + 1", "def f(m): return 1 + m", "def f(n): return n - (-1)"]
    programs += ["def f(n): return n - 1"] * 2
    task, problem = task_of(CallTest("f", (3,)), hidden=CallTest("f", (10,), 11))
    rewards = judge_all(task, [problem] * 5, programs, pool)
    assert [r.solved for r in rewards] == [True] * 3 + [False] * 2 and task.answers
    votes = {}
    for name, given in (("behaviour", [r.answer for r in rewards]), ("text", programs)):
        votes[name] = set_objectives.vote(given, [float(r.solved) for r in rewards])
    assert votes == {"behaviour": 1.0, "text": 0.0}


def test_tasks_that_ask_for_programs_have_the_setting(pool, tmp_path):
    path = tmp_path / "mbpp.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MBPP))
    plain = load_task(TaskConfig("mbpp", path=str(path)), 0)
    voting = load_task(TaskConfig("mbpp", path=str(path), answers="behaviour"), 0)
    assert not plain.answers and voting.answers
    (problem,) = voting.held_out
    texts = [f"```python\ndef add({n}):\n    return {n} + 1\n```" for n in "nm"]
    one, other = (judge(voting, problem, text, pool) for text in texts)
    assert one.solved and one.answer is not None and one.answer == other.answer
    assert judge(plain, problem, texts[0], pool).answer is None
