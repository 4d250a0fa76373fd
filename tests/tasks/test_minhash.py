"""Minhash against exact Jaccard similarity, and its bands against their formula."""

from __future__ import annotations

import random

import numpy as np
import pytest

from jaxrl.tasks.minhash import BANDS, HASHES, Index, estimate, jaccard, shingles, signature


def pair(rng: random.Random) -> tuple[str, str]:
    """Two texts that share a stretch of words of random length."""
    words = [str(rng.randrange(10**6)) for _ in range(rng.randrange(30, 200))]
    kept = rng.randrange(len(words) + 1)
    other = words[:kept] + [str(rng.randrange(10**6)) for _ in range(len(words) - kept)]
    return " ".join(words), " ".join(other)


def test_shingles():
    assert shingles("f(x) = 1") == {"f ( x ) =", "( x ) = 1"}
    assert shingles("A b") == {"a b"} and shingles("") == frozenset()
    assert jaccard(shingles("a b c d e f"), shingles("a b c d e g")) == pytest.approx(1 / 3)
    assert jaccard(frozenset(), frozenset()) == 1


def test_the_estimate_is_close_to_the_similarity():
    rng, errors = random.Random(0), []
    for _ in range(200):
        one, other = pair(rng)
        errors.append(estimate(signature(one), signature(other)) - jaccard(shingles(one), shingles(other)))
    assert np.mean(np.abs(errors) <= 0.15) >= 0.98 and abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 1 / (2 * HASHES**0.5)  # at most sqrt(.25 / 64)


def test_the_ends():
    text = "def f(x):\n    return [v + 1 for v in x if v > 3]"
    assert estimate(signature(text), signature(f"  {text}\n")) == 1
    assert estimate(signature(text), signature("completely other words in a row of seven")) < 0.05
    assert signature("").shape == (HASHES,) and signature(text).dtype == np.uint32


def test_texts_share_a_band_as_often_as_the_formula_says():
    rng, found, expected = random.Random(1), 0, 0.0
    for _ in range(400):
        one, other = pair(rng)
        index = Index()
        index.add(one)
        found += index.most_alike(other) > 0
        similarity = jaccard(shingles(one), shingles(other))
        expected += 1 - (1 - similarity ** (HASHES // BANDS)) ** BANDS
    assert abs(found - expected) < 25  # two and a half standard deviations at most


def test_against_datasketch():
    datasketch = pytest.importorskip("datasketch")
    rng = random.Random(2)
    for _ in range(50):
        sketches, texts = [], pair(rng)
        for text in texts:
            sketch = datasketch.MinHash(num_perm=HASHES)
            for gram in shingles(text):
                sketch.update(gram.encode())
            sketches.append(sketch)
        ours = estimate(*(signature(text) for text in texts))
        assert abs(ours - sketches[0].jaccard(sketches[1])) < 0.3  # both err
