"""Softmax attention with grouped queries, over positions and segments."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from models.matmul import matmul

_MASKED = -1e30  # a finite minus infinity: a row without any visible key gives a mean, not NaN


def attention(
    q: jax.Array,  # [B, T, H, Dh]
    k: jax.Array,  # [B, S, K, Dh], H a multiple of K
    v: jax.Array,  # [B, S, K, Dh]
    mask: jax.Array,  # bool [B, T, S]
) -> jax.Array:  # [B, T, H, Dh]
    """softmax(q k^T / sqrt(Dh)) v over the keys that `mask` allows; scores and softmax in f32.

    Query heads are grouped by the kv head that they share (Ainslie et al., arXiv 2305.13245), so kv heads are
    never repeated in memory.
    """
    (B, T, H, Dh), (S, K) = q.shape, k.shape[1:3]
    G = H // K
    # One matmul a kv head over its G * T queries, batch axes first: twice as fast on CPU as [B, T, H, Dh] einsums.
    q = q.reshape(B, T, K, G, Dh).transpose(0, 2, 3, 1, 4).reshape(B * K, G * T, Dh)
    k = k.transpose(0, 2, 3, 1).reshape(B * K, Dh, S)
    v = v.transpose(0, 2, 1, 3).reshape(B * K, S, Dh)
    scores = matmul(q, k) * Dh**-0.5
    scores = jnp.where(mask[:, None, None], scores.reshape(B, K, G, T, S), _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).reshape(B * K, G * T, S).astype(v.dtype)
    mixed = matmul(weights, v).astype(q.dtype)
    return mixed.reshape(B, K, G, T, Dh).transpose(0, 3, 1, 2, 4).reshape(B, T, H, Dh)


def causal_mask(
    query_positions: jax.Array,  # i32[B, T]
    key_positions: jax.Array,  # i32[B, S]
    query_segments: jax.Array,  # i32[B, T]
    key_segments: jax.Array,  # i32[B, S], 0: nothing there
) -> jax.Array:  # bool [B, T, S]
    """True where the key is in the query's segment and not later."""
    same = (query_segments[:, :, None] == key_segments[:, None, :]) & (key_segments[:, None, :] > 0)
    return same & (query_positions[:, :, None] >= key_positions[:, None, :])


def decode_attention(
    q: jax.Array,  # [B, H, Dh], one query a row
    k_cache: jax.Array,  # [B, K, Dh, S]: keys transposed, so that scores are sums over a strided axis
    v_cache: jax.Array,  # [B, K, S, Dh]
    positions: jax.Array,  # i32[B], of the queries; the key at [b, :, :, s] has position s
    window: jax.Array | int,  # scalar; 0: no limit
) -> jax.Array:  # [B, H, Dh]
    """Attention of one new token a row over the cache up to its own position."""
    (B, H, Dh), (K, S) = q.shape, v_cache.shape[1:3]
    scores = jnp.einsum("bkgd,bkds->bkgs", q.reshape(B, K, H // K, Dh), k_cache, preferred_element_type=jnp.float32)
    distance = positions[:, None] - jnp.arange(S)
    mask = (distance >= 0) & ((window == 0) | (distance < window))
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores * Dh**-0.5, _MASKED), axis=-1)
    mixed = jnp.einsum("bkgs,bksd->bkgd", weights.astype(v_cache.dtype), v_cache, preferred_element_type=jnp.float32)
    return mixed.astype(q.dtype).reshape(B, H, Dh)
