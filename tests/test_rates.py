"""Pass rates: the command and its resumption, every test judged, training problems chosen by a rates file."""

from __future__ import annotations

import asyncio
import json

import pytest

from jaxrl.config.command_line import read_config
from jaxrl.config.task import ByRates
from jaxrl.errors import UserError
from jaxrl.rates import main
from jaxrl.tasks import acecode, load_task
from jaxrl.tasks.functions import Settings
from jaxrl.tasks.rates import by_rates, hard_quarter, read_rates
from jaxrl.tasks.rewards import every_test
from jaxrl.tasks.sampling import evenly
from rollouts.episode import Problem, Submission
from rollouts.services import Services
from sandbox.verdict import AssertTest, Limits, Program

TINY = [
    "--config=configs/scramble.py", "--config.task=functions", "--config.model.shape.hidden_size=32",
    "--config.model.shape.intermediate_size=64", "--config.model.shape.num_hidden_layers=1",
    "--config.rollout.slots=8", "--config.rollout.max_new_tokens=8", "--config.rollout.max_prompt_length=128",
    "--config.rates.problems=4",
    "--config.rates.samples=2",
]  # fmt: skip


def test_the_command_carries_on_where_it_was_killed(tmp_path, capsys):
    assert main([*TINY, f"--config.runs_dir={tmp_path}"]) == 0
    path = tmp_path / "scramble" / "rates.jsonl"
    whole, out = path.read_bytes(), capsys.readouterr().out
    assert "problems  4" in out and "samples of each  2" in out
    stored, task = read_rates(str(path)), load_task(Settings(), 0)
    assert [s.index for s in stored] == evenly(20_000, 4) == [0, 5000, 10_000, 15_000]
    for sampled in stored:
        problem = task.train[sampled.index]
        assert sampled.id == problem.id and len(sampled.samples) == 2 and len(sampled.kept) == len(problem.tests)
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[3] + lines[1] + lines[0][:50])  # in the order of their end; the last one was cut off
    assert main([*TINY, f"--config.runs_dir={tmp_path}"]) == 0
    assert path.read_bytes() == whole
    assert "2 problems are kept from an earlier try" in capsys.readouterr().out
    assert main([*TINY, f"--config.runs_dir={tmp_path}", "--config.rates.samples=3"]) == 1
    assert "config.rates.samples was 2, is 3" in capsys.readouterr().err


def test_what_cannot_be_sampled_is_refused(tmp_path, capsys):
    assert main([*TINY, f"--config.runs_dir={tmp_path}", "--config.rollout.max_prompt_length=4"]) == 1
    assert "raise that, or set rollout.reject_long_prompts" in capsys.readouterr().err
    more = ["--config.rollout.max_prompt_length=4", "--config.rollout.reject_long_prompts", "--config.name=short"]
    assert main([*TINY, f"--config.runs_dir={tmp_path}", *more]) == 1
    assert "no problem fits rollout.max_prompt_length = 4" in capsys.readouterr().err


# What ends the program in one test must not decide those after it: an exit, a loop without end, an exception.
PROGRAMS = {
    "def f(x):\n    return x": "1111",
    "def f(x):\n    return 0": "1000",
    "import os\ndef f(x):\n    if x == 1:\n        os._exit(0)\n    return x": "1011",
    "def f(x):\n    while x == 2:\n        pass\n    return x": "1101",
    "def f(x):\n    return x / (x - 1)": "1010",
    "def f(x:": "0000",
}


@pytest.mark.parametrize("code", PROGRAMS)
def test_each_test_has_a_result_of_its_own(pool, code):
    limits = Limits(wall_s=3, cpu_s=0.5)
    tests = tuple(AssertTest(f"assert f({i}) == {i}") for i in range(4))
    problem = Problem("p", tests=tests, meta={"limits": limits})
    first = pool.run([Program(code, tests, limits)])[0]
    verdict = asyncio.run(every_test(problem, Submission(code, code), first, Services(pool)))
    alone = pool.run([Program(code, (test,), limits) for test in tests])
    flags = "".join(str(int(result.status == "passed")) for result in verdict.tests)
    assert flags == "".join(str(int(v.passed)) for v in alone) == PROGRAMS[code]
    assert verdict.passed == first.passed == (flags == "1111")


def line(problem: Problem, index: int | None, *passed: str) -> str:
    """A problem's line; each sample as "10": passes the first test of two."""
    messages = [dict(m, content=m["content"] + "\nWrite code.") for m in problem.messages]
    samples = [{"text": f"answer {k}", "tests": [c == "1" for c in flags]} for k, flags in enumerate(passed)]
    row = {"id": problem.id, "messages": messages, "samples": samples}
    return json.dumps(row if index is None else row | {"index": index}) + "\n"


