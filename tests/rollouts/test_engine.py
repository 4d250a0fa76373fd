"""The JAX engine: what it samples, with which logprobs, and that nothing else in the batch matters."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.config import ModelConfig
from models.decoder import Decoder, initialize
from models.sharding import make_mesh, param_shardings
from models.vocabulary import token_logprobs
from rollouts.collect import generate
from rollouts.engine import PromptTooLongError, SamplingParams
from rollouts.jax.engine import JaxEngine
from rollouts.jax.sampling import draw, filter_mask, sample_tokens

CONFIG = ModelConfig("qwen2", 97, 32, 48, 2, 4, 2, 8, 256, qkv_bias=True, tied_embeddings=True)
LENGTH = 64  # of the longest sequence


@pytest.fixture(scope="module")
def policy():
    model = initialize(Decoder(CONFIG), jax.random.key(0), scale=0.2)
    return nnx.split(model)


class Letters:
    """A tokenizer whose tokens are letters."""

    def decode(self, tokens):
        return "".join(chr(97 + t % 26) for t in tokens)


@pytest.fixture(scope="module")
def engine(policy):
    return JaxEngine(*policy, slots=6, max_length=64, max_new_tokens=24, prefill_rows=2, tokenizer=Letters())


def prompts(count, seed=0, low=1, high=30):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 97, rng.integers(low, high)).astype(np.int32) for _ in range(count)]


@partial(jax.jit, static_argnums=(0, 3))
def full_pass(graphdef, params, tokens, temperature):
    """Logits f32[LENGTH, V] of the full pass, and the logprobs f32[LENGTH - 1] of all tokens except the first."""
    model = nnx.merge(graphdef, params)
    hidden = model(tokens[None], jnp.arange(LENGTH)[None])[0]
    logprobs, _ = token_logprobs(hidden[:-1], tokens[1:], model.unembedding(), temperature)
    return hidden @ model.unembedding().T, logprobs


def trained(policy, tokens, temperature=1.0):
    """`full_pass` of n tokens, f32[n, V] and f32[n - 1]: padded to one length, so that one program is compiled."""
    tokens = np.asarray(tokens, np.int32)
    logits, logprobs = full_pass(*policy, np.pad(tokens, (0, LENGTH - len(tokens))), temperature)
    return np.asarray(logits)[: len(tokens)], np.asarray(logprobs)[: len(tokens) - 1]


def test_greedy_equals_the_full_pass(policy, engine):
    prompt = prompts(1)[0]
    (completion,) = generate(engine, [prompt], SamplingParams(max_new_tokens=12, temperature=0.0))[0]
    sequence = list(prompt)
    for token in completion.tokens:
        assert token == trained(policy, sequence)[0][-1].argmax()
        sequence.append(token)
    assert completion.finish_reason == "length"


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_logprobs_are_what_the_trainer_computes(policy, engine, temperature):
    many = prompts(9)
    params = SamplingParams(max_new_tokens=20, temperature=temperature, n=2)
    for prompt, completions in zip(many, generate(engine, many, params)):
        for c in completions:
            _, logprobs = trained(policy, np.concatenate([prompt, c.tokens]), temperature)
            np.testing.assert_allclose(c.logprobs, logprobs[len(prompt) - 1 :], atol=2e-5)


def test_same_request_same_bits_whatever_else_runs(engine):
    """Alone, among others, in another slot and order: the same tokens and the same logprobs, bit for bit."""
    prompt = prompts(1, seed=7)[0]
    params = SamplingParams(max_new_tokens=24, seed=11)

    async def among(before, after):
        requests = [engine.sample(p, SamplingParams(max_new_tokens=3 + i % 20, seed=i)) for i, p in enumerate(before)]
        wanted = engine.sample(prompt, params)
        requests = [*requests, wanted, *(engine.sample(p, SamplingParams(max_new_tokens=20)) for p in after)]
        return (await asyncio.gather(*requests))[len(before)][0]

    alone = asyncio.run(among([], []))
    for before, after in ((3, 0), (17, 9), (1, 30), (5, 5)):
        other = asyncio.run(among(prompts(before, seed=before), prompts(after, seed=after + 50)))
        np.testing.assert_array_equal(alone.tokens, other.tokens)
        assert alone.logprobs.tobytes() == other.logprobs.tobytes()


def converse(engine, prompt, inserted, seed, release=True, waits=()):
    """Turns of a few tokens with inserted ones between them; what was sampled and the tokens found in the cache."""

    async def play():
        tokens, completions = prompt, []
        for turn, new in enumerate([*inserted, None]):
            settings = SamplingParams(max_new_tokens=5, seed=seed + turn, sequence=seed)
            (completion,) = await engine.sample(tokens, settings)
            completions.append(completion)
            if new is not None:
                tokens = np.concatenate([tokens, completion.tokens, new])
                await asyncio.sleep(0.001 * (seed % 3))
        if release:
            engine.release(seed)
        return completions

    return play()


def test_a_continued_sequence_computes_only_what_is_new(policy, engine):
    """More conversations than slots, alone and among others: the same tokens, with the trainer's logprobs."""
    start, *new = prompts(3, seed=4, low=4, high=12)
    alone = asyncio.run(converse(engine, start, new, 1))
    length, known = len(start), 0
    for turn, completion in enumerate(alone):
        assert completion.cached == known
        known = length + len(completion.tokens) - 1
        length += len(completion.tokens) + (len(new[turn]) if turn < len(new) else 0)

    async def among():
        others = [converse(engine, p, new, 100 + i) for i, p in enumerate(prompts(17, seed=8))]
        single = [engine.sample(p, SamplingParams(max_new_tokens=9)) for p in prompts(9)]
        return (await asyncio.gather(*others[:9], converse(engine, start, new, 1), *others[9:], *single))[9]

    for mine, other in zip(alone, asyncio.run(among())):
        np.testing.assert_array_equal(mine.tokens, other.tokens)
        assert mine.logprobs.tobytes() == other.logprobs.tobytes() and mine.cached == other.cached
    tokens = start
    for completion, inserted in zip(alone, [*new, []]):
        whole = np.concatenate([tokens, completion.tokens])
        np.testing.assert_allclose(completion.logprobs, trained(policy, whole)[1][len(tokens) - 1 :], atol=2e-5)
        tokens = np.concatenate([whole, inserted]).astype(np.int32)


