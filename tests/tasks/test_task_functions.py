"""The functions task: what its words mean, that its tests tell, what is held out."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from judging import judge

from jaxrl.config import TaskConfig
from jaxrl.tasks import functions, load_task
from jaxrl.tasks.extract import code_block
from rollouts.episode import Problem
from sandbox.verdict import CallTest, Program, Verdict

# (family, step, an input, the constant, the value), worked out by hand from the words of the step.
MEANINGS = [
    ("list", "keep_above", [16, 17, 18], 17, [18]),
    ("list", "keep_below", [16, 17, 18], 17, [16]),
    ("list", "remove", [4, 5, 4, -4], 4, [5, -4]),
    ("list", "keep_even", [-3, -2, 0, 1, 8], 0, [-2, 0, 8]),
    ("list", "keep_odd", [-3, -2, 0, 1, 8], 0, [-3, 1]),
    ("list", "add", [1, -9], 12, [13, 3]),
    ("list", "subtract", [1, 50], 12, [-11, 38]),
    ("list", "multiply", [3, -2], 11, [33, -22]),
    ("list", "modulo", [23, 10, 4], 10, [3, 0, 4]),
    ("list", "square", [-3, 4], 0, [9, 16]),
    ("list", "append", [1, 2], 30, [1, 2, 30]),
    ("list", "prepend", [1, 2], 30, [30, 1, 2]),
    ("list", "skip", [5, 6, 7], 2, [7]),
    ("list", "first", [5, 6, 7], 2, [5, 6]),
    ("list", "reverse", [5, 9, 7], 0, [7, 9, 5]),
    ("list", "sort", [5, -9, 7], 0, [-9, 5, 7]),
    ("list", "unique", [5, 2, 5, 2, 1], 0, [5, 2, 1]),
    ("list", "list", [5, 2], 0, [5, 2]),
    ("list", "sum", [5, 2, -1], 0, 6),
    ("list", "length", [5, 2, 2], 0, 3),
    ("list", "largest", [5, 9, 2], 0, 9),
    ("list", "largest", [], 0, 0),
    ("list", "smallest", [5, 9, 2], 0, 2),
    ("list", "smallest", [], 0, 0),
    ("list", "sum_plus", [5, 2], 40, 47),
    ("list", "count_above", [16, 17, 18, 19], 17, 2),
    ("list", "joined", [5, -2, 3], 0, "5--2-3"),
    ("text", "upper", "aB 1", 0, "AB 1"),
    ("text", "lower", "aB 1", 0, "ab 1"),
    ("text", "reverse", "abc", 0, "cba"),
    ("text", "skip", "abc", 2, "c"),
    ("text", "first", "abc", 2, "ab"),
    ("text", "append", "ab", 17, "ab17"),
    ("text", "prepend", "ab", 17, "17ab"),
    ("text", "dashes", "a b  c", 0, "a-b--c"),
    ("text", "text", "ab", 0, "ab"),
    ("text", "repeat", "ab", 3, "ababab"),
    ("text", "words", "a bc  d", 0, ["a", "bc", "d"]),
    ("number", "add", 5, 17, 22),
    ("number", "subtract", 5, 17, -12),
    ("number", "multiply", 5, 17, 85),
    ("number", "divide", 35, 17, 2),
    ("number", "modulo", 35, 17, 1),
    ("number", "square", -5, 0, 25),
    ("number", "absolute", -5, 0, 5),
    ("number", "at_most", 20, 17, 17),
    ("number", "at_most", 5, 17, 5),
    ("number", "at_least", 20, 17, 20),
    ("number", "at_least", 5, 17, 17),
    ("number", "number", 5, 0, 5),
    ("number", "even", 5, 0, False),
    ("number", "even", -4, 0, True),
    ("number", "text", -5, 0, "-5"),
]


@pytest.fixture(scope="module")
def task():
    return load_task(TaskConfig(train_problems=2000, demonstrations=2000), seed=0)


def call(code: str, value: Any) -> Any:
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace["f"](value)


def passes(code: str, problem: Problem) -> bool:
    tests = [t for t in problem.tests if isinstance(t, CallTest)]
    return all(repr(call(code, t.args[0])) == repr(t.expected) for t in tests)


def adjacent(problem: Problem) -> set[tuple[str, str, str]]:
    family, *steps = problem.meta["kind"].split()
    return {(family, a, b) for a, b in pairwise(steps)}


def lines_with_numbers(problem: Problem) -> set[str]:
    """The lines of the program that hold a two-digit number."""
    return {line.strip() for line in str(problem.demonstration).splitlines() if re.search(r"\b\d\d\b", line)}


@pytest.mark.parametrize(("family", "name", "value", "constant", "expected"), MEANINGS)
def test_each_step_does_what_its_words_say(family: str, name: str, value: Any, constant: int, expected: Any):
    found = next(f for f in functions.FAMILIES if f.name == family)
    step = next(s for s in (*found.steps, *found.returns) if s.name == name)
    assert repr(functions.run(found, [(step, constant)], value)) == repr(expected)


def test_every_step_is_in_the_table_above_and_no_two_are_said_alike():
    shown = {(family, name) for family, name, *_ in MEANINGS}
    for family in functions.FAMILIES:
        steps = (*family.steps, *family.returns)
        assert {(family.name, s.name) for s in steps} <= shown
        said = [phrase for s in steps for phrase in s.phrases]
        assert len(set(said)) == len(said)
        assert all(("{c}" in phrase) == bool(s.constants) for s in steps for phrase in (*s.phrases, s.expression))


def test_the_description_names_every_constant_of_the_program_in_order(task):
    for problem in task.train[:500]:
        said = re.findall(r"\d+", problem.messages[0]["content"].replace("or 0 if empty", ""))
        code = re.sub(r"% 2 == \d|default=0|::-1", "", str(problem.demonstration))
        assert re.findall(r"\d+", code) == said


def test_demonstrations_pass_in_the_sandbox(task, pool):
    problems = [*task.train[:40], *task.demonstrations[:20], *task.held_out[:40]]
    verdicts = pool.run([Program(str(p.demonstration), p.tests) for p in problems])
    assert [v.status for v in verdicts] == ["passed"] * len(problems)


def test_near_misses_fail(task):
    """Edits of the source text: a line left out, a constant off by one, another comparison."""
    for problem in [*task.train[:200], *task.held_out]:
        code = str(problem.demonstration)
        assert passes(code, problem)
        head, *body, last = code.split("\n")
        for i in range(len(body)):
            assert not passes("\n".join([head, *body[:i], *body[i + 1 :], last]), problem), problem
        for place in re.finditer(r"\b[1-9]\d\b", code):
            for n in (int(place[0]) - 1, int(place[0]) + 1):
                assert not passes(f"{code[: place.start()]}{n}{code[place.end() :]}", problem), problem
        for old, new in ((" > ", " >= "), (" < ", " <= ")):
            if old in code:
                assert not passes(code.replace(old, new, 1), problem), problem
        assert not passes(f"{head}\n{last}", problem), problem


@pytest.mark.parametrize("lazy", [0.0, 0.5])
def test_held_out_problems_differ_in_kind_and_constants(lazy: float):
    task = load_task(TaskConfig(train_problems=2000, demonstrations=2000, lazy_demonstrations=lazy), seed=0)
    shown = [*task.train, *task.demonstrations]
    pairs = set().union(*map(adjacent, shown))
    assert all(adjacent(p) - pairs for p in task.held_out)
    train, held_out = (set().union(*map(lines_with_numbers, problems)) for problems in (shown, task.held_out))
    assert not train & held_out
    assert len(train) > 800 and len(held_out) > 50
    # Every number is seen in training, so that only its company is new.
    seen = {number for line in train for number in re.findall(r"\b\d\d\b", line)}
    assert seen == set(map(str, range(10, 100)))


def test_held_out_problems_are_the_same_for_every_seed_balanced_and_different():
    a, b = (load_task(TaskConfig(held_out_problems=90), seed=s) for s in (0, 1))
    assert list(a.held_out) == list(b.held_out)
    assert [sum(p.meta["difficulty"] == d for p in a.held_out) for d in (2, 3, 4)] == [30, 30, 30]
    assert len({p.demonstration for p in a.held_out}) == 90
    assert a.train[0] != b.train[0] and a.demonstrations[0] != b.demonstrations[0]
    assert a.corpus and b.corpus and list(a.corpus()) == list(b.corpus())


def test_the_same_problems_in_every_process():
    script = (
        "from jaxrl.config import TaskConfig; from jaxrl.tasks import load_task; import hashlib\n"
        "t = load_task(TaskConfig(), 7); problems = [*t.train[:50], *t.demonstrations[:50], *t.held_out]\n"
        "print(hashlib.sha256(repr(problems).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": h}, check=True, capture_output=True, text=True
        ).stdout
        for h in ("1", "2")
    }
    assert len(digests) == 1


def test_problems_are_a_sequence_of_random_access(task):
    train = task.train
    assert len(train) == 2000
    assert train[1234] == train[1234] and train[-1] == train[1999] and train[5:9:2] == [train[5], train[7]]
    assert len({p.demonstration for p in train[:200]}) > 180
    with pytest.raises(IndexError):
        train[2000]


def test_difficulty_is_the_number_of_lines(task):
    for problem in [*task.train[:100], *task.demonstrations[:100], *task.held_out]:
        assert len(str(problem.demonstration).split("\n")) == problem.meta["difficulty"] + 1
    assert {p.meta["difficulty"] for p in task.train[:100]} == {2, 3, 4}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_hard_demonstrations(share: float):
    config = TaskConfig(demonstrations=1000, demonstration_difficulty=2, hard_demonstrations=share)
    hard = sum(p.meta["difficulty"] > 2 for p in load_task(config, 0).demonstrations)
    assert abs(hard / 1000 - share) < 0.05


def test_score(task, pool):
    problem = next(p for p in task.train if p.meta["difficulty"] == 3)
    score = lambda text: judge(task, problem, text, pool)  # noqa: E731
    right = score(problem.demonstration)
    assert right.value == 1.0 and right.solved and right.verdict.passed
    assert score(f"So:\n```python\n{problem.demonstration}\n```\nDone.").value == 1.0
    for text in ("", "def f(x", "def g(x):\n    return x", "def f(*_):\n    return None"):
        wrong = score(text)
        assert wrong.value == 0.0 and not wrong.solved


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("```python\na\n```\n```Python\nb\n```\n", "b\n"),
        ("```python\na\n```\nIt prints\n```\n5\n```", "a\n"),  # marked as Python comes first
        ("```\na\n```", "a\n"),
        ("```text\na\n```\nthen\n```python\nb\n```", "b\n"),
        ("```python\nb", "b"),  # cut before its end
        ("```python\ns = '```'\n```", "s = '```'\n"),
        ("```bash\nls\n```", "```bash\nls\n```"),
    ],
)
def test_code_block(text: str, code: str):
    assert code_block(text) == code


def test_partial_credit_is_the_share_of_tests_passed(task, pool):
    problem = Problem("p", tests=tuple(CallTest("f", (x,), x) for x in range(4)))
    reward = judge(task, problem, "def f(x):\n    return x if x < 3 else 0", pool)
    assert reward.value == pytest.approx(functions.PARTIAL_CREDIT * 3 / 4)
    assert not reward.solved and sum(reward.parts.values()) == pytest.approx(reward.value)


def test_a_sandbox_error_earns_nothing_and_keeps_its_verdict(task):
    async def run_async(program: Program) -> Verdict:
        return Verdict("sandbox_error")

    broken: Any = SimpleNamespace(run_async=run_async)
    reward = judge(task, task.train[0], "def f(x): pass", broken)
    assert reward.value == 0.0 and not reward.solved and reward.verdict.status == "sandbox_error"


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_difficulty", 1), ("max_difficulty", 7), ("demonstration_difficulty", 5), ("hard_demonstrations", 1.5),
     ("train_problems", 0), ("held_out_problems", 0)],
)  # fmt: skip
def test_settings_out_of_range_are_named(field: str, value: float):
    with pytest.raises(ValueError, match=rf"task\.{field} = {value} must be (in|>=|at most)"):
        load_task(TaskConfig(**{field: value}), 0)  # pyright: ignore[reportArgumentType]


def test_too_many_held_out_problems_are_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(functions, "generate", lambda *_: Problem("p", demonstration="def f(x): ..."))
    with pytest.raises(ValueError, match=r"held_out_problems = 2 is too many; only 1"):
        functions.held_out_problems(2, 4)
