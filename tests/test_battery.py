"""What every task, environment and objective must keep, whoever wrote it: one battery over all that are registered."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import math
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import contest_rows
import jax
import numpy as np
import pytest
import small_repository
from judging import judge_all

from jaxrl.algorithms.batch import Batch
from jaxrl.algorithms.objective import Objective, Outputs
from jaxrl.config import Config
from jaxrl.config.plugins import PLUGINS, built_in, make_settings
from jaxrl.config.rules import check_settings
from jaxrl.runs.environments import make_environment
from jaxrl.runs.tokenizer import train_tokenizer
from jaxrl.tasks import Task, load_task, mixture
from jaxrl.training.packing import make_batch
from rollouts.chat import encode_text, stop_tokens
from rollouts.engine import Completion, SamplingParams
from rollouts.environments.repository import Tree
from rollouts.episode import Episode, Group, Problem, Reward, Turn
from rollouts.services import Services
from sandbox.session import Sessions
from sandbox.verdict import CallTest, Limits, Program

# Where the tasks that are read from data find it, below JAXRL_DATA.
PATHS = {"humaneval": "humaneval/HumanEval.jsonl.gz", "mbpp": "mbpp/sanitized-mbpp.json"}
SHOWN = 24  # problems of each kind that are looked at


def acecode_row(i: int) -> dict[str, Any]:
    """A question of AceCode-87K's schema, with a right answer."""
    tests = [f"assert add_{i}({n}) == {n + i}" for n in range(3)]
    right = {"completion": f"def add_{i}(n): return n + {i}", "model_name": "m", "pass_rate": 1.0}
    return {"id": f"q{i}", "question": f"Add {i}.", "test_cases": tests, "inferences": [right]}


# Tasks whose data has no training part of its own: they say so in their docstrings. Of task contest, LiveCodeBench.
SHARES_PROBLEMS = {"humaneval"}
CONTESTS = {f"contest of {source}": source for source in contest_rows.ROWS}


@pytest.fixture(params=[name for name in built_in(PLUGINS["task"]) if name != "contest"] + list(CONTESTS))
def settings(request, tmp_path) -> Any:
    """The settings of each task, with data where it needs some."""
    made = make_settings(PLUGINS["task"], request.param.split()[0])
    if request.param == "mixture":
        made.parts = (mixture.Part(make_settings(PLUGINS["task"], "scramble"), weight=2),
                      mixture.Part(make_settings(PLUGINS["task"], "compute")))  # fmt: skip
    elif request.param in CONTESTS:
        made.source = CONTESTS[request.param]
        row = contest_rows.ROWS[made.source]
        made.path = contest_rows.write(tmp_path / "contest.jsonl", *(row(i) for i in range(60)))
    elif request.param == "acecode":
        path = tmp_path / "acecode.jsonl"
        path.write_text("".join(json.dumps(acecode_row(i)) + "\n" for i in range(60)))
        made.path = str(path)
    elif request.param == "repository":
        row, days = small_repository.make_clone(tmp_path / "clones") | small_repository.AS_TAP, range(1, 7)
        rows = [row | {"instance_id": f"o__r-{day}", "created_at": f"2024-01-0{day}"} for day in days]
        made.path = small_repository.write_rows(tmp_path / "rows.jsonl", *rows)
        made.repositories, made.cache = str(tmp_path / "clones"), str(tmp_path / "files")
    elif request.param == "repair":
        made.style, made.train_problems, made.demonstrations = "direct", 60, 60  # each is run when it is made
    elif request.param == "transforms":
        made.train_problems, made.held_out_problems = 40, SHOWN  # each has 19 programs
    elif request.param in PATHS:
        made.path = str(request.getfixturevalue("data") / PATHS[request.param])
    check_settings(made, "task")
    return made


@pytest.fixture
def task(settings) -> Task:
    return load_task(settings, 0)


def some(problems: Any) -> list[Problem]:
    return [problems[i] for i in range(min(SHOWN, len(problems)))]