def test_new_weights_and_other_beginnings_are_computed_anew(policy):
    engine = JaxEngine(*policy, slots=2, max_length=64, max_new_tokens=24)
    first, second = prompts(2, low=8)
    settings = SamplingParams(max_new_tokens=4, sequence=5)
    (whole,) = asyncio.run(engine.sample(first, settings))
    (other,) = asyncio.run(engine.sample(second, settings))  # does not begin as the first one did
    (plain,) = asyncio.run(engine.sample(second, SamplingParams(max_new_tokens=4)))
    np.testing.assert_array_equal(other.tokens, plain.tokens)
    engine.load_weights(policy[1], 1)
    (again,) = asyncio.run(engine.sample(np.concatenate([second, other.tokens]), settings))
    assert (whole.cached, other.cached, again.cached, again.weight_version) == (0, 0, 0, 1)


def test_a_request_that_is_given_up_frees_its_slot(policy):
    engine = JaxEngine(*policy, slots=1, max_length=64, max_new_tokens=60)

    async def play():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await engine.sample(prompts(1)[0][:4], SamplingParams(max_new_tokens=60, sequence=3))
        engine.release(3)
        return await engine.sample(prompts(1)[0], SamplingParams(max_new_tokens=4))

    assert len(asyncio.run(play())[0].tokens) == 4


def test_requests_given_up_while_they_wait_disturb_no_others(policy):
    engine = JaxEngine(*policy, slots=1, max_length=64, max_new_tokens=60)

    async def play():
        kept = await engine.sample(prompts(1)[0][:4], SamplingParams(max_new_tokens=2, sequence=3))
        with contextlib.suppress(TimeoutError):  # it waits for the slot that is kept
            async with asyncio.timeout(0.05):
                await engine.sample(prompts(1)[0], SamplingParams(max_new_tokens=4))
        engine.release(3)
        await asyncio.sleep(0.5)
        assert engine._driver is not None and engine._driver.exception() is None
        return kept, await engine.sample(prompts(1)[0], SamplingParams(max_new_tokens=4))

    assert [len(group[0].tokens) for group in asyncio.run(play())] == [2, 4]


