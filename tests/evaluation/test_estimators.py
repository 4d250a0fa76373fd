"""pass@k, maj@k, n@k, best-of-n and the bootstrap against counts over all subsets, orders and resamples."""

from __future__ import annotations

import random
from itertools import chain, combinations, permutations, product

import numpy as np
import pytest

from jaxrl.evaluation.estimators import (
    best_of_n,
    bootstrap_interval,
    maj_at_k,
    n_at_k,
    n_at_k_of_episodes,
    n_at_share,
    pass_at_k,
)  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def voted(subset):
    """The score of a vote among (answer, solved), with ties broken in every way."""
    votes = [answer for answer, _ in subset if answer is not None]
    most = max((votes.count(a) for a in votes), default=0)
    winners = [[ok for b, ok in subset if b == a] for a in set(votes) if votes.count(a) == most]
    return sum(sum(w) / len(w) for w in winners) / len(winners) if winners else 0.0


def test_maj_at_k_is_the_mean_over_subsets():
    rng = random.Random(0)
    for _ in range(30):
        answers = [rng.choice(["a", "b", "c", None]) for _ in range(6)]
        solved = [a == "a" for a in answers]
        for k in range(1, 7):
            scores = [voted(s) for s in combinations(list(zip(answers, solved)), k)]
            assert maj_at_k(answers, solved, k) == (pytest.approx(np.mean(scores)), 0.0)


def test_maj_at_k_by_hand():
    assert maj_at_k(["x", "x", "y"], [True, True, False], 3).value == 1
    assert maj_at_k(["x", "y"], [True, False], 2).value == 0.5  # a tie is split
    assert maj_at_k([None, None, "x"], [False, False, True], 3).value == 1  # no answer has no vote
    assert maj_at_k([None, None], [False, False], 2).value == 0


def test_maj_at_k_of_drawn_subsets_states_its_error():
    answers, solved = [0] * 7 + [1] * 6, [True] * 7 + [False] * 6
    exact = maj_at_k(answers, solved, 5, most=2000)
    drawn = maj_at_k(answers, solved, 5, most=1000)
    assert exact.standard_error == 0 < drawn.standard_error < 0.02
    assert abs(drawn.value - exact.value) < 4 * drawn.standard_error


def submitted_in_order(samples, n):
    return any([solved for public, solved in samples if public][:n])


def test_n_at_k_is_the_mean_over_ordered_subsets():
    rng = random.Random(1)
    for _ in range(20):
        samples = [rng.choice([(False, False), (True, False), (True, True), (False, True)]) for _ in range(5)]
        for n, k in product((1, 2, 3), range(1, 6)):
            orders = list(permutations(samples, k))
            expected = sum(submitted_in_order(o, n) for o in orders) / len(orders)
            assert n_at_k(samples, n, k) == pytest.approx(expected)
            assert n_at_k_of_episodes([[s] for s in samples], n, k) == pytest.approx(expected)


def test_n_at_k_of_episodes_is_the_mean_over_orders_of_episodes():
    rng = random.Random(2)
    kinds = [(False, False), (True, False), (True, True)]
    for _ in range(20):
        episodes = [[rng.choice(kinds) for _ in range(rng.randint(0, 3))] for _ in range(5)]
        for n, k in product((1, 2, 3, 9), range(1, 6)):
            orders = [list(chain(*order)) for order in permutations(episodes, k)]
            expected = sum(submitted_in_order(o, n) for o in orders) / len(orders)
            assert n_at_k_of_episodes(episodes, n, k) == pytest.approx(expected)


def submitted_with_others(samples, n):
    passing, others = ([s for p, s in samples if p == kind] for kind in (True, False))
    return any([*passing, *others][: min(n, len(samples))])


def test_n_at_k_filled_is_the_mean_over_ordered_subsets():
    rng = random.Random(4)
    for _ in range(20):
        samples = [rng.choice([(False, False), (True, False), (True, True), (False, True)]) for _ in range(5)]
        for n, k in product((1, 2, 3, 9), range(1, 6)):
            orders = list(permutations(samples, k))
            expected = sum(submitted_with_others(o, n) for o in orders) / len(orders)
            assert n_at_k(samples, n, k, fill=True) == pytest.approx(expected)


def test_n_at_k_by_hand():
    samples = [(True, True), (True, False), (False, True), (False, False)]
    assert n_at_k(samples, 1, 2) == pytest.approx(2.5 / 6)
    assert n_at_k(samples, 1, 2, fill=True) == pytest.approx(0.5)


def test_parts_of_episodes_are_between_whole_ones():
    episodes = [[(False, False), (True, True)], [(True, False)], [(True, True)], []]
    one, two = (n_at_k_of_episodes(episodes, 1, k) for k in (1, 2))
    assert n_at_share(episodes, 1, 0.0) == 0 and n_at_share(episodes, 1, 0.5) == pytest.approx(one / 2)
    assert n_at_share(episodes, 1, 2.0) == two and n_at_share(episodes, 1, 1.25) == pytest.approx(0.75 * one + two / 4)


def test_n_at_k_meets_pass_at_k():
    """Without public tests, and as many submissions as samples, n@k is pass@k; with one it is pass@1."""
    samples = [(True, i < 3) for i in range(10)]
    assert n_at_k(samples, 4, 4) == pytest.approx(pass_at_k(10, 3, 4))
    assert n_at_k(samples, 1, 4) == pytest.approx(0.3)
    perfect_filter = [(i < 3, i < 3) for i in range(10)]
    assert n_at_k(perfect_filter, 1, 4) == pytest.approx(pass_at_k(10, 3, 4))


def test_best_of_n_is_the_mean_over_subsets():
    rng = random.Random(3)
    for _ in range(30):
        scores = [rng.choice([0.0, 0.5, 1.0, -2.0]) for _ in range(6)]
        solved = [rng.random() < 0.4 for _ in range(6)]
        for n in range(1, 7):
            values = []
            for subset in combinations(range(6), n):
                best = [i for i in subset if scores[i] == max(scores[j] for j in subset)]
                values.append(sum(solved[i] for i in best) / len(best))
            assert best_of_n(scores, solved, n) == pytest.approx(np.mean(values))


def test_bootstrap_interval_is_the_quantile_over_all_resamples():
    values = [0.0, 0.2, 0.5, 1.0]
    means = [np.mean(r) for r in product(values, repeat=4)]
    low, high = bootstrap_interval(values, 0.8, resamples=20_000)
    assert (low, high) == pytest.approx(np.quantile(means, [0.1, 0.9]), abs=0.02)
    assert bootstrap_interval([1.0] * 9) == (1, 1)


def test_bootstrap_interval_has_the_width_of_a_binomial():
    values = [1.0] * 200 + [0.0] * 200
    low, high = bootstrap_interval(values, 0.95, resamples=4000, seed=1)
    assert (high - low) / 2 == pytest.approx(1.96 * (0.25 / 400) ** 0.5, rel=0.06)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(2, 1, 3), "pass@3 needs at least 3 samples a problem, there are 2"),
        (lambda: maj_at_k(["a"], [True], 2), "maj@2"),
        (lambda: n_at_k([(True, True)], 1, 2), "1@2"),
        (lambda: n_at_k_of_episodes([[(True, True)]], 1, 2), "1 submissions of 2 episodes"),
        (lambda: best_of_n([1.0], [True], 2), "best of 2"),
        (lambda: best_of_n([float("nan")], [True], 1), "a score is nan"),
        (lambda: bootstrap_interval([]), "needs values"),
    ],
)
def test_wrong_numbers_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
