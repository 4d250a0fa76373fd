"""Next-token logprobs and entropies against torch, in chunks and whole."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

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
