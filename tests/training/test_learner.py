"""The update: the same however it is cut and sharded; what is saved comes back bit by bit."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import on_eight_devices
from flax import nnx

from jaxrl.algorithms.policy_gradient import Settings, make_objective, policy_gradient_loss
from jaxrl.config import OptimizerConfig
from jaxrl.training.checkpoint import Checkpoints
from jaxrl.training.learner import Learner
from jaxrl.training.optimizer import at_update, make_optimizer
from jaxrl.training.packing import make_batch
from models.config import ModelConfig
from models.decoder import Compute, Decoder, initialize
from models.sharding import make_mesh, param_shardings
from rollouts.episode import Episode, Group, Problem, Reward, Turn

CONFIG = ModelConfig("qwen2", 64, 32, 48, 2, 4, 2, 8, 64, qkv_bias=True, tied_embeddings=True)
LOSS = Settings()
OBJECTIVE = make_objective(LOSS, max_new_tokens=10)


def groups(count=6, size=4, seed=0):
    rng = np.random.default_rng(seed)

    def episode(problem):
        n = int(rng.integers(3, 10))
        turn = Turn("assistant", rng.integers(0, 64, n).astype(np.int32), True, -rng.random(n).astype(np.float32))
        reward = Reward(float(rng.random()), False)
        return Episode(problem, rng.integers(0, 64, 4).astype(np.int32), [turn], reward, "finished", "")

    problems = [Problem(str(i)) for i in range(count)]
    return [Group(p, [episode(p) for _ in range(size)]) for p in problems]


def batch(rows, objective=OBJECTIVE):
    return make_batch(groups(), objective, row_length=24, microbatch_rows=rows)[0]


def learner_and_state(rows, compute=Compute(), objective=OBJECTIVE):
    graphdef, params = nnx.split(initialize(Decoder(CONFIG), jax.random.key(0), scale=0.1))
    if compute.mesh is not None:
        params = jax.device_put(params, param_shardings(params, compute.mesh))
    optimizer, _ = make_optimizer(OptimizerConfig(learning_rate=1e-2, weight_decay=0.1), 10)
    learner = Learner(graphdef, objective, optimizer, compute=compute, microbatch_rows=rows)
    return learner, learner.init(params)


def updated(rows, **settings):
    learner, state = learner_and_state(rows, **settings)
    return learner.update(state, batch(rows))


def gradient_and_update(rows, objective=OBJECTIVE, **settings):
    """The gradient of the first microbatch, and `updated`."""
    learner, state = learner_and_state(rows, objective=objective, **settings)
    whole = learner.prepare(state, batch(rows, objective), reference=state.params)
    assert len(whole.tokens) > rows  # several microbatches: the update runs the same program
    zeros = learner._zeros(state.params)
    gradient = jax.device_get(learner._accumulate(state.params, zeros, next(learner.microbatches(whole)))[0])
    return gradient, learner.update(state, whole)


@pytest.fixture(scope="module")
def expected():
    return updated(16)


@pytest.mark.parametrize("rows", [1, 4, 8])
def test_the_cut_into_microbatches_does_not_matter(expected, rows):
    state, metrics = updated(rows)
    # Adam divides by the gradient's size, so that rounding shows where the gradient is almost nothing.
    chex.assert_trees_all_close(state.params, expected[0].params, atol=2e-4)
    assert metrics.keys() == expected[1].keys()
    for name, value in metrics.items():
        assert value == pytest.approx(expected[1][name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("compute", [{}, {"unroll": True}, {"remat": "full"}], ids=str)
def test_gradient_in_bf16_is_the_one_in_f32_but_for_rounding(compute):
    exact, rounded = (
        gradient_and_update(8, compute=Compute(jnp.dtype(dtype), **compute))[0] for dtype in (jnp.float32, jnp.bfloat16)
    )
    chex.assert_trees_all_equal_dtypes(exact, rounded)
    error = jax.tree.map(lambda a, b: a - b, exact, rounded)
    assert optax.tree.norm(error) < 0.02 * optax.tree.norm(exact)


def test_update_is_adamw_of_the_gradient():
    """One step from the gradient of the loss, by optax's own adamw; norms and biases are not decayed."""
    learner, state = learner_and_state(16)
    before = jax.device_get(state.params)
    graphdef = nnx.split(Decoder(CONFIG))[0]
    whole = batch(16)

    def objective(params):
        model = nnx.merge(graphdef, params)
        logits = model(whole.tokens, whole.positions, whole.segment_ids) @ model.unembedding().T
        logprobs = jax.nn.log_softmax(logits[:, :-1])
        chosen = np.pad(np.zeros((len(whole.tokens), 1)), ((0, 0), (0, 0)))
        chosen = jax.numpy.concatenate(
            [chosen, jax.numpy.take_along_axis(logprobs, whole.tokens[:, 1:, None], -1)[..., 0]], 1
        )
        return policy_gradient_loss(chosen, whole, LOSS)[0]

    gradient = jax.jit(jax.grad(objective))(state.params)
    scale = min(1.0, 1.0 / float(optax.tree.norm(gradient)))
    state, metrics = learner.update(state, whole)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-4)
    for path, variable in nnx.to_flat_state(gradient):
        g = np.asarray(variable[...], np.float64) * scale
        old = np.asarray(dict(nnx.to_flat_state(before))[path][...], np.float64)
        decay = 0.0 if str(path[-1]).endswith(("norm", "bias")) else 0.1
        wanted = old - 1e-2 * (g / (np.abs(g) + 1e-8) + decay * old)  # Adam's first step
        found = np.asarray(dict(nnx.to_flat_state(state.params))[path][...])
        np.testing.assert_allclose(found[np.abs(g) > 1e-6], wanted[np.abs(g) > 1e-6], atol=2e-4)


