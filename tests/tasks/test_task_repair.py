"""Programs to repair: mistakes that can be undone, benchmarks of bugs, what a model got wrong."""

from __future__ import annotations

import json

import pytest
from judging import judge_all

from jaxrl.config import RolloutConfig
from jaxrl.errors import UserError
from jaxrl.runs.prompts import without_long_prompts
from jaxrl.runs.tokenizer import train_tokenizer
from jaxrl.tasks import repair
from jaxrl.tasks.rows import DataError
from rollouts.editor import apply, lines_of, parse, render


def replayed(problem):
    """The program after the commands of the demonstration; each state must be as the user's messages show it."""
    lines = lines_of(problem.meta["broken"])
    *turns, last = problem.demonstration
    assert last == {"role": "assistant", "content": "### EXIT"}
    for said, seen in zip(turns[::2], turns[1::2]):
        lines = apply(lines, parse(said["content"]))
        assert seen["role"] == "user" and seen["content"].startswith(render(lines))
    assert turns[-1]["content"] == render(lines)  # no test fails
    return lines


def test_a_demonstration_repairs_what_fails():
    task = repair.make_task(repair.Settings(held_out_problems=6), 0)
    for problem in [*task.held_out, *(task.demonstrations[i] for i in range(12))]:
        broken = lines_of(problem.meta["broken"])
        assert not repair.verdict_of(problem, broken).passed
        assert repair.verdict_of(problem, replayed(problem)).passed
        assert problem.messages[0]["content"].count("\nL 1 ") == 1 and "\n***" in problem.messages[0]["content"]


def test_problems_repeat_by_seed_and_parts_share_none():
    first, again, other = (repair.make_task(repair.Settings(held_out_problems=5), seed) for seed in (0, 0, 1))
    assert first.train[3] == again.train[3] != other.train[3]
    assert first.held_out == other.held_out
    assert first.train[0].meta["source"].startswith("functions/train")
    assert all(p.meta["source"].startswith("functions/held_out") for p in first.held_out)


@pytest.mark.parametrize("style", ["direct", "plan"])
def test_whole_programs_are_the_other_way(style, pool):
    task = repair.make_task(repair.Settings(style=style, held_out_problems=4, most_mistakes=1), 0)
    answers = [p.demonstration[0]["content"] for p in task.held_out]
    assert [r.solved for r in judge_all(task, task.held_out, answers, pool)] == [True] * 4
    assert all(("Line " in a) == (style == "plan") for a in answers)
    broken = [f"```python\n{p.meta['broken']}\n```" for p in task.held_out]
    assert not any(r.solved for r in judge_all(task, task.held_out, broken, pool))


def test_what_a_model_got_wrong(tmp_path):
    source = repair.make_task(repair.Settings(held_out_problems=2), 0)
    name = source.held_out[0].meta["source"]
    rows = [
        {"problem": name, "text": "```python\ndef f(x): return 'no'\n```", "solved": False, "status": "finished"},
        {"problem": name, "text": "```python\ndef f(x): return 'no'\n```", "solved": False, "status": "finished"},
        {"problem": name, "text": "```python\ndef f(x): return 0\n```", "solved": True, "status": "finished"},
        {"problem": "another task's", "text": "x", "solved": False, "status": "finished"},
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    task = repair.make_task(repair.Settings(held_out_problems=2, broken_path=str(path)), 0)
    (problem,) = task.held_out
    assert problem.meta["broken"].strip() == "def f(x): return 'no'" and problem.demonstration is None
    path.write_text(json.dumps(rows[2]))
    with pytest.raises(DataError, match="has no unsolved samples of task functions"):
        repair.make_task(repair.Settings(broken_path=str(path)), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"least_mistakes": 4, "most_mistakes": 2}, "task.least_mistakes = 4 must be at most task.most_mistakes = 2"),
        ({"source": "quixbugs", "broken_path": "x"}, "task.broken_path needs task.source = 'functions' or 'mbpp'"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(UserError, match=message):
        repair.Settings(**settings).check()


def test_a_benchmark_needs_its_file():
    with pytest.raises(DataError, match=r"needs task.path, for example humanevalpack_python\.jsonl"):
        repair.make_task(repair.Settings(source="humanevalfix"), 0)


FILES = {"humanevalfix": "humanevalfix/humanevalpack_python.jsonl", "quixbugs": "quixbugs/quixbugs.jsonl"}


@pytest.mark.parametrize(
    ("source", "count"), [("humanevalfix", 12), pytest.param("quixbugs", 4, marks=pytest.mark.slow)]
)
def test_bugs_of_benchmarks_fail_and_their_corrections_pass(source, count, data):
    rows = repair.read_rows(str(data / FILES[source]))
    settings = repair.Settings(source=source, path=str(data / FILES[source]), held_out_problems=count)
    task = repair.make_task(settings, 0)
    assert len(task.held_out) == count and len(rows) == {"humanevalfix": 164, "quixbugs": 31}[source]
    for row, problem in zip(rows, task.held_out):
        solution = row.text("correct") if source == "quixbugs" else row.text("prompt") + row.text("canonical_solution")
        assert repair.verdict_of(problem, lines_of(solution)).passed, problem.id
        assert repair.verdict_of(problem, lines_of(solution), problem.public_tests).passed, problem.id
        assert not repair.verdict_of(problem, lines_of(problem.meta["broken"])).passed, problem.id


def test_mbpp_with_mistakes(data):
    settings = repair.Settings(source="mbpp", path=str(data / "mbpp/mbpp.jsonl"), held_out_problems=4)
    task = repair.make_task(settings, 0)
    for i in range(4):
        replayed(task.demonstrations[i])
        assert task.demonstrations[i].meta["source"].startswith("mbpp/")
    assert not {p.meta["source"] for p in task.held_out} & {task.train[i].meta["source"] for i in range(20)}


def test_a_benchmark_that_is_only_evaluated_may_reject_long_prompts(data):
    """It has no training problems, which is not for want of room."""
    path = str(data / FILES["quixbugs"])
    task = repair.make_task(repair.Settings(source="quixbugs", path=path, held_out_problems=2), 0)
    tokenizer = train_tokenizer(["def f(x): return x"], 300)
    kept = without_long_prompts(task, tokenizer, RolloutConfig(max_prompt_length=4000))
    assert len(kept.held_out) == 2 and len(kept.train) == 0
    with pytest.raises(UserError, match=r"no problem fits rollout\.max_prompt_length = 8"):
        without_long_prompts(task, tokenizer, RolloutConfig(max_prompt_length=8))
