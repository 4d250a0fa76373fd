"""PPO's critic in the learner: a head on the policy's decoder, a decoder of its own, adapters of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import on_eight_devices
from flax import nnx
from test_heads import LORA, decoder
from test_learner import CONFIG

from jaxrl.algorithms import ppo
from jaxrl.aot.training import stages
from jaxrl.config import Config, OptimizerConfig
from jaxrl.costs.flops import forward_flops, step_flops, update_flops, without_vocabulary
from jaxrl.costs.mesh import load_of
from jaxrl.training.checkpoint import Checkpoints
from jaxrl.training.learner import Learner, TrainState
from jaxrl.training.optimizer import heads_apart, stage_optimizer
from jaxrl.training.packing import make_batch
from models.decoder import Compute
from models.heads import with_heads, without_heads
from models.sharding import make_mesh, param_shardings
from rollouts.episode import Attempt, Episode, Group, Problem, Reward, Turn

KINDS = [("head", None), ("own", None), ("own", LORA)]
IDS = ["head", "decoder", "adapters"]
IN_LONG_FORM = [KINDS[0], *(pytest.param(*kind, marks=pytest.mark.slow) for kind in KINDS[1:])]


def groups(count=6, size=4, turns=2) -> list[Group]:
    """Episodes of two turns; whether they are solved is a function of the problem, which the prompt names."""
    rng = np.random.default_rng(0)

    def episode(problem: Problem, number: int) -> Episode:
        parts: list[Turn] = []
        for _ in range(turns):
            if parts:
                parts.append(Turn("user", rng.integers(0, 64, 2).astype(np.int32), False))
            n = int(rng.integers(2, 5))
            tokens = rng.integers(0, 64, n).astype(np.int32)
            parts.append(Turn("assistant", tokens, True, -rng.random(n).astype(np.float32)))
        solved = number % 2 == 0
        attempts = [Attempt(False, False)] * (turns - 1) + [Attempt(solved, solved)]
        prompt = np.array([1, 2 + number, 3], np.int32)
        return Episode(problem, prompt, parts, Reward(float(solved), solved), "finished", "", attempts=attempts)

    problems = [Problem(str(i)) for i in range(count)]
    return [Group(p, [episode(p, i) for _ in range(size)]) for i, p in enumerate(problems)]


def made(critic: Any = "own", lora=None, *, rows=8, mesh=None, rate=1e-3, critic_rate=1e-2, offset=0.0, **settings):
    """The learner, its state, and a batch that is ready for it."""
    graphdef, values = decoder(CONFIG, lora)
    params = jax.device_put(values, None if mesh is None else param_shardings(values, mesh))
    of_critic = OptimizerConfig(learning_rate=critic_rate)
    loss = ppo.Settings(critic=critic, critic_optimizer=of_critic, kl_in_reward=offset, minibatches=1, **settings)
    objective = ppo.make_objective(loss, max_new_tokens=16)
    optimizer, _ = stage_optimizer(OptimizerConfig(learning_rate=rate, weight_decay=0.1), objective, 100)
    learner = Learner(graphdef, objective, optimizer, compute=Compute(mesh=mesh), microbatch_rows=rows)
    state = learner.init(params, seed=2)
    plain = make_batch(groups(), objective, row_length=32, microbatch_rows=rows)[0]
    return learner, state, plain


def _head(state: TrainState) -> Any:
    assert state.heads is not None
    return state.heads["value"]


@pytest.mark.slow
@pytest.mark.parametrize("value", ["turn", "token"])
def test_a_critic_learns_rewards_that_depend_on_the_problem_alone(value):
    learner, state, plain = made(value=value, value_weight=1.0, value_clip=1.0)
    found = []
    for _ in range(100):
        ready = learner.prepare(state, plain)
        found.append(learner.objective.measure(ready)["value/explained_variance"])
        if found[-1] > 0.95:
            break
        state, _ = learner.update(state, ready)
    assert found[0] < 0.5 and found[-1] > 0.95, found


@pytest.mark.parametrize(("critic", "lora"), KINDS, ids=IDS)
def test_a_critic_of_its_own_starts_as_the_policy_and_leaves_it_alone(critic, lora):
    learner, state, plain = made(critic, lora)
    ready = learner.prepare(state, plain)
    weights = state.weights
    params, heads = without_heads(learner._gradient(weights, ready)[0])
    assert heads is not None
    no_advantage = jax.tree.map(np.zeros_like, ready.advantages)
    alone = without_heads(learner._gradient(weights, dataclasses.replace(ready, advantages=no_advantage))[0])[0]
    touched = any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(jax.device_get(alone)))
    assert touched == (critic == "head")
    assert ("decoder" in heads["value"]) == (critic == "own")
    if critic == "own":
        own = dict(nnx.to_flat_state(_head(state)["decoder"]))
        trained = dict(nnx.to_flat_state(params))
        assert own.keys() == trained.keys()
        for path, variable in own.items():
            of_policy = dict(nnx.to_flat_state(state.params))[path]
            np.testing.assert_array_equal(variable[...], of_policy[...])
        assert all("_lora_" in str(path[-1]) for path in own) == (lora is not None)
        assert any(np.abs(np.asarray(x)).max() > 0 for x in jax.tree.leaves(heads["value"]["decoder"]))


@pytest.mark.parametrize(("critic", "lora"), IN_LONG_FORM, ids=IDS)
def test_a_critic_goes_on_from_a_checkpoint_bit_by_bit(critic, lora, tmp_path):
    learner, state, plain = made(critic, lora, critic_warmup_steps=1)

    def stepped(state, steps):
        measured = []
        for _ in range(steps):
            state, metrics = learner.update(state, learner.prepare(state, plain))
            measured.append(metrics)
        return state, measured

    state, _ = stepped(state, 2)
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(2, state, {})
    checkpoints.wait()
    like = learner.abstract(state.params)
    expected, before = stepped(state, 2)
    restored = Checkpoints(tmp_path, 2).restore(2, like._replace(params=expected.params))
    found, after = stepped(restored, 2)
    chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(expected))
    assert before == after and "value/loss" in before[0]


@pytest.mark.parametrize("critic", ["head", "own"])
def test_the_first_steps_train_the_critic_alone(critic):
    learner, state, plain = made(critic, critic_warmup_steps=2)
    start = jax.device_get(state)
    for _ in range(2):
        state, _ = learner.update(state, learner.prepare(state, plain))
    after = jax.device_get(state)
    chex.assert_trees_all_equal(after.params, start.params)
    assert np.abs(_head(after)["weight"][...] - _head(start)["weight"][...]).max() > 1e-3
    state, _ = learner.update(state, learner.prepare(state, plain))
    changed = jax.device_get(state).params
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(changed), jax.tree.leaves(start.params)))


@pytest.mark.slow
def test_the_cut_into_microbatches_does_not_matter():
    outcomes = []
    for rows in (8, 3):
        learner, state, plain = made(rows=rows, rate=1e-4, critic_rate=1e-4)
        outcomes.append(learner.update(state, learner.prepare(state, plain)))
    (one, metrics), (other, measured) = outcomes
    for name in ("loss", "value/loss", "value/clip_fraction", "grad_norm"):
        assert measured[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-6), name
    chex.assert_trees_all_close(_head(other)["weight"], _head(one)["weight"], atol=1e-5)


def test_two_optimizers_do_what_each_does_alone():
    weights = with_heads(nnx.State({"a": nnx.Param(jnp.ones(3))}), nnx.State({"value": {"w": nnx.Param(jnp.ones(2))}}))
    gradient = jax.tree.map(lambda x: 0.5 * x, weights)
    both = heads_apart(optax.adam(0.1), optax.sgd(0.01), first=1)
    state: Any = both.init(weights)
    steps, state = both.update(gradient, state, weights)
    params, heads = without_heads(steps)
    assert heads is not None
    assert not np.asarray(params["a"][...]).any()
    np.testing.assert_allclose(jax.tree.leaves(heads)[0], -0.005 * np.ones(2), rtol=1e-6)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(state.decoder[0].mu))
    steps, _ = both.update(gradient, state, weights)
    assert (np.asarray(without_heads(steps)[0]["a"][...]) < 0).all()


def test_what_a_critic_costs_is_planned_and_counted():
    counts, alone = [(100, 10.0)], without_vocabulary(CONFIG)
    plain = step_flops(CONFIG, [], counts, old=True, reference=False)
    found = step_flops(CONFIG, [], counts, old=True, reference=False, critics=1)
    for name, flops in (("old", forward_flops), ("update", update_flops)):
        assert found[f"flops/{name}"] == plain[f"flops/{name}"] + flops(alone, 100, 10.0) > plain[f"flops/{name}"]
    assert found["flops"] == sum(value for name, value in found.items() if name != "flops")
    config, mesh = Config(name="x"), make_mesh(devices=jax.devices()[:1])
    config.sft.steps, config.grpo.steps = 0, 1
    state = {}
    executables = {}
    for critic in ("head", "own"):
        config.grpo.loss = ppo.Settings(name="ppo", critic=critic)
        state[critic] = load_of(config).state_bytes
        (stage,) = stages(config, CONFIG, mesh)
        executables[critic] = {p.name: p.flops for p in stage.programs}
        size = sum(x.size for x in jax.tree.leaves(stage.resident["heads"]))
        of_policy = sum(x.size for x in jax.tree.leaves(stage.resident["parameters"]))
        assert size == CONFIG.hidden_size + 1 + (of_policy if critic == "own" else 0)
    assert state["own"] == state["head"] + 3 * 4 + 8
    assert executables["own"]["accumulate"] > 1.5 * executables["head"]["accumulate"] > 0
    assert executables["own"]["outputs"] > executables["head"]["outputs"]


ON_EIGHT = """
import sys; sys.path[:0] = ["tests/training", "tests/support", "tests"]
import jax, numpy as np
from test_critic import made
from models.sharding import make_mesh
for critic in ("head", "own"):
    found = []
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(2, 2, 1, 2)):
        learner, state, plain = made(critic, mesh=mesh)
        ready = learner.prepare(state, plain)
        state, metrics = learner.update(state, ready)
        found.append((metrics, np.asarray(ready.advantages), np.asarray(state.heads["value"]["weight"][...])))
    if critic == "own":
        matrix = state.heads["value"]["decoder"]["blocks"]["gate"][...]
        assert not matrix.sharding.is_fully_replicated, matrix.sharding
        assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.opt_state.heads))
    (one, a, w), (other, b, v) = found
    np.testing.assert_allclose(b, a, atol=1e-3)
    np.testing.assert_allclose(v, w, atol=1e-3)
    for name in ("loss", "value/loss", "grad_norm"):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-3, atol=1e-5)
print("the same on eight devices")
"""


@pytest.mark.slow
def test_a_critic_trains_under_a_mesh():
    assert "the same on eight devices" in on_eight_devices(ON_EIGHT)
