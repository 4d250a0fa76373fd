"""Fewer bits and other memory for the optimizer's state: the same training, the bytes that are promised."""

from __future__ import annotations

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import on_eight_devices
from flax import nnx
from jax.sharding import NamedSharding
from test_learner import OBJECTIVE, batch

from jaxrl.config import Config, OptimizerConfig
from jaxrl.config.rules import check_settings
from jaxrl.training.checkpoint import Checkpoints
from jaxrl.training.learner import Learner
from jaxrl.training.optimizer import check_host_memory, make_optimizer, scale_by_adam
from models.config import ModelConfig
from models.decoder import Compute, Decoder, initialize
from models.sharding import param_shardings

# As in test_learner, but wide enough that its matrices are kept in 8 bits, in blocks that eight devices do not cut.
CONFIG = ModelConfig("qwen2", 64, 128, 128, 2, 4, 2, 32, 64, qkv_bias=True, tied_embeddings=True)
ALWAYS = {"learning_rate": 1e-3, "weight_decay": 0.1}


def decoder(mesh=None, dtype=jnp.float32):
    graphdef, params = nnx.split(initialize(Decoder(CONFIG, jnp.dtype(dtype)), jax.random.key(0), scale=0.1))
    return graphdef, params if mesh is None else jax.device_put(params, param_shardings(params, mesh))


def learner_and_state(mesh=None, dtype=jnp.float32, rows=32, **settings):
    graphdef, params = decoder(mesh, dtype)
    optimizer, _ = make_optimizer(OptimizerConfig(**(ALWAYS | settings)), 10, seed=3)
    offload = settings.get("offload", False)
    compute = Compute(mesh=mesh)
    learner = Learner(graphdef, OBJECTIVE, optimizer, compute=compute, microbatch_rows=rows, offload=offload)
    return learner, learner.init(params)


def gradient(params, seed):
    """Some gradient, of the parameters' types and in their places; its sizes differ by some orders of magnitude."""
    rng = np.random.default_rng(seed)

    def leaf(p):
        g = rng.normal(size=p.shape) * 10 ** rng.uniform(-4, 0, p.shape)
        return jax.device_put(g.astype(p.dtype), p.sharding)

    return jax.tree.map(leaf, params)


def stepped(learner, state, steps):
    for seed in steps:
        state = learner.apply_program(state)(state, gradient(state.params, seed))[0]
    return state


def trained(**settings):
    learner, state = learner_and_state(**settings)
    return stepped(learner, state, range(3))


