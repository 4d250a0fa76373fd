"""The decoder against transformers, and against itself in every way of running it."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from families import FAMILIES, reference
from flax import nnx

from models.cache import insert, make_cache
from models.convert import hf_tensors, load_hf
from models.decoder import Compute, Decoder, initialize
from models.vocabulary import token_logprobs

T = 40


@pytest.fixture(params=FAMILIES, scope="module")
def pair(request, tmp_path_factory):
    """A torch model, and the decoder with the same weights."""
    model, folder = reference(request.param), tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    config, graphdef, params = load_hf(folder)
    return model, config, graphdef, params


@partial(jax.jit, static_argnums=0)
def hidden_of(graphdef, params, tokens, positions, segments=None):
    return nnx.merge(graphdef, params)(tokens, positions, segments)


def tokens_of(config, rows=2, length=T, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (rows, length))


def positions_of(tokens):
    return np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)


def logits_of(model, hidden):
    return np.asarray(hidden @ model.unembedding().T)


def test_logits_equal_transformers(pair):
    torch_model, config, graphdef, params = pair
    tokens, model = tokens_of(config), nnx.merge(graphdef, params)
    ours = logits_of(model, hidden_of(graphdef, params, tokens, positions_of(tokens)))
    with torch.no_grad():
        theirs = torch_model(torch.tensor(tokens)).logits.numpy()
    assert np.abs(theirs).max() > 1  # the models say something
    assert np.abs(ours - theirs).max() <= 1e-4


def test_loss_gradient_equals_transformers(pair):
    torch_model, config, graphdef, params = pair
    tokens = tokens_of(config)

    def loss(params):
        model: Decoder = nnx.merge(graphdef, params)
        hidden = model(tokens, positions_of(tokens))[:, :-1].reshape(-1, config.hidden_size)
        return -token_logprobs(hidden, tokens[:, 1:].reshape(-1), model.unembedding())[0].mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    expected = torch_model(torch.tensor(tokens), labels=torch.tensor(tokens)).loss
    expected.backward()
    assert abs(float(value) - float(expected)) <= 1e-5
    theirs = {name: p.grad.numpy() for name, p in torch_model.named_parameters()}
    for path, variable in nnx.to_flat_state(gradient):
        names, stacked, transposed = hf_tensors(path, config.num_layers)
        for layer, name in enumerate(names):
            ours = np.asarray(variable[...][layer] if stacked else variable[...])
            ours = ours.T if transposed else ours
            assert np.linalg.norm(ours - theirs[name]) <= 1e-4 * np.linalg.norm(theirs[name]) + 1e-9, name


@pytest.mark.parametrize("unrolled", [True, False])
def test_decoding_with_the_cache_equals_the_full_pass(pair, unrolled):
    _, config, graphdef, params = pair
    model = nnx.merge(graphdef, params)
    tokens, prompt = tokens_of(config, rows=3), 5
    full = np.asarray(hidden_of(graphdef, params, tokens, positions_of(tokens)))
    cache = make_cache(config, 3, T + 3, jnp.float32, unrolled)
    _, k, v = model.prefill(tokens[:, :prompt], positions_of(tokens)[:, :prompt])
    cache = insert(cache, jnp.ones(3, bool), jnp.arange(3), k, v)
    layers = model.unstack() if unrolled else None
    step = jax.jit(lambda t, p, cache: model.decode(t, p, cache, layers))
    for t in range(prompt, T):
        hidden, cache = step(tokens[:, t], jnp.full(3, t), cache)
        np.testing.assert_allclose(hidden, full[:, t], atol=2e-5)


def test_rows_of_different_length_decode_alike(pair):
    """Each row of the cache is at its own position."""
    _, config, graphdef, params = pair
    model = nnx.merge(graphdef, params)
    tokens, lengths = tokens_of(config), np.array([4, 11])
    full = np.asarray(hidden_of(graphdef, params, tokens, positions_of(tokens)))
    segments = (positions_of(tokens) < lengths[:, None]).astype(np.int32)
    _, k, v = model.prefill(tokens, positions_of(tokens), segments)
    cache = insert(make_cache(config, 2, T, jnp.float32, True), jnp.ones(2, bool), jnp.arange(2), k, v)
    layers = model.unstack()
    step = jax.jit(lambda t, p, cache: model.decode(t, p, cache, layers))
    for i in range(6):
        at = lengths + i
        hidden, cache = step(tokens[np.arange(2), at], jnp.asarray(at), cache)
        np.testing.assert_allclose(hidden, full[np.arange(2), at], atol=2e-5)


def test_packed_rows_and_padding_change_no_number(pair):
    _, config, graphdef, params = pair
    parts = [tokens_of(config, 1, n, seed=n)[0] for n in (11, 17, 6)]
    packed = np.concatenate([*parts, np.zeros(5, int)])[None]
    positions = np.concatenate([*(np.arange(len(p)) for p in parts), np.zeros(5, int)])[None]
    segments = np.concatenate([*(np.full(len(p), i + 1) for i, p in enumerate(parts)), np.zeros(5, int)])[None]
    together, start = np.asarray(hidden_of(graphdef, params, packed, positions, segments)), 0
    assert np.isfinite(together).all()
    for part in parts:
        alone = np.asarray(hidden_of(graphdef, params, part[None], np.arange(len(part))[None]))
        np.testing.assert_allclose(together[0, start : start + len(part)], alone[0], atol=2e-5)
        start += len(part)


@pytest.mark.parametrize(
    "pair",
    [  # layers that are all alike, and of two kinds; for the other families in the long form
        name if name in ("qwen2_tied", "qwen2_window") else pytest.param(name, marks=pytest.mark.slow)
        for name in FAMILIES
    ],
    indirect=True,
)
def test_remat_and_unrolling_change_no_number(pair):
    _, config, graphdef, params = pair
    tokens = tokens_of(config)

    def loss(params, compute):
        return jnp.mean(nnx.merge(graphdef, params)(tokens, positions_of(tokens), compute=compute) ** 2)

    differentiate = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    expected = differentiate(params, Compute())
    for compute in (Compute(remat="full"), Compute(remat="dots"), Compute(unroll=True)):
        chex.assert_trees_all_close(differentiate(params, compute), expected, rtol=1e-4, atol=1e-6)


def test_every_parameter_has_logical_axes(pair):
    _, _, _, params = pair
    for path, variable in nnx.to_flat_state(params):
        assert len(variable.get_metadata()["out_sharding"]) == variable.ndim, path


def test_initialize_is_random_normal():
    from models.config import from_hf

    config = from_hf({**FAMILIES["qwen2_tied"]().config.to_dict()})
    params = nnx.state(initialize(Decoder(config), jax.random.key(0)))
    flat = {path[-1]: variable[...] for path, variable in nnx.to_flat_state(params)}
    assert abs(float(jnp.std(flat["up"])) - 0.02) < 1e-3
    assert float(jnp.min(flat["final_norm"])) == float(jnp.max(flat["final_norm"])) == 1
    assert not np.any(flat["q_bias"])


FULL_SIZE = {
    "Qwen2.5-Coder-0.5B": {
        "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "max_position_embeddings": 32_768,
    },
    "Llama-3.2-1B": {
        "model_type": "llama", "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 131_072,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_logits_equal_transformers(name, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    fields = dict(FULL_SIZE[name])
    torch_model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    torch_model = torch_model.float().eval()
    torch_model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(0, fields["vocab_size"], (1, 48))
    with torch.no_grad():
        theirs = torch_model(torch.tensor(tokens)).logits.numpy()
    del torch_model
    _, graphdef, params = load_hf(tmp_path)
    model = nnx.merge(graphdef, params)
    ours = logits_of(model, jax.jit(lambda m: m(tokens, positions_of(tokens)))(model))
    assert np.abs(ours - theirs).max() <= 5e-4