def test_schedule():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, schedule="cosine")
    _, schedule = make_optimizer(config, 14)
    rates = [float(schedule(i)) for i in range(15)]
    assert rates[0] == pytest.approx(0.2) and rates[4] == pytest.approx(1.0) and rates[14] == pytest.approx(0.0)
    assert rates[9] == pytest.approx(0.5)
    optimizer, schedule = make_optimizer(OptimizerConfig(learning_rate=1.0, schedule="cosine"), 4, updates=3)
    params, moved = nnx.State({"w": nnx.Param(jnp.zeros(()))}), []
    state, gradient = optimizer.init(params), jax.tree.map(jnp.ones_like, params)
    for _ in range(12):
        change, state = optimizer.update(gradient, state, params)
        moved.append(-float(jax.tree.leaves(change)[0]))
    np.testing.assert_allclose(moved, np.repeat([float(schedule(i)) for i in range(4)], 3), rtol=1e-4)
    change, _ = optimizer.update(gradient, at_update(state, 3), params)  # whatever was done, the second step's
    assert -float(jax.tree.leaves(change)[0]) == pytest.approx(float(schedule(1)), rel=1e-4)
    with pytest.raises(ValueError, match="must be one of: constant, cosine"):
        make_optimizer(OptimizerConfig(schedule="linear"), 3)


def test_checkpoints_come_back_bit_by_bit(tmp_path, expected):
    state, _ = expected
    checkpoints = Checkpoints(tmp_path, 2, frozenset([1]))
    for step in range(1, 6):
        checkpoints.save(step, state, {"lines": step})
    checkpoints.wait()
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [1, 4, 5]
    assert checkpoints.latest() == 5 and checkpoints.place(4) == {"lines": 4}
    _, like = learner_and_state(16)
    chex.assert_trees_all_equal(checkpoints.restore(5, like), state)


def test_a_save_is_of_the_state_as_it_was(tmp_path):
    """The update after a save donates the buffers that are still being written."""
    learner, state = learner_and_state(16)
    checkpoints = Checkpoints(tmp_path, 5)
    saved = {}
    for step in range(1, 5):
        state, _ = learner.update(state, batch(16))
        saved[step] = jax.device_get(state.params)
        checkpoints.save(step, state, {})
    checkpoints.wait()
    for step, params in saved.items():
        chex.assert_trees_all_equal(jax.device_get(checkpoints.restore_params(step, state.params)), params)