def regression(optimizer, steps, width=128, dtype=jnp.float32):
    """Loss after each step, of a two-layer network that learns another one's outputs."""
    keys = jax.random.split(jax.random.key(1), 4)

    def network(keys):
        return {"embed": jax.random.normal(keys[0], (64, width)) / 8, "out": jax.random.normal(keys[1], (width, 64))}

    params = jax.tree.map(lambda p: p.astype(dtype), network(keys[:2]))
    teacher = network(keys[2:])
    x = jax.random.normal(jax.random.key(2), (512, 64))
    apply = lambda p: jnp.tanh(x @ p["embed"]) @ p["out"] / width**0.5  # noqa: E731
    target = apply(teacher)

    def objective(params):
        wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        return jnp.mean((apply(wide) - target) ** 2)

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(objective)(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    return np.asarray(jax.jit(lambda c: jax.lax.scan(step, c, length=steps))((params, optimizer.init(params)))[1])


@pytest.mark.parametrize("b2", [0.95, 0.999])
@pytest.mark.parametrize("kept", ["bfloat16", "int8"])
def test_training_reaches_the_loss_of_f32_adam(kept, b2):
    exact = regression(optax.chain(optax.scale_by_adam(0.9, b2), optax.scale(-3e-3)), 400)
    found = regression(optax.chain(scale_by_adam(0.9, b2, 1e-8, kept), optax.scale(-3e-3)), 400)
    assert exact[-1] < 0.1 * exact[0]  # there was something to learn
    assert found[-1] == pytest.approx(exact[-1], rel=0.05)


def test_own_adam_in_f32_is_optax_adam():
    params = {"a": jnp.ones((2, 64, 64)), "b_norm": jnp.ones((2, 64)), "c": jnp.ones((128, 512))}
    ours, theirs = scale_by_adam(0.9, 0.95, 1e-8), optax.scale_by_adam(0.9, 0.95, 1e-8)
    states = ours.init(params), theirs.init(params)
    for i in range(3):
        gradient = jax.tree.map(lambda p, i=i: jax.random.normal(jax.random.key(i), p.shape), params)
        found, expected = ours.update(gradient, states[0]), theirs.update(gradient, states[1])
        states = found[1], expected[1]
        chex.assert_trees_all_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    for part in (states[0].mu, states[0].nu):
        part["c"] = jnp.concatenate(part["c"], axis=-1)  # a table's columns are kept in pieces
    chex.assert_trees_all_close(tuple(states[0]), tuple(states[1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kept, expected", [("float32", 8.0), ("bfloat16", 4.0), ("int8", 2.07)])
def test_bytes_of_the_moments_of_a_parameter(kept, expected):
    """Of the 0.5B model's shapes."""
    shape = ModelConfig("qwen2", 151936, 896, 4864, 24, 14, 2, 64, 64, qkv_bias=True, tied_embeddings=True)
    params = nnx.split(nnx.eval_shape(lambda: Decoder(shape)))[1]
    optimizer, _ = make_optimizer(OptimizerConfig(state=kept), 10)
    state = jax.eval_shape(optimizer.init, params)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert size / sum(p.size for p in jax.tree.leaves(params)) == pytest.approx(expected, rel=0.02)


def test_bytes_of_arrays_that_exist():
    _, state = learner_and_state(state="int8")
    leaves = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]}
    codes = sum(x.nbytes for name, x in leaves.items() if name.endswith("codes"))
    rest = sum(x.nbytes for name, x in leaves.items() if name.endswith("exponents"))
    params = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_flatten_with_path(state.params)[0]}
    large = sum(x.size for name, x in params.items() if "norm" not in name and "bias" not in name)
    assert codes == 2 * large and rest <= codes / 16
    assert any("norm" in name and x.dtype == jnp.float32 for name, x in leaves.items())


@pytest.mark.parametrize("settings", [
    {"state": "int8"}, {"state": "bfloat16"}, {"offload": True},
    *(pytest.param({"state": "int8"} | more, marks=pytest.mark.slow)
      for more in ({"dtype": jnp.bfloat16, "stochastic_rounding": True}, {"offload": True})),
], ids=str)  # fmt: skip
def test_resumed_from_a_checkpoint_it_goes_on_bit_by_bit(tmp_path, settings):
    learner, state = learner_and_state(**settings)
    state = stepped(learner, state, range(2))
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(2, state, {})
    checkpoints.wait()
    expected = stepped(learner, state, [2])
    again, like = learner_and_state(**settings)
    restored = checkpoints.restore(2, like)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x.sharding, restored), jax.tree.map(lambda x: x.sharding, like))
    found = stepped(again, restored, [2])
    chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(expected))


@pytest.mark.slow
def test_offload_changes_no_number_and_keeps_the_state_in_host_memory():
    expected = trained(state="int8")
    found = trained(state="int8", offload=True)
    chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(expected))
    for path, leaf in jax.tree_util.tree_flatten_with_path(found.opt_state)[0]:
        name = jax.tree_util.keystr(path)
        where = "pinned_host" if "codes" in name else "device"
        assert leaf.sharding.memory_kind == where, name
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(found.params)} == {"device"}
    plain, moved = trained(), trained(offload=True)
    chex.assert_trees_all_close(jax.device_get(moved.params), jax.device_get(plain.params), rtol=1e-4, atol=1e-6)


def test_a_device_without_host_memory_is_an_error_of_one_line():
    class Device:
        def addressable_memories(self):
            return [type("Memory", (), {"kind": "device"})]

        def __str__(self):
            return "chip 0"

    class Array:
        sharding = type("Sharding", (), {"addressable_devices": {Device()}})

    with pytest.raises(ValueError, match=r"^optimizer.offload = True needs .* chip 0 has device$"):
        check_host_memory(Array(), "optimizer.offload")


