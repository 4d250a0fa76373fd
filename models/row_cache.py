"""The cache of keys and values on one CPU, in bf16: chunks that each row reads up to its own position.

So a long row costs the others nothing, one executable serves all lengths, and rows that are not decoded are not copied.
Values are stored as their bits, u16, because XLA on CPU converts a whole bf16 array to f32 and back to write one token.

Axes: B rows, b rows of this call, T tokens of this call, K kv heads, G queries of each, Dh head width, n chunks of
CHUNK tokens, L layers.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.config import ModelConfig

CHUNK = 128
MASKED = -1e30


class Chunks(NamedTuple):
    """Keys and values of one layer. A chunk of a row lies in one piece of memory."""

    k: jax.Array  # u16[B, n, K, Dh, CHUNK]
    v: jax.Array  # u16[B, n, K, CHUNK, Dh]

    @property
    def length(self) -> int:
        """Tokens that a row may have."""
        return self.k.shape[1] * CHUNK


def make_chunks(config: ModelConfig, rows: int, length: int) -> tuple[Chunks, ...]:
    """An empty cache of all layers, for `rows` rows of at most `length` tokens."""
    n, K, Dh = -(-length // CHUNK), config.num_kv_heads, config.head_dim

    def layer() -> Chunks:
        shapes = (rows, n, K, Dh, CHUNK), (rows, n, K, CHUNK, Dh)
        return Chunks(*(jnp.zeros(shape, jnp.uint16) for shape in shapes))

    return tuple(layer() for _ in range(config.num_layers))


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)


def _values(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)


def write(
    cache: Chunks,
    rows: jax.Array,  # i32[b] or [b, 1]
    positions: jax.Array,  # i32[b] or [b, T]; those outside of the cache are not written
    k: jax.Array,  # [b, K, Dh] or [b, T, K, Dh]
    v: jax.Array,
) -> Chunks:
    """Writes the keys and values of new tokens."""
    inside = (positions >= 0) & (positions < cache.length)
    chunk, place = jnp.where(inside, positions // CHUNK, cache.length), positions % CHUNK
    return Chunks(
        cache.k.at[rows, chunk, :, :, place].set(_bits(k), mode="drop"),
        cache.v.at[rows, chunk, :, place].set(_bits(v), mode="drop"),
    )


def insert(
    cache: tuple[Chunks, ...],
    fresh: jax.Array,  # bool[B]
    source: jax.Array,  # i32[B], the prompt of each fresh row
    k: jax.Array,  # [L, P, T, K, Dh]
    v: jax.Array,
) -> tuple[Chunks, ...]:
    """Writes the keys and values of P prompts, from `prefill`, as the first T tokens of the `fresh` rows."""
    L, P, T, K, Dh = k.shape
    padding = [(0, 0), (0, 0), (0, -T % CHUNK), (0, 0), (0, 0)]
    k, v = (_bits(jnp.pad(x, padding)).reshape(L, P, -1, CHUNK, K, Dh) for x in (k, v))
    k, v = k.transpose(0, 1, 2, 4, 5, 3), v.transpose(0, 1, 2, 4, 3, 5)
    order = jnp.argsort(~fresh)  # fresh rows first

    def put_one(i: jax.Array, cache: tuple[Chunks, ...]) -> tuple[Chunks, ...]:
        row = order[i]

        def put(into: jax.Array, new: jax.Array) -> jax.Array:  # new [P, n, ...] of one layer
            one = jax.lax.dynamic_slice_in_dim(new, source[row], 1, axis=0)
            return jax.lax.dynamic_update_slice(into, one, (row, 0, 0, 0, 0))

        return tuple(Chunks(put(layer.k, k[l]), put(layer.v, v[l])) for l, layer in enumerate(cache))

    return jax.lax.fori_loop(0, jnp.sum(fresh), put_one, cache)


def of_rows(cache: Chunks, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values bf16[b, S, K, Dh] of the rows i32[b]."""
    k, v = cache.k[rows].transpose(0, 1, 4, 2, 3), cache.v[rows].transpose(0, 1, 3, 2, 4)
    k, v = (_values(x).reshape(len(rows), cache.length, *x.shape[3:]) for x in (k, v))
    return k, v


def decode_attention_by_rows(
    q: jax.Array,  # [b, H, Dh], one query per row
    cache: Chunks,  # with the keys of the queries' own tokens
    rows: jax.Array,  # i32[b], of the cache
    positions: jax.Array,  # i32[b], of the queries; negative: the result is 0
    window: jax.Array | int,  # scalar; 0: no limit
) -> jax.Array:  # [b, H, Dh]
    """What `attention.decode_attention` computes, chunk by chunk, in f32.

    Each chunk is summed relative to the maximal score so far (Milakov and Gimelshein, arXiv 1805.02867).
    """
    (b, H, Dh), K = q.shape, cache.k.shape[2]
    queries = (q.astype(jnp.float32) * Dh**-0.5).reshape(b, K, H // K, Dh)

    def one_row(i: jax.Array, mixed: jax.Array) -> jax.Array:
        row, position, query = rows[i], positions[i], queries[i]

        def chunk_of(x: jax.Array, c: jax.Array) -> jax.Array:
            return _values(jax.lax.dynamic_slice(x, (row, c, 0, 0, 0), (1, 1, *x.shape[2:]))[0, 0]).astype(jnp.float32)

        def add_chunk(c: jax.Array, sums: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
            highest, total, mixture = sums
            distance = position - (c * CHUNK + jnp.arange(CHUNK))
            mask = (distance >= 0) & ((window == 0) | (distance < window))
            scores = jnp.where(mask, jnp.einsum("kgd,kds->kgs", query, chunk_of(cache.k, c)), MASKED)
            top = jnp.maximum(highest, jnp.max(scores, axis=-1, keepdims=True))
            weights, share = jnp.exp(scores - top), jnp.exp(highest - top)
            mixture = mixture * share + jnp.einsum("kgs,ksd->kgd", weights, chunk_of(cache.v, c))
            return top, total * share + jnp.sum(weights, axis=-1, keepdims=True), mixture

        first = jnp.where(window > 0, jnp.maximum(position - window + 1, 0) // CHUNK, 0)
        nothing = jnp.full((K, H // K, 1), MASKED), jnp.zeros((K, H // K, 1)), jnp.zeros((K, H // K, Dh))
        _, total, mixture = jax.lax.fori_loop(first, position // CHUNK + 1, add_chunk, nothing)
        return jax.lax.dynamic_update_index_in_dim(mixed, mixture / jnp.maximum(total, 1), i, 0)

    mixed = jax.lax.fori_loop(0, b, one_row, jnp.zeros_like(queries))
    return mixed.astype(q.dtype).reshape(b, H, Dh)