@pytest.fixture
def stored(tmp_path):
    task, path = load_task(Settings(train_problems=50), 0), tmp_path / "rates.jsonl"
    rates = {3: ("11", "11"), 7: ("11", "00"), 11: ("10", "10"), 20: ("00", "00"), 49: ("10", "00")}
    path.write_text("".join(line(task.train[i], i, *passed) for i, passed in rates.items()))
    return task, path


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({}, [3, 7, 11, 20, 49]),
        ({"least": 0.5}, [3, 7, 11]),
        ({"least": 0.25, "most": 0.5}, [7, 11, 49]),
        ({"of": "solved", "least": 0.01, "most": 0.99}, [7]),
        ({"choose": "hard_quarter"}, [49]),  # 20 and 49 have the lowest means; 49 varies
    ],
)
def test_training_problems_by_rate(stored, settings, chosen):
    task, path = stored
    made = load_task(Settings(train_problems=50, rates=ByRates(path=str(path), **settings)), 0)
    assert [*made.train] == [task.train[i] for i in chosen]
    counts = {"no stored pass rate": 45, "other pass rate than wanted": 5 - len(chosen)}
    assert made.rejected == {reason: count for reason, count in counts.items() if count}
    assert made.select(0).next(0, 3)[0].id in {task.train[i].id for i in chosen}
    assert [*made.held_out] == [*task.held_out]


def test_problems_are_found_without_their_index(stored, tmp_path):
    task, _ = stored
    path = tmp_path / "other.jsonl"
    path.write_text(line(task.train[5], None, "11", "10") + line(Problem("gone"), None, "11", "11"))
    train, counts = by_rates(task.train, ByRates(path=str(path)))
    assert train == [task.train[5]]
    assert counts == {"no stored pass rate": 49, "stored pass rate of no training problem": 1}


def test_a_file_of_another_seed_matches_nothing(stored):
    """The ids are the same, the problems are not."""
    _, path = stored
    with pytest.raises(UserError, match="none of its 5 problems is a training problem of this task"):
        load_task(Settings(train_problems=50, rates=ByRates(path=str(path))), 1)


def test_an_empty_band_says_what_there_is(stored):
    _, path = stored
    settings = ByRates(path=str(path), least=0.6, most=0.7)
    with pytest.raises(UserError, match=r"leaves none of 5 problems, whose mean rates are 0\.00 to 1\.00"):
        load_task(Settings(train_problems=50, rates=settings), 0)


def test_rates_of_acecode(tmp_path):
    """Its own file is a rates file: the band of the questions that its models solve sometimes."""
    path, tests = tmp_path / "acecode.jsonl", [f"assert f({i}) == {i}" for i in range(3)]
    shares = {"a": (1, 1), "b": (1, 0), "c": (2 / 3, 0.3333), "d": (0, 0)}
    rows = [
        {"id": name, "source": "s", "question": f"Question {name}", "test_cases": tests, "inferences": [
            {"completion": "text", "model_name": "m", "pass_rate": rate} for rate in rates]}
        for name, rates in shares.items()
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [[float(r) for r in s.rates("kept")] for s in read_rates(str(path))] == [
        [1, 1], [1, 0], [2 / 3, 1 / 3], [0, 0]
    ]  # fmt: skip
    rates = ByRates(path=str(path), least=0.2, most=0.8)
    task = load_task(acecode.Settings(path=str(path), rates=rates), 0)
    assert [p.id for p in task.train] == ["b", "c"] and task.rejected == {"other pass rate than wanted": 2}


def test_hard_quarter_of_eight_is_two():
    rates = dict(zip("abcdefgh", ([0, 0], [0, 1], [0.2, 0.2], [0, 0.6], *[[1, 1]] * 4)))
    assert hard_quarter(rates) == ["b", "d"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task.rates.least=0.5"], r"task\.rates\.path = '' must be a rates file"),
        (["task.rates.path=x", "task.rates.choose=hard_quarter", "task.rates.most=0.5"], "belong to .*choose = 'band'"),
        (["task.rates.path=x", "task.rates.least=0.5", "task.rates.most=0.4"], "least = 0.5 must be at most"),
        (["evaluation.task=scramble", "evaluation.task.rates.path=x"], r"evaluation\.task\.rates\.path has no effect"),
    ],
)
def test_settings_that_do_nothing(arguments, message):
    with pytest.raises(UserError, match=message):
        read_config(["--config", "configs/scramble.py", *(f"--config.{a}" for a in arguments)])
