"""Evaluation with an environment whose answers are known: the metrics, regeneration and the files for harnesses."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from jaxrl.config import Config, EvaluationConfig, TaskConfig
from jaxrl.config.rules import check_settings
from jaxrl.evaluate import evaluate_config
from jaxrl.evaluation.estimators import bootstrap_interval
from jaxrl.evaluation.harnesses import read_examples, read_samples, score_samples, write_harness_files
from jaxrl.evaluation.run import collect_well_formed, evaluate
from jaxrl.runs.log import write_samples
from jaxrl.score import main as score_command
from jaxrl.tasks import Task, load_task
from rollouts.episode import Attempt, Episode, Group, Problem, Reward, Submission, Turn
from sandbox.verdict import AssertTest

TEXTS = [["f = 1", "f = 2", "f=1", "f ="], ["f = 2", "f = 3", "f = (", "f = 3"]]  # 1 is right
LOGPROBS = [[-1.0, -2.0, -3.0, -4.0], [-1.0, -2.0, -3.0, -4.0]]


class Scripted:
    """Gives each problem's texts in turn, and `fallback` after them."""

    def __init__(self, texts, logprobs=LOGPROBS, attempts=None, fallback="f = 9"):
        self.programs = 2 if attempts else None
        self.texts, self.logprobs, self.attempts, self.fallback = texts, logprobs, attempts, fallback
        self.played, self.seeds = [0] * len(texts), []

    async def play(self, problem, engine, seed):
        p = int(problem.id)
        i, self.played[p] = self.played[p], self.played[p] + 1
        self.seeds.append(seed)
        text = self.texts[p][i] if i < len(self.texts[p]) else self.fallback
        logprobs = np.array([self.logprobs[p][i % 4]] * 2, np.float32)
        turn = Turn("assistant", np.zeros(2, np.int32), True, logprobs, text=text)
        attempts = self.attempts[p][i] if self.attempts else []
        return Episode(problem, np.zeros(1, np.int32), [turn], rewarded(text), "finished", text,
                       attempts=attempts, submission=Submission(text, text))  # fmt: skip


def rewarded(text):
    solved = text in ("f = 1", "f=1")
    return Reward(float(solved), solved, answer=text.replace(" ", ""))


def task(**fields):
    problems = [Problem(str(p), public_tests=(AssertTest("assert f < 3"),)) for p in range(2)]

    async def judge(problem, submission, services):
        raise AssertionError("the fake environments judge")

    return Task("test", problems, problems, judge, extract=lambda problem, text: text, answers=True, **fields)


def run(environment, pool=None, **settings):
    config = EvaluationConfig(samples=4, **settings)
    check_settings(config, "evaluation")
    return evaluate(None, environment, task(), config, (0, 2), pool, programs=environment.programs)[0]


def test_the_metrics_by_hand():
    metrics = run(Scripted(TEXTS), k=(2,), best_of="logprob", submissions=2)
    assert metrics["held_out/pass@1"] == pytest.approx((2 / 4 + 0) / 2)
    assert metrics["held_out/pass@2"] == pytest.approx((1 - 1 / 6) / 2)
    assert (
        metrics["held_out/pass@4"] == metrics["held_out/maj@4"] == 0.5
    )  # of the first: two say 1; the second is wrong
    assert metrics["held_out/2@4"] == pytest.approx((1 - 1 / 6) / 2)  # any two of the four
    assert metrics["held_out/best_of_4/logprob"] == 0.5
    assert metrics["held_out/best_of_2/logprob"] == pytest.approx((3 + 1) / 6 / 2)
    assert metrics["held_out/distinct_solutions"] == (1 + 0) / 2  # "f = 1" and "f=1" are one
    low, high = bootstrap_interval([0.5, 0.0])
    assert (metrics["held_out/pass@1/low"], metrics["held_out/pass@1/high"]) == (low, high) == (0, 0.5)
    assert metrics["held_out/n"] == 2 and "held_out/attempts" not in metrics


