"""8-bit and bf16 numbers against float64: how far off one is, and that the mean of many is not off."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.training.quantization import block_shape, dequantize, quantize, round_to_bfloat16, zeros

STEP = 2 ** (1 / 8) - 1  # relative distance of neighbouring levels


def spread(shape, octaves, signed, seed=0):
    """f32 numbers, log-uniform over so many octaves, and their float64 copies."""
    rng = np.random.default_rng(seed)
    x = 2.0 ** rng.uniform(-octaves, 0, shape) * (rng.choice([-1, 1], shape) if signed else 1)
    x = x.astype(np.float32) * np.float32(1e-4)
    return x, x.astype(np.float64)


def bits(seed, shape):
    return jax.random.bits(jax.random.key(seed), shape, jnp.uint16)


@jax.jit
def roundings(x, like, seeds):
    """Mean of x put in 8 bits and read again with each seed."""
    return jax.lax.map(lambda s: dequantize(quantize(x, like, bits(s, x.shape))), seeds).mean(axis=0)


@pytest.mark.parametrize("shape, block", [((2, 64, 24), (64, 1)), ((2, 16, 96), (1, 96))], ids=str)
@pytest.mark.parametrize("signed, octaves", [(True, 14), (False, 30)])
def test_eight_bits_are_within_a_level_of_the_number_and_right_on_average(shape, block, signed, octaves):
    x, exact = spread(shape, octaves, signed)
    like = zeros(shape, block, signed)
    once = dequantize(quantize(jnp.asarray(x), like, bits(0, shape)))
    error = np.abs(np.asarray(once, np.float64) / exact - 1)
    assert error.max() < STEP + 1e-4 and error.mean() < STEP / 2
    draws = 4000
    mean = np.asarray(roundings(jnp.asarray(x), like, jnp.arange(draws)), np.float64) / exact - 1
    # One draw has a standard deviation of at most STEP / 2; five of them for the largest of a few thousand means.
    assert np.abs(mean).max() < 5 * STEP / 2 / draws**0.5
    assert abs(mean.mean()) < 5 * STEP / 2 / (draws * x.size) ** 0.5 + 1e-5


def test_numbers_far_below_the_largest_of_their_block():
    """A first moment becomes 0 or the smallest level, right on average; a second moment never becomes 0."""
    x = np.full((1, 1000), 2.0**-20, np.float32)
    x[0, 0] = 1.0
    first = quantize(jnp.asarray(x), zeros(x.shape, (1, 1000), signed=True), bits(0, x.shape))
    values = np.asarray(dequantize(first))[0, 1:]
    smallest = 2.0**-15.75
    np.testing.assert_allclose(np.unique(values), [0, smallest], rtol=1e-5)
    share = 2.0**-20 / smallest
    assert np.mean(values > 0) == pytest.approx(share, abs=5 * (share / 1000) ** 0.5)
    second = quantize(jnp.asarray(x**2), zeros(x.shape, (1, 1000), signed=False), bits(0, x.shape))
    np.testing.assert_allclose(np.asarray(dequantize(second))[0, 1:], 2.0**-31.75, rtol=1e-5)


def test_zeros_signs_and_extremes_come_back():
    x = np.zeros((1, 32, 4), np.float32)
    x[0, 0] = [0.0, 1.0, -2.0, 1e-30]
    x[0, 1] = [0.0, -1.0, 2.0, -1e30]
    like = zeros(x.shape, (32, 1), signed=True)
    found = np.asarray(dequantize(quantize(jnp.asarray(x), like, bits(1, x.shape))))
    np.testing.assert_array_equal(found[..., 0], 0)
    np.testing.assert_allclose(found[0, :2, 1:3], x[0, :2, 1:3], rtol=1e-5)  # powers of 2 are levels
    assert found[0, 0, 3] == 0 and found[0, 1, 3] == pytest.approx(-1e30, rel=STEP)
    assert not np.asarray(dequantize(like)).any()


def test_linear_int8_loses_what_the_logarithmic_scale_keeps():
    """A second moment whose sizes differ by 2^20: most of it is 0 in linear steps of the largest, and none is here."""
    x, exact = spread((1, 64, 64), 20, signed=False)
    linear = np.round(exact / exact.max() * 255) * exact.max() / 255
    assert np.mean(linear == 0) > 0.5
    found = np.asarray(dequantize(quantize(jnp.asarray(x), zeros(x.shape, (64, 1), False), bits(0, x.shape))))
    assert (found > 0).all()


@pytest.mark.parametrize("n", [896, 1536, 2048, 3584, 4096, 5120, 8192, 4864, 8960, 18944, 13824, 27648, 14336, 28672])
def test_widths_of_published_models_have_blocks_that_sixteen_devices_do_not_cut(n):
    b, _ = block_shape((24, n, 128))
    assert 16 <= b <= 64 and n % (16 * b) == 0


def test_odd_shapes_have_few_blocks_or_none():
    assert block_shape((2, 24, 8)) == (24, 1)
    assert block_shape((2, 12, 512)) is None


def test_bfloat16_is_rounded_to_a_neighbour_and_right_on_average():
    x, exact = spread((1024,), 40, signed=True)
    draws = 500
    each = jax.jit(lambda seeds: jax.lax.map(lambda s: round_to_bfloat16(x, bits(s, x.shape)), seeds))
    found = np.asarray(each(jnp.arange(draws)).astype(jnp.float32), np.float64)
    below = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    above = ((x.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32)
    assert ((found == below) | (found == above)).all()
    assert np.abs(found.mean(0) / exact - 1).max() < 5 * 2.0**-8 / draws**0.5
    kept = x.astype(jnp.bfloat16).astype(np.float32)  # numbers that are bf16 already stay
    np.testing.assert_array_equal(np.asarray(round_to_bfloat16(kept, bits(0, x.shape)), np.float32), kept)
    special = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 0.0])
    np.testing.assert_array_equal(
        np.asarray(round_to_bfloat16(special, bits(3, (4,))), np.float32), [np.inf, -np.inf, np.nan, 0]
    )