def is_livecodebench(task: Task) -> bool:
    return task.held_out[0].id.startswith("livecodebench/")


def answer_of(problem: Problem) -> str:
    """What the model says in a demonstration."""
    shown = problem.demonstration
    if isinstance(shown, str) or shown is None:
        return shown or ""
    return "".join(m["content"] for m in shown if m["role"] in ("assistant", "output"))


def test_demonstrations_are_judged_right_and_an_empty_text_wrong(task, pool):
    shown = some(task.demonstrations) or [p for p in some(task.held_out) if p.demonstration]
    always = task.name in ("functions", "compute", "scramble", "mixture", "mbpp", "contest", "humaneval")
    assert shown or not always or is_livecodebench(task)
    rewards = judge_all(task, shown, [answer_of(p) for p in shown], pool)
    assert all(r.solved and math.isfinite(r.value) and r.value > 0 for r in rewards)
    empty = judge_all(task, shown, [""] * len(shown), pool)
    assert not any(r.solved for r in empty) and all(e.value < r.value for e, r in zip(empty, rewards))
    if task.answers:
        assert all(isinstance(hash(r.answer), int) for r in rewards)


def test_held_out_problems_are_not_trained_on(task):
    if task.name in SHARES_PROBLEMS or is_livecodebench(task):
        assert "both training and held-out problems" in str(
            __import__(f"jaxrl.tasks.{task.name}", fromlist="x").__doc__
        )
        return
    trained = {_content(p) for problems in (task.train, task.demonstrations) for p in itertools.islice(problems, 2000)}
    if task.name in ("contest", "repository"):  # the made-up rows all say the same: told apart by their ids
        assert not {p.id for p in task.train} & {p.id for p in task.held_out}
    else:
        assert trained and not trained & {_content(p) for p in task.held_out}


def _content(problem: Problem) -> str:
    return f"{problem.prompt}{problem.messages}"


def test_problems_are_told_apart_and_their_rewards_are_json(task, pool):
    held_out = some(task.held_out)
    assert len({p.id for p in held_out}) == len(held_out)
    for reward in judge_all(task, held_out[:4], ["an answer"] * len(held_out[:4]), pool):
        json.dumps(dataclasses.asdict(dataclasses.replace(reward, verdict=None)), allow_nan=False)
        assert reward.verdict is None or json.dumps(reward.verdict.to_json())
    for problem in held_out:
        assert json.dumps(task.slices(problem))
    group = Group(held_out[0], [Episode(held_out[0], np.zeros(1, np.int32), [], Reward(0.0, False), "finished", "")])
    metrics = task.metrics(group) if task.metrics else {}
    assert json.dumps(metrics) and (task.headline in metrics or task.headline.startswith("pass@"))


def test_the_same_seed_gives_the_same_problems(settings, task):
    again, other = load_task(settings, 0), load_task(settings, 1)
    for part in ("train", "held_out", "demonstrations"):
        assert some(getattr(task, part)) == some(getattr(again, part))
    assert some(task.held_out) == some(other.held_out)  # the same test for every seed
    first, second = task.select(3), again.select(3)
    assert [first.next(i, 5) for i in range(4)] == [second.next(i, 5) for i in range(4)]


def test_a_selection_goes_on_where_it_stopped(task):
    """What a checkpoint has of it is JSON, and gives the same draws as if the run had not been stopped."""
    whole, stopped, resumed = task.select(3), task.select(3), task.select(3)
    draws = [whole.next(i, 3) for i in range(6)]
    for i in range(3):
        stopped.observe([Group(p, []) for p in stopped.next(i, 3)])
    resumed.restore(json.loads(json.dumps(stopped.state())))
    assert [resumed.next(i, 3) for i in range(3, 6)] == draws[3:]