MESHES = (  # data, fsdp, context, tensor; remat
    ((8, 1, 1, 1), "none"),
    ((1, 8, 1, 1), "full"),
    ((2, 2, 1, 2), "dots"),
    ((1, 4, 1, 2), "none"),
    ((2, 1, 1, 4), "none"),  # more devices than kv heads
    ((1, 1, 8, 1), "none"),
    ((2, 2, 2, 1), "none"),
    ((1, 2, 2, 2), "full"),
)
ON_EIGHT_DEVICES = """
import chex, jax
from test_learner import MESHES, OBJECTIVE, gradient_and_update
from jaxrl.algorithms import spo
from models.decoder import Compute
from models.sharding import make_mesh
objective = ELSE
expected, (state, metrics) = gradient_and_update(8, objective)
for sizes, remat in CHOSEN:
    compute = Compute(mesh=make_mesh(*sizes), remat=remat)
    gradient, (after, measured) = gradient_and_update(8, objective, compute=compute)
    chex.assert_trees_all_close(gradient, expected, atol=2e-6)
    chex.assert_trees_all_close(jax.device_get(after.params), jax.device_get(state.params), atol=2e-4)
    for name in ("loss", "grad_norm"):
        assert abs(measured[name] - metrics[name]) < 1e-5, (name, sizes)
    print(sizes, remat, "is the same", flush=True)
print("same on all meshes")
"""


SPO = "spo.make_objective(spo.Settings(q0='group', beta=0.5), max_new_tokens=10)"


@pytest.mark.parametrize(
    ("chosen", "objective"),
    [
        ("MESHES[2:3]", "OBJECTIVE"),
        pytest.param("MESHES", "OBJECTIVE", marks=pytest.mark.slow),
        pytest.param("MESHES[2::4]", SPO, marks=pytest.mark.slow),
    ],
)
def test_every_mesh_of_eight_devices_gives_the_same_update(chosen, objective):
    script = ON_EIGHT_DEVICES.replace("CHOSEN", chosen).replace("ELSE", objective)
    assert "same on all meshes" in on_eight_devices(script)


def test_mesh_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="does not fit 1 devices"):
        make_mesh(2, 1, devices=jax.devices()[:1])


# --- the entropy ---


@pytest.mark.parametrize("rows", [2, pytest.param(16, marks=pytest.mark.slow)])
def test_the_entropy_is_of_the_tempered_distribution_and_its_gradient_that_of_all_logits(rows):
    settings = Settings(entropy_coefficient=0.5, top_entropy=0.3)
    objective = make_objective(settings, max_new_tokens=10)
    graphdef, params = nnx.split(initialize(Decoder(CONFIG), jax.random.key(0), scale=0.5))
    learner = Learner(graphdef, objective, optax.sgd(1.0), temperature=0.7, microbatch_rows=rows)
    whole = make_batch(groups(), objective, row_length=24, microbatch_rows=rows)[0]
    state = learner.init(params)
    ready = learner.prepare(state, whole)

    def all_logprobs(params):  # f32[B, T, V], of the distribution that each token was drawn from
        model = nnx.merge(graphdef, params)
        logits = model(whole.tokens, whole.positions, whole.segment_ids) @ model.unembedding().T / 0.7
        return jnp.pad(jax.nn.log_softmax(logits[:, :-1]), ((0, 0), (1, 0), (0, 0)))

    def entropy_of(every):
        return -jnp.sum(jnp.exp(every) * every, -1)

    learned = np.asarray(whole.loss_mask) > 0
    entropy = np.where(learned, entropy_of(all_logprobs(params)), 0)
    np.testing.assert_allclose(ready.extras["old_entropy"], entropy, atol=1e-4)
    (ready,) = objective.across([ready], [])
    assert 0.28 < np.asarray(ready.extras["entropy_mask"])[learned].mean() < 0.32

    def loss(params):
        every = all_logprobs(params)
        chosen = jnp.take_along_axis(every, jnp.asarray(whole.tokens)[..., None], -1)[..., 0]
        return policy_gradient_loss(chosen, ready, settings, entropy_of(every))[0]

    expected = jax.grad(loss)(params)
    before, value = jax.device_get((params, loss(params)))
    after, metrics = learner.update(state, ready)  # which donates the parameters
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-4)
    stepped = jax.tree.map(np.subtract, before, after.params)
    chex.assert_trees_all_close(stepped, expected, atol=2e-5, rtol=1e-3)
