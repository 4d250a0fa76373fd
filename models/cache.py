"""The cache of keys and values for decoding.

Axes: B rows, T tokens of this call, s tokens of a part of the cache, K kv heads, Dh head width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from models.config import ModelConfig

# Keys [B, K, Dh, s] and values [B, K, s, Dh] of the tokens so far, split into `cache_parts`: cache[l][i] is part i
# of layer l where layers are unrolled; cache[0][i], with a leading [L], is that of all layers where they are scanned.
# Parts are separate buffers, so that unused ones are not read and used ones are read without a copy.
Part = tuple[jax.Array, jax.Array]
Cache = tuple[tuple[Part, ...], ...]
FIRST_PART = 128


def cache_parts(length: int) -> list[int]:
    """Lengths of a cache's parts: each as long as all before it together, the last one the rest of `length` tokens."""
    parts = [min(FIRST_PART, length)]
    while sum(parts) < length:
        parts.append(min(sum(parts), length - sum(parts)))
    return parts


def make_cache(config: ModelConfig, rows: int, length: int, dtype: jnp.dtype, unrolled: bool) -> Cache:
    """An empty cache for `rows` rows of at most `length` tokens."""
    K, Dh = config.num_kv_heads, config.head_dim
    layers, lead = (config.num_layers, ()) if unrolled else (1, (config.num_layers,))

    def part(s: int) -> Part:
        return jnp.zeros((*lead, rows, K, Dh, s), dtype), jnp.zeros((*lead, rows, K, s, Dh), dtype)

    return tuple(tuple(part(s) for s in cache_parts(length)) for _ in range(layers))


def write(
    parts: tuple[Part, ...],
    rows: jax.Array,  # i32[b] or [b, 1]
    positions: jax.Array,  # i32[b] or [b, T]; those beyond the parts are not written
    k: jax.Array,  # [b, K, Dh] or [b, T, K, Dh]
    v: jax.Array,
    l: jax.Array | None = None,  # layer, of parts with a leading [L]
) -> tuple[Part, ...]:
    """Writes the keys and values of new tokens into one layer's parts."""
    written, start, lead = [], 0, () if l is None else (l,)
    for k_part, v_part in parts:
        s = k_part.shape[-1]
        column = jnp.where((positions >= start) & (positions < start + s), positions - start, s)
        k_part = k_part.at[*lead, rows, :, :, column].set(k.astype(k_part.dtype), mode="drop")
        v_part = v_part.at[*lead, rows, :, column].set(v.astype(v_part.dtype), mode="drop")
        written.append((k_part, v_part))
        start += s
    return tuple(written)


def insert(
    cache: Cache,
    fresh: jax.Array,  # bool[B]
    source: jax.Array,  # i32[B]
    k: jax.Array,  # [L, P, T, K, Dh]
    v: jax.Array,
    mesh: Mesh | None = None,
) -> Cache:
    """Writes the keys and values of P prompts, from `prefill`, as the first T tokens of the `fresh` rows.

    Args:
        source: the prompt of each fresh row.
    """
    k, v = k.transpose(0, 1, 3, 4, 2), v.transpose(0, 1, 3, 2, 4)
    if mesh is not None and mesh.size > 1:  # a selection row by row, without communication
        return _map_first(cache, partial(_choose_rows, fresh), k[:, source], v[:, source])
    order = jnp.argsort(~fresh)  # fresh rows first

    def put_one(i: jax.Array, cache: Cache) -> Cache:
        row = order[i]
        some = (jax.lax.dynamic_slice_in_dim(x, source[row], 1, axis=1) for x in (k, v))
        return _map_first(cache, partial(_put_row, row), *some)

    return jax.lax.fori_loop(0, jnp.sum(fresh), put_one, cache)


def _map_first(cache: Cache, put: Callable[..., jax.Array], k: jax.Array, v: jax.Array) -> Cache:
    """put(part, new) for each part of the cache that k [L, b, K, Dh, T] and v [L, b, K, T, Dh] reach into."""
    stacked, T = cache[0][0][0].ndim == 5, k.shape[-1]
    layers = []
    for l, parts in enumerate(cache):
        written, start = [], 0
        k_new, v_new = (k, v) if stacked else (k[l], v[l])
        for k_part, v_part in parts:
            end = min(start + k_part.shape[-1], T)
            if end > start:
                k_part = put(k_part, k_new[..., start:end].astype(k_part.dtype))
                v_part = put(v_part, v_new[..., start:end, :].astype(v_part.dtype))
            written.append((k_part, v_part))
            start += k_part.shape[-1]
        layers.append(tuple(written))
    return tuple(layers)


def _choose_rows(fresh: jax.Array, part: jax.Array, new: jax.Array) -> jax.Array:
    first = tuple(slice(n) for n in new.shape)
    return part.at[first].set(jnp.where(fresh[:, None, None, None], new, part[first]))


def _put_row(row: jax.Array, part: jax.Array, new: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(part, new, row, axis=part.ndim - 4)


def partition(rows: int, kv_heads: int, mesh: Mesh) -> tuple[tuple[str, ...] | None, str | None]:
    """The mesh axes that the cache's rows and kv heads are sharded over; None: not divisible, replicated."""
    fits = rows % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0
    return ("data", "fsdp") if fits else None, "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None


def over_rows_and_heads(
    attend: Callable[..., Any],
    mesh: Mesh | None,
    q: jax.Array,  # [B, H, Dh]
    k: jax.Array,  # [B, K, Dh]
    v: jax.Array,
    positions: jax.Array,  # i32[B]
    window: jax.Array | int,
    parts: tuple[Part, ...],
    l: jax.Array | None,
) -> tuple[jax.Array, tuple[Part, ...]]:
    """attend(q, k, v, positions, window, parts, l) -> mixed [B, H, Dh], parts; on each device for its rows and heads.

    Rows and heads are independent, so devices exchange nothing.
    """
    if mesh is None or mesh.size == 1:
        return attend(q, k, v, positions, window, parts, l)
    rows, heads = partition(k.shape[0], k.shape[1], mesh)
    new, part = PartitionSpec(rows, heads), PartitionSpec(*(() if l is None else (None,)), rows, heads)
    specs = new, new, new, PartitionSpec(rows), PartitionSpec(), part, PartitionSpec()
    local: Any = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=(new, part), check_vma=False)
    return local(q, k, v, positions, jnp.asarray(window), parts, l)
