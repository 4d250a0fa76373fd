"""The matmul of every layer: operands in their own precision, sums in f32, forward and backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Operands = tuple[jax.Array, jax.Array]


@jax.custom_vjp
def matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """x [..., M, K] @ y [..., K, N] -> f32[..., M, N], with y taken in x's dtype.

    Where x is bf16, so are the operands of the gradient's two matmuls, which JAX would make f32 ones because the
    output is f32. The gradient of an f32 y (the master weights) is not rounded to bf16.
    """
    return jnp.einsum("...mk,...kn->...mn", x, y.astype(x.dtype), preferred_element_type=jnp.float32)


def _forward(x: jax.Array, y: jax.Array) -> tuple[jax.Array, Operands]:
    return matmul(x, y), (x, y)


def _backward(operands: Operands, gradient: jax.Array) -> Operands:
    x, y = operands
    g = gradient.astype(x.dtype)
    dx = jnp.einsum("...mn,...kn->...mk", g, y.astype(x.dtype), preferred_element_type=jnp.float32)
    dy = jax.lax.platform_dependent(x, g, cpu=_transposed_on_cpu, default=_transposed)
    return dx.astype(x.dtype), dy.astype(y.dtype)


def _transposed(x: jax.Array, g: jax.Array) -> jax.Array:
    """x^T g, f32[..., K, N]."""
    return jnp.einsum("...mk,...mn->...kn", x, g, preferred_element_type=jnp.float32)


def _transposed_on_cpu(x: jax.Array, g: jax.Array) -> jax.Array:
    """The same, with bf16 x transposed in memory, as XLA's fast bf16 matmul wants it.

    It would take both operands to f32 instead, a fourth of the speed. Two axes in the place of K keep it from folding
    the transpose into the matmul.
    """
    *lead, M, K = x.shape
    if x.dtype != jnp.bfloat16 or lead or K % 2:
        return _transposed(x, g)
    x_transposed = x.reshape(M, 2, K // 2).transpose(1, 2, 0).reshape(K, M)
    return jax.lax.optimization_barrier(jnp.matmul(x_transposed, g, preferred_element_type=jnp.float32))


matmul.defvjp(_forward, _backward)
