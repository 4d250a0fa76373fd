"""The matmuls of every layer: operands in their own precision, sums in f32, forward and backward."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

Operands = tuple[jax.Array, jax.Array]


class WeightSharding(NamedTuple):
    """How a weight matrix is stored, and how it multiplies: gathered over fsdp and context."""

    kept: NamedSharding
    used: NamedSharding


def times(x: jax.Array, y: jax.Array) -> jax.Array:
    """x [..., M, K] @ y [..., K, N] -> f32[..., M, N]."""
    return jnp.einsum("...mk,...kn->...mn", x, y, preferred_element_type=jnp.float32)


def times_transposed(x: jax.Array, y: jax.Array) -> jax.Array:
    """x [..., M, K] @ y^T, of y [..., N, K] -> f32[..., M, N]."""
    return jnp.einsum("...mk,...nk->...mn", x, y, preferred_element_type=jnp.float32)


def transposed_times(x: jax.Array, y: jax.Array) -> jax.Array:
    """x^T @ y, of x [..., M, K] and y [..., M, N] -> f32[..., K, N]."""
    return jax.lax.platform_dependent(x, y, cpu=_transposed_times_on_cpu, default=_transposed_times)


def _transposed_times(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum("...mk,...mn->...kn", x, y, preferred_element_type=jnp.float32)


def _transposed_times_on_cpu(x: jax.Array, y: jax.Array) -> jax.Array:
    """With bf16 x transposed in memory.

    XLA's fast bf16 matmul needs this layout; otherwise it converts both operands to f32, at a fourth of the speed.
    Splitting K into two axes keeps XLA from folding the transpose into the matmul.
    """
    *lead, M, K = x.shape
    if x.dtype != jnp.bfloat16 or K % 2:
        return _transposed_times(x, y)
    x_transposed = jnp.moveaxis(x.reshape(*lead, M, 2, K // 2), -3, -1).reshape(*lead, K, M)
    return jax.lax.optimization_barrier(times(x_transposed, y))


@jax.custom_vjp
def matmul_transposed(x: jax.Array, y: jax.Array) -> jax.Array:
    """x [M, K] @ y [N, K]^T -> f32[M, N], with y taken in x's dtype; y^T is never made in memory.

    Where x is bf16, so are the operands of the gradient's two matmuls; JAX would use f32 because the output is f32.
    """
    return times_transposed(x, y.astype(x.dtype))


def _transposed_forward(x: jax.Array, y: jax.Array) -> tuple[jax.Array, Operands]:
    return matmul_transposed(x, y), (x, y)


def _transposed_backward(operands: Operands, gradient: jax.Array) -> Operands:
    x, y = operands
    g = gradient.astype(x.dtype)
    return times(g, y.astype(x.dtype)).astype(x.dtype), transposed_times(g, x).astype(y.dtype)


matmul_transposed.defvjp(_transposed_forward, _transposed_backward)


def project(x: jax.Array, w: jax.Array, sharding: WeightSharding | None = None, transposed: bool = False) -> jax.Array:
    """x [..., K] @ w [K, N] -> f32[..., N], with w taken in x's dtype; `transposed`: w is stored as [N, K].

    A sharded w is cast first, then gathered; one reduce-scatter returns its gradient to the shards, unrounded where w
    is f32 (the master weights).
    """
    if transposed:  # of flat rows: with more axes, XLA on CPU would transpose w in memory
        return cast(jax.Array, matmul_transposed(x.reshape(-1, x.shape[-1]), w)).reshape(*x.shape[:-1], -1)
    return cast(jax.Array, _projected(sharding, x, w))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _projected(sharding, x, w):
    return _project(x, _used(x, w, sharding))


def _project(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _used(x: jax.Array, w: jax.Array, sharding: WeightSharding | None) -> jax.Array:
    w = w.astype(x.dtype)
    return w if sharding is None else jax.lax.with_sharding_constraint(w, sharding.used)


def _project_forward(sharding, x, w):
    return _projected(sharding, x, w), (x, w)


def _project_backward(sharding, operands, gradient):
    x, w = operands
    g = gradient.astype(x.dtype)
    last = (((g.ndim - 1,), (1,)), ((), ()))
    dx = jax.lax.dot_general(g, _used(x, w, sharding), last, preferred_element_type=jnp.float32)
    dw = jax.lax.platform_dependent(x, g, cpu=_transposed_on_cpu, default=_transposed)
    if sharding is not None:
        dw = jax.lax.with_sharding_constraint(dw, sharding.kept)
    return dx.astype(x.dtype), dw.astype(w.dtype)


_projected.defvjp(_project_forward, _project_backward)


def _transposed(x: jax.Array, g: jax.Array) -> jax.Array:
    """x^T g, f32[K, N], for x [..., K] and g [..., N]."""
    lead = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, g, ((lead, lead), ((), ())), preferred_element_type=jnp.float32)


def _transposed_on_cpu(x: jax.Array, g: jax.Array) -> jax.Array:
    """The same over flat rows: with two axes XLA would transpose both."""
    return _transposed_times_on_cpu(x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]))
