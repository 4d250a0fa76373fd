"""Next-token logprobs and entropies against torch, in chunks and whole."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from conftest import on_eight_devices

from models.vocabulary import token_logprobs

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
    loss = lambda h, t, w: token_logprobs(h, t, w, chunk_elements=2**18)[0].sum()  # noqa: E731
    memory = jax.jit(jax.grad(loss, (0, 2))).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < N * V * 4 / 4


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
    logprobs, entropy = vocabulary.token_logprobs(hidden, targets, table, 0.7, 7 * 56, mesh)
    return (logprobs * weights).sum() + (hidden * weights[..., None]).sum(), (logprobs, entropy)

def run(mesh):
    return jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)(table, mesh)

expected = run(None)
for sizes in ((8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 1, 2), (2, 1, 1, 4), (1, 1, 8, 1), (2, 2, 2, 1), (1, 2, 2, 2)):
    found = run(make_mesh(*sizes))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=f"{sizes}")
print("same on all meshes")
"""


def test_every_mesh_of_eight_devices_gives_the_same():
    assert "same on all meshes" in on_eight_devices(ON_EIGHT_DEVICES)