class Script:
    """An engine that answers with the next of these texts."""

    max_length = 10_000

    def __init__(self, tokenizer: Any, texts: list[str]):
        self.tokenizer, self.texts, self.released = tokenizer, list(texts), []

    async def sample(self, prompt: np.ndarray, params: SamplingParams) -> list[Completion]:
        text = self.texts.pop(0) if self.texts else "done"
        tokens = [*encode_text(self.tokenizer, text), stop_tokens(self.tokenizer)[0]][: params.max_new_tokens]
        return [Completion(np.array(tokens, np.int32), np.full(len(tokens), -0.5, np.float32), "stop", 0)]

    def release(self, sequence: int) -> None:
        self.released.append(sequence)

    def load_weights(self, params: Any, version: int) -> None: ...

    def close(self) -> None: ...


PROBLEM = Problem(
    "double", ({"role": "user", "content": "Write f(x): twice x."},),
    tests=(CallTest("f", (2,), 4),), public_tests=(CallTest("f", (2,), 4),),
    meta={
        "broken": "def f(x): return x", "files": {"f.py": "def f(x): return x"},
        "tree": Tree({"f.py": "def f(x): return x"}),
    },
)  # fmt: skip
AGENT = f"{sys.executable} {Path(__file__).parent / 'support' / 'talking_agent.py'}"
CODE = "```python\ndef f(x): return 2 * x\n```\n"
# Of environments that want no program, or something else before it.
ANSWERS = {
    "edits": ["### REPL 1 >>>def f(x): return 2 * x", "### EXIT"],
    "localize": ["f.py", CODE],
    "repository": [f"{CODE}open f.py", "submit"],
    "synthesis": ["twice x", "RIGHT", CODE],
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["```python\ndef f(x): return 2 * x\nprint(1)\n```\nuser assistant output done"] * 3, 400)


@pytest.mark.parametrize("name", built_in(PLUGINS["environment"]))
def test_environments_play_and_submit_once(name, tokenizer, pool):
    """Tokens in, tokens out: every learned token was sampled, and the reward is for the submission that is kept."""

    async def judge(problem, submission, services):
        submitted.append(submission)
        verdict = await services.run(Program(submission.program or "", problem.tests))
        return Reward(float(verdict.passed), verdict.passed, {}, verdict)

    submitted: list[Any] = []
    config = Config()
    config.rollout.environment = make_settings(PLUGINS["environment"], name)
    if name == "agent":
        config.rollout.environment.command = AGENT
    config.rollout.max_prompt_length, config.rollout.max_new_tokens = 1024, 400
    own = Task(
        "own", [PROBLEM], [PROBLEM], judge, extract=lambda problem, text: text.split("```python\n")[-1].split("```")[0]
    )
    with Sessions(Limits(wall_s=5, cpu_s=5), preload=()) as sessions:
        services = Services(pool, sessions.open)
        episodes = []
        for _ in range(2):
            environment = make_environment(config, own, tokenizer, services, 1.0)
            episodes.append(
                asyncio.run(environment.play(PROBLEM, Script(tokenizer, ANSWERS.get(name, [CODE, CODE])), seed=3))
            )
    one, other = episodes
    assert one.submission is not None and one.submission in submitted and one.submission == other.submission
    assert one.reward.solved and one.status == "finished"
    assert [t.tokens.tolist() for t in one.turns] == [t.tokens.tolist() for t in other.turns]
    assert all(t.sampled or not t.learned for t in one.turns)
    assert all(t.logprobs is not None and len(t.logprobs) == len(t.tokens) for t in one.turns if t.sampled)


@pytest.fixture(params=built_in(PLUGINS["objective"]))
def objective(request) -> Objective:
    settings = make_settings(PLUGINS["objective"], request.param)
    made = import_module(f"jaxrl.algorithms.{request.param}").make_objective(settings, max_new_tokens=16)
    made.reference_rewards.update({"p0": [0.0, 1.0], "p1": [0.0, 0.0]} if made.reference_samples else {})
    return made


