"""Would int8 weights make sampling faster? A product of few rows with a matrix, from bf16 and from int8.

    python benchmarks/int8_rows.py --rows 1 16 48

A step of decoding reads every weight once. In int8 it reads half, and has to make bf16 of it before the product: in
blocks of rows of the matrix that fit into a core's cache. Both run as XLA compiles them, the fastest of several. The
matrices are those of Qwen2.5-Coder-1.5B.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

MATRICES = {"up": (8960, 1536), "down": (1536, 8960), "query": (1536, 1536)}
BLOCKS = (64, 256)  # rows of the matrix that are made bf16 at a time


def whole(x: jax.Array, weights: jax.Array) -> jax.Array:
    """[rows, in] x [out, in] -> [rows, out]."""
    return lax.dot_general(x, weights, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def dequantized(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
    """The same from int8 [out, in] and a scale for each of its rows."""
    return whole(x, codes.astype(x.dtype)) * scales


def in_blocks(size: int) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """The same, `size` rows of the matrix after the other."""

    def product(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
        parts = lax.map(lambda block: whole(x, block.astype(x.dtype)), codes.reshape(-1, size, codes.shape[1]))
        return jnp.moveaxis(parts, 0, 1).reshape(x.shape[0], -1) * scales

    return product


def fastest(product: Callable[..., jax.Array], arguments: tuple[jax.Array, ...], repeats: int) -> float:
    """Milliseconds."""
    run = jax.jit(product)
    run(*arguments).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run(*arguments).block_until_ready()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 48])
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    key = jax.random.key(0)
    print("| matrix | rows | bf16, ms | int8, whole | " + " | ".join(f"blocks of {b}" for b in BLOCKS) + " |")
    print("| --- | ---: | ---: | ---: |" + " ---: |" * len(BLOCKS))
    for name, shape in MATRICES.items():
        codes = jax.random.randint(key, shape, -127, 128, jnp.int8)
        weights, scales = codes.astype(jnp.bfloat16), jnp.ones(shape[0])
        for rows in options.rows:
            x = jax.random.normal(key, (rows, shape[1]), jnp.bfloat16)
            times = [fastest(whole, (x, weights), options.repeats)]
            for product in (dequantized, *map(in_blocks, BLOCKS)):
                times.append(fastest(product, (x, codes, scales), options.repeats))
            print(f"| {name} | {rows} | " + " | ".join(f"{t:.2f}" for t in times) + " |", flush=True)


if __name__ == "__main__":
    main()
