"""The JAX engine's programs: the part of the cache that they read, weights at load, meshes, and how many there are."""

from __future__ import annotations

import asyncio

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import on_eight_devices
from flax import nnx
from test_engine import CONFIG, prompts, trained

from models.cache import cache_parts
from models.decoder import Compute, Decoder, initialize
from models.sharding import make_mesh, param_shardings
from rollouts.collect import generate
from rollouts.engine import SamplingParams
from rollouts.jax.engine import JaxEngine
from rollouts.jax.programs import Sizes, make_programs


@pytest.fixture(scope="module")
def policy():
    return nnx.split(initialize(Decoder(CONFIG), jax.random.key(0), scale=0.2))


@pytest.fixture
def short_parts(monkeypatch):
    """A cache of 64 tokens in parts of 8, 8, 16 and 32."""
    monkeypatch.setattr("models.cache.FIRST_PART", 8)
    assert cache_parts(64) == [8, 8, 16, 32]


def test_parts_of_the_cache_are_its_length_and_few():
    assert cache_parts(100) == [100] and cache_parts(128) == [128]
    for length in (129, 512, 1000, 4096, 32768, 100_000):
        parts = cache_parts(length)
        assert sum(parts) == length and len(parts) <= np.log2(length / 128) + 2


@pytest.mark.parametrize("unroll", [True, False])
def test_the_part_that_is_read_changes_rounding_at_most(policy, short_parts, unroll):
    """A short request alone, and beside long ones that make the engine read all of the cache."""
    engine = JaxEngine(*policy, slots=4, max_length=64, max_new_tokens=48, unroll=unroll)
    short, long = prompts(1, low=3, high=4)[0], prompts(3, seed=1, low=12, high=15)
    params = SamplingParams(max_new_tokens=40, seed=3)

    async def beside(others):
        wanted = engine.sample(short, params)
        requests = [engine.sample(p, SamplingParams(max_new_tokens=48, seed=i)) for i, p in enumerate(others)]
        return (await asyncio.gather(wanted, *requests))[0][0]

    alone, among = asyncio.run(beside([])), asyncio.run(beside(long))
    np.testing.assert_array_equal(alone.tokens, among.tokens)
    # Meant to be the same bits, and here they are; compilers for other processors may round otherwise.
    np.testing.assert_allclose(alone.logprobs, among.logprobs, rtol=0, atol=5e-6)
    _, expected = trained(policy, np.concatenate([short, alone.tokens]))
    np.testing.assert_allclose(alone.logprobs, expected[len(short) - 1 :], atol=2e-5)


@pytest.mark.parametrize("unroll", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_fewer_rows_are_decoded_as_others_finish(policy, short_parts, unroll):
    """32 requests that end one after another: the same tokens as in an engine that always decodes all its 4 rows."""
    asked = [(p, SamplingParams(max_new_tokens=1 + i, seed=i)) for i, p in enumerate(prompts(32, low=3, high=15))]

    def tokens_of(engine):
        async def all_of():
            return await asyncio.gather(*(engine.sample(p, params) for p, params in asked))

        return [(c.tokens.tolist(), c.logprobs) for (c,) in asyncio.run(all_of())]

    wide = JaxEngine(*policy, slots=32, max_length=64, max_new_tokens=48, unroll=unroll)
    assert wide.programs.widths == [8, 16, 32]
    widths, decode = [], wide.programs.decode

    def decode_and_note(weights, state, steps, spare, chosen, **static):
        widths.append(32 if chosen is None else len(set(chosen.tolist())))
        return decode(weights, state, steps, spare, chosen, **static)

    object.__setattr__(wide.programs, "decode", decode_and_note)
    found = tokens_of(wide)
    assert widths == sorted(widths, reverse=True) and set(widths) == {8, 16, 32}
    narrow = JaxEngine(*policy, slots=4, max_length=64, max_new_tokens=48, unroll=unroll)
    assert narrow.programs.widths == [4]
    for (tokens, logprobs), (expected, expected_logprobs) in zip(found, tokens_of(narrow), strict=True):
        assert tokens == expected
        np.testing.assert_allclose(logprobs, expected_logprobs, rtol=0, atol=5e-6)


@pytest.mark.parametrize("meshes", [False, True])
def test_weights_that_fit_are_not_copied(policy, meshes):
    graphdef, params = policy
    mesh = make_mesh() if meshes else None
    programs = make_programs(graphdef, params, Compute(mesh=mesh), Sizes(2, 32, 8))
    given = jax.device_put(params, param_shardings(params, mesh)) if mesh else params
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(given)]
    assert [x.unsafe_buffer_pointer() for x in programs.load(given)] == pointers