def test_seeds_and_n_give_different_completions(engine):
    (group,) = generate(engine, prompts(1), SamplingParams(max_new_tokens=16, n=5))
    assert len({c.tokens.tobytes() for c in group}) == 5


def test_stop_token_is_kept_and_ends(policy, engine):
    prompt = prompts(1, seed=3)[0]
    params = SamplingParams(max_new_tokens=20, seed=5)
    (free,) = asyncio.run(engine.sample(prompt, params))
    stop = int(free.tokens[6])
    first = list(free.tokens).index(stop)
    params = SamplingParams(max_new_tokens=20, seed=5, stop_tokens=(stop,))
    (stopped,) = asyncio.run(engine.sample(prompt, params))
    np.testing.assert_array_equal(stopped.tokens, free.tokens[: first + 1])
    assert stopped.finish_reason == "stop"


def test_stop_string_keeps_the_token_that_completes_it(engine):
    prompt = prompts(1, seed=4)[0]
    (free,) = asyncio.run(engine.sample(prompt, SamplingParams(max_new_tokens=24, seed=1)))
    text = Letters().decode(free.tokens)
    for place in (0, 5, 9, 17):
        string = text[place : place + 2]
        end = text.index(string) + 2
        params = SamplingParams(max_new_tokens=24, seed=1, stop_strings=(string,))
        (stopped,) = asyncio.run(engine.sample(prompt, params))
        np.testing.assert_array_equal(stopped.tokens, free.tokens[:end])
        assert stopped.finish_reason == "stop"


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8."""

    def decode(self, tokens):
        return bytes(tokens).decode(errors="replace")


def test_a_stop_string_of_long_characters(policy):
    """Its characters are three tokens each, so that it began long before what decoding has added last."""
    engine = JaxEngine(*policy, slots=1, max_length=64, max_new_tokens=60, tokenizer=Bytes())
    string = "\u4ee5\u4e0a\u3067\u3059\u3002" * 3
    text = np.frombuffer(f"a{string}b".encode(), np.uint8)
    assert engine._first_stop(text[:-1], (string,)) == len(text) - 1
    assert engine._first_stop(text[:-2], (string,)) is None


def test_a_stop_string_on_a_mesh_compiles_nothing_anew(policy):
    graphdef, params = policy
    mesh = make_mesh(devices=jax.devices()[:1])
    placed = jax.device_put(params, param_shardings(params, mesh))
    engine = JaxEngine(graphdef, placed, slots=2, max_length=64, max_new_tokens=24, tokenizer=Letters(), mesh=mesh)
    (free,) = asyncio.run(engine.sample(prompts(1)[0], SamplingParams(max_new_tokens=24)))
    cut = SamplingParams(max_new_tokens=24, stop_strings=(Letters().decode(free.tokens)[3:6],))
    for _ in range(2):
        asyncio.run(engine.sample(prompts(1)[0], cut))
    assert engine.programs.compiled() == 2  # prefill and decode


def test_more_requests_than_slots_all_come_back(engine):
    many = prompts(40, seed=2)
    results = generate(engine, many, SamplingParams(max_new_tokens=9))
    assert [len(r[0].tokens) for r in results] == [9] * 40


def test_a_run_compiles_a_handful_of_programs(policy):
    engine = JaxEngine(*policy, slots=4, max_length=64, max_new_tokens=8)
    for seed in range(3):
        generate(engine, prompts(10, seed=seed), SamplingParams(max_new_tokens=2 + seed, temperature=0.5 + seed))
    assert engine.programs.decode._cache_size() == 1
    assert engine.programs.prefill._cache_size() <= 2  # prompts of up to 16 and of up to 32 tokens


def test_weights_and_versions(policy):
    graphdef, params = policy
    engine = JaxEngine(graphdef, params, slots=2, max_length=32, max_new_tokens=8)
    before = generate(engine, prompts(1, high=9), SamplingParams(max_new_tokens=8, temperature=0.0))[0][0]
    engine.load_weights(jax.tree.map(lambda p: -p, params), version=7)
    after = generate(engine, prompts(1, high=9), SamplingParams(max_new_tokens=8, temperature=0.0))[0][0]
    assert (before.weight_version, after.weight_version) == (0, 7)
    assert not np.array_equal(before.tokens, after.tokens)


def test_what_does_not_fit_is_an_error(engine):
    with pytest.raises(PromptTooLongError, match="50 tokens"):
        asyncio.run(engine.sample(np.zeros(50, np.int32), SamplingParams(max_new_tokens=20)))
    with pytest.raises(ValueError, match="empty"):
        asyncio.run(engine.sample(np.zeros(0, np.int32), SamplingParams()))
    with pytest.raises(ValueError, match="max_new_tokens 25"):
        asyncio.run(engine.sample(np.zeros(3, np.int32), SamplingParams(max_new_tokens=25)))
    with pytest.raises(ValueError, match="vocabulary"):
        asyncio.run(engine.sample(np.full(3, 97, np.int32), SamplingParams(max_new_tokens=2)))
    with pytest.raises(ValueError, match="top_p"):
        SamplingParams(top_p=0.0)


def test_filters_against_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(64, 23)).astype(np.float32) * 2
    top_p, top_k = rng.uniform(0.1, 1, 64).astype(np.float32), rng.integers(0, 9, 64)
    min_p = rng.uniform(0, 0.4, 64).astype(np.float32)
    top_p[::5], min_p[::3] = 1.0, 0.0
    mask = np.asarray(filter_mask(logits, top_p, top_k, min_p))
    for b in range(64):
        order = np.argsort(-logits[b])
        kept = list(order[: top_k[b]] if top_k[b] else order)
        p = np.exp(logits[b][kept].astype(np.float64))
        p /= p.sum()
        count = len(kept) if top_p[b] >= 1 else int(np.searchsorted(np.cumsum(p), top_p[b]) + 1)
        kept = [t for t, q in zip(kept[:count], p) if q >= min_p[b] * p[0]]
        assert set(np.flatnonzero(mask[b])) == set(kept)


def test_samples_follow_the_distribution():
    """Chi-square of 20,000 draws, with and without a filter; the logprob is that of the unfiltered distribution."""
    logits = jnp.asarray(np.random.default_rng(1).normal(size=6), jnp.float32)
    N, T = 20_000, 0.8
    keys = jax.random.split(jax.random.key(3), N)
    rows = jnp.broadcast_to(logits, (N, 6))
    p = np.asarray(jax.nn.softmax(logits / T), np.float64)
    for top_k in (0, 3):
        ones = jnp.ones(N)
        filters = (ones, jnp.full(N, top_k), 0 * ones) if top_k else None
        tokens, logprobs = sample_tokens(rows, keys, T * ones, filters)
        q = p * (np.argsort(np.argsort(-p)) < (top_k or 6))
        q /= q.sum()
        counts = np.bincount(tokens, minlength=6)
        kept = q > 0
        assert counts[~kept].sum() == 0
        assert (((counts - N * q) ** 2)[kept] / (N * q[kept])).sum() < 25  # 5 degrees of freedom: p = 1e-4
        np.testing.assert_allclose(logprobs, np.log(p)[np.asarray(tokens)], atol=1e-5)


def test_draw_inverts_the_cumulative_weights():
    rng = np.random.default_rng(0)
    for V in (5, 128, 320, 1000):
        weights = (rng.exponential(size=(64, V)) * (rng.random((64, V)) < 0.3)).astype(np.float32)
        weights[:, 0] = 0
        weights[:, V // 2] += 0.1
        uniforms = rng.random(64).astype(np.float32)
        uniforms[0], uniforms[1] = 0, np.nextafter(np.float32(1), np.float32(0))
        got = np.asarray(draw(jnp.asarray(weights), jnp.asarray(uniforms)))
        assert (weights[np.arange(64), got] > 0).all()
        cumulative = np.cumsum(weights.astype(np.float64), axis=1)
        below = np.where(got > 0, cumulative[np.arange(64), got - 1], 0)
        target = uniforms.astype(np.float64) * cumulative[:, -1]
        slack = 1e-6 * cumulative[:, -1]
        assert (below - slack <= target).all() and (target <= cumulative[np.arange(64), got] + slack).all()
