"""The compute task: its answers by an independent evaluation, its demonstrations by running them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from judging import judge

from jaxrl.config import TaskConfig
from jaxrl.tasks import load_task
from jaxrl.tasks.compute import COMMENT, DIRECT, PLAN, PROGRAM, TOOL, boxed
from jaxrl.tasks.extract import code_block
from rollouts.episode import Problem
from sandbox.verdict import Program

CONFIG = TaskConfig(name="compute", max_difficulty=4, held_out_problems=60, hard_demonstrations=0.5)


@pytest.fixture(scope="module")
def task():
    return load_task(CONFIG, seed=3)


def by_hand(question: str) -> int:
    """The answer, from the words of the question alone."""
    start, steps = re.fullmatch(r"n = (\d+): (.*)\.", question).groups()
    n = int(start)
    for step in steps.split(", "):
        number = int((re.findall(r"\d+", step) or [0])[0])
        words = {"add": n + number, "subtract": n - number, "multiply by": n * number, "square it": n * n}
        words |= {"return it": n, "return it times": n * number, "return it modulo": n % number if number else n}
        n = words[re.sub(r" \d+", "", step)]
    return n


def test_answers(task):
    problems = [*task.held_out, *task.train[:200]]
    for problem in problems:
        assert by_hand(problem.messages[0]["content"]) == int(problem.answer)
    assert len({p.messages[0]["content"] for p in task.held_out}) > 55


def constants(problem: Problem) -> set[tuple[str, int]]:
    return {(step.name, c) for step, c in problem.meta["plan"] if c >= 10}


def test_held_out_constants_are_not_trained_on(task):
    seen = set().union(*(constants(p) for p in task.train[:2000]))
    assert not seen & set().union(*(constants(p) for p in task.held_out))


def test_the_same_held_out_problems_for_every_seed(task):
    other = load_task(CONFIG, seed=4)
    assert [p.id for p in other.held_out] == [p.id for p in task.held_out]
    assert [p.answer for p in other.held_out] == [p.answer for p in task.held_out]
    assert [p.answer for p in other.train[:20]] != [p.answer for p in task.train[:20]]


def test_demonstrations_are_of_all_kinds_and_say_what_happens(task, pool):
    """Careful ones are right; tools print what their code prints; feedback is about the program before it."""
    kinds = {DIRECT: 0, TOOL: 0, PROGRAM: 0}
    for problem in task.demonstrations[:150]:
        kind = problem.messages[0]["content"].split("\n")[1]
        kinds[kind] += 1
        said = [m["content"] for m in problem.demonstration]
        if kind == DIRECT:
            assert boxed(said[0]) == problem.answer
        elif kind == TOOL:
            printed = []
            exec(code_block(said[0]), {"print": printed.append})
            assert said[1] == f"```output\n{printed[0]}\n```\n" and boxed(said[2]) == str(printed[0]) == problem.answer
        else:
            (verdict,) = pool.run([Program(code_block(said[-1]), problem.tests)])
            assert verdict.passed and len(said) == 1
    assert min(kinds.values()) == 50


def test_plans_and_comments(pool):
    """A plan has the steps of its program, of all lengths, and is never careless; comments are the words asked."""
    settings = TaskConfig(name="compute", lazy_demonstrations=1.0, demonstration_kinds=("plan", "comment"))
    task, longest = load_task(settings, seed=0), 0
    for i, problem in enumerate(task.demonstrations[:40]):
        question, *asked = problem.messages[0]["content"].split("\n")
        said = [m["content"] for m in problem.demonstration]
        program = code_block(said[-1])
        (verdict,) = pool.run([Program(program, problem.tests)])
        if i % 2:
            assert asked == [PROGRAM, COMMENT] and not verdict.passed
            (line,) = program.splitlines()[1:]
            assert f"{line.partition('# ')[2]}." == question.rpartition(", ")[2]
            continue
        assert asked == [PROGRAM, PLAN] and said[1] == PROGRAM and verdict.passed
        value = 7
        for step in said[0].splitlines():
            value = eval(step, {"n": value})
        scope: dict[str, Any] = {}
        exec(program, scope)
        assert scope["f"](7) == value
        longest = max(longest, len(said[0].splitlines()))
    assert longest == 4
    assert [*load_task(settings, 0).corpus()] != [*load_task(CONFIG, 0).corpus()]  # type: ignore[misc]


def test_careless_demonstrations(pool):
    task = load_task(TaskConfig(name="compute", lazy_demonstrations=1.0, demonstration_kinds=("program",)), seed=0)
    corrected = 0
    for problem in task.demonstrations[:60]:
        said = [m["content"] for m in problem.demonstration]
        first, last = pool.run(
            [Program(code_block(said[0]), problem.tests), Program(code_block(said[-1]), problem.tests)]
        )
        assert not first.passed and last.passed == (len(said) == 3)
        if len(said) == 3:
            corrected += 1
            failures = [t.message for t in first.tests[:2] if t.status != "passed"]
            assert all(message in said[1] for message in failures)
    assert 15 < corrected < 45


@pytest.mark.parametrize(
    ("text", "solved"),
    [
        ("\\boxed{12}", True), ("\\boxed{ 12 } ", True), ("\\boxed{3} no, \\boxed{12}", True), ("\\boxed{13}", False),
        ("12", False), ("```python\ndef f(n):\n    return n + 2\n```", True), ("def f(n): return n", False),
    ],
)  # fmt: skip
def test_score(task, pool, text, solved):
    from sandbox.verdict import CallTest

    problem = Problem("p", tests=(CallTest("f", (1,), 3), CallTest("f", (10,), 12)), answer="12")
    reward = judge(task, problem, text, pool)
    assert reward.solved is solved and (reward.value == 1.0) is solved


def test_settings_out_of_range():
    with pytest.raises(ValueError, match=r"task\.max_difficulty = 9 must be in \[2, 4\]"):
        load_task(TaskConfig(name="compute", max_difficulty=9), 0)
    with pytest.raises(
        ValueError, match=r"task\.demonstration_kinds = .* must be a tuple with some of: direct, tool, program"
    ):
        load_task(TaskConfig(name="compute", demonstration_kinds=("head",)), 0)
