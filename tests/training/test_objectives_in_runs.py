"""Whole runs with settings of the policy-gradient family, stopped and resumed to the bit."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from judging import MBPP
from test_learner import CONFIG, groups
from test_train import final_params, run, without_times

from jaxrl.algorithms import policy_gradient
from jaxrl.algorithms.batch import token_counts
from jaxrl.algorithms.credit import minibatches
from jaxrl.config import Config
from jaxrl.costs.flops import step_flops
from jaxrl.training.learner import Learner
from jaxrl.training.packing import make_batch
from jaxrl.training.reinforce import Reinforce
from models.decoder import Decoder, initialize

RUNS = {
    "annealed": [
        "--config.grpo.loss=set_objectives", "--config.grpo.loss.objective_k=4",
        "--config.grpo.loss.objective_k_last=1",
        "--config.grpo.loss.objective_k_steps=7", "--config.grpo.loss.objective_on=value",
        "--config.rollout.max_staleness=1", "--config.grpo.loss.epochs=2",
    ],
    "reinforce++": [
        "--config.grpo.loss.advantage=reward", "--config.grpo.loss.batch_scale=whiten",
        "--config.grpo.loss.kl_in_reward=0.05", "--config.grpo.loss.kl_coefficient=0",
        "--config.grpo.loss.entropy_coefficient=0.01", "--config.grpo.loss.top_entropy=0.5",
        "--config.grpo.loss.epochs=2",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param("annealed", marks=pytest.mark.slow), "reinforce++"])
def test_a_run_trains_and_goes_on_as_it_would_have(name, tmp_path):
    result = run(tmp_path, *RUNS[name])
    assert result.returncode == 0, result.stderr
    before, params = without_times(tmp_path), final_params(tmp_path)
    steps = [r for r in before if r["stage"] == "grpo"]
    learned = [r for r in steps if r["grad_norm"] > 0]
    assert len(learned) > len(steps) // 2  # a draw of two problems may be without a signal
    if name == "annealed":
        assert [r["objective/k"] for r in steps] == [4, 4, 3, 2, 2, 2, 1, 1]
    else:
        assert all(0.4 < r["entropy/trained"] < 0.65 for r in steps)
        assert abs(steps[0]["kl/episode"]) < 1e-3 < max(abs(r["kl/episode"]) for r in steps)
        assert all(r["flops/old"] < r["flops/update"] / 5 for r in steps)  # one pass before, two updates of three
    assert all(r["kl/old"] > 0 for r in learned)  # the second pass is off-policy
    for checkpoint in ("12", "14"):
        shutil.rmtree(tmp_path / "scramble" / "checkpoints" / checkpoint, ignore_errors=True)
    result = run(tmp_path, *RUNS[name])
    assert result.returncode == 0 and "resuming" in result.stdout, result.stderr
    assert without_times(tmp_path) == before
    for part, value in final_params(tmp_path).items():
        assert value.tobytes() == params[part].tobytes(), part


def test_passes_are_updates_on_the_same_batches_with_the_first_policy_as_old():
    """Two passes over three minibatches, against a loop of updates on batches that were prepared once."""
    config = Config()
    config.grpo.loss = policy_gradient.Settings(epochs=2, minibatches=3)
    config.batch.row_length, config.batch.microbatch_rows = 24, 4
    objective = policy_gradient.make_objective(config.grpo.loss, max_new_tokens=10)
    assert "old_logprobs" in objective.needs and config.grpo.loss.updates == 6
    whole = groups()

    graphdef, params = nnx.split(initialize(Decoder(CONFIG), jax.random.key(0), scale=0.3))
    learner = Learner(graphdef, objective, optax.adam(1e-2), microbatch_rows=4)
    state, again = learner.init(jax.tree.map(jnp.copy, params)), learner.init(params)  # an update donates them
    stage = object.__new__(Reinforce)
    stage.t = SimpleNamespace(config=config, policy=SimpleNamespace(config=CONFIG))  # pyright: ignore
    stage.learner, stage.stage = learner, SimpleNamespace(start=0)  # pyright: ignore
    stage.reference = stage.teacher = stage.taught = None  # pyright: ignore
    found, metrics = stage.update(state, whole, whole, step=1)

    state = again
    shape = {"row_length": 24, "microbatch_rows": 4}
    parts = [make_batch(part, objective, **shape)[0] for part in minibatches(whole, 3, config.seed, 1)]
    ready, losses = [learner.prepare(state, batch) for batch in parts], []
    for _ in range(2):
        for batch in ready:
            state, measured = learner.update(state, batch)
            losses.append(measured["loss"])
    chex.assert_trees_all_equal(jax.device_get(found.params), jax.device_get(state.params))
    assert metrics["loss"] == np.mean(losses) and metrics["kl/old"] > 0
    once = step_flops(CONFIG, whole, [token_counts(b) for b in parts], old=True, reference=False)
    assert metrics["flops/update"] == 2 * once["flops/update"] and metrics["flops/old"] == once["flops/old"]


WITHOUT_ANSWERS = """
from jaxrl.config import TaskSettings
from jaxrl.tasks import Task
from rollouts.episode import Problem, Reward

class Settings(TaskSettings):
    pass

def make_task(settings, seed):
    async def judge(problem, submission, services):
        return Reward(0.0, False)
    problems = [Problem("p", ({"role": "user", "content": "?"},))]
    return Task("silent", problems, problems, judge)
"""
MAJORITY = ["--config.grpo.loss=set_objectives", "--config.grpo.loss.advantage=maj_at_k", "--config.sft.steps=0"]


def test_maj_at_k_is_refused_for_tasks_without_answers(tmp_path):
    """Before anything is made of the run, with one line that says what would do."""
    (tmp_path / "silent.py").write_text(WITHOUT_ANSWERS)
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MBPP))
    silent, mbpp = (
        f"--config.task={tmp_path / 'silent.py'}",
        ["--config.task=mbpp", f"--config.task.path={tmp_path}/mbpp.jsonl"],
    )
    for name, task, hint in (
        ("silent", [silent], "needs for maj@k; take advantage = 'pass_at_k'"),
        ("mbpp", mbpp, "needs for maj@k; set task.answers = 'behaviour', or take advantage = 'pass_at_k'"),
    ):
        result = run(tmp_path / name, *MAJORITY, *task)
        assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr
        assert f"task.name = '{name}' gives no answers to vote on" in result.stderr and hint in result.stderr
        assert not list((tmp_path / name).rglob("checkpoints"))
