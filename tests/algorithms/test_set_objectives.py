"""pass@k and maj@k credit: enumerated tables, exact gradients over all outcomes, and a bandit with known optima."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms.set_objectives import (
    Settings,
    k_at,
    maj_advantages,
    make_objective,
    max_advantages,
    pkpo_weights,
    subset_advantages,
    vote,
)
from jaxrl.config.rules import check_settings
from jaxrl.errors import UserError
from jaxrl.evaluation.estimators import maj_at_k, pass_at_k
from jaxrl.training.packing import make_batch
from rollouts.episode import Episode, Group, Problem, Reward, Turn


@pytest.mark.parametrize(("rewards", "k", "expected"), [
    ([1, 0, 0, 0], 4, [4, 0, 0, 0]),
    ([1, 1, 0, 0], 4, [0] * 4),
    ([1, 1, 0, 0], 2, [4 / 3, 4 / 3, 0, 0]),
    ([1] + [0] * 7, 4, [4] + [0] * 7),
    ([1] * 3 + [0] * 5, 4, [1.142857] * 3 + [0] * 5),
    ([1] * 5 + [0] * 3, 4, [0.114286] * 5 + [0] * 3),
    ([0.1, 0.5, 0.9, 0.2], 2, [0, 0.466667, 1.266667, 0.066667]),
    ([0.1, 0.5, 0.9, 0.2], 3, [0, 0.3, 1.5, 0]),
    ([0.1, 0.5, 0.9, 0.2], 4, [0, 0, 1.6, 0]),
    ([1] * 4, 2, [0] * 4),
])  # fmt: skip
def test_max(rewards, k, expected):
    found = max_advantages(np.array(rewards), k)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(max_advantages(np.array(rewards) + 3.0, k), found, atol=1e-12)
    brute = subset_advantages(lambda subset: max(rewards[i] for i in subset), len(rewards), k)
    np.testing.assert_allclose(found, brute, atol=1e-12)


@pytest.mark.parametrize(("answers", "k", "expected"), [
    ("aabc", 4, [8 / 3, 8 / 3, 0, 0]),
    ("abbc", 4, [0, -4 / 3, -4 / 3, 0]),
    ("aabb", 4, [2, 2, -2, -2]),
    ("aabb", 3, [1, 1, -1, -1]),
    ("aa-b", 4, [2, 2, 0, 0]),
    ("aaabbbcc", 4, [1.371429] * 3 + [-0.8] * 3 + [-0.514286] * 2),
])  # fmt: skip
def test_maj(answers, k, expected):
    given = [None if a == "-" else a for a in answers]
    rewards = np.array([a == "a" for a in answers], np.float64)
    np.testing.assert_allclose(maj_advantages(given, rewards, k), expected, atol=1e-6)


def test_drawn_subsets_of_maj_estimate_the_exact_advantages():
    answers, k = list("aaabbbcc"), 4
    rewards = np.array([a == "a" for a in answers], np.float64)
    drawn = np.mean([maj_advantages(answers, rewards, k, most=30, seed=s) for s in range(20)], axis=0)
    # Five standard errors of k times a difference in [-1, 1], of 600 subsets.
    np.testing.assert_allclose(drawn, maj_advantages(answers, rewards, k), atol=5 * k / np.sqrt(600))


def test_the_vote_is_that_of_the_evaluation():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 7):
        answers = [[None, "a", "b", "c"][i] for i in rng.integers(0, 4, n)]
        solved = [a == "a" for a in answers]
        for k in range(2, n + 1):
            votes = [
                vote([answers[i] for i in subset], [float(solved[i]) for i in subset])
                for subset in itertools.combinations(range(n), k)
            ]
            np.testing.assert_allclose(np.mean(votes), maj_at_k(answers, solved, k).value, atol=1e-12)


def test_the_sum_is_the_difference_of_the_estimates():
    for n, c, k in itertools.product((4, 7), range(5), (2, 3, 4)):
        rewards = np.arange(n) < c
        expected = k * (pass_at_k(n, c, k) - pass_at_k(n, c, k - 1))
        np.testing.assert_allclose(max_advantages(rewards, k).mean(), expected, atol=1e-12)


@pytest.mark.parametrize(("n", "k"), [(2, 2), (4, 4), (6, 3), (8, 2)])
@pytest.mark.parametrize("estimator", [max_advantages, pkpo_weights])
def test_pass_at_k_is_unbiased(n, k, estimator):
    """p = sigmoid(theta): the mean over samples of A grad log pi, over all 2^n outcomes, is d/dtheta 1 - (1 - p)^k."""
    p, found = 0.3, 0.0
    for outcome in itertools.product((0, 1), repeat=n):
        right = np.array(outcome, np.float64)
        chance = np.prod(np.where(right > 0, p, 1 - p))
        found += chance * np.mean(estimator(right, k) * (right - p))
    np.testing.assert_allclose(found, k * (1 - p) ** (k - 1) * p * (1 - p), atol=1e-12)


@pytest.mark.parametrize(("n", "k"), [(3, 3), (5, 3), (5, 2)])
def test_maj_at_k_is_unbiased(n, k):
    """Softmax over three answers, the first right; the exact gradient by differentiating the exact objective."""
    with jax.enable_x64(True):

        def objective(logits):
            logp = jax.nn.log_softmax(logits)
            outcomes = itertools.product(range(3), repeat=k)
            return sum(jnp.exp(sum(logp[a] for a in o)) * vote(o, [float(a == 0) for a in o]) for o in outcomes)

        logits = jnp.array([0.2, -0.1, 0.4])
        exact, pi, found = np.asarray(jax.grad(objective)(logits)), np.asarray(jax.nn.softmax(logits)), np.zeros(3)
        for o in itertools.product(range(3), repeat=n):
            A = maj_advantages(o, np.array([float(a == 0) for a in o]), k)
            found += np.prod(pi[list(o)]) * (A[:, None] * (np.eye(3)[list(o)] - pi)).mean(axis=0)
    np.testing.assert_allclose(found, exact, atol=1e-12)


@pytest.mark.parametrize(("k", "optimum"), [(1, (0, 0, 1)), (2, (0.45, 0.45, 0.10)), (4, (0.475, 0.475, 0.05))])
def test_a_bandit_whose_optimum_depends_on_k(k, optimum):
    """Arm a is right in context 1, b in 2, c when a bit of chance 0.55 is 1; the k draws share context and bit.

    Trained by the expected estimator: all outcomes of k draws, so that nothing is left to chance.
    """
    worlds = [(np.array([c == 1, c == 2, bit], np.float64), 0.5 * (0.55 if bit else 0.45))
              for c in (1, 2) for bit in (0, 1)]  # fmt: skip
    outcomes = np.array(list(itertools.product(range(3), repeat=k)))
    A = np.zeros(outcomes.shape)
    for right, chance in worlds:
        A += chance * np.array([right[o] if k == 1 else max_advantages(right[o], k) for o in outcomes])
    credit = jnp.asarray(A)

    @partial(jax.jit, static_argnums=1)
    def train(logits, steps):
        def surrogate(logits):
            logp = jax.nn.log_softmax(logits)[outcomes]
            weight = jax.lax.stop_gradient(jnp.exp(logp.sum(1)))
            return jnp.sum(weight * jnp.mean(credit * logp, axis=1))

        return jax.lax.fori_loop(0, steps, lambda _, x: x + 2.0 * jax.grad(surrogate)(x), logits)

    np.testing.assert_allclose(jax.nn.softmax(train(jnp.zeros(3), 2000)), optimum, atol=0.05)


def group_of(solved, answers=None):
    problem = Problem("p", ())
    one = [
        Episode(
            problem,
            np.array([1], np.int32),
            [Turn("assistant", np.array([2, 3], np.int32), True, np.array([-1.0, -1.0], np.float32))],
            reward=Reward(float(s), bool(s), answer=a),
            status="finished",
            text="",
        )
        for s, a in zip(solved, answers or [None] * len(solved))
    ]
    return Group(problem, one)


def test_batches_count_groups_by_their_advantages():
    objective = make_objective(Settings(objective_k=4), max_new_tokens=4)
    groups = [group_of(s) for s in ([1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0])]
    batch, log = make_batch(groups, objective, row_length=8, microbatch_rows=1)
    assert (log["groups"], log["groups_without_signal"], log["groups_too_small"]) == (3, 2, 1)
    assert log["episodes"] == 8 and log["without_gradient"] == 7
    assert sorted(set(np.asarray(batch.advantages).ravel())) == [0, 4]


def test_centred_advantages_push_wrong_samples_down():
    objective = make_objective(Settings(objective_k=4, objective_centred=True), max_new_tokens=4)
    assert [c and c.advantage for c in objective.credit(group_of([1, 0, 0, 0]).episodes)] == [3, -1, -1, -1]


def test_k_is_a_function_of_the_step_alone():
    settings = Settings(objective_k=8, objective_k_last=2, objective_k_steps=13)
    assert [k_at(settings, step) for step in (1, 2, 3, 7, 12, 13, 14, 1000)] == [8, 8, 7, 5, 2, 2, 2, 2]
    rising = Settings(objective_k=2, objective_k_last=4, objective_k_steps=1)  # from the second step on
    assert [k_at(rising, step) for step in (1, 2, 3)] == [2, 4, 4]
    objective = make_objective(settings, max_new_tokens=4)
    group, solved = group_of([1, 1, 0, 0, 0, 0, 0, 0]), np.array([1, 1, 0, 0, 0, 0, 0, 0])
    assert objective.smallest_group == 8
    for step in (13, 1, 7, 1):
        now, k = objective.at(step), k_at(settings, step)
        np.testing.assert_allclose([c.advantage for c in now.credit(group.episodes) if c], max_advantages(solved, k))
        batch, log = make_batch([group, group_of([1, 0, 0])], now, row_length=8, microbatch_rows=1)
        assert now.measure(batch) == {"objective/k": k} and now.loss is objective.loss
        assert log["groups_too_small"] == (k > 3)
    fixed = make_objective(Settings(objective_k=8), max_new_tokens=4)
    assert fixed.at(5) is fixed


@pytest.mark.parametrize("advantage", ["pass_at_k", "pkpo", "maj_at_k"])
def test_annealed_to_one_the_gradient_is_that_of_the_mean(advantage):
    """p = sigmoid(theta): over all outcomes of four samples, d p / d theta."""
    settings = Settings(advantage=advantage, objective_k=3, objective_k_last=1, objective_k_steps=2)
    objective, p, found = make_objective(settings, max_new_tokens=4).at(2), 0.3, 0.0
    for outcome in itertools.product((0, 1), repeat=4):
        right = np.array(outcome, np.float64)
        credit = objective.credit(group_of(outcome, ["a" if r else None for r in outcome]).episodes)
        A = np.array([c.advantage for c in credit if c is not None])
        found += np.prod(np.where(right > 0, p, 1 - p)) * np.mean(A * (right - p))
    np.testing.assert_allclose(found, p * (1 - p), atol=1e-12)


@pytest.mark.parametrize(("settings", "words"), [
    ({"objective_k_last": 2}, "objective_k_steps = 0 must both be above 0"),
    ({"objective_k_steps": 2}, "objective_k_last = 0 and"),
    ({"objective_k_last": 4, "objective_k_steps": 2}, "another k than"),
    ({"objective_k": 1}, "leave_one_out"),
    ({"overlong": "penalty"}, "overlong"),
    ({"advantage": "pkpo", "objective_on": "value"}, "objective_on"),
])  # fmt: skip
def test_settings_that_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        check_settings(Settings(**settings), "grpo.loss")