def test_best_by_public_tests(pool):
    metrics = run(Scripted(TEXTS), pool, best_of="public", bootstrap=0)
    assert metrics["held_out/best_of_4/public"] == pytest.approx((2 / 3 + 0) / 2)  # of 1, 2, 1, and what is no program
    assert metrics["held_out/1@4"] == pytest.approx((2 / 3 + 0) / 2)
    assert "held_out/pass@1/low" not in metrics


def test_turns_are_samples():
    right, wrong, hidden = Attempt(True, True), Attempt(True, False), Attempt(False, False)
    attempts = [[[wrong, right], [hidden, right], [hidden], [wrong]], [[wrong, wrong]] * 4]
    metrics = run(Scripted(TEXTS, attempts=attempts), bootstrap=0)
    assert metrics["held_out/1@2"] == pytest.approx(1 / 4 / 2)  # one episode: the first program that passes is wrong
    attempts = [[[right], [], [], []], [[wrong], [wrong], [wrong], [wrong]]]  # cut off: nothing was submitted
    assert run(Scripted(TEXTS, attempts=attempts), bootstrap=0)["held_out/1@8"] == pytest.approx(1 / 2)


def test_ill_formed_answers_are_drawn_again_with_other_seeds():
    environment = Scripted(TEXTS)
    groups, drawn = collect_well_formed(None, environment, task(), EvaluationConfig(samples=4, regenerate=3), (0, 2))
    assert [[e.text for e in g.episodes] for g in groups] == [
        ["f = 1", "f = 2", "f=1", "f = 9"], ["f = 2", "f = 3", "f = 9", "f = 3"],
    ]  # fmt: skip
    assert len(drawn) == 10 and len(set(environment.seeds)) == 10
    assert run(Scripted(TEXTS), regenerate=3)["held_out/attempts"] == 10 / 8
    _, drawn = collect_well_formed(
        None, Scripted(TEXTS, fallback="f ="), task(), EvaluationConfig(samples=4, regenerate=3), (0, 2)
    )
    assert len(drawn) == 8 + 3 * 2


def test_the_task_says_what_is_well_formed():
    own = task(well_formed=lambda problem, text: text == "f = 9")
    assert (
        len(collect_well_formed(None, Scripted(TEXTS), own, EvaluationConfig(samples=4, regenerate=1), (0,))[1]) == 16
    )


class TwoTurns:
    """Feedback as a fake model plays it: a program that is told to be wrong, and the one that is judged.

    `texts` has (first, last) for each episode of each problem.
    """

    programs = 2

    def __init__(self, texts):
        self.texts, self.played = texts, [0] * len(texts)

    async def play(self, problem, engine, seed):
        p = int(problem.id)
        i, self.played[p] = self.played[p], self.played[p] + 1
        first, last = self.texts[p][i % len(self.texts[p])]
        zero = np.zeros(1, np.int32)
        turns = [Turn("assistant", zero, True, np.zeros(1, np.float32), text=text) for text in (first, last)]
        turns.insert(1, Turn("user", zero, False, text="Write the whole program again."))
        solved = rewarded(last).solved
        attempts = [Attempt(False, False), Attempt(solved, solved)]
        return Episode(problem, zero, turns, rewarded(last), "finished", f"{first}\n{last}",
                       attempts=attempts, submission=Submission(last, last))  # fmt: skip