def test_small_updates_survive_stochastic_rounding_only():
    """1000 updates of 2^-12 to parameters of 1 in bf16, whose next number is 2^-7 away: 0.24 in all."""
    params = {"a": jnp.ones((64, 64), jnp.bfloat16)}

    def after(**settings):
        optimizer, _ = make_optimizer(OptimizerConfig(learning_rate=2.0**-12, max_grad_norm=0.0, **settings), 1)
        gradient = {"a": -jnp.ones((64, 64))}

        def step(_, carry):
            params, state = carry
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        moved = jax.jit(lambda c: jax.lax.fori_loop(0, 1000, step, c))((params, optimizer.init(params)))[0]["a"]
        return np.asarray(moved, np.float64)

    np.testing.assert_array_equal(after(), 1.0)
    moved = after(stochastic_rounding=True)
    # A step is up by 2^-7 with probability 2^-5: standard deviation 2^-7 (1000 2^-5)^0.5 of a parameter, 4096 of them.
    deviation = 2.0**-7 * (1000 * 2.0**-5) ** 0.5
    assert moved.mean() == pytest.approx(1 + 1000 * 2.0**-12, abs=5 * deviation / 64)
    assert moved.std() == pytest.approx(deviation, rel=0.1)


@pytest.mark.slow
def test_stochastic_rounding_trains_bf16_parameters_as_f32_ones():
    rate = OptimizerConfig(learning_rate=2e-4, max_grad_norm=0.0)
    exact = regression(make_optimizer(rate, 1)[0], 1500)
    nearest = regression(make_optimizer(rate, 1)[0], 1500, dtype=jnp.bfloat16)
    rate.stochastic_rounding = True
    found = regression(make_optimizer(rate, 1)[0], 1500, dtype=jnp.bfloat16)
    assert abs(found[-1] - exact[-1]) < 0.1 * abs(nearest[-1] - exact[-1])


def test_update_uses_the_old_buffers_again():
    """For one microbatch and for two: no donated buffer is left over, and none of the old state's stays alive."""
    for rows in (32, 4):
        learner, state = learner_and_state(rows=rows)
        old = jax.tree.leaves(state)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            learner.update(state, batch(rows))
        assert all(leaf.is_deleted() for leaf in old), rows


@pytest.mark.parametrize("settings", [
    {"state": "int8"}, {"state": "int8", "offload": True}, {"dtype": jnp.bfloat16, "stochastic_rounding": True},
], ids=str)  # fmt: skip
def test_every_setting_uses_the_old_buffers_again(settings):
    learner, state = learner_and_state(**settings)
    old = jax.tree.leaves(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stepped(learner, state, [0])
    assert all(leaf.is_deleted() for leaf in old)


MESHES = """
import jax, numpy as np
from models.sharding import make_mesh
from test_optimizer import agrees, trained
everything = {"state": "int8", "offload": True, "stochastic_rounding": True, "dtype": "bfloat16"}
for settings in ({"state": "int8"}, everything):
    expected = trained(**settings)
    for sizes in ((1, 8, 1, 1), (1, 2, 2, 2)):
        agrees(trained(mesh=make_mesh(*sizes), **settings), expected, settings)
print("same on all meshes")
"""


def agrees(found, expected, settings):
    """The states of a mesh and of one device after three updates.

    Sums in another order make a few numbers round to the other of two neighbours: few differ, and none by much.
    """
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(expected)[0]]
    for name, a, b in zip(names, jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype and a.sharding.memory_kind == b.sharding.memory_kind
        different = np.mean(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)) > 1e-4)
        assert different < 0.02, (name, different)
    codes = found.opt_state[0][1][0].mu if "stochastic_rounding" in settings else found.opt_state[1][0].mu
    q, p = codes["blocks"]["q"].get_value(), found.params["blocks"]["q"].get_value()
    assert isinstance(p.sharding, NamedSharding) and q.codes.sharding.spec == p.sharding.spec
    assert q.exponents.sharding.spec == p.sharding.spec and not q.exponents.sharding.is_fully_replicated


@pytest.mark.slow
def test_eight_bits_on_meshes_of_eight_devices():
    assert "same on all meshes" in on_eight_devices(MESHES)


def test_wrong_settings_name_what_would_be_right():
    with pytest.raises(ValueError, match=r"optimizer.state = 'int4' must be one of: float32, bfloat16, int8"):
        make_optimizer(OptimizerConfig(state="int4"), 1)
    with pytest.raises(ValueError, match=r"stochastic_rounding = True needs model.param_dtype = 'bfloat16'"):
        check_settings(Config(optimizer=OptimizerConfig(stochastic_rounding=True)))
