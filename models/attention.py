"""Softmax attention with grouped queries, over packed segments: one `attention`, a kernel for each platform.

The tokens of a segment are contiguous and in order, so that "not later" can be decided by their indices in the row.
Queries are grouped by the kv head that they share (Ainslie et al., arXiv 2305.13245); kv heads are repeated for cuDNN
only.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache, partial, reduce
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models.matmul import times, times_transposed, transposed_times
from models.sharding import mesh_size, partition_spec, platform

_MASKED = -1e30  # a finite minus infinity: a query without any visible key gives a mean, not NaN
BLOCK = 256  # queries whose scores are in memory at once in the blocked form; more are slower on a CPU, too
PARTS = 4  # of the queries, each over the keys before its end: 5/8 of the work of all keys
SCORES = 2**26  # of new queries over a whole cache, in memory at once: 256 MiB
LANES = 128  # of a TPU; splash attention takes sequences of a multiple of it
KERNELS = ("auto", "splash", "cudnn", "blocked")


def most_segments(row_length: int) -> int:
    """How many segments a row may have: cuDNN needs arrays of a fixed size with one entry for each."""
    return max(16, row_length // 64)


def kernel_of(name: str, mesh: Mesh | None, dtype: jnp.dtype) -> str:
    """The kernel for "auto": splash on TPU, cuDNN on GPU for bf16, blocked elsewhere. Raises ValueError if unknown."""
    if name not in KERNELS:
        raise ValueError(f"attention = {name!r} must be one of: {', '.join(KERNELS)}")
    if name != "auto":
        return name
    where = platform(mesh)
    if where == "gpu" and dtype == jnp.bfloat16 and _cudnn_works():
        return "cudnn"
    return "splash" if where == "tpu" else "blocked"


def attention(
    q: jax.Array,  # [B, T, H, Dh]
    k: jax.Array,  # [B, T, K, Dh], H a multiple of K
    v: jax.Array,  # [B, T, K, Dh]
    segment_ids: jax.Array,  # i32[B, T], 0: padding
    *,
    window: int = 0,  # tokens that a token sees, itself included; 0: all before it
    kernel: str = "blocked",
    mesh: Mesh | None = None,
) -> jax.Array:  # [B, T, H, Dh]
    """softmax(q k^T / sqrt(Dh)) v over the earlier tokens of the own segment; scores and softmax in f32.

    On a mesh every device has whole heads. Rows are sharded over the context axis only: each device has a part of a
    row's queries, and gathers its keys and values (H / K times smaller than the queries).
    """
    (B, T, H, _), K = q.shape, k.shape[2]
    if mesh is None or mesh.size == 1:
        kernel = "blocked" if T < LANES else kernel
        return _run(kernel, window, q, k, v, segment_ids, segment_ids, 0, None)
    rows, time = partition_spec(("batch", "time"), pieces=(B, T), mesh=mesh)
    shards = mesh_size(mesh, time)
    time = time if shards > 1 else None
    tensor = mesh_size(mesh, "tensor")
    heads = "tensor" if H % tensor == 0 and (K % tensor == 0 or tensor % K == 0) else None
    kv_heads = heads if K % tensor == 0 else None
    queries, keys = PartitionSpec(rows, time, heads), PartitionSpec(rows, time, kv_heads)
    if T < LANES or (shards > 1 and T % (LANES * shards)):
        kernel = "blocked"
    built, built_spec = None, PartitionSpec()
    if kernel == "splash":
        built = _splash_kernel(T, H // mesh_size(mesh, heads), window, shards)
        built_spec = built.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, time)))

    def local(q, k, v, query_segments, key_segments, built):
        if time:  # gathered here, so that gradients are reduced to each device's part
            k, v = (jax.lax.all_gather(a, time, axis=1, tiled=True) for a in (k, v))
        if heads and not kv_heads:  # all queries of this device share one kv head
            first = jax.lax.axis_index("tensor") * K // tensor
            k, v = (jax.lax.dynamic_slice_in_dim(a, first, 1, axis=2) for a in (k, v))
        offset = jax.lax.axis_index(time) * q.shape[1] if shards > 1 else 0
        return _run(kernel, window, q, k, v, query_segments, key_segments, offset, built)

    specs = (queries, keys, keys, PartitionSpec(rows, time), PartitionSpec(rows, None), built_spec)
    f = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=queries, check_vma=False)
    return f(q, k, v, segment_ids, segment_ids, built)


def _run(kernel, window, q, k, v, query_segments, key_segments, offset, built):
    if kernel == "splash":
        return splash_attention(q, k, v, query_segments, key_segments, window, built)
    if kernel == "cudnn" and q.shape[1] == k.shape[1]:
        return cudnn_attention(q, k, v, query_segments, window)
    return blocked_attention(q, k, v, query_segments, key_segments, window, offset)


def blocked_attention(
    q: jax.Array,  # [B, T, H, Dh]
    k: jax.Array,  # [B, S, K, Dh]
    v: jax.Array,  # [B, S, K, Dh]
    query_segments: jax.Array,  # i32[B, T]
    key_segments: jax.Array,  # i32[B, S]
    window: int = 0,
    offset: jax.Array | int = 0,  # index of the first query among the keys
    block: int = BLOCK,
) -> jax.Array:  # [B, T, H, Dh]
    """The form in plain XLA: `block` queries at a time, over the keys that any query of their part sees.

    The queries are split into up to PARTS parts, each a loop, so that causality saves close to half of the work.
    """
    T, S = q.shape[1], k.shape[1]
    blocks = -(-T // block)
    if blocks == 1:
        mask = visible(query_segments, key_segments, offset + jnp.arange(T), jnp.arange(S), window)
        return masked_attention(q, k, v, mask)

    queries = _cut(q, block), _cut(query_segments, block), jnp.arange(blocks) * block
    known = isinstance(offset, int)  # otherwise one device's part of the queries, known at run time only
    ends = np.linspace(0, blocks, min(blocks, PARTS) + 1 if known else 2).astype(int).tolist()
    mixed = []
    for begin, end in pairwise(ends):
        first = max(0, offset + begin * block - window + 1) if window and known else 0
        last = min(S, offset + end * block) if known else S

        def some(part, first=first, last=last):
            q, segments, start = part
            index = offset + start + jnp.arange(block)
            mask = visible(segments, key_segments[:, first:last], index, jnp.arange(first, last), window)
            return masked_attention(q, k[:, first:last], v[:, first:last], mask)

        part = jax.tree.map(lambda x, b=begin, e=end: x[b:e], queries)
        # The masks of many blocks are too large to keep for the backward pass; one block needs no loop.
        one = end - begin == 1
        mixed.append(some(jax.tree.map(lambda x: x[0], part))[None] if one else jax.lax.map(jax.checkpoint(some), part))
    return _joined(jnp.concatenate(mixed), T)


def extended_attention(
    q: jax.Array,  # [B, T, H, Dh], new queries
    k: jax.Array,  # [B, S, K, Dh], the cache, theirs included
    v: jax.Array,  # [B, S, K, Dh]
    positions: jax.Array,  # i32[B, T]; keys have positions 0, 1, 2, ..
    window: jax.Array | int = 0,
    scores: int = SCORES,
) -> jax.Array:  # [B, T, H, Dh]
    """Attention of new queries over the cache up to their positions, with at most about `scores` scores in memory."""
    (B, T, H, _), S = q.shape, k.shape[1]

    def some(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        q, positions = part
        distance = positions[:, :, None] - jnp.arange(S)
        return masked_attention(q, k, v, (distance >= 0) & ((window == 0) | (distance < window)))

    block = max(1, scores // (B * H * S))
    if block >= T:
        return some((q, positions))
    return _joined(jax.lax.map(some, (_cut(q, block), _cut(positions, block))), T)


def _cut(x: jax.Array, block: int) -> jax.Array:
    """[B, T, ...] -> [blocks, B, block, ...], with zeros after the last."""
    blocks = -(-x.shape[1] // block)
    x = jnp.pad(x, [(0, 0), (0, blocks * block - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])
    return x.reshape(len(x), blocks, block, *x.shape[2:]).swapaxes(0, 1)


def _joined(blocks: jax.Array, T: int) -> jax.Array:
    """[blocks, B, block, ...] -> [B, T, ...]."""
    x = blocks.swapaxes(0, 1)
    return x.reshape(len(x), -1, *x.shape[3:])[:, :T]


def visible(
    query_segments: jax.Array,  # i32[B, T]
    key_segments: jax.Array,  # i32[B, S], 0: nothing there
    query_index: jax.Array,  # i32[T]
    key_index: jax.Array,  # i32[S]
    window: int = 0,
) -> jax.Array:  # bool[B, T, S]
    """True where the key is in the query's segment, not later, and within the window."""
    distance = query_index[:, None] - key_index
    near = (distance >= 0) & (distance < window) if window else distance >= 0
    same = (query_segments[:, :, None] == key_segments[:, None, :]) & (key_segments[:, None, :] > 0)
    return same & near


