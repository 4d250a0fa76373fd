"""Next-token logprobs and entropies against torch, in chunks and whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import on_eight_devices

from models.vocabulary import embed, token_logprobs

rng = np.random.default_rng(0)
HIDDEN, TARGETS = rng.normal(size=(37, 16)).astype(np.float32), rng.integers(0, 53, 37)
WEIGHTS = rng.normal(size=(53, 16)).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("chunk", [1, 53 * 7, 53 * 37, 2**25])  # rows of a chunk: 1, 7, all
def test_values_and_gradient_equal_torch(chunk, temperature):
    def total(hidden, weights):
        return token_logprobs(hidden, TARGETS, weights, temperature, chunk)[0].sum()

    logprobs, entropy = token_logprobs(HIDDEN, TARGETS, WEIGHTS, temperature, chunk)
    gradient = jax.grad(total, (0, 1))(HIDDEN, WEIGHTS)
    h, w = torch.tensor(HIDDEN, requires_grad=True), torch.tensor(WEIGHTS, requires_grad=True)
    expected = torch.log_softmax(h.double() @ w.double().T / temperature, -1)
    chosen = expected[torch.arange(37), torch.tensor(TARGETS)]
    chosen.sum().backward()
    np.testing.assert_allclose(logprobs, chosen.detach(), atol=1e-5)
    np.testing.assert_allclose(entropy, -(expected.exp() * expected).sum(-1).detach(), atol=2e-5)
    np.testing.assert_allclose(gradient[0], h.grad, atol=1e-5)
    np.testing.assert_allclose(gradient[1], w.grad, atol=1e-4)


def test_no_array_of_all_logits_is_made():
    """The largest array in the compiled program's memory is a chunk's."""
    N, V, D = 4096, 4096, 8
    shapes = [jax.ShapeDtypeStruct(s, t) for s, t in (((N, D), np.float32), ((N,), np.int32), ((V, D), np.float32))]

    def loss(h, t, w):
        return sum(x.sum() for x in token_logprobs(h, t, w, chunk_elements=2**18, entropy_gradient=True))

    memory = jax.jit(jax.grad(loss, (0, 2))).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < N * V * 4 / 4


@pytest.mark.parametrize("chunk", [53 * 7, 2**25])
def test_the_gradient_of_the_entropy_equals_torch_and_is_there_only_if_asked_for(chunk):
    weights = np.random.default_rng(3).normal(size=37)

    def total(hidden, table, asked):
        entropy = token_logprobs(hidden, TARGETS, table, 0.7, chunk, entropy_gradient=asked)[1]
        return (entropy * weights).sum()

    gradient, nothing = (jax.grad(total, (0, 1))(HIDDEN, WEIGHTS, asked) for asked in (True, False))
    h, w = torch.tensor(HIDDEN, dtype=torch.float64), torch.tensor(WEIGHTS, dtype=torch.float64)
    h, w = h.requires_grad_(), w.requires_grad_()
    (torch.distributions.Categorical(logits=h @ w.T / 0.7).entropy() * torch.tensor(weights)).sum().backward()
    for found, expected, none in zip(gradient, (h.grad, w.grad), nothing):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
        assert not np.asarray(none).any()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("chunk", [53 * 7, 2**25])
def test_only_wanted_targets_are_computed(chunk, share):
    """Theirs are the values and the gradient of all; other results are 0 or right, and so is what flows back."""
    wanted = np.random.default_rng(1).random(37) < share

    def total(hidden, wanted_only):
        only = {"wanted": jnp.asarray(wanted)} if wanted_only else {}
        logprobs, _ = token_logprobs(hidden, TARGETS, WEIGHTS, 1.0, chunk, **only)
        return jnp.where(wanted, logprobs, 0).sum(), logprobs

    (_, some), gradient = jax.value_and_grad(total, has_aux=True)(HIDDEN, True)
    (_, every), expected = jax.value_and_grad(total, has_aux=True)(HIDDEN, False)
    np.testing.assert_allclose(some[wanted], every[wanted], atol=1e-6)
    assert all(a == 0 or abs(a - b) < 1e-6 for a, b in zip(some, every))
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_a_frozen_table_is_not_copied_to_f32():
    hidden, table = jnp.asarray(HIDDEN, jnp.bfloat16), jnp.asarray(WEIGHTS, jnp.bfloat16)
    frozen = jax.make_jaxpr(lambda h, w: token_logprobs(h, TARGETS, w, frozen=True))(hidden, table)
    trained = jax.make_jaxpr(lambda h, w: token_logprobs(h, TARGETS, w))(hidden, table)
    assert "f32[53,16]" in str(trained) and "f32[53,16]" not in str(frozen)
    for a, b in zip(token_logprobs(hidden, TARGETS, table, frozen=True), token_logprobs(hidden, TARGETS, table)):
        np.testing.assert_array_equal(a, b)


def test_embeddings_of_a_bf16_table_and_their_gradient():
    """Read by bits, they are the table's; the gradient sums each token's places in f32."""
    table, tokens = jnp.asarray(WEIGHTS, jnp.bfloat16), jnp.array([[3, 3, 52], [0, 3, 7]])
    weights = np.random.default_rng(2).normal(size=(2, 3, 16)).astype(np.float32)
    found, backward = jax.vjp(lambda t: embed(t, tokens, jnp.dtype(jnp.float32)), table)
    np.testing.assert_array_equal(found, np.asarray(table, np.float32)[tokens])
    (gradient,) = backward(jnp.asarray(weights))
    expected = np.zeros((53, 16))
    np.add.at(expected, np.asarray(tokens), np.asarray(jnp.asarray(weights, jnp.bfloat16), np.float64))
    np.testing.assert_allclose(np.asarray(gradient, np.float64), expected, rtol=2**-8)


ON_EIGHT_DEVICES = """
import jax, numpy as np
import models.vocabulary as vocabulary
from models.sharding import make_mesh
vocabulary.LOOKUP_ELEMENTS = 3 * 16 * 8  # three tokens of a device at a time
rng = np.random.default_rng(0)
table, tokens = rng.normal(size=(56, 16)).astype(np.float32), rng.integers(0, 56, (8, 24))
targets, weights = rng.integers(0, 56, (8, 24)), rng.normal(size=(8, 24))

def total(table, mesh):
    hidden = vocabulary.embed(table, tokens, np.dtype("float32"), mesh)
    logprobs, entropy = vocabulary.token_logprobs(hidden, targets, table, 0.7, 7 * 56, mesh, entropy_gradient=True)
    sums = (logprobs * weights).sum() + (entropy * weights**2).sum() + (hidden * weights[..., None]).sum()
    return sums, (logprobs, entropy)

def run(mesh):
    return jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)(table, mesh)

expected = run(None)
for sizes in ((8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 1, 2), (2, 1, 1, 4), (1, 1, 8, 1), (2, 2, 2, 1), (1, 2, 2, 2)):
    found = run(make_mesh(*sizes))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=f"{sizes}")
print("same on all meshes")
"""


@pytest.mark.slow
def test_every_mesh_of_eight_devices_gives_the_same():
    assert "same on all meshes" in on_eight_devices(ON_EIGHT_DEVICES)
