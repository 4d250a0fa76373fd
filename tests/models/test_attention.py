"""Attention over packed rows against float64 NumPy: the blocked form, splash in its interpreter, on any mesh."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import on_eight_devices

from models import attention as kernels
from models.attention import blocked_attention, decode_attention, extended_attention, kernel_of, splash_attention

B, T, H, K, DH = 2, 256, 4, 2, 16


def inputs(T=T, H=H, K=K):
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.normal(size=(B, T, n, DH)) for n in (H, K, K, H))
    ends = [0, T // 3, T // 2, T - 7], [0, T // 5, T - 40, T - 40]
    segments = np.zeros((B, T), np.int32)
    for b, cuts in enumerate(ends):
        for i, (start, end) in enumerate(itertools.pairwise(cuts)):
            segments[b, start:end] = i + 1
    return q, k, v, g, segments


def reference(q, k, v, g, segments, window):
    """Value and gradients in float64, query by query; 0 for padding."""
    out, dq, dk, dv = (np.zeros_like(a) for a in (q, q, k, v))
    group = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(q.shape[:3]):
        if not segments[b, t]:
            continue
        first = max(np.argmax(segments[b] == segments[b, t]), t - window + 1 if window else 0)
        seen, head = slice(first, t + 1), h // group
        scores = k[b, seen, head] @ q[b, t, h] / np.sqrt(DH)
        p = np.exp(scores - scores.max())
        p /= p.sum()
        out[b, t, h] = p @ v[b, seen, head]
        dp = v[b, seen, head] @ g[b, t, h]
        ds = p * (dp - p @ dp) / np.sqrt(DH)
        dv[b, seen, head] += np.outer(p, g[b, t, h])
        dk[b, seen, head] += np.outer(ds, q[b, t, h])
        dq[b, t, h] = ds @ k[b, seen, head]
    return out, dq, dk, dv


def value_and_gradients(run, q, k, v, g, segments):
    """As `reference`, of run(q, k, v)."""
    there = (segments > 0)[:, :, None, None]
    out, vjp = jax.vjp(lambda *a: jnp.where(there, run(*a), 0), *(jnp.float32(a) for a in (q, k, v)))
    return out, *vjp(jnp.float32(g))


@pytest.mark.parametrize("window", [0, 37])
@pytest.mark.parametrize("block", [64, 100, 512])
def test_blocked_attention(block, window):
    q, k, v, g, segments = inputs()
    run = lambda q, k, v: blocked_attention(q, k, v, segments, segments, window, block=block)  # noqa: E731
    found = jax.jit(partial(value_and_gradients, run))(q, k, v, g, segments)
    for got, wanted in zip(found, reference(q, k, v, g, segments, window)):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_bf16_gradients_and_nothing_to_see():
    """In bf16 within its rounding; queries of padding, whose gradient is not 0 here, add nothing to keys and values."""
    q, k, v, g, segments = inputs()
    run = lambda q, k, v: blocked_attention(q, k, v, segments, segments, block=64)  # noqa: E731
    out, vjp = jax.vjp(run, *(jnp.bfloat16(a) for a in (q, k, v)))
    wanted = reference(*(np.asarray(jnp.bfloat16(a), np.float64) for a in (q, k, v, g)), segments, 0)
    there = segments > 0
    for got, right in zip((out, *vjp(jnp.bfloat16(g))), wanted):
        got = np.asarray(got, np.float64)
        np.testing.assert_allclose(got[there], right[there], atol=0.05, rtol=0.02)
    assert not np.asarray(vjp(jnp.bfloat16(g))[1], np.float64)[~there].any()


@pytest.mark.parametrize("length", [256, 200])  # of whole blocks, and to be padded
@pytest.mark.parametrize("window", [0, 37])
def test_splash_attention(window, length):
    q, k, v, g, segments = inputs(length)
    run = lambda q, k, v: splash_attention(q, k, v, segments, segments, window, interpret=True)  # noqa: E731
    found = jax.jit(partial(value_and_gradients, run))(q, k, v, g, segments)
    for a, b in zip(found, reference(q, k, v, g, segments, window)):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_blocks_are_not_all_alive():
    """Memory for the scores of a block of queries, not of all."""
    shape = jax.ShapeDtypeStruct((1, 4096, 4, 16), np.float32)
    segments = jax.ShapeDtypeStruct((1, 4096), np.int32)
    loss = lambda q, k, v, s: blocked_attention(q, k, v, s, s).sum()  # noqa: E731
    memory = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape, segments).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4096 * 4096 * 4 * 4 / 2


def test_kernel_of():
    assert kernel_of("auto", None, jnp.dtype("bfloat16")) == "blocked"  # a CPU
    with pytest.raises(ValueError, match="must be one of: auto, splash, cudnn, blocked"):
        kernel_of("flash", None, jnp.dtype("float32"))


def test_cudnn_is_not_used_where_it_does_not_work():
    with pytest.warns(UserWarning, match="cuDNN does not work"):
        assert not kernels._cudnn_works.__wrapped__()


MESHES = (  # data, fsdp, context, tensor; kernel. Four devices along tensor are more than kv heads.
    ((2, 2, 1, 2), "blocked"),
    ((2, 1, 1, 4), "splash"),
    ((2, 1, 1, 4), "blocked"),
    ((1, 1, 8, 1), "blocked"),
    ((1, 2, 2, 2), "splash"),
)
ON_EIGHT_DEVICES = """
import jax, numpy as np
import models.attention as kernels
from functools import partial
from models.sharding import make_mesh
from models.attention import attention
from test_attention import MESHES, inputs, reference, value_and_gradients
arrays = inputs()
build = kernels._splash_kernel
kernels._splash_kernel = lambda *a: build(*a[:4], True)  # in the interpreter
for window in (0, 37):
    wanted = reference(*arrays, window)
    for sizes, kernel in MESHES:
        run = partial(attention, segment_ids=arrays[-1], window=window, kernel=kernel, mesh=make_mesh(*sizes))
        for a, b in zip(jax.jit(partial(value_and_gradients, run))(*arrays), wanted):
            np.testing.assert_allclose(a, b, atol=1e-4, err_msg=f"{sizes} {kernel}")
