"""The Bradley-Terry loss against the paper's numbers, float64 NumPy, and what must not change it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms.batch import Batch
from jaxrl.algorithms.bradley_terry import REJECTED, bradley_terry_loss, pair_weights

PAIRS = ((0, 1), (0, 2))  # of answers with the pass rates 1.0, 0.5, 0.1
ANSWERS = [("a", "b"), ("a", "c")]


def batch_of(weights, pairs, width: int) -> Batch:
    """Pair i in row i: the rejected one's score stands at column r + 1, the chosen one's at c + r + 2."""
    mask, weight, back = np.zeros((3, len(pairs), width), np.float32)
    for row in range(len(pairs)):
        mask[row, 7], weight[row, 7], back[row, 7] = 1, weights[row], 4
    zeros = np.zeros((len(pairs), width), np.float32)
    ints = np.zeros((len(pairs), width), np.int32)
    return Batch(ints, ints, ints, mask, weight, zeros, zeros, extras={REJECTED: back})


def loss_of(scores, average: str, pairs=PAIRS, questions=("q", "q"), answers=None):
    """The loss as a function of the answers' scores, which stand in the batch's rows."""
    weights = pair_weights(questions, average, answers or ANSWERS)
    batch = batch_of(weights, pairs, 12)

    def loss(scores):
        noise = jnp.asarray(np.random.default_rng(0).normal(size=(len(pairs), 12)), jnp.float32)  # of other tokens
        rows = jnp.stack([noise[i].at[7].set(scores[c]).at[3].set(scores[r]) for i, (c, r) in enumerate(pairs)])
        return bradley_terry_loss(rows, batch)[0]

    return loss(jnp.asarray(scores, jnp.float32)), jax.grad(loss)(jnp.asarray(scores, jnp.float32))


@pytest.mark.parametrize(
    ("average", "expected"),
    [("answers", 0.0857791609168292), ("question", 0.2573374827504876), ("pair", 0.2573374827504876)],
)
def test_the_numbers_of_the_paper(average, expected):
    """-(1/6) (log s(1) + log s(1.5)) with n = 3 answers, and the mean over the two pairs."""
    assert loss_of([2.0, 1.0, 0.5], average)[0] == pytest.approx(expected, rel=1e-6)


def test_loss_and_gradient_are_those_of_float64():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=6) * 3
    pairs = ((0, 1), (0, 2), (2, 1), (3, 4), (5, 4))
    questions = ("p", "p", "p", "q", "q")
    value, gradient = loss_of(scores, "question", pairs, questions)
    expected, slope = 0.0, np.zeros(6)
    for (c, r), size in zip(pairs, (3, 3, 3, 2, 2)):
        difference = np.float64(np.float32(scores[c])) - np.float32(scores[r])
        expected += np.log1p(np.exp(-difference)) / (2 * size)
        pull = (1 - 1 / (1 + np.exp(-difference))) / (2 * size)  # dL/d chosen = -(1 - sigmoid(difference))
        slope[c] -= pull
        slope[r] += pull
    assert value == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-7)


def test_a_constant_for_all_answers_of_a_question_changes_nothing():
    value, gradient = loss_of([2.0, 1.0, 0.5], "question")
    shifted, same = loss_of([6.0, 5.0, 4.5], "question")
    assert value == pytest.approx(float(shifted), abs=1e-6)
    np.testing.assert_allclose(gradient, same, atol=1e-6)
    assert abs(float(gradient.sum())) < 1e-7


def test_equal_scores_give_log_2_and_half_the_accuracy():
    batch = batch_of([0.5, 0.5], PAIRS, 12)
    value, metrics = bradley_terry_loss(jnp.ones((2, 12)), batch)
    assert value == pytest.approx(np.log(2), rel=1e-6)
    assert float(metrics.sums["accuracy"]) == 1.0 and float(metrics.sums["margin"]) == 0.0


def test_weights_of_pairs():
    questions = ["a", "a", "a", "b"]
    np.testing.assert_allclose(pair_weights(questions, "pair"), [0.25] * 4)
    np.testing.assert_allclose(pair_weights(questions, "question"), [1 / 6] * 3 + [1 / 2])
    answers = [("1", "2"), ("1", "3"), ("2", "3"), ("x", "y")]
    np.testing.assert_allclose(pair_weights(questions, "answers", answers), [1 / 12] * 3 + [1 / 4])
