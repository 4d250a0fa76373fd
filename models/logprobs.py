"""Next-token logprobs and entropies without a whole [B, T, V] array in f32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from models.matmul import matmul

CHUNK_ELEMENTS = 2**25  # f32 logits alive at once: 128 MiB


def token_logprobs(
    hidden: jax.Array,  # [N, D], the decoder's output before each target
    targets: jax.Array,  # i32[N]
    unembedding: jax.Array,  # [V, D]
    temperature: float = 1.0,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[jax.Array, jax.Array]:  # f32[N], f32[N]
    """log softmax(logits / temperature) at the targets, and the entropy of that distribution in nats.

    Logits are made for a chunk of tokens at a time, and again in the backward pass. The entropy carries no gradient.
    """
    N, V = hidden.shape[0], unembedding.shape[0]
    rows = max(1, chunk_elements // V)
    if rows >= N:
        return _logprobs(hidden, targets, unembedding, temperature)
    chunks = -(-N // rows)
    pad = chunks * rows - N
    hidden = jnp.pad(hidden, ((0, pad), (0, 0))).reshape(chunks, rows, -1)
    targets = jnp.pad(targets, (0, pad)).reshape(chunks, rows)
    chunk = jax.checkpoint(lambda h, t: _logprobs(h, t, unembedding, temperature))
    logprobs, entropy = jax.lax.map(lambda c: chunk(*c), (hidden, targets))
    return logprobs.reshape(-1)[:N], entropy.reshape(-1)[:N]


def _logprobs(hidden, targets, unembedding, temperature):
    logits = matmul(hidden, unembedding.T) / temperature
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    all_logprobs = jax.lax.stop_gradient(logits - log_z[:, None])
    return chosen - log_z, -jnp.sum(jnp.exp(all_logprobs) * all_logprobs, axis=-1)
