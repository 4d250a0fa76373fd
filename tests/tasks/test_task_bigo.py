"""Task bigo: classes told and programs written in a class, with the published rows where they are there."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
from judging import judge, judge_all

from jaxrl.config import EvaluationConfig
from jaxrl.errors import UserError
from jaxrl.evaluation.metrics import scores
from jaxrl.tasks import bigo, load_task
from jaxrl.tasks.growth import templates
from jaxrl.tasks.growth.benchmark import percentile, read_solutions
from jaxrl.tasks.growth.measure import Measurement, found, request
from jaxrl.tasks.growth.names import same
from rollouts.episode import Episode, Group, Problem, Reward

SMALL = {"train_problems": 50, "held_out_problems": 12, "demonstrations": 50}


def settings(**fields):
    return bigo.Settings(**SMALL | fields)


@pytest.mark.parametrize("form", templates.FORMS, ids=lambda f: f.name)
def test_the_forms_have_the_class_that_is_measured(form, pool):
    """Whatever the names, the constants and the line that does not matter."""
    rng = random.Random(form.name)
    lines = (*templates.DISTRACTORS, *templates.HELD_OUT_DISTRACTORS)
    for names, line in zip(templates.NAMES, rng.sample(lines, 2)):
        source = templates.source(form, names, rng.randint(2, 9), rng.randint(2, 9), line)
        example = bigo.EXAMPLES if "{y}" in form.body else bigo.EXAMPLES[:1]
        asked = Measurement(source, "f", example, end=512, operations=20_000)
        result = found(asked, pool.run([request(asked)])[0])
        assert result.growth and same(result.growth.text, form.label), (source, result)


@pytest.mark.parametrize("exercise", templates.EXERCISES, ids=lambda e: e.name)
def test_the_implementations_agree_and_have_their_classes(exercise, pool):
    task = load_task(settings(kind="generate"), 0)
    for label in exercise.programs:
        problem = Problem("p", tests=bigo._tests(templates.EXERCISES.index(exercise)), answer=label,
                          meta={"exercise": templates.EXERCISES.index(exercise), "limits": bigo.LIMITS})  # fmt: skip
        reward = judge(task, problem, templates.solution(exercise, label), pool)
        assert reward.solved and reward.value == pytest.approx(1.3), (label, reward)


def problem(task, name: str, label: str) -> Problem:
    return next(p for p in task.train if p.meta["of"].split()[0] == name and p.answer == label)


def test_the_reward_of_a_program(pool):
    task = load_task(settings(kind="generate", train_problems=400), 0)
    asked = problem(task, "pairs", "o(n)")
    pairs = templates.EXERCISES[0]
    fast, slow = templates.solution(pairs, "o(n)"), templates.solution(pairs, "o(n^2)")
    hidden = fast.replace("    return", "    exec('1')\n    return")
    rewards = judge_all(task, [asked] * 4, [fast, slow, "def f(x): return 0", hidden], pool)
    assert [r.solved for r in rewards] == [True, False, False, False]
    assert rewards[0].value == pytest.approx(1 + 0.2 + 0.1) and rewards[1].parts == {
        "solved": 0,
        "tests": 0.2,
        "order": 0,
    }
    assert rewards[2].parts["tests"] < 0.2 and rewards[3].parts["solved"] == 0 and rewards[3].parts["tests"] == 0.2
    assert judge(task, asked, fast, pool) == rewards[0] or judge(task, asked, fast, pool).value == rewards[0].value


def test_rank_is_the_share_of_people_who_are_not_better(pool):
    task = load_task(settings(kind="rank", train_problems=400), 0)
    asked = problem(task, "pairs", "o(n)")
    fast = templates.solution(templates.EXERCISES[0], "o(n)")
    slow = fast.replace("\n    ", "\n    for n in x:\n        n\n    for n in x:\n        n\n    ", 1)
    first, last = judge_all(task, [asked] * 2, [fast, slow], pool)
    assert first.solved and last.solved
    assert first.parts["percentile"] == 1 and last.parts["percentile"] == pytest.approx(1 / 3)
    assert percentile(5.0, (9.0, 5.0, 4.0, 1.0)) == 0.5 and percentile(1.0, ()) == 0
    assert task.headline == "percentile"


@pytest.mark.parametrize(
    ("text", "rule", "parts"),
    [
        ("It is O(m * n).", "balanced", (1, 0)),
        ("O(n^2)", "balanced", (0, 0.2)),
        ("O(n)", "balanced", (0, 0)),
        ("O(n)? no, O((n)*(m))", "bigobench", (0, 0)),
        ("none", "balanced", (0, 0)),
    ],
)
def test_the_reward_of_a_class(text, rule, parts):
    task = load_task(settings(answer_rule=rule), 0)
    reward = judge(task, Problem("p", answer="o(n*m)"), text)
    assert (reward.parts["solved"], reward.parts["order"]) == parts and reward.solved == bool(parts[0])
    assert (reward.answer is None) == (text == "none" or rule == "bigobench")


def test_wrong_demonstrations():
    told = load_task(settings(wrong_demonstrations=1.0), 0).demonstrations
    assert not any(same(p.demonstration, p.answer) for p in told)
    for p in load_task(settings(kind="generate", wrong_demonstrations=1.0), 0).demonstrations:
        exercise = templates.EXERCISES[p.meta["exercise"]]
        assert "O(" not in p.messages[0]["content"] and p.answer == max(exercise.programs, key=bigo.order)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"end": 100}, "task.end = 100 does nothing with task.kind = 'predict'"),
        ({"kind": "generate", "answer_rule": "bigobench"}, "task.answer_rule"),
        ({"path": "rows.jsonl", "wrong_demonstrations": 0.3}, "does nothing with task.path"),
    ],
)
def test_settings_that_do_nothing_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        load_task(settings(**fields), 0)


def episode(p: Problem, solved: bool) -> Episode:
    return Episode(p, np.zeros(1, np.int32), [], Reward(float(solved), solved), "finished", "")


def test_metrics_over_the_classes_of_a_problem():
    """Against the definitions, by loops over samples."""
    rng = np.random.default_rng(0)
    task = load_task(settings(kind="generate"), 0)
    solved = {("a", "o(n)"): None, ("a", "o(n^2)"): None, ("b", "o(nlogn)"): None}
    groups = []
    for of, label in solved:
        p = Problem(f"{of}{label}", answer=label, meta={"of": of})
        solved[of, label] = [bool(v) for v in rng.random(6) < 0.6]
        groups.append(Group(p, [episode(p, s) for s in solved[of, label]]))
    table = scores(groups, task, EvaluationConfig(samples=6), [{}] * 3)
    mean = {key: sum(values) / 6 for key, values in solved.items()}
    a = [mean["a", "o(n)"], mean["a", "o(n^2)"]]
    assert table["held_out/macro@1"] == pytest.approx([sum(a) / 2, mean["b", "o(nlogn)"]])
    assert table["held_out/best@1"] == pytest.approx([a[0], mean["b", "o(nlogn)"]])
    both = [x and y for x, y in zip(solved["a", "o(n)"], solved["a", "o(n^2)"])]
    assert table["held_out/all@1"] == pytest.approx([sum(both) / 6, mean["b", "o(nlogn)"]])


# --- the benchmark's rows


def row(**fields):
    code = "n = int(input())\nx = list(map(int, input().split()))\nprint(sum(x))\n"
    given = (
        "from dataclasses import dataclass\nfrom typing import List\n@dataclass\nclass Input:\n    n: int\n"
        "    x: List[int]\n    @classmethod\n    def from_str(cls, text):\n        n, x = text.strip().split('\\n')\n"
        "        return cls(int(n), [*map(int, x.split())])\n    def __repr__(self):\n"
        "        return f'{self.n}\\n' + ' '.join(map(str, self.x)) + '\\n'\n"
    )
    tests = {"public_tests": [{"input": "2\n1 2\n", "output": "3\n"}], "private_tests": [], "generated_tests": []}
    return {
        "problem_name": "Total", "problem_id": "7", "solution_id": "7_1", "description": "Add.", "solution_code": code,
        "dataclass_code": given, "inputs_example": "3\n4 5 6\n", "time_complexity_inferred": "O(n)", "tests": tests,
        "problem_time_curve_coefficient_list": [1e-3, 1e-2],
    } | fields  # fmt: skip


def test_a_script_is_judged_by_its_tests_and_its_class(tmp_path, pool):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (row(), row(problem_id="8", solution_id="8_1"))))
    task = load_task(settings(kind="generate", path=str(path), held_out_problems=1), 0)
    assert len(task.train) == len(task.held_out) == 1
    right = f"```python\n{row()['solution_code']}```"
    slow = right.replace("print(", "for a in x:\n    for b in x:\n        b\nprint(")
    rewards = judge_all(task, [task.held_out[0]] * 2, [right, slow], pool)
    assert [r.solved for r in rewards] == [True, False] and rewards[1].verdict.passed
    told = load_task(settings(path=str(path), held_out_problems=1), 0)
    assert judge(told, told.held_out[0], "O(k)").solved
    with pytest.raises(UserError, match=r"task\.clock"):
        load_task(settings(kind="rank", path=str(path)), 0)
    path.write_text(json.dumps(row(time_complexity_inferred="fast")))
    with pytest.raises(UserError, match="is not a class"):
        load_task(settings(path=str(path)), 0)


def test_published_rows(data, pool):
    folder = data / "bigobench"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    times = read_solutions(str(folder / "tiny_time_test_set_with_notes.json"))
    spaces = read_solutions(str(folder / "tiny_space_test_set_with_notes.json"))
    assert len({s.problem for s in times}) == len({s.problem for s in spaces}) == 5
    assert all(s.tests and s.coefficients == tuple(sorted(s.coefficients, reverse=True)) for s in (*times, *spaces))
    chosen = [next(s for s in times if s.label == "O(n**2)"), next(s for s in spaces if s.label == "O(n+m)")]
    for solution in chosen:
        asked = dataclasses.replace(solution.measurement(), end=1100)
        result = found(asked, pool.run([request(asked)])[0])
        assert result.growth and same(result.growth.text, solution.label)