def test_votes_choices_and_form_are_of_the_judged_program_alone(pool):
    # By all turns every text would be another answer, and "f = (" would make two of them ill-formed.
    texts = [[("f = (", "f = 1"), ("f = (", "f=1"), ("f = 7", "f = 5"), ("f = 8", "f = 6")]] * 2
    environment, config = TwoTurns(texts), EvaluationConfig(samples=4, regenerate=2, bootstrap=0)
    metrics, _ = evaluate(None, environment, task(), config, (0, 2), pool, programs=2)
    assert environment.played == [4, 4] and metrics["held_out/attempts"] == 1  # nothing was drawn again
    assert metrics["held_out/maj@4"] == 1
    config = EvaluationConfig(samples=4, best_of="public", bootstrap=0)
    problems = [Problem(str(p), public_tests=(AssertTest("assert f < 5"),)) for p in range(2)]
    own = dataclasses.replace(task(), train=problems, held_out=problems)
    # f = ( before the right program, and f = 3 before a wrong one: by all turns no order is right.
    texts = [[("f = (", "f = 1"), ("f = 3", "f = 5")] * 2] * 2
    metrics, _ = evaluate(None, TwoTurns(texts), own, config, (0, 2), pool, programs=2)
    assert metrics["held_out/best_of_4/public"] == 1
    broken = [[("f = 1", "f = (")] * 4] * 2  # a right program before, but what was judged is none
    config = EvaluationConfig(samples=4, regenerate=1)
    assert len(collect_well_formed(None, TwoTurns(broken), own, config, (0, 2))[1]) == 16


def test_harness_files_have_the_judged_program_and_samples_name_it(data, pool, tmp_path):
    path = str(data / "humaneval" / "HumanEval.jsonl.gz")
    loaded = load_task(TaskConfig(name="humaneval", path=path, held_out_problems=4), 0)
    right = [str(p.demonstration) for p in loaded.held_out]
    last = [r if i % 2 else "I give up." for i, r in enumerate(right)]
    groups = groups_of(loaded, ["x = 1" if i % 2 else r for i, r in enumerate(right)])
    for group, text in zip(groups, last):
        (episode,) = group.episodes
        episode.turns.append(Turn("assistant", np.zeros(1, np.int32), True, text=text))
        episode.submission, episode.text = loaded.submission(group.problem, text), f"{episode.text}\n{text}"
    for file in write_harness_files(tmp_path, loaded, groups):
        scored = score_samples(read_examples("humaneval", path), read_samples(str(file)), pool)
        assert [s.solved for s in scored] == [bool(i % 2) for i in range(4)]
    write_samples(tmp_path / "samples" / "x.jsonl", groups, 1, "evaluate")
    lines = [json.loads(line) for line in (tmp_path / "samples" / "x.jsonl").read_text().splitlines()]
    assert [line["judged"] for line in lines] == last


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": (5,)}, r"evaluation\.k = \(5,\) must be in 1 \.\. evaluation\.samples = 4"),
        ({"best_of": "votes"}, r"evaluation\.best_of = 'votes' must be one of: \"\", logprob, public"),
        ({"submissions": 0}, "evaluation.submissions = 0 must be >= 1"),
        ({"regenerate": 2, "temperature": 0.0}, "evaluation.regenerate = 2 must be 0 with evaluation.temperature = 0"),
    ],
)
def test_wrong_settings_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        run(Scripted(TEXTS), **settings)


def test_a_wrong_setting_of_the_sampler_is_an_error(tmp_path):
    config = Config(name="none", runs_dir=str(tmp_path))
    config.rollout.slots = 0
    with pytest.raises(ValueError, match=r"rollout\.slots = 0 must be >= 1"):
        evaluate_config(config)
    assert not list(tmp_path.iterdir())


def test_a_scorer_without_its_scores_is_an_error():
    with pytest.raises(ValueError, match="needs an engine that gives logprobs"):
        run(Scripted(TEXTS, [[float("nan")] * 4] * 2), best_of="logprob")
    with pytest.raises(ValueError, match="problem 0 of task test has no public tests"):
        run(Scripted(TEXTS), best_of="public")  # and no sandbox


def groups_of(task_of_data, texts):
    def episode(problem, text):
        turns = [Turn("assistant", np.zeros(1, np.int32), True, text=text)]
        submission = task_of_data.submission(problem, text)
        return Episode(problem, np.zeros(1, np.int32), turns, Reward(0, False), "finished", text, submission=submission)

    return [Group(p, [episode(p, t)]) for p, t in zip(task_of_data.held_out, texts)]


