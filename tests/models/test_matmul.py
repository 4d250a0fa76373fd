"""The matmul's value and gradient against float64 NumPy, and the precision of its parts."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.matmul import matmul_transposed, project, times, times_transposed, transposed_times


def operands(*lead: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(*lead, 5, 7)), rng.normal(size=(*lead, 7, 3)), rng.normal(size=(*lead, 5, 3))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_three_products(lead, dtype):
    rng = np.random.default_rng(0)
    x, y, z, u = (jnp.asarray(rng.normal(size=(*lead, *s)), dtype) for s in ((5, 8), (8, 3), (9, 8), (5, 3)))
    wide = [np.asarray(a, np.float64) for a in (x, y, z, u)]
    mT = lambda a: np.swapaxes(a, -1, -2)  # noqa: E731
    for got, wanted in (
        (times(x, y), wide[0] @ wide[1]),
        (times_transposed(x, z), wide[0] @ mT(wide[2])),
        (transposed_times(x, u), mT(wide[0]) @ wide[3]),
    ):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_projection_by_a_weight(lead):
    x, _, g = operands(*lead)
    w = np.random.default_rng(1).normal(size=(7, 3))
    out, vjp = jax.vjp(project, jnp.float32(x), jnp.float32(w))
    dx, dw = vjp(jnp.float32(g))
    for got, wanted in ((out, x @ w), (dx, g @ w.T), (dw, x.reshape(-1, 7).T @ g.reshape(-1, 3))):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [project, lambda x, y: matmul_transposed(x, y.T)])
@pytest.mark.parametrize("shape", [(6, 8, 4), (5, 7, 3), (84, 64, 32)])
def test_bf16_operands_f32_sums(shape, function):
    """bf16 x with f32 weights: every matmul of value and gradient takes bf16 and gives f32; dy stays f32."""
    M, K, N = shape
    rng = np.random.default_rng(0)
    x, y = jnp.bfloat16(rng.normal(size=(M, K))), jnp.float32(rng.normal(size=(K, N)))
    g = jnp.float32(rng.normal(size=(M, N)))

    @jax.jit
    def value_and_gradients(x, y, g):
        value, vjp = jax.vjp(function, x, y)
        # The second, as tied embeddings use it: XLA must not merge the transposes into a matmul it cannot run.
        return value, *vjp(g), jax.vjp(lambda y: function(x, y.T), y.T)[1](g)[0]

    text = value_and_gradients.lower(x, y, g).as_text()
    dots = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(dots) >= 4
    assert all(re.search(r": \(tensor<\w*xbf16>, tensor<\w*xbf16>\) -> tensor<\w*xf32>", dot) for dot in dots), dots
    value, dx, dy, dy_transposed = value_and_gradients(x, y, g)
    assert (dx.dtype, dy.dtype) == (jnp.bfloat16, jnp.float32)
    exact = lambda a: np.asarray(jnp.bfloat16(a), np.float64)  # noqa: E731
    np.testing.assert_allclose(value, exact(x) @ exact(y), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dy, exact(x).T @ exact(g), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dy_transposed, np.asarray(dy).T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(dx, np.float64), exact(g) @ exact(y).T, rtol=0.01, atol=0.05)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_with_a_stored_transpose(dtype):
    """Value and gradients are those of x @ y.T; in bf16, with operands and gradient rounded and sums in f32."""
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(6, 40)), dtype), jnp.asarray(rng.normal(size=(9, 40)), dtype)
    g = jnp.asarray(rng.normal(size=(6, 9)), jnp.float32)
    value, backward = jax.vjp(matmul_transposed, x, y)
    dx, dy = backward(g)
    wide = [np.asarray(a, np.float64) for a in (x, y, g.astype(dtype))]
    assert value.dtype == jnp.float32 and dx.dtype == dy.dtype == dtype
    rounding = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(value, wide[0] @ wide[1].T, atol=2e-5)
    np.testing.assert_allclose(np.asarray(dx, np.float64), wide[2] @ wide[1], atol=rounding, rtol=rounding)
    np.testing.assert_allclose(np.asarray(dy, np.float64), wide[2].T @ wide[0], atol=rounding, rtol=rounding)
