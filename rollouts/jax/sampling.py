"""Sampling tokens from logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

BLOCK = 128


def sample_tokens(
    logits: jax.Array,  # f32[B, V]
    keys: jax.Array,  # PRNG key[B]
    temperature: jax.Array,  # f32[B]; 0: greedy
    filters: tuple[jax.Array, jax.Array, jax.Array] | None = None,  # top_p f32[B], top_k i32[B], min_p f32[B]
) -> tuple[jax.Array, jax.Array]:  # tokens i32[B], logprobs f32[B]
    """One token per row, each row with its own key.

    The logprob is that of softmax(logits / temperature), before the filters (temperature 0: of softmax(logits)).
    """
    greedy = temperature == 0
    divisor = jnp.where(greedy, 1.0, temperature)[:, None]
    blocks = _in_blocks(logits)
    tops = jnp.max(blocks, axis=-1) / divisor
    highest = jnp.max(tops, axis=-1, keepdims=True)

    def weights(x: jax.Array) -> jax.Array:  # logits of whole rows in blocks, or of one block each
        last = (slice(None), *[None] * (x.ndim - 2))
        return jnp.exp(x / divisor[last] - highest[last])

    # Only sums over blocks are made of whole rows; scaled logits are not written to memory. The barrier keeps XLA from
    # computing the sums again wherever they are used.
    sums = jax.lax.optimization_barrier(jnp.sum(weights(blocks), axis=-1))
    allowed, allowed_sums = blocks, sums
    if filters is not None:
        allowed = _in_blocks(jnp.where(filter_mask(logits / divisor, *filters), logits, -jnp.inf))
        allowed_sums = jnp.sum(weights(allowed), axis=-1)
    uniforms = jax.vmap(partial(jax.random.uniform, shape=()))(keys)
    drawn = _draw(lambda block: weights(_block(allowed, block)), allowed_sums, uniforms)
    top = _first(tops == highest)
    likeliest = top * BLOCK + _first(_block(blocks, top) / divisor == highest)
    tokens = jnp.where(greedy, likeliest, drawn).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1) / divisor
    return tokens, (chosen - highest)[:, 0] - jnp.log(jnp.sum(sums, axis=-1))


def draw(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """i32[B]: for each row of f32[B, V] the first index where the cumulative weight exceeds uniform * total.

    Index i has probability weights[i] / total, for uniforms in [0, 1); an index of weight 0 is never drawn. The Gumbel
    trick would need V random numbers per row instead of one.
    """
    blocks = _in_blocks(weights, 0.0)
    return _draw(partial(_block, blocks), jnp.sum(blocks, axis=-1), uniforms)


def _draw(weights_of: Callable[[jax.Array], jax.Array], sums: jax.Array, uniforms: jax.Array) -> jax.Array:
    """`draw` from the sums f32[B, n] of blocks; weights_of(block i32[B]) gives the weights f32[B, BLOCK] in one."""
    before = jnp.cumsum(sums, axis=-1)
    threshold = uniforms * _total(before, sums)
    # By rounding, a parallel sum may rise where the weight is 0: hence the second conditions and the bounds of `rest`.
    block = _first((before > threshold[:, None]) & (sums > 0))
    rest = threshold - jnp.where(block > 0, jnp.take_along_axis(before, block[:, None] - 1, axis=-1)[:, 0], 0.0)
    hit = weights_of(block)
    within = jnp.cumsum(hit, axis=-1)
    rest = jnp.clip(rest, 0.0, jnp.nextafter(_total(within, hit), jnp.float32(0)))
    return block * BLOCK + _first((within > rest[:, None]) & (hit > 0))


def _in_blocks(x: jax.Array, padding: float = -jnp.inf) -> jax.Array:
    """f32[B, V] -> f32[B, n, BLOCK]. Whole passes over V end in a number a block; what follows looks at one block."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK)), constant_values=padding).reshape(len(x), -1, BLOCK)


def _block(blocks: jax.Array, index: jax.Array) -> jax.Array:
    """f32[B, BLOCK]: the block i32[B] of each row."""
    return jnp.take_along_axis(blocks, index[:, None, None], axis=1)[:, 0]


def _first(condition: jax.Array) -> jax.Array:
    """i32[B]: the first index where bool[B, n] holds, or the last. (XLA on CPU does not vectorize argmax.)"""
    n = condition.shape[-1]
    return jnp.min(jnp.where(condition, jnp.arange(n), n - 1), axis=-1)


def _total(cumulative: jax.Array, weights: jax.Array) -> jax.Array:
    """f32[B]: the largest cumulative weight at an index whose weight is not 0."""
    return jnp.max(jnp.where(weights > 0, cumulative, 0.0), axis=-1)


def filter_mask(
    logits: jax.Array,  # f32[B, V], temperature-scaled
    top_p: jax.Array,  # f32[B], 1: off
    top_k: jax.Array,  # i32[B], 0: off
    min_p: jax.Array,  # f32[B], 0: off
) -> jax.Array:  # bool[B, V]
    """The tokens that may be drawn: top-k, then top-p of the rest, then min-p relative to the likeliest.

    top-p (Holtzman et al., arXiv 1904.09751) keeps the smallest set of likeliest tokens with at least that probability;
    min-p (Nguyen et al., arXiv 2407.01082) keeps those of at least min_p times the largest probability. Equal logits
    rank by token id, the lower first.
    """
    B, V = logits.shape
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    kept = jnp.arange(V) < jnp.where(top_k > 0, top_k, V)[:, None]
    probabilities = jax.nn.softmax(jnp.where(kept, ranked, -jnp.inf), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept &= (before < top_p[:, None]) | (top_p >= 1)[:, None]
    kept &= probabilities >= min_p[:, None] * probabilities[:, :1]
    return jnp.zeros((B, V), bool).at[jnp.arange(B)[:, None], order].set(kept)
