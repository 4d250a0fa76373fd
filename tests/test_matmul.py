"""The matmul's value and gradient against float64 NumPy, and the precision of its parts."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.matmul import matmul


def operands(*lead: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(*lead, 5, 7)), rng.normal(size=(*lead, 7, 3)), rng.normal(size=(*lead, 5, 3))


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_value_and_gradient(lead):
    x, y, g = operands(*lead)
    out, vjp = jax.vjp(matmul, jnp.float32(x), jnp.float32(y))
    dx, dy = vjp(jnp.float32(g))
    mT = lambda a: np.swapaxes(a, -1, -2)  # noqa: E731
    for got, wanted in ((out, x @ y), (dx, g @ mT(y)), (dy, mT(x) @ g)):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_bf16_operands_f32_sums():
    """bf16 x with f32 weights: every matmul of value and gradient takes bf16 and gives f32; dy stays f32."""
    x, y, g = operands()
    x, y, g = jnp.bfloat16(x), jnp.float32(y), jnp.float32(g)
    both = lambda x, y: jax.vjp(matmul, x, y)[1](g)  # noqa: E731
    dots = [e for e in jax.make_jaxpr(both)(x, y).eqns if e.primitive.name == "dot_general"]
    dots += [e for e in jax.make_jaxpr(matmul)(x, y).eqns[0].params["call_jaxpr"].eqns if "dot" in e.primitive.name]
    assert len(dots) >= 3
    for dot in dots:
        chex.assert_type([v.aval for v in dot.invars], jnp.bfloat16)
        chex.assert_type([v.aval for v in dot.outvars], jnp.float32)
    dx, dy = both(x, y)
    assert (dx.dtype, dy.dtype) == (jnp.bfloat16, jnp.float32)
    exact = lambda a: np.asarray(jnp.bfloat16(a), np.float64)  # noqa: E731
    np.testing.assert_allclose(dy, exact(x).T @ exact(g), rtol=1e-5, atol=1e-5)
