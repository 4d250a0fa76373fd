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
    dy = jnp.einsum("...mk,...mn->...kn", x, g, preferred_element_type=jnp.float32)
    return dx.astype(x.dtype), dy.astype(y.dtype)


matmul.defvjp(_forward, _backward)
