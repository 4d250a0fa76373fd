"""FLOPs against XLA's own count of an unrolled small model, and the field's check figures."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxrl import cost
from models.config import ModelConfig
from models.decoder import Compute, Decoder, initialize

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


def test_sampling_pays_the_prompt_once():
    one, eight = (cost.sampling_flops(QWEN_1P5B, 1000, 100, n) for n in (1, 8))
    prompt = cost.forward_flops(QWEN_1P5B, 1000, 500.5)
    assert eight - prompt == pytest.approx(8 * (one - prompt))
