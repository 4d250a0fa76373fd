"""The keys and values of the tokens so far, for decoding.

Axes: B rows, T tokens of this call, s tokens of a part of the cache, K kv heads, Dh head width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from models.config import ModelConfig

# Keys [B, K, Dh, s] and values [B, K, s, Dh] of the tokens so far, in parts of `cache_parts`: cache[l][i] is
# the i-th part of layer l where layers are unrolled, cache[0][i], with a leading [L], of all where they are scanned.
# Parts are buffers of their own, so that those not in use stay unread and those in use are read without a copy.
Part = tuple[jax.Array, jax.Array]
Cache = tuple[tuple[Part, ...], ...]
FIRST_PART = 128


def cache_parts(length: int) -> list[int]:
    """Lengths of the parts of a cache: each as long as all before it, the last one what is left of `length` tokens."""
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
    positions: jax.Array,  # i32[b] or [b, T]; those beyond the parts are written nowhere
    k: jax.Array,  # [b, K, Dh] or [b, T, K, Dh]
    v: jax.Array,
    l: jax.Array | None = None,  # layer, of parts with a leading [L]
) -> tuple[Part, ...]:
    """One layer's parts with the keys and values of new tokens."""
    written, start, lead = [], 0, () if l is None else (l,)
    for k_part, v_part in parts:
        s = k_part.shape[-1]
        column = jnp.where((positions >= start) & (positions < start + s), positions - start, s)
        k_part = k_part.at[*lead, rows, :, :, column].set(k.astype(k_part.dtype), mode="drop")
        v_part = v_part.at[*lead, rows, :, column].set(v.astype(v_part.dtype), mode="drop")
        written.append((k_part, v_part))
        start += s
    return tuple(written)


def insert(cache: Cache, fresh: jax.Array, k: jax.Array, v: jax.Array) -> Cache:
    """The cache with `prefill`'s keys and values [L, B, T, K, Dh] as the first T tokens of the `fresh` rows bool[B].

    A choice row by row, not a scatter, so that nothing travels where rows are on several devices.
    """
    k, v = k.transpose(0, 1, 3, 4, 2), v.transpose(0, 1, 3, 2, 4)
    stacked, chosen = cache[0][0][0].ndim == 5, fresh[:, None, None, None]
    layers = []
    for l, parts in enumerate(cache):
        written, start = [], 0
        k_new, v_new = (k, v) if stacked else (k[l], v[l])
        for k_part, v_part in parts:
            n = min(start + k_part.shape[-1], k.shape[-1]) - start
            if n > 0:
                k_old, v_old = k_part[..., :n], v_part[..., :n, :]
                k_first = jnp.where(chosen, k_new[..., start : start + n].astype(k_part.dtype), k_old)
                v_first = jnp.where(chosen, v_new[..., start : start + n, :].astype(v_part.dtype), v_old)
                k_part, v_part = k_part.at[..., :n].set(k_first), v_part.at[..., :n, :].set(v_first)
            written.append((k_part, v_part))
            start += k_part.shape[-1]
        layers.append(tuple(written))
    return tuple(layers)


def partition(rows: int, kv_heads: int, mesh: Mesh) -> tuple[tuple[str, ...] | None, str | None]:
    """The mesh axes that rows and kv heads of a cache are cut over; None: not divisible, whole."""
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

    Rows and heads have nothing to do with one another, so that nothing travels.
    """
    if mesh is None or mesh.size == 1:
        return attend(q, k, v, positions, window, parts, l)
    rows, heads = partition(k.shape[0], k.shape[1], mesh)
    new, part = PartitionSpec(rows, heads), PartitionSpec(*(() if l is None else (None,)), rows, heads)
    specs = new, new, new, PartitionSpec(rows), PartitionSpec(), part, PartitionSpec()
    local: Any = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=(new, part), check_vma=False)
    return local(q, k, v, positions, jnp.asarray(window), parts, l)
