"""New weights between two turns of the JAX engine: each token's version, and whose logprob it has."""

from __future__ import annotations

import asyncio

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_engine import CONFIG, prompts, trained

from models.decoder import Decoder, initialize
from rollouts.engine import SamplingParams
from rollouts.jax.engine import JaxEngine


@pytest.fixture(scope="module")
def policies():
    """Two versions of the weights."""
    return [nnx.split(initialize(Decoder(CONFIG), jax.random.key(seed), scale=0.2)) for seed in (0, 1)]


def sampled(policies, recompute: bool, dtype=jnp.float32):
    """Completions of 20 tokens, the weights changed after 8; and their prompts."""
    (graphdef, first), (_, second) = policies
    engine = JaxEngine(
        graphdef, first, slots=6, max_length=64, max_new_tokens=24, prefill_rows=2, dtype=jnp.dtype(dtype)
    )
    asked = prompts(6, seed=3)

    async def play():
        waiting = [engine.submit(p, SamplingParams(max_new_tokens=20, seed=i))[0] for i, p in enumerate(asked)]
        assert await engine.turn(8) == 8
        engine.change_weights(second, 5, recompute)
        while engine.ready:
            await engine.turn(16)
        return [done.result() for done in waiting]

    return asked, asyncio.run(play())


def test_every_token_has_its_version(policies):
    for c in sampled(policies, False)[1]:
        assert c.weight_version == 0 and c.changes == ((8, 5),)
        assert c.versions.tolist() == [0] * 8 + [5] * 12


def test_recomputed_logprobs_are_those_of_one_version(policies):
    for prompt, c in zip(*sampled(policies, True)):
        for policy, part in ((policies[0], slice(0, 8)), (policies[1], slice(8, 20))):
            _, logprobs = trained(policy, np.concatenate([prompt, c.tokens]))
            np.testing.assert_allclose(c.logprobs[part], logprobs[len(prompt) - 1 :][part], atol=2e-5)


def test_a_kept_cache_mixes_the_versions(policies):
    far = 0.0
    for prompt, c in zip(*sampled(policies, False)):
        _, old = trained(policies[0], np.concatenate([prompt, c.tokens]))
        _, new = trained(policies[1], np.concatenate([prompt, c.tokens]))
        np.testing.assert_allclose(c.logprobs[:8], old[len(prompt) - 1 :][:8], atol=2e-5)
        far = max(far, np.abs(c.logprobs[8:] - new[len(prompt) - 1 :][8:]).max())
    assert far > 1e-2  # not an error: the ratio of the loss is that of what was really sampled from


def test_the_cache_of_bf16_is_recomputed_too(policies):
    """Row by row on one CPU, see models/row_cache.py."""
    for prompt, c in zip(*sampled(policies, True, jnp.bfloat16)):
        _, logprobs = trained(policies[1], np.concatenate([prompt, c.tokens]))
        np.testing.assert_allclose(c.logprobs[8:], logprobs[len(prompt) - 1 :][8:], atol=0.3)


def test_weights_that_arrive_before_the_first_token_are_its_own(policies):
    (graphdef, first), (_, second) = policies
    engine = JaxEngine(graphdef, first, slots=2, max_length=64, max_new_tokens=24)

    async def play():
        (done,) = engine.submit(prompts(1)[0], SamplingParams(max_new_tokens=4))
        engine.change_weights(second, 7)
        while engine.ready:
            await engine.turn(16)
        return done.result()

    completion = asyncio.run(play())
    assert completion.weight_version == 7 and not completion.changes


def test_weights_may_arrive_before_the_first_turn(policies):
    (graphdef, first), (_, second) = policies
    engine = JaxEngine(graphdef, first, slots=2, max_length=64, max_new_tokens=24)
    engine.change_weights(second, 1, recompute=True)
    assert engine.version == 1 and not engine.ready


def test_a_sequence_continues_over_a_change(policies):
    """Its slot is kept with the old keys and values, or computed anew."""
    (graphdef, first), (_, second) = policies
    engine = JaxEngine(graphdef, first, slots=2, max_length=64, max_new_tokens=24)
    prompt = prompts(1)[0]

    async def play(recompute):
        params = SamplingParams(max_new_tokens=4, sequence=9)

        async def ask(tokens):
            (done,) = engine.submit(tokens, params)
            while engine.ready:
                await engine.turn(16)
            return done.result()

        one = await ask(prompt)
        engine.change_weights(second, 1, recompute)
        two = await ask(np.concatenate([prompt, one.tokens]))
        engine.release(9)
        engine.change_weights(first, 0)
        return two

    assert asyncio.run(play(False)).cached > 0
    assert asyncio.run(play(True)).cached == 0


def test_abandoned_requests_leave_nothing_behind(policies):
    """The engine is idle again, and samples what it would have."""
    (graphdef, first), _ = policies
    engine = JaxEngine(graphdef, first, slots=4, max_length=64, max_new_tokens=24)
    asked = prompts(3, seed=5)

    async def play(abandon):
        if abandon:
            for i, prompt in enumerate(asked):
                engine.submit(prompt, SamplingParams(max_new_tokens=24, seed=i, sequence=i + 1))
            await engine.turn(5)
            engine.abandon()
            engine.load_weights(first, 3)
        return await asyncio.gather(*(engine.sample(p, SamplingParams(max_new_tokens=8, seed=9)) for p in asked))

    for (one,), (two,) in zip(asyncio.run(play(False)), asyncio.run(play(True))):
        np.testing.assert_array_equal(one.tokens, two.tokens)