def test_weights_of_another_dtype_are_cast_once(policy):
    """Matrices to the compute dtype; norms and biases, which are used in f32, stay shared."""
    graphdef, params = policy
    programs = make_programs(graphdef, params, Compute(jnp.dtype(jnp.bfloat16)), Sizes(2, 32, 8))
    for (path, _), given, loaded in zip(nnx.to_flat_state(params), jax.tree.leaves(params), programs.load(params)):
        if str(path[-1]).endswith(("norm", "bias")):
            assert loaded.unsafe_buffer_pointer() == given.unsafe_buffer_pointer()
        else:
            np.testing.assert_array_equal(loaded, given.astype(jnp.bfloat16))
            assert loaded.dtype == jnp.bfloat16


@pytest.mark.parametrize(("dtype", "slots"), [(jnp.bfloat16, 2), (jnp.float32, 1)])
def test_one_row_of_bf16_is_decoded_as_two(policy, dtype, slots):
    graphdef, params = policy
    programs = make_programs(graphdef, params, Compute(jnp.dtype(dtype), unroll=True), Sizes(1, 32, 8))
    assert (programs.sizes.slots, programs.widths) == (slots, [slots])


def test_unrolled_layers_are_slices_of_the_stack(policy):
    graphdef, params = policy
    programs = make_programs(graphdef, params, Compute(unroll=True), Sizes(2, 32, 8))
    for (path, _), given, loaded in zip(nnx.to_flat_state(params), jax.tree.leaves(params), programs.load(params)):
        if path[0] == "blocks":
            np.testing.assert_array_equal(np.stack(loaded), given)
        else:
            assert loaded.unsafe_buffer_pointer() == given.unsafe_buffer_pointer()


def test_programs_are_bounded_by_the_settings(policy, short_parts):
    engine = JaxEngine(*policy, slots=4, max_length=64, max_new_tokens=40, prefill_rows=2)
    assert engine.programs.most_compiled() == 2 * len({16, 32, 64}) + 2 * 4
    for seed in range(4):
        top_p = 0.9 if seed == 3 else 1.0
        params = SamplingParams(max_new_tokens=1 + 13 * seed, seed=seed, top_p=top_p)
        generate(engine, prompts(9, seed=seed, high=24), params)
        generate(engine, prompts(2, seed=seed, high=24), SamplingParams(max_new_tokens=7, sequence=0))
    assert engine.programs.compiled() <= engine.programs.most_compiled()
    before = engine.programs.compiled()
    for seed in range(3):
        engine.load_weights(jax.tree.map(lambda p: 1.01 * p, policy[1]), seed)
        generate(engine, prompts(9, seed=seed, high=24), SamplingParams(max_new_tokens=14 + seed, seed=seed))
    assert engine.programs.compiled() == before


def test_the_programs_of_abstract_arguments_are_the_engines_own(policy):
    """Lowered ahead of time without weights, they take what the engine has."""
    graphdef, params = policy
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    programs = make_programs(graphdef, abstract, Compute(jnp.dtype(jnp.bfloat16)), Sizes(4, 64, 8))
    arguments = programs.abstract_arguments(prompt_length=20)
    assert arguments["prefill"][0][2].shape == (8, 32)
    args, static = arguments["decode"]
    decode = programs.decode.lower(*args, **static).compile()
    state = decode(programs.load(params), programs.empty_state(), np.int32(3), np.int32(0))
    assert state.tokens.shape == (4, 8)


MESHES = """
import jax, numpy as np
from flax import nnx
from test_engine import CONFIG, prompts
from models.decoder import Decoder, initialize
from models.sharding import make_mesh, param_shardings
from rollouts.collect import generate
from rollouts.engine import SamplingParams
from rollouts.jax.engine import JaxEngine
import models.cache
models.cache.FIRST_PART = 16
graphdef, params = nnx.split(initialize(Decoder(CONFIG), jax.random.key(0), scale=0.2))
many = prompts(11)
def sampled(mesh, unroll):
    given = jax.device_put(params, param_shardings(params, mesh)) if mesh else params
    engine = JaxEngine(graphdef, given, slots=6, max_length=64, max_new_tokens=24, unroll=unroll, mesh=mesh)
    turns = [generate(engine, many, SamplingParams(max_new_tokens=12, seed=1))]
    first = generate(engine, many[:1], SamplingParams(max_new_tokens=5, sequence=7))
    again = np.concatenate([many[0], first[0][0].tokens, many[1]])
    turns.append(generate(engine, [again], SamplingParams(max_new_tokens=5, sequence=7)))
    assert turns[1][0][0].cached
    if mesh:
        shards = engine._state.cache[0][0][0].sharding.shard_shape(engine._state.cache[0][0][0].shape)
        assert np.prod(shards) * 8 == engine._state.cache[0][0][0].size, shards
    return [c for turn in turns for group in turn for c in group]
expected = sampled(None, False)
for sizes, unroll in (((8, 1, 1, 1), False), ((1, 8, 1, 1), False), ((2, 2, 1, 2), True), ((1, 2, 2, 2), False)):
    for ours, theirs in zip(sampled(make_mesh(*sizes), unroll), expected, strict=True):
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-5)
print("same on all meshes")
"""


@pytest.mark.slow
def test_every_mesh_of_eight_devices_samples_the_same():
    assert "same on all meshes" in on_eight_devices(MESHES)
