"""Which problems come when: stages by a file of potentials, and the policy's own pass rates."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from jaxrl.config.rules import check_settings
from jaxrl.config.training import CurriculumConfig
from jaxrl.errors import UserError
from jaxrl.tasks import load_task, mixture, scramble
from jaxrl.tasks.curriculum import ByPassRate, curriculum, potential, read_potentials
from jaxrl.tasks.rows import DataError
from rollouts.episode import Episode, Group, Problem, Reward

TASK = load_task(scramble.Settings(name="scramble", train_problems=40, held_out_problems=4, demonstrations=4), 0)


def written(tmp_path, rates, task=TASK, **change) -> str:
    """A file in which problem i has this rate of 100 answers."""
    path = tmp_path / "potential.jsonl"
    rows = [{"index": i, "id": task.train[i].id, "n": 100, "solved": round(100 * r)} | change for i, r in rates.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def group(problem: Problem, *solved: bool, status: str = "finished") -> Group:
    prompt = np.zeros(1, np.int32)
    return Group(problem, [Episode(problem, prompt, [], Reward(float(s), s), status, "") for s in solved])  # type: ignore[arg-type]


def test_the_potential_is_most_where_half_is_solved():
    assert [potential(p) for p in (0, 0.1, 0.2, 0.5, 0.9, 1)] == pytest.approx([0, 0.36, 0.64, 1, 0.36, 0])


def test_stages_add_problems_of_less_potential(tmp_path):
    rates = {0: 0.5, 1: 0.3, 2: 0.15, 3: 0.9, 4: 0.0}  # potentials 1, 0.84, 0.51, 0.36, 0
    config = CurriculumConfig("potential", written(tmp_path, rates), steps=(2, 3, 1))
    selection = curriculum(config, TASK, 7)
    ids = [TASK.train[i].id for i in rates]
    drawn = [{p.id for p in selection.next(step, 30)} for step in range(12)]
    assert drawn[:2] == [set(ids[:2])] * 2 and drawn[2:5] == [set(ids[:3])] * 3 and drawn[5] == set(ids[:4])
    assert drawn[6:] == [set(ids)] * 6
    counts = Counter(p.id for step in (6, 7) for p in selection.next(step, 5))
    assert set(counts.values()) == {2}  # each once a pass
    again = curriculum(config, TASK, 7, draws=3)  # three draws a step
    assert {p.id for p in again.next(5, 30)} == set(ids[:2]) and {p.id for p in again.next(6, 30)} == set(ids[:3])


def test_a_list_of_problems_is_found_by_id(tmp_path):
    """Where long prompts were dropped, numbers have moved."""
    path = written(tmp_path, {0: 0.5, 3: 0.25})
    kept = [TASK.train[i] for i in range(40) if i != 1]
    assert [(p.id, v) for p, v in read_potentials(path, kept)] == [(TASK.train[0].id, 1.0), (TASK.train[3].id, 0.75)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "other"}, "potential.jsonl:1: problem 'other' is not training problem 0 of this task"),
        ({"index": 1_000}, "is not training problem 1000"),
        ({"solved": 101}, "solved must be from 0 to n, and n at least 1"),
        ({"n": 0, "solved": 0}, "solved must be from 0 to n, and n at least 1"),
        ({"solved": "x"}, "solved must be a number"),
    ],
)
def test_files_that_do_not_fit(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read_potentials(written(tmp_path, {0: 0.5}, **change), TASK.train)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"order": "potential"}, "which needs both"),
        ({"path": "x"}, "belong to grpo.curriculum.order = 'potential'"),
        ({"order": "potential", "path": "x", "steps": (1,)}, "steps must have 3 numbers"),
        ({"order": "potential", "path": "x", "steps": (1, 1), "thresholds": (0.5, 0.7, 0.1)}, "must fall from stage"),
        ({"slice": "kind"}, "slice has no effect"),
        ({"candidates": 9}, "candidates has no effect"),
        ({"thresholds": (0.9,)}, "thresholds has no effect"),
        ({"order": "potential", "path": "x", "steps": (1, 1, 1), "slice": "kind"}, "slice has no effect"),
    ],
)
def test_settings_that_contradict_each_other(fields, message):
    with pytest.raises(UserError, match=message):
        check_settings(CurriculumConfig(**fields), "grpo.curriculum")


def test_orders_that_a_task_cannot_have(tmp_path):
    mixed = mixture.Settings(parts=(mixture.Part(scramble.Settings(name="scramble")),))
    with pytest.raises(UserError, match="task mixture has a selection of its own"):
        curriculum(CurriculumConfig("pass_rate"), mixture.make_task(mixed, 0), 0)
    with pytest.raises(UserError, match="'kind': task scramble does not have it; it has"):
        curriculum(CurriculumConfig("pass_rate", slice="kind"), TASK, 0)
    path = written(tmp_path, {0: 0.9})
    with pytest.raises(UserError, match=r"no problem of .* has this potential; the most is 0.36"):
        curriculum(CurriculumConfig("potential", path, steps=(1, 1, 1)), TASK, 0)


def test_uniform_is_the_task_s_own():
    assert curriculum(CurriculumConfig(), TASK, 3).next(0, 9) == TASK.select(3).next(0, 9)


def test_a_running_rate_is_an_average_in_which_the_newest_group_counts_half():
    selection = ByPassRate(TASK.train, 0, 4, lambda p: p.id)
    problem = TASK.train[0]
    selection.observe([group(problem, True, True)])
    assert selection.rates == {problem.id: 0.75}
    selection.observe([group(problem, False, True, False, False)])
    assert selection.rates == {problem.id: 0.5}
    selection.observe([group(problem, False, status="sandbox_error")])
    assert selection.rates == {problem.id: 0.5}


def test_draws_are_in_proportion_to_the_potential():
    """Of two keys with weights 1 and 0.36, the first of one draw is the better in 1 / 1.36 of the cases."""
    problems = [Problem(f"{key}{i}", meta={"key": key}) for i in range(500) for key in "ab"]
    selection = ByPassRate(problems, 5, 2, lambda p: p.meta["key"])
    selection.rates = {"a": 0.5, "b": 0.1}
    both = 0
    first = 0
    for draw in range(6000):
        near = {p.meta["key"] for p in ByPassRate(problems, 5, 1, selection.key).next(2 * draw, 1)}
        near |= {p.meta["key"] for p in ByPassRate(problems, 5, 1, selection.key).next(2 * draw + 1, 1)}
        if near == {"a", "b"}:
            both += 1
            first += selection.next(draw, 1)[0].meta["key"] == "a"
    assert first / both == pytest.approx(1 / 1.36, abs=4 * (0.2 / both) ** 0.5)


@pytest.mark.parametrize("key", ["", "difficulty"])
def test_by_pass_rate_a_resumed_run_draws_as_one_that_was_not_stopped(key):
    task = dataclasses.replace(TASK, slices=lambda p: {"difficulty": len(p.id) % 2})
    config = CurriculumConfig("pass_rate", slice=key)

    def play(selection, steps) -> list:
        drawn = []
        for step in steps:
            drawn.append(selection.next(step, 4))
            selection.observe([group(p, i == 0, False) for i, p in enumerate(drawn[-1])])
        return drawn

    whole, stopped = curriculum(config, task, 3), curriculum(config, task, 3)
    drawn = play(whole, range(8))
    play(stopped, range(4))
    resumed = curriculum(config, task, 3)
    resumed.restore(json.loads(json.dumps(stopped.state())))
    assert play(resumed, range(4, 8)) == drawn[4:]


def test_no_problem_comes_twice_in_a_step():
    selection = ByPassRate(TASK.train, 0, 4, lambda p: p.id)
    for draw in range(50):
        ids = [p.id for p in selection.next(draw, 16)]
        assert len(ids) == len(set(ids)) == 16
    assert len(selection.next(0, 100)) == 100  # of 40 problems
