"""What N samples of each problem say about k of them: pass@k, maj@k, n@k, best-of-n; and how sure the mean is.

Every estimator is the mean over all subsets of the samples that were drawn, and so unbiased for fresh ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

MOST_SUBSETS = 2_000  # enumerated; of more than this, this many are drawn


class Estimate(NamedTuple):
    """A value, and the standard error of having drawn subsets for it (0 where all were enumerated)."""

    value: float
    standard_error: float


class Interval(NamedTuple):
    low: float
    high: float


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that at least one of k samples is correct, unbiased from `samples` drawn (arXiv 2107.03374, equation 1).

    1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n - c + 1 .. n} (1 - k / i). Raises ValueError if k > samples.
    """
    _check(f"pass@{k}", samples, k)
    return 1.0 - float(np.prod(1.0 - k / np.arange(samples - correct + 1, samples + 1)))


def maj_at_k(
    answers: Sequence[Hashable | None], solved: Sequence[bool], k: int, most: int = MOST_SUBSETS, seed: int = 0
) -> Estimate:
    """Expected score of the answer that most of k samples give (self-consistency, arXiv 2203.11171).

    Answers that are equal form a group, whose score is the share of its samples that are right; groups of the same
    size share the vote evenly. None means no answer: it has no vote; k of them score 0. Exact, over all C(N, k)
    subsets, where there are at most `most` of them; else over `most` drawn at random.
    Raises ValueError if k > samples.
    """
    _check(f"maj@{k}", len(answers), k)

    def vote(subset: Sequence[int]) -> float:
        sizes = Counter(answers[i] for i in subset if answers[i] is not None)
        largest = [a for a, size in sizes.items() if size == max(sizes.values())]
        scores = [np.mean([solved[i] for i in subset if answers[i] == a]) for a in largest]
        return float(np.mean(scores)) if scores else 0.0

    if comb(len(answers), k) <= most:
        votes = [vote(subset) for subset in combinations(range(len(answers)), k)]
        return Estimate(float(np.mean(votes)), 0.0)
    rng = np.random.default_rng(seed)
    votes = [vote(rng.choice(len(answers), k, replace=False).tolist()) for _ in range(most)]
    return Estimate(float(np.mean(votes)), float(np.std(votes, ddof=1) / np.sqrt(most)))


def n_at_k(samples: Sequence[tuple[bool, bool]], n: int, k: int, fill: bool = False) -> float:
    """Chance that one of at most n submissions out of k samples is right (AlphaCode, arXiv 2203.07814, section 2.2).

    A sample is (passes the public tests, passes all tests). Of k drawn without order, those that pass the public tests
    are submitted in random order. With P of the N that pass them, c of these right:

        sum_j C(P, j) C(N - P, k - j) / C(N, k) * (1 - C(P - c, m) / C(P, m)),  m = min(j, n).

    With `fill`, min(n, k) are always submitted: where too few pass the public tests, any of the others come after them
    (arXiv 2410.08105). With d right ones among those others a term's chance to fail has another factor,

        C(N - P - d, f) / C(N - P, f),  f = min(n, k) - m.

    It matters only where the public tests are not among those that decide. Raises ValueError if k > samples.
    """
    _check(f"{n}@{k}", len(samples), k)
    total, public = len(samples), sum(p for p, _ in samples)
    right, others, right_others = sum(p and s for p, s in samples), total - public, sum(s and not p for p, s in samples)
    value = 0.0
    for j in range(min(k, public) + 1):
        submitted = min(j, n)
        fails = comb(public - right, submitted) / comb(public, submitted)
        if fill and j >= k - others:  # else such a draw does not exist
            filled = min(n, k) - submitted
            fails *= comb(others - right_others, filled) / comb(others, filled)
        value += comb(public, j) * comb(others, k - j) / comb(total, k) * (1.0 - fails)
    return value


