"""The chunked bf16 cache of one CPU, against float64 and against itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.config import from_hf
from models.row_cache import CHUNK, decode_attention_by_rows, insert, make_chunks, of_rows, write

K, G, DH, ROWS, LENGTH = 2, 3, 8, 5, 3 * CHUNK - 20
CONFIG = from_hf(
    {
        "model_type": "qwen2", "vocab_size": 16, "hidden_size": K * G * DH, "intermediate_size": 8, "head_dim": DH,
        "num_hidden_layers": 2, "num_attention_heads": K * G, "num_key_value_heads": K, "max_position_embeddings": 512,
    }
)  # fmt: skip


def rounded(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)


def filled(rng: np.random.Generator) -> tuple[tuple, jax.Array, jax.Array]:
    """A cache whose rows are full, and its keys and values [L, ROWS, T, K, Dh]."""
    cache = make_chunks(CONFIG, ROWS, LENGTH)
    k, v = (rounded(rng, 2, ROWS, LENGTH, K, DH) for _ in range(2))
    return insert(cache, jnp.ones(ROWS, bool), jnp.arange(ROWS), k, v), k, v


def test_a_cache_has_whole_chunks():
    for length, chunks in ((1, 1), (CHUNK, 1), (CHUNK + 1, 2), (LENGTH, 3)):
        cache = make_chunks(CONFIG, ROWS, length)
        assert len(cache) == 2 and cache[0].length == chunks * CHUNK
        assert cache[0].k.shape == (ROWS, chunks, K, DH, CHUNK) and cache[0].v.shape == (ROWS, chunks, K, CHUNK, DH)


def test_prompts_go_into_fresh_rows_only():
    rng = np.random.default_rng(0)
    cache, k, v = filled(rng)
    T, fresh, source = CHUNK + 5, jnp.array([False, True, False, True, True]), jnp.array([0, 1, 0, 0, 1])
    new_k, new_v = (rounded(rng, 2, 2, T, K, DH) for _ in range(2))
    changed = jax.jit(insert)(cache, fresh, source, new_k, new_v)
    for l, layer in enumerate(changed):
        keys, values = of_rows(layer, jnp.arange(ROWS))
        for row in range(ROWS):
            expected = (new_k, new_v) if fresh[row] else (k, v)
            prompt, n = (source[row], T) if fresh[row] else (row, LENGTH)
            np.testing.assert_array_equal(keys[row, :n], expected[0][l, prompt])
            np.testing.assert_array_equal(values[row, :n], expected[1][l, prompt])


def test_tokens_are_written_at_their_positions():
    """One a row, and several; positions outside of the cache are not written."""
    rng = np.random.default_rng(1)
    cache, k, v = filled(rng)
    rows, positions = jnp.array([3, 0, 4]), jnp.array([CHUNK, -1, LENGTH - 1])
    new_k, new_v = (rounded(rng, 3, K, DH) for _ in range(2))
    keys, values = of_rows(jax.jit(write)(cache[0], rows, positions, new_k, new_v), jnp.arange(ROWS))
    expected_k, expected_v = np.array(k[0]), np.array(v[0])
    for i in (0, 2):
        expected_k[rows[i], positions[i]], expected_v[rows[i], positions[i]] = new_k[i], new_v[i]
    np.testing.assert_array_equal(keys[:, :LENGTH], expected_k)
    np.testing.assert_array_equal(values[:, :LENGTH], expected_v)

    places = jnp.array([[5, 6, cache[0].length], [CHUNK - 1, CHUNK, CHUNK + 1], [cache[0].length] * 3])
    many_k, many_v = (rounded(rng, 3, 3, K, DH) for _ in range(2))
    keys, _ = of_rows(write(cache[0], rows[:, None], places, many_k, many_v), jnp.arange(ROWS))
    expected_k = np.array(k[0])
    expected_k[3, [5, 6]], expected_k[0, [CHUNK - 1, CHUNK, CHUNK + 1]] = many_k[0, :2], many_k[1]
    np.testing.assert_array_equal(keys[:, :LENGTH], expected_k)


@pytest.mark.parametrize("window", [0, 50, CHUNK + 7])
def test_attention_equals_float64(window):
    """Rows in any order, that end in each chunk and at its borders; a negative position gives 0."""
    rng = np.random.default_rng(2)
    cache, k, v = filled(rng)
    rows = jnp.array([4, 0, 2, 3, 1, 1, 0])
    positions = jnp.array([0, CHUNK - 1, CHUNK, LENGTH - 1, 2 * CHUNK + 3, 70, -1])
    q = jnp.asarray(rng.normal(size=(len(rows), K * G, DH)), jnp.float32)
    found = np.asarray(jax.jit(decode_attention_by_rows)(q, cache[1], rows, positions, window))
    assert not found[-1].any()
    k, v = np.asarray(k[1], np.float64), np.asarray(v[1], np.float64)
    for i in range(len(rows) - 1):
        end = int(positions[i]) + 1
        seen = slice(max(0, end - window) if window else 0, end)
        for h in range(K * G):
            scores = k[rows[i], seen, h // G] @ np.asarray(q[i, h], np.float64) / np.sqrt(DH)
            weights = np.exp(scores - scores.max())
            np.testing.assert_allclose(
                found[i, h], weights @ v[rows[i], seen, h // G] / weights.sum(), atol=2e-6, err_msg=f"{i} {h}"
            )