print("same on all meshes")
"""


@pytest.mark.slow
def test_every_mesh_of_eight_devices_gives_the_same():
    assert "same on all meshes" in on_eight_devices(ON_EIGHT_DEVICES)


@pytest.mark.parametrize("window", [0, 50])
def test_queries_that_extend_a_cache_some_at_a_time(window):
    """Any number of them at once gives what float64 gives for each."""
    rng, S = np.random.default_rng(1), 90
    q, k, v = rng.normal(size=(2, 13, H, DH)), *rng.normal(size=(2, 2, S, K, DH))
    positions = np.array([np.arange(40, 53), np.arange(77, 90)])
    narrow = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    found = [extended_attention(*narrow, jnp.asarray(positions), window, s) for s in (2**26, 5 * 2 * H * S, 1)]
    for b, t, h in itertools.product(range(2), range(13), range(H)):
        end = positions[b, t] + 1
        seen = slice(max(0, end - window) if window else 0, end)
        scores = k[b, seen, h // (H // K)] @ q[b, t, h] / np.sqrt(DH)
        weights = np.exp(scores - scores.max())
        expected = weights @ v[b, seen, h // (H // K)] / weights.sum()
        for one in found:
            np.testing.assert_allclose(one[b, t, h], expected, atol=2e-6)


@pytest.mark.parametrize("window", [0, 50])
def test_one_query_a_row_over_parts_of_the_cache(window):
    """Against float64, for rows that end in each of three parts; more parts than a row needs change nothing."""
    rng, positions = np.random.default_rng(0), np.array([3, 40, 63, 64, 100, 127, 128, 199])
    rows, lengths = len(positions), (64, 64, 72)
    q, k, v = rng.normal(size=(rows, H, DH)), *rng.normal(size=(2, rows, sum(lengths), K, DH))
    cuts = list(itertools.pairwise(itertools.accumulate(lengths, initial=0)))
    parts = [(k[:, a:b].transpose(0, 2, 3, 1), v[:, a:b].transpose(0, 2, 1, 3)) for a, b in cuts]
    parts, narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (parts, q))
    for count, (_, end) in enumerate(cuts, 1):
        found = np.asarray(jax.jit(decode_attention)(narrow, parts[:count], jnp.asarray(positions), window))
        for b, h in itertools.product(np.flatnonzero(positions < end), range(H)):
            seen = slice(max(0, positions[b] - window + 1) if window else 0, positions[b] + 1)
            scores = k[b, seen, h // (H // K)] @ q[b, h] / np.sqrt(DH)
            weights = np.exp(scores - scores.max())
            expected = weights @ v[b, seen, h // (H // K)] / weights.sum()
            np.testing.assert_allclose(found[b, h], expected, atol=2e-6)
