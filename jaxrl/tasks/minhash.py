"""Texts that are nearly the same, found without comparing every pair (Broder, 1997; Leskovec et al., Mining of Massive
Datasets, chapter 3).

The Jaccard similarity of two texts is that of their sets of 5-grams of tokens: |A and B| / |A or B|. A signature holds
the smallest value of each of 64 hashes over the set; two signatures agree in a place with just that chance. Signatures
are looked up by 16 bands of 4 places: texts of similarity s share a band with the chance 1 - (1 - s^4)^16, which is .64
at .5, .99 at .7 and .9998 at .8.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Hashable
from functools import cache

import numpy as np

GRAM, HASHES, BANDS = 5, 64, 16
_TOKEN = re.compile(r"\w+|[^\w\s]")


def shingles(text: str) -> frozenset[str]:
    """The 5-grams of the text's tokens (words and single signs); of a shorter text itself, of an empty one nothing."""
    tokens = _TOKEN.findall(text.lower())
    last = max(len(tokens) - GRAM + 1, min(len(tokens), 1))
    return frozenset(" ".join(tokens[i : i + GRAM]) for i in range(last))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """|one and other| / |one or other|; 1 for two empty sets."""
    return len(one & other) / len(one | other) if one or other else 1.0


def signature(text: str) -> np.ndarray:
    """u32[64]: the least hash of the text's 5-grams, for each of 64 hashes; all ones for an empty text."""
    found = np.array([zlib.crc32(gram.encode()) for gram in shingles(text)], np.uint64)
    if not len(found):
        return np.full(HASHES, 2**32 - 1, np.uint32)
    factors, shifts = _hashes()
    # crc32 with other seeds is no other hash: it is linear, and would order all 5-grams of a length alike.
    return ((found[:, None] * factors + shifts) % np.uint64(_PRIME)).min(0).astype(np.uint32)


def estimate(one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard similarity that two signatures u32[64] suggest; its standard error is sqrt(s (1 - s) / 64)."""
    return float(np.mean(one == other))


_PRIME = (1 << 31) - 1  # products with 32 bits of a hash stay below 2^64


@cache
def _hashes() -> tuple[np.ndarray, np.ndarray]:
    """Factors and shifts u64[64] of the hashes h -> (a h + b) mod p."""
    rng = np.random.default_rng(0)
    return rng.integers(1, _PRIME, HASHES, np.uint64), rng.integers(0, _PRIME, HASHES, np.uint64)


class Index:
    """Texts, among which those that are like another one are found."""

    def __init__(self) -> None:
        self._bands: dict[Hashable, list[int]] = defaultdict(list)
        self._signatures: list[np.ndarray] = []

    def add(self, text: str) -> None:
        made = signature(text)
        for key in _keys(made):
            self._bands[key].append(len(self._signatures))
        self._signatures.append(made)

    def most_alike(self, text: str) -> float:
        """The estimated similarity of the likest text that shares a band; 0 where none does."""
        made = signature(text)
        near = {number for key in _keys(made) for number in self._bands.get(key, ())}
        return max((estimate(made, self._signatures[number]) for number in near), default=0.0)


def _keys(made: np.ndarray) -> list[Hashable]:
    return [(band, part.tobytes()) for band, part in enumerate(made.reshape(BANDS, -1))]
