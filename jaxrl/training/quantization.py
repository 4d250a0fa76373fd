"""Numbers in 8 and 16 bits, rounded up or down at random so that their mean stays what it was.

The moments of Adam move by a share 1 - b of themselves in a step, and parameters by the learning rate: less than the
distance of two neighbouring numbers of 8 or 16 bits. Rounding to the nearest would leave them where they are forever;
rounding at random, with probabilities that keep the mean, lets them move (Gupta et al., arXiv 1502.02551).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

LEVELS = 8  # of an octave: neighbouring numbers differ by 2^(1/8), 9%
_RATIO = 2 ** (1 / LEVELS)
_EMPTY = -128  # exponent of a block of zeros


class EightBit(NamedTuple):
    """Numbers on a logarithmic scale, a block [b, c] of them with an exponent in common (see `block_shape`).

    x = sign(code) 2^(exponent - (top - |code|) / LEVELS), 0 for code 0; top is 127 for i8 codes and 255 for u8 ones.
    Blocks as those of Dettmers et al. (arXiv 2110.02861, section 2.1), but with logarithmic levels in place of the
    paper's dynamic tree: the relative error is the same for every size, and no table is looked up. i8 codes reach down
    to 2^-15.75 of the largest number of a block, u8 codes to 2^-31.75: first moments as far as roots of second ones.
    """

    codes: jax.Array  # i8 or u8 [..., n, k]
    exponents: jax.Array  # i8 [..., n / b, k / c]

    @property
    def signed(self) -> bool:
        return self.codes.dtype == jnp.int8

    def blocks(self, x: jax.Array) -> jax.Array:
        """x [..., n, k] as [..., n / b, b, k / c, c]."""
        *lead, n, k = self.codes.shape
        rows, columns = self.exponents.shape[-2:]
        return x.reshape(*lead, rows, n // rows, columns, k // columns)


def block_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Block [b, c] of matrices [L, n, k]; None: n allows none. The shape alone decides: a checkpoint fits every mesh.

    b numbers along n: a multiple of 8 (rows of a tile on a TPU, where the last axis could not be cut without moving
    data) from 16 to 64 such that n over 64 devices is whole blocks, or n over the largest power of two of devices that
    allows it.
    """
    for devices in (64, 32, 16, 8, 4, 2, 1):
        for b in range(64, 15, -8):
            if shape[-2] % (devices * b) == 0:
                return b, 1
    return None


def zeros(shape: tuple[int, ...], block: tuple[int, int], signed: bool) -> EightBit:
    """Zeros [..., n, k] in blocks [b, c]."""
    *lead, n, k = shape
    exponents = jnp.full((*lead, n // block[0], k // block[1]), _EMPTY, jnp.int8)
    return EightBit(jnp.zeros(shape, jnp.int8 if signed else jnp.uint8), exponents)


def quantize(x: jax.Array, like: EightBit, bits: jax.Array) -> EightBit:
    """x f32[..., n, k] in the form of `like`, with random bits u16[..., n, k]: the mean over the bits is x.

    Without a sign (x >= 0) a positive number below the smallest level becomes that level and never 0, for a second
    moment of 0 would make the step infinite.
    """
    top = 127 if like.signed else 255
    sizes = like.blocks(jnp.abs(x))
    largest = jnp.max(sizes, axis=(-3, -1), keepdims=True)
    exponents = jnp.where(largest > 0, jnp.clip(jnp.ceil(_log2(largest)), -127, 127), _EMPTY)
    level = LEVELS * (_log2(sizes) - exponents) + top
    below = jnp.floor(level)
    share = (jnp.exp2((level - below) / LEVELS) - 1) / (_RATIO - 1)  # of the way to the next level
    if like.signed:
        share = jnp.where(below < 1, jnp.exp2((level - 1) / LEVELS), share)  # from 0 to the smallest level
        below = jnp.maximum(below, 0)
    else:
        share, below = jnp.where(below < 1, 0, share), jnp.maximum(below, 1)
    up = like.blocks((bits.astype(jnp.float32) + 0.5) / 2**16) < share
    codes = jnp.where(sizes > 0, jnp.clip(below + up, 0, top), 0).reshape(x.shape)
    codes = jnp.sign(x) * codes if like.signed else codes
    return EightBit(codes.astype(like.codes.dtype), exponents[..., 0, :, 0].astype(jnp.int8))


def dequantize(x: EightBit) -> jax.Array:
    """f32[..., n, k]."""
    codes = x.blocks(x.codes.astype(jnp.float32))
    exponents = x.exponents.astype(jnp.float32)[..., :, None, :, None]
    sizes = jnp.exp2(exponents - ((127 if x.signed else 255) - jnp.abs(codes)) / LEVELS)
    return jnp.where(codes == 0, 0, jnp.sign(codes) * sizes).reshape(x.codes.shape)


def round_to_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """x f32 as bf16, with random bits u16 of the same shape: the mean over the bits is x.

    The upper half of the 32 bits is the bf16 number next to x towards 0, the lower half how far x is on the way to the
    following one: 16 random bits added carry into the upper half with just that probability.
    """
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32) + bits.astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((pattern >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def _log2(x: jax.Array) -> jax.Array:
    return jnp.log2(jnp.maximum(x, jnp.finfo(jnp.float32).tiny))
