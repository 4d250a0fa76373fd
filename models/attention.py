"""Softmax attention with grouped queries, over positions and segments."""

from __future__ import annotations

import jax
import jax.numpy as jnp

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
    B, T, H, Dh = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, H // K, Dh)
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32) * Dh**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, _MASKED), axis=-1).astype(v.dtype)
    mixed = jnp.einsum("bkgts,bskd->btkgd", weights, v, preferred_element_type=jnp.float32)
    return mixed.astype(q.dtype).reshape(B, T, H, Dh)


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
    k_cache: jax.Array,  # [B, S, K, Dh]
    v_cache: jax.Array,  # [B, S, K, Dh]
    positions: jax.Array,  # i32[B], of the queries; the key at [b, s] has position s
    window: jax.Array | int,  # scalar; 0: no limit
) -> jax.Array:  # [B, H, Dh]
    """Attention of one new token a row over the cache up to its own position."""
    distance = positions[:, None] - jnp.arange(k_cache.shape[1])
    mask = (distance >= 0) & ((window == 0) | (distance < window))
    return attention(q[:, None], k_cache, v_cache, mask[:, None])[:, 0]
