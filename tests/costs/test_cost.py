"""FLOPs against XLA's own count of an unrolled small model, and the field's check figures."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrl.costs import flops as cost
from models.adapters import attach
from models.cache import make_cache
from models.config import LORA_TARGETS, Lora, ModelConfig
from models.decoder import Compute, Decoder, initialize
from models.lora import join_params, split_params
from rollouts.episode import Episode, Group, Problem, Reward, Turn

QWEN_1P5B = ModelConfig("qwen2", 151_936, 1536, 8960, 28, 12, 2, 128, 32_768, qkv_bias=True, tied_embeddings=True)


def test_parameters_of_a_small_model():
    for tied in (True, False):
        config = ModelConfig("qwen2", 97, 32, 48, 2, 4, 2, 8, 256, qkv_bias=True, tied_embeddings=tied)
        params = nnx.state(initialize(Decoder(config), jax.random.key(0)))
        assert cost.parameters(config) == sum(x.size for x in jax.tree.leaves(params))


def test_parameters_of_qwen():
    assert cost.parameters(QWEN_1P5B) == pytest.approx(1.54e9, rel=0.01)
    assert 6 * cost.matmul_parameters(QWEN_1P5B) * 5.5e12 == pytest.approx(5.1e22, rel=0.01)


def test_forward_and_update_against_xla():
    config = ModelConfig("qwen2", 512, 256, 640, 2, 4, 2, 64, 256, tied_embeddings=True)
    graphdef, params = nnx.split(initialize(Decoder(config), jax.random.key(0)))
    B, T = 2, 64
    tokens, positions = jnp.zeros((B, T), jnp.int32), jnp.broadcast_to(jnp.arange(T), (B, T))

    def forward(params):
        model = nnx.merge(graphdef, params)
        return jnp.sum((model(tokens, positions, compute=Compute(unroll=True)) @ model.unembedding().T) ** 2)

    measured = jax.jit(forward).lower(params).compile().cost_analysis()["flops"]
    assert cost.forward_flops(config, B * T, T) == pytest.approx(measured, rel=0.05)  # XLA computes all T x T scores
    measured = jax.jit(jax.grad(forward)).lower(params).compile().cost_analysis()["flops"]
    assert cost.update_flops(config, B * T, T) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("targets", [("q", "v"), pytest.param(LORA_TARGETS, marks=pytest.mark.slow)], ids=len)
def test_adapters_against_xla(targets):
    """The frozen matrices' gradients, a third of an update, are not computed: not in unrolled layers, nor in a scan."""
    config = ModelConfig("qwen2", 512, 256, 640, 4, 4, 2, 64, 256, tied_embeddings=True)
    _, plain = nnx.split(initialize(Decoder(config), jax.random.key(0)))
    config, graphdef, params = attach(config, plain, Lora(16, 16.0, targets), jax.random.key(0))
    assert cost.parameters(config) == sum(x.size for x in jax.tree.leaves(params))
    B, T = 2, 64
    tokens, positions = jnp.zeros((B, T), jnp.int32), jnp.broadcast_to(jnp.arange(T), (B, T))

    def forward(trained, frozen, unroll):
        model = nnx.merge(graphdef, join_params(trained, frozen))
        return jnp.sum((model(tokens, positions, compute=Compute(unroll=unroll)) @ model.unembedding().T) ** 2)

    def measured(f, unroll=True):
        compiled = jax.jit(f, static_argnums=2).lower(*split_params(params), unroll).compile()
        return compiled.cost_analysis()["flops"]

    assert cost.forward_flops(config, B * T, T) == pytest.approx(measured(forward), rel=0.05)
    adapters_only, everything = jax.grad(forward), jax.grad(forward, argnums=(0, 1))
    assert cost.update_flops(config, B * T, T) == pytest.approx(measured(adapters_only), rel=0.05)
    for unroll in (True, False):
        assert measured(adapters_only, unroll) < 0.75 * measured(everything, unroll)


def test_sampling_pays_the_prompt_once():
    one, eight = (cost.sampling_flops(QWEN_1P5B, 1000, 100, n) for n in (1, 8))
    prompt = cost.forward_flops(QWEN_1P5B, 1000, 500.5)
    assert eight - prompt == pytest.approx(8 * (one - prompt))


def test_extending_a_cache_against_xla():
    """What a turn of a conversation costs: its new tokens, each attending to the cache (all S of it in XLA's count)."""
    config = ModelConfig("qwen2", 512, 256, 640, 2, 4, 2, 64, 256, tied_embeddings=True)
    model = initialize(Decoder(config), jax.random.key(0))
    graphdef, params = nnx.split(model)
    S, T = 96, 16
    cache = make_cache(config, 1, S, jnp.dtype(jnp.float32), True)

    def extend(params, cache):
        model = nnx.merge(graphdef, params)
        tokens, positions = jnp.zeros((1, T), jnp.int32), jnp.arange(32, 32 + T)[None]
        hidden, cache = model.extend(tokens, positions, jnp.zeros(1, jnp.int32), cache, model.unstack())
        return hidden @ model.unembedding().T, cache

    measured = jax.jit(extend).lower(params, cache).compile().cost_analysis()["flops"]
    assert cost.forward_flops(config, T, S) == pytest.approx(measured, rel=0.05)


def test_an_episode_pays_for_what_was_not_known():
    def turn(n, sampled=True, cached=0):
        role = "assistant" if sampled else "output"
        status = "" if sampled else "passed"
        logprobs = np.zeros(n, np.float32) if sampled else None
        return Turn(role, np.zeros(n, np.int32), sampled, logprobs, cached=cached, status=status)

    def episode(*turns):
        return Episode(Problem("p"), np.zeros(100, np.int32), list(turns), Reward(1.0, True), "finished", "")

    one = cost.sampling_flops(QWEN_1P5B, 100, 50)
    assert cost.episode_flops(QWEN_1P5B, episode(turn(50))) == pytest.approx(one)
    whole = cost.forward_flops(QWEN_1P5B, 100 + 50 + 20 + 30, 100.5)
    kept = episode(turn(50), turn(20, sampled=False), turn(30, cached=150))
    anew = episode(turn(50), turn(20, sampled=False), turn(30))
    assert cost.episode_flops(QWEN_1P5B, kept) == pytest.approx(whole)
    again = cost.forward_flops(QWEN_1P5B, 150, 75.5)
    assert cost.episode_flops(QWEN_1P5B, anew) == pytest.approx(whole + again)
    group = cost.group_flops(QWEN_1P5B, [Group(Problem("p"), [episode(turn(50))] * 8)])
    assert group == pytest.approx(cost.sampling_flops(QWEN_1P5B, 100, 50, 8))
    spent = cost.question_cost(QWEN_1P5B, [kept, episode(turn(50))], 2)
    assert spent["flops"] == pytest.approx((whole + one) / 2)
    assert {k: v for k, v in spent.items() if k != "flops"} == {
        "tokens": 65.0, "turns": 1.5, "calls": 0.5, "failed_calls": 0.0,
    }  # fmt: skip


def test_the_check_figures_of_the_field():
    assert cost.pretraining_flops(QWEN_1P5B, 5.5e12) == pytest.approx(5.1e22, rel=0.01)
    answer = cost.sampling_flops(QWEN_1P5B, 1, 1000)
    assert answer == pytest.approx(3.1e12, rel=0.05)  # attention included
    rate, how = cost.device_peak(jax.devices()[0], jnp.dtype(jnp.float32))
    assert rate > 1e9 and how == "measured"