def groups() -> list[Group]:
    """Two problems with four episodes each, of other lengths, one of which solves its problem."""
    rng, made = np.random.default_rng(0), []
    for p in range(2):
        problem, episodes = Problem(f"p{p}"), []
        for i in range(4):
            tokens = rng.integers(1, 50, 4 + i + p).astype(np.int32)
            turn = Turn("assistant", tokens, True, rng.normal(-1, 0.3, len(tokens)).astype(np.float32))
            reward = Reward(float(i == 1), i == 1)
            episodes.append(Episode(problem, rng.integers(1, 50, 3).astype(np.int32), [turn], reward, "finished", ""))
        made.append(Group(problem, episodes))
    return made


def outputs_and_batch(objective: Objective, rows: int, size: int = 4) -> tuple[Outputs, Batch]:
    """Of groups of `size` episodes, in which the second one of each group comes first."""
    rng = np.random.default_rng(1)
    made = [Group(g.problem, [*g.episodes[1:], g.episodes[0]][:size]) for g in groups()]
    batch, _ = make_batch(made, objective, row_length=16, microbatch_rows=rows)
    shape = np.asarray(batch.tokens).shape
    random = lambda: rng.normal(-1, 0.5, shape).astype(np.float32)  # noqa: E731
    heads = {head.name: random() for head in objective.heads}
    extras = {name: np.where(np.asarray(batch.loss_mask) > 0, random(), 0) for name in objective.extras}
    batch = dataclasses.replace(batch, extras={**batch.extras, **extras})
    for needed in objective.needs & {f.name for f in dataclasses.fields(Batch)}:
        batch = dataclasses.replace(batch, **{needed: random() * np.asarray(batch.loss_mask)})
    return Outputs(random(), heads), objective.prepare(batch)


def test_tokens_outside_of_the_mask_have_no_gradient(objective):
    outputs, batch = outputs_and_batch(objective, 2)
    mask = np.asarray(batch.loss_mask) > 0
    wild = jax.tree.map(lambda x: np.where(mask, x, np.float32(1e30)), outputs)
    gradient = jax.grad(lambda o: objective.loss(o, batch)[0])(wild)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all() and not np.asarray(leaf)[~mask].any()
    assert np.asarray(gradient.logprobs)[mask].any()


def test_a_single_episode_of_a_problem_trains_where_the_objective_says_so(objective):
    outputs, batch = outputs_and_batch(objective, 2, size=1)
    gradient = jax.grad(lambda o: objective.loss(o, batch)[0])(outputs)
    assert np.asarray(gradient.logprobs).any() == (objective.smallest_group == 1)


def test_the_cut_into_microbatches_does_not_matter(objective):
    outputs, batch = outputs_and_batch(objective, 2)
    whole, metrics = objective.loss(outputs, batch)
    parts = []
    for row in range(len(batch.tokens)):
        cut = lambda a, r=row: np.asarray(a)[r : r + 1]  # noqa: E731
        parts.append(objective.loss(jax.tree.map(cut, outputs), jax.tree.map(cut, batch)))
    np.testing.assert_allclose(sum(float(value) for value, _ in parts), float(whole), rtol=1e-5, atol=1e-6)
    for name, total in metrics.sums.items():
        np.testing.assert_allclose(sum(float(m.sums[name]) for _, m in parts), float(total), rtol=1e-4, atol=1e-5)
    assert len(parts) > 1


def test_credit_is_finite_and_does_not_depend_on_the_order(objective):
    (group, *_) = groups()
    credit = objective.credit(group.episodes)
    turned = objective.credit(group.episodes[::-1])[::-1]
    assert len(credit) == len(group.episodes)
    for a, b in zip(credit, turned):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert np.isfinite(a.advantage).all() and np.allclose(a.advantage, b.advantage)


def test_weights_are_positive_and_finite(objective):
    weights = objective.token_weights([3, 1, 8])
    assert weights.shape == (3,) and np.isfinite(weights).all() and (weights > 0).all()