def masked_attention(
    q: jax.Array,  # [B, T, H, Dh]
    k: jax.Array,  # [B, S, K, Dh], H a multiple of K
    v: jax.Array,  # [B, S, K, Dh]
    mask: jax.Array,  # bool [B, T, S]
) -> jax.Array:  # [B, T, H, Dh]
    """softmax(q k^T / sqrt(Dh)) v over the keys that `mask` allows, all scores at once."""
    (B, T, H, Dh), (S, K) = q.shape, k.shape[1:3]
    # One matmul a kv head over its queries, batch axes first: twice as fast on CPU as [B, T, H, Dh] einsums.
    # One axis of B * K, since XLA on CPU takes two for a matmul in f32.
    queries = q.reshape(B, T, K, H // K, Dh).transpose(0, 2, 3, 1, 4).reshape(B * K, -1, Dh)
    keys, values = (x.swapaxes(1, 2).reshape(B * K, S, Dh) for x in (k, v))
    mixed = _mixed(queries, keys, values, mask)
    return mixed.reshape(B, K, H // K, T, Dh).transpose(0, 3, 1, 2, 4).reshape(B, T, H, Dh)


@jax.custom_vjp
def _mixed(
    q: jax.Array,  # [B * K, G * T, Dh], the T queries of one head after those of another
    k: jax.Array,  # [B * K, S, Dh]
    v: jax.Array,  # [B * K, S, Dh]
    mask: jax.Array,  # bool [B, T, S]
) -> jax.Array:  # [B * K, G * T, Dh]
    """Attention of all queries of a kv head. The weights are computed again in the backward pass, as in FlashAttention.

    Dao et al., arXiv 2205.14135, appendix B. A query without any visible key gives a mean, and its gradient is 0.
    """
    return _mixed_forward(q, k, v, mask)[0]


def _scores(q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
    """f32[B * K, G * T, S]: q k^T / sqrt(Dh) where it is visible."""
    (B, T, S), scores = mask.shape, times_transposed(q, k) * q.shape[-1] ** -0.5
    return jnp.where(mask[:, None], scores.reshape(B, -1, T, S), _MASKED).reshape(scores.shape)


def _mixed_forward(q, k, v, mask):
    scores = _scores(q, k, mask)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = (times(weights.astype(v.dtype), v) / total).astype(q.dtype)
    # Where nothing is visible, far above the scores, so that the backward pass finds weights of 0.
    log_total = jnp.maximum(highest + jnp.log(total), _MASKED / 2)
    return mixed, (q, k, v, mask, mixed, log_total)


def _mixed_backward(kept, gradient):
    q, k, v, mask, mixed, log_total = kept
    weights = jnp.exp(_scores(q, k, mask) - log_total)
    share = jnp.sum(gradient.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1, keepdims=True)
    of_scores = weights * (times_transposed(gradient, v) - share) * q.shape[-1] ** -0.5
    weights, of_scores = weights.astype(v.dtype), of_scores.astype(q.dtype)
    of_q, of_k, of_v = times(of_scores, k), transposed_times(of_scores, q), transposed_times(weights, gradient)
    return of_q.astype(q.dtype), of_k.astype(k.dtype), of_v.astype(v.dtype), None


_mixed.defvjp(_mixed_forward, _mixed_backward)


def splash_attention(
    q: jax.Array,  # [B, T, H, Dh]
    k: jax.Array,  # [B, S, K, Dh]
    v: jax.Array,  # [B, S, K, Dh]
    query_segments: jax.Array,  # i32[B, T]
    key_segments: jax.Array,  # i32[B, S]
    window: int = 0,
    built: Any = None,  # from `_splash_kernel`; None: this device has all queries, T = S
    interpret: bool = False,
) -> jax.Array:  # [B, T, H, Dh]
    """Splash attention on a TPU, which skips blocks that are masked completely."""
    T, H, Dh = q.shape[1:]
    kernel = built if built is not None else _splash_kernel(T, H, window, 1, interpret)
    pad = -k.shape[1] % LANES  # 0 where queries are sharded
    q = (q * Dh**-0.5).astype(q.dtype)
    q, k, v = (jnp.pad(a, ((0, 0), (0, pad), (0, 0), (0, 0))).transpose(0, 2, 1, 3) for a in (q, k, v))
    segments = splash.SegmentIds(*(jnp.pad(s, ((0, 0), (0, pad))) for s in (query_segments, key_segments)))
    mixed = jax.vmap(kernel)(q, k, v, segment_ids=segments)
    return mixed.transpose(0, 2, 1, 3)[:, :T]


def _splash_kernel(T: int, H: int, window: int, query_shards: int, interpret: bool = False) -> Any:
    """The kernel for rows of T tokens whose queries are sharded over `query_shards` devices."""
    padded = -(-T // LANES) * LANES if query_shards == 1 else T
    shape = (padded, padded)
    mask = splash_mask.LocalMask(shape, (window - 1, 0), 0) if window else splash_mask.CausalMask(shape)
    block_q = next(b for b in (512, 256, 128) if (padded // query_shards) % b == 0)
    block_kv = next(b for b in (512, 256, 128) if padded % b == 0)
    sizes = splash.BlockSizes(
        block_q=block_q, block_kv=block_kv, block_kv_compute=block_kv,
        block_q_dkv=block_q, block_kv_dkv=block_kv, block_kv_dkv_compute=block_kv,
        block_q_dq=block_q, block_kv_dq=block_kv,
    )  # fmt: skip
    with jax.ensure_compile_time_eval():
        return splash.make_splash_mha(
            mask=splash_mask.MultiHeadMask([mask] * H), head_shards=1, q_seq_shards=query_shards, block_sizes=sizes,
            interpret=interpret,
        )  # fmt: skip


@cache
def _cudnn_works() -> bool:
    """Whether cuDNN agrees with the blocked form here, forward and backward; if not, a warning says why."""
    with jax.ensure_compile_time_eval():
        rng = np.random.default_rng(0)
        q, k, v = (jnp.bfloat16(rng.normal(size=(2, 256, heads, 64))) for heads in (4, 2, 2))
        segments = jnp.array([[1] * 100 + [2] * 156, [1] * 30 + [2] * 50 + [0] * 176])

        def total(run, *arrays):
            mixed = run(*arrays)
            return jnp.sum(jnp.where((segments > 0)[:, :, None, None], mixed, 0).astype(jnp.float32) ** 2)

        def gradients(run):
            return jax.jit(jax.grad(partial(total, run), (0, 1, 2)))(q, k, v)

        try:
            found = gradients(lambda q, k, v: cudnn_attention(q, k, v, segments))
            wanted = gradients(lambda q, k, v: blocked_attention(q, k, v, segments, segments))
            worst = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(found, wanted))
            reason = f"its gradient is off by {worst:.2g}" if not worst < 0.05 else ""
        except Exception as error:  # of many types: no cuDNN, an old one, an old GPU
            reason = f"{type(error).__name__}: {str(error).strip()[:200]}"
    if reason:
        warnings.warn(f"attention uses plain XLA, which is slower: cuDNN does not work: {reason}", stacklevel=2)
    return not reason


def cudnn_attention(
    q: jax.Array,  # bf16[B, T, H, Dh]
    k: jax.Array,  # bf16[B, T, K, Dh]
    v: jax.Array,  # bf16[B, T, K, Dh]
    segment_ids: jax.Array,  # i32[B, T], from 1 and rising, at most `most_segments(T)`; 0: padding, at the end
    window: int = 0,
) -> jax.Array:  # [B, T, H, Dh]
    """cuDNN's flash attention on an NVIDIA GPU (Hopper or newer), with the segments given by their offsets.

    JAX's public function does not take packed rows, hence the import of what it calls. Up to JAX 0.10.2 that function
    assumes the same stride for the offsets of keys and values as for those of queries (jax-ml/jax, pull request 39521),
    so kv heads are repeated.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    (_, T, H, Dh), K = q.shape, k.shape[2]
    k, v = (jnp.repeat(heads, H // K, axis=2) for heads in (k, v))
    segments = jnp.arange(1, min(most_segments(T), T) + 1)
    lengths = jnp.sum(segment_ids[:, :, None] == segments, axis=1, dtype=jnp.int32)  # [B, M]
    ends = jnp.cumsum(lengths, axis=1)
    offsets = jnp.pad(ends, ((0, 0), (1, 0)))
    there = lengths > 0
    lengths = jnp.where(there, lengths, -1)
    offsets = jnp.where(jnp.pad(there, ((0, 0), (1, 0)), constant_values=True), offsets, -1)
    mixed: Any = cudnn.dot_product_attention(
        q, k, v, q_seqlen=lengths, kv_seqlen=lengths, q_offsets=offsets, kv_offsets=offsets, scale=Dh**-0.5,
        mask_type=cudnn.MaskType.PADDING_CAUSAL, sliding_window_length=window or None,
    )  # fmt: skip
    return jnp.where((segment_ids > 0)[:, :, None, None], mixed, 0)  # its results for padding are undefined


def decode_attention(
    q: jax.Array,  # [B, H, Dh], one query per row
    parts: Sequence[tuple[jax.Array, jax.Array]],  # keys [B, K, Dh, s] and values [B, K, s, Dh] of each part in turn
    positions: jax.Array,  # i32[B], of the queries; the keys of a row have positions 0, 1, 2, ..
    window: jax.Array | int,  # scalar; 0: no limit
) -> jax.Array:  # [B, H, Dh]
    """Attention of one new token per row over the cache up to its own position.

    Each part is summed relative to its own maximal score, then all relative to the overall maximum (Milakov and
    Gimelshein, arXiv 1805.02867). Parts after a row's position contribute exactly zero, the result for a part does not
    depend on later parts, and parts are added in order: a row's result does not depend on how many parts are given.
    Keys are transposed, so that scores are sums over a strided axis.
    """
    (B, H, Dh), K, start = q.shape, parts[0][0].shape[1], 0
    q, highest, totals, mixed = q.reshape(B, K, H // K, Dh), [], [], []
    for k, v in parts:
        scores = jnp.einsum("bkgd,bkds->bkgs", q, k, preferred_element_type=jnp.float32)
        distance = positions[:, None] - jnp.arange(start, start + k.shape[-1])
        mask = (distance >= 0) & ((window == 0) | (distance < window))
        scores = jnp.where(mask[:, None, None], scores * Dh**-0.5, _MASKED)
        highest.append(jnp.max(scores, axis=-1, keepdims=True))
        weights = jnp.exp(scores - highest[-1])
        totals.append(jnp.sum(weights, axis=-1, keepdims=True))
        mixed.append(jnp.einsum("bkgs,bksd->bkgd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32))
        start += k.shape[-1]
    shares = [jnp.exp(part - reduce(jnp.maximum, highest)) for part in highest]
    total = reduce(jnp.add, [part * share for part, share in zip(totals, shares)])
    mixture = reduce(jnp.add, [part * share for part, share in zip(mixed, shares)])
    return (mixture / total).astype(q.dtype).reshape(B, H, Dh)