@pytest.mark.parametrize(
    ("name", "path", "files"),
    [
        ("humaneval", "humaneval/HumanEval.jsonl.gz", ["evalplus.jsonl", "human_eval.jsonl"]),
        ("humaneval", "evalplus/v0.1.10-HumanEvalPlus-Mini.jsonl.gz", ["evalplus.jsonl", "human_eval.jsonl"]),
        ("mbpp", "mbpp/sanitized-mbpp.json", ["evalplus.jsonl"]),
        ("mbpp", "evalplus/MbppPlus-v0.1.0.jsonl.gz", ["evalplus.jsonl"]),
    ],
)
def test_files_for_harnesses_get_the_verdicts_of_the_evaluation(data, pool, tmp_path, name, path, files):
    loaded = load_task(TaskConfig(name=name, path=str(data / path), held_out_problems=8), 0)
    right = [p.demonstration for p in loaded.held_out]
    texts = [t if i % 2 else "```python\nx = 1\n```" for i, t in enumerate(right)]
    written = write_harness_files(tmp_path, loaded, groups_of(loaded, texts))
    assert sorted(p.name for p in written) == files
    examples = read_examples(name, str(data / path))
    for file in written:
        scored = score_samples(examples, read_samples(str(file)), pool)
        assert [s.solved for s in scored] == [bool(i % 2) for i in range(8)]


def test_the_command_reads_folders_and_both_kinds_of_rows(data, tmp_path, capsys):
    path = data / "evalplus" / "v0.1.10-HumanEvalPlus-Mini.jsonl.gz"
    examples = read_examples("humaneval", str(path))
    row = {"task_id": "HumanEval/0", "completion": "    return False\n"}
    whole = {"task_id": "HumanEval/1", "solution": examples["HumanEval/1"].prompt + "    return []\n"}
    other = {"task_id": "HumanEval/999", "completion": ""}
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (row, whole, other)))
    arguments = ["--task", "humaneval", "--path", str(path), "--workers", "1", "--results", str(tmp_path / "r.jsonl")]
    assert score_command([str(tmp_path / "samples.jsonl"), *arguments]) == 0
    output = capsys.readouterr().out
    assert "not scored: 1\n" in output and "problems without a sample, not counted: 162\n" in output
    assert "\npass@1  0\n" in output and "failed  HumanEval/1  sample 0  base, plus  wrong_answer" in output
    results = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [r["passed"]["base"] for r in results] == [False, False]
    folder = tmp_path / "folder" / "HumanEval_1"
    folder.mkdir(parents=True)
    (folder / "0.py").write_text(whole["solution"])
    assert [r.fields for r in read_samples(str(tmp_path / "folder"))] == [whole]


def test_all_of_mbpp_plus_is_held_out_on_demand(data):
    path = str(data / "evalplus" / "MbppPlus-v0.1.0.jsonl.gz")
    config = TaskConfig(name="mbpp", path=path, held_out_problems=1000, held_out_part="all")
    problems = load_task(config, 0).held_out
    assert len(problems) == 399 and problems[0].public_tests[0].code.startswith("assert set(similar_elements(")
    with pytest.raises(ValueError, match=r"task\.held_out_part = 'plus' must be one of: test, all"):
        load_task(TaskConfig(name="mbpp", path=path, held_out_part="plus"), 0)


def test_samples_without_a_program_are_an_error(tmp_path, capsys):
    (tmp_path / "samples.jsonl").write_text('{"task_id": "HumanEval/0", "text": ""}\n')
    arguments = ["--task", "humaneval", "--path", "nowhere.jsonl"]
    assert score_command([str(tmp_path / "samples.jsonl"), *arguments]) == 1
    assert "data file 'nowhere.jsonl' does not exist" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"samples.jsonl:1: row has no field 'completion'"):
        read_samples(str(tmp_path / "samples.jsonl"))