def n_at_k_of_episodes(episodes: Sequence[Sequence[Sequence[bool]]], n: int, k: int) -> float:
    """n@k where the samples come in episodes: k episodes drawn one after the other, each with its turns in order.

    The programs that pass the public tests are submitted as they come, at most n of them. An episode that submits its
    first right program as the f-th of its own solves the problem when the episodes before it, all without a right one,
    have submitted at most n - f. For one of E episodes, the j before it are any j of the others with chance
    1 / (E C(E - 1, j)), hence the exact value

        sum_{episodes with a right one} sum_{j < k} #{j of those without, with <= n - f submissions} / (E C(E - 1, j)).

    Episodes of one sample give n_at_k. Raises ValueError if k > episodes.
    """
    _check(f"{n} submissions of {k} episodes", len(episodes), k)
    submitted = [[solved for public, solved, *_ in episode if public] for episode in episodes]
    counts = _subsets_by_sum([len(s) for s in submitted if not any(s)], n)
    value = 0.0
    for first in (s.index(True) + 1 for s in submitted if any(s)):
        for before in range(min(k, len(counts))):
            ways = sum(counts[before][: max(n - first + 1, 0)])
            value += ways / (len(episodes) * comb(len(episodes) - 1, before))
    return value


def n_at_share(episodes: Sequence[Sequence[Sequence[bool]]], n: int, k: float) -> float:
    """`n_at_k_of_episodes` for any k >= 0: between whole numbers on the straight line, at 0 it is 0.

    It is what one more episode gives that is drawn with the chance k - floor(k): k is what a budget allows on average.
    """
    whole = int(k)
    low = n_at_k_of_episodes(episodes, n, whole) if whole else 0.0
    return low if k == whole else low + (k - whole) * (n_at_k_of_episodes(episodes, n, whole + 1) - low)


def _subsets_by_sum(numbers: Sequence[int], most: int) -> list[list[int]]:
    """[j][s]: how many subsets of j of the numbers have the sum s, for sums up to `most`."""
    counts = [[0] * (most + 1) for _ in range(len(numbers) + 1)]
    counts[0][0] = 1
    for done, number in enumerate(numbers):
        for size in range(done, -1, -1):
            for total in range(most - number, -1, -1):
                counts[size + 1][total + number] += counts[size][total]
    return counts


def best_of_n(scores: Sequence[float], solved: Sequence[bool], n: int) -> float:
    """Chance that the best-scored of n samples is right; samples of the same score share it evenly.

    With t samples of a score, r of them right, and L of lower scores, the best of n has this score with chance
    (C(L + t, n) - C(L, n)) / C(N, n), and is right with r / t. Raises ValueError if n > samples, or for a score that
    is not a number.
    """
    _check(f"best of {n}", len(scores), n)
    if any(s != s for s in scores):
        raise ValueError("a score is nan; every sample needs a score that can be compared")
    value = 0.0
    for score in set(scores):
        lower = sum(s < score for s in scores)
        right = [ok for s, ok in zip(scores, solved) if s == score]
        chance = (comb(lower + len(right), n) - comb(lower, n)) / comb(len(scores), n)
        value += chance * sum(right) / len(right)
    return value


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the mean over problems (Efron, 1979): problems are drawn anew, with replacement.

    It says what another choice of problems of this kind would have given; not what other samples would have.
    """
    if not len(values) or not 0 < confidence < 1 or resamples < 1:
        raise ValueError("an interval needs values, a confidence between 0 and 1, and resamples >= 1")
    data, rng = np.asarray(values, float), np.random.default_rng(seed)
    means = [data[rng.integers(0, len(data), len(data))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval of the mean of at least two independent values, such as the scores of several seeds.

    mean +- t s / sqrt(n), with s the sample's standard deviation and t the quantile of n - 1 degrees of freedom.
    """
    if len(values) < 2 or not 0 < confidence < 1:
        raise ValueError("a t-interval needs two values, and a confidence between 0 and 1")
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * deviation / np.sqrt(len(values))
    return Interval(mean - half, mean + half)


def _check(what: str, samples: int, k: int) -> None:
    if not 0 < k <= samples:
        raise ValueError(f"{what} needs at least {k} samples a problem, there are {samples}")
