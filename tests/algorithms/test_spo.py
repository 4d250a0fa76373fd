"""SPO: closed forms of the soft-optimal policy, exact gradients over all outcomes, and what must not matter."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms.batch import Batch
from jaxrl.algorithms.spo import (
    Settings,
    cross_entropy,
    make_objective,
    soft_value,
    spo_loss,
    uniform_value,
    with_group_q0,
)
from jaxrl.config.rules import check_settings
from jaxrl.errors import UserError
from jaxrl.training.packing import make_batch
from rollouts.episode import Episode, Group, Problem, Reward, Turn

REFERENCE, REWARDS, BETA = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 0.5]), 0.5
V = 0.5909208329671412
BEST = np.array([0.15335667729997515, 0.6798966550290727, 0.16674666767095211])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def bandit(logits, weights, q0=V, beta=BETA, rewards=REWARDS, reference=REFERENCE, **settings):
    """The loss of one episode of one token for each arm, weighed by D, as the objective computes it."""
    n = len(rewards)
    ones, ids = np.ones((1, n)), np.arange(1, n + 1)[None]
    extras = {"returns": np.asarray(rewards)[None], "q0": q0 * jnp.ones((1, n))}
    batch = Batch(ids, ids, ids, ones, np.asarray(weights)[None], 0 * ones, 0 * ones,
                  reference_logprobs=np.log(reference)[None], extras=extras)  # fmt: skip
    return spo_loss(jax.nn.log_softmax(logits)[None], batch, Settings(beta=beta, **settings))[0]


def descend(loss, start, steps=4000, rate=1.0):
    gradient = jax.grad(loss)
    return np.asarray(jax.jit(lambda x: jax.lax.fori_loop(0, steps, lambda _, x: x - rate * gradient(x), x))(start))


D = [np.ones(3) / 3, REFERENCE, np.array([0.9, 0.05, 0.05])]


def test_closed_form_of_a_bandit():
    assert BETA * np.log(np.sum(REFERENCE * np.exp(REWARDS / BETA))) == pytest.approx(V, abs=1e-12)
    tilted = REFERENCE * np.exp((REWARDS - V) / BETA)
    np.testing.assert_allclose(tilted, BEST, atol=1e-12)
    losses = [float(bandit(jnp.log(REFERENCE), np.eye(3)[i])) for i in range(3)]
    np.testing.assert_allclose(losses, [0.3491874308345799, 0.16734576490029762, 0.008266597867438781], atol=1e-6)


@pytest.mark.parametrize("weights", D)
def test_with_the_exact_value_every_source_of_episodes_has_the_same_limit(weights):
    end = descend(lambda x: bandit(x, weights), jnp.log(REFERENCE))
    np.testing.assert_allclose(jax.nn.softmax(end), BEST, atol=1e-4)
    assert float(bandit(end, weights)) < 1e-8


def test_with_a_wrong_value_the_limit_depends_on_the_source():
    ends = [jax.nn.softmax(descend(lambda x, w=w: bandit(x, w, q0=V + 0.2), jnp.log(REFERENCE))) for w in D]
    assert all(np.abs(end - BEST).max() > 0.01 for end in ends)
    assert np.abs(ends[0] - ends[2]).max() > 0.005


@pytest.mark.parametrize("weights", D)
def test_the_value_of_the_group_is_right_again(weights):
    def loss(x):
        target = REWARDS - BETA * (jax.nn.log_softmax(x) - np.log(REFERENCE))
        return bandit(x, weights, q0=jax.lax.stop_gradient(jnp.sum(weights * target)))

    np.testing.assert_allclose(jax.nn.softmax(descend(loss, jnp.log(REFERENCE))), BEST, atol=1e-4)


@pytest.mark.parametrize(("beta", "expected"), [
    (0.1, [0, 0.5843973029638794, 0.9306898218339272, 1]),
    (1.0, [0, 0.026494065652348457, 0.6201145069582775, 1]),
])  # fmt: skip
def test_the_value_from_samples(beta, expected):
    for solved, value in zip((0, 1, 32, 64), expected):
        assert soft_value([1.0] * solved + [0.0] * (64 - solved), beta) == pytest.approx(value, abs=1e-9)
    assert soft_value([1000.0, 1000.0], 0.001) == pytest.approx(1000)  # no overflow


def test_half_a_success_bounds_the_push_of_the_first_one():
    found = soft_value([0.0] * 64, 0.1, best=1.0)
    assert found == pytest.approx(0.1 * np.log(1 - 1 / 128 + np.exp(10) / 128), abs=1e-12)
    assert 0 < found < soft_value([1.0] + [0.0] * 63, 0.1)
    assert soft_value([1.0, 0.0], 0.1, best=1.0) == soft_value([1.0, 0.0], 0.1)


def test_qrpo():
    assert uniform_value(0.3) == pytest.approx(0.6279104005921472, abs=1e-12)
    grid = (np.arange(200_000) + 0.5) / 200_000
    assert uniform_value(0.3) == pytest.approx(soft_value(grid.tolist(), 0.3), abs=1e-8)


def test_kimi_is_the_squared_loss():
    """(r - tau log Z - tau log(pi / ref))^2 of Kimi k1.5 (arXiv 2501.12599)."""
    x = jnp.array([0.3, -0.2, 0.7])
    log_z = np.log(np.sum(REFERENCE * np.exp(REWARDS / BETA)))
    other = (REWARDS - BETA * log_z - BETA * (jax.nn.log_softmax(x) - np.log(REFERENCE))) ** 2
    assert float(bandit(x, D[0])) == pytest.approx(float(np.mean(other)), abs=1e-9)


def test_on_policy_the_gradient_is_that_of_the_regularized_reward():
    logits = jnp.log(jnp.array([0.4, 0.35, 0.25]))
    pi = np.asarray(jax.nn.softmax(logits))
    q0 = float(np.sum(pi * (REWARDS - BETA * np.log(pi / REFERENCE))))

    def regularized(x):
        p = jax.nn.softmax(x)
        return jnp.sum(p * REWARDS) - BETA * jnp.sum(p * (jnp.log(p) - np.log(REFERENCE)))

    found = jax.grad(lambda x: bandit(x, pi, q0=q0))(logits)
    np.testing.assert_allclose(found, -2 * BETA * jax.grad(regularized)(logits), atol=1e-9)
    np.testing.assert_allclose(found, [0.141275, -0.160358, 0.019083], atol=1e-6)
    normal = jax.grad(lambda x: bandit(x, pi, q0=q0, normalize=True))(logits)
    np.testing.assert_allclose(normal, -jax.grad(regularized)(logits), atol=1e-9)


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_a_tree_of_two_tokens(loss):
    """Both losses end at the tilted distribution of the leaves, whose conditionals are those of V."""
    beta, first, second = 0.5, np.array([0.6, 0.4]), np.array([[0.7, 0.3], [0.2, 0.8]])
    rewards = np.array([[-1.0, -0.2], [-0.5, -2.0]])
    leaves = first[:, None] * second
    value = beta * np.log(np.sum(leaves * np.exp(rewards / beta)))
    of_second = beta * np.log(np.sum(second * np.exp(rewards / beta), 1))
    best_second = second * np.exp((rewards - of_second[:, None]) / beta)
    best_first = first * np.exp((of_second - value) / beta)

    ids = np.repeat(np.arange(1, 5), 2)[None]
    ones, at = np.ones((1, 8)), list(itertools.product(range(2), repeat=2))
    extras = {"returns": np.repeat(rewards.ravel(), 2)[None], "q0": np.full((1, 8), value)}

    def tokens(one, two):
        return jnp.stack([x for a, b in at for x in (one[a], two[a, b])])[None]

    batch = Batch(ids, ids, ids, ones, ones / 8, 0 * ones, 0 * ones,
                  reference_logprobs=np.asarray(tokens(np.log(first), np.log(second))), extras=extras)  # fmt: skip
    settings = Settings(beta=beta, loss=loss, reward_max=0.0)

    def value_of(x):
        log = tokens(jax.nn.log_softmax(x[:2]), jax.nn.log_softmax(x[2:].reshape(2, 2)))
        return spo_loss(log, batch, settings)[0]

    end = descend(value_of, jnp.zeros(6), steps=6000)
    np.testing.assert_allclose(jax.nn.softmax(end[:2]), best_first, atol=1e-4)
    np.testing.assert_allclose(jax.nn.softmax(end[2:].reshape(2, 2), 1), best_second, atol=1e-4)


def test_cross_entropy_pulls_back_from_above_one_and_leaves_the_best_alone():
    slope = jax.vmap(jax.grad(lambda q, r: cross_entropy(q, r)), (0, None))
    q = jnp.array([-3.0, -0.5, -1e-4, 0.0, 2.0])
    np.testing.assert_allclose(slope(q, -0.5)[1], 0.0, atol=1e-12)
    assert (np.sign(slope(q, -0.4)) == [-1, -1, 1, 1, 1]).all()
    np.testing.assert_allclose(slope(q, 0.0), [-1, -1, 0, 0, 0], atol=1e-12)
    p, target = np.exp(-3.0), np.exp(-0.5)
    expected = -(target * np.log(p) + (1 - target) * np.log1p(-p))
    assert float(cross_entropy(q[:1], jnp.array([-0.5]))[0]) == pytest.approx(expected, abs=1e-12)


def groups(rewards=((0.0, 1.0, 1.0), (1.0, 1.0))) -> list[Group]:
    """Episodes of two sampled turns with an inserted one between them."""
    rng, made = np.random.default_rng(0), []
    for p, values in enumerate(rewards):
        problem, episodes = Problem(f"p{p}"), []
        for i, value in enumerate(values):
            turns = [Turn("assistant", rng.integers(1, 50, 2 + i).astype(np.int32), True, -np.ones(2 + i, np.float32)),
                     Turn("user", rng.integers(1, 50, 2).astype(np.int32), False),
                     Turn("assistant", rng.integers(1, 50, 1 + p).astype(np.int32), True,
                          -np.ones(1 + p, np.float32))]  # fmt: skip
            episodes.append(Episode(problem, np.ones(3, np.int32), turns, Reward(value, value == 1), "finished", ""))
        made.append(Group(problem, episodes))
    return made


def made(**settings):
    objective = make_objective(Settings(**settings), max_new_tokens=16)
    objective.reference_rewards.update({"p0": [0.0, 1.0], "p1": [1.0, 0.0, 0.0]})
    batch, log = make_batch(groups(), objective, row_length=32, microbatch_rows=1)
    rng, mask = np.random.default_rng(1), np.asarray(batch.loss_mask)
    reference, old = (rng.normal(-1, 0.5, mask.shape) * mask for _ in range(2))
    batch = dataclasses.replace(batch, reference_logprobs=reference, old_logprobs=old)
    return objective, objective.prepare(batch), log


def test_at_the_reference_the_gradient_is_the_reward_minus_q0():
    _, batch, _ = made(beta=0.3)
    settings, returns, q0 = Settings(beta=0.3), batch.extras["returns"], batch.extras["q0"]
    gradient = jax.grad(lambda x: spo_loss(x, batch, settings)[0])(jnp.asarray(batch.reference_logprobs))
    lengths = {tuple(at): 0 for at in zip(*np.nonzero(batch.loss_mask))}
    for row, t in lengths:
        lengths[row, t] = int(np.sum((batch.segment_ids[row] == batch.segment_ids[row, t]) * batch.loss_mask[row]))
        assert batch.loss_weights[row, t] == pytest.approx(1 / (5 * lengths[row, t]))
        expected = -2 * 0.3 * (returns[row, t] - q0[row, t]) / 5
        assert float(gradient[row, t]) == pytest.approx(expected, abs=1e-6)
    assert not np.asarray(gradient)[np.asarray(batch.loss_mask) == 0].any()
    measured = spo_loss(batch.reference_logprobs, batch, settings)[1].totals
    assert float(measured["spo/log_ratio"]) == 0 and float(measured["spo/q"]) == pytest.approx(
        float(measured["spo/q0"])
    )


def test_inserted_tokens_and_the_cut_do_not_matter():
    objective, batch, _ = made(beta=0.3)
    mask = np.asarray(batch.loss_mask) > 0
    logprobs = np.random.default_rng(2).normal(-1, 0.3, mask.shape)
    wild = np.where(mask, logprobs, 1e30)
    value, gradient = jax.value_and_grad(lambda x: spo_loss(x, batch, Settings(beta=0.3))[0])(jnp.asarray(logprobs))
    other, same = jax.value_and_grad(lambda x: spo_loss(x, batch, Settings(beta=0.3))[0])(jnp.asarray(wild))
    assert float(value) == float(other)
    np.testing.assert_array_equal(gradient, same)
    parts = 0.0
    for row in range(len(mask)):
        cut = jax.tree.map(lambda a, r=row: np.asarray(a)[r : r + 1], batch)
        parts += float(spo_loss(logprobs[row : row + 1], cut, Settings(beta=0.3))[0])
    assert len(mask) > 1 and parts == pytest.approx(float(value), abs=1e-6)
    assert objective.off_policy


def test_the_value_of_the_group_is_over_all_its_episodes_in_all_rows():
    _, batch, _ = made(q0="group", beta=0.3)
    mask, targets = np.asarray(batch.loss_mask), {}
    assert batch.old_logprobs is not None and batch.reference_logprobs is not None
    for row in range(len(mask)):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            at = np.flatnonzero((batch.segment_ids[row] == segment) * mask[row])
            ratio = float(np.sum(batch.old_logprobs[row, at] - batch.reference_logprobs[row, at]))
            key = batch.extras["problem_high"][row, at[0]], batch.extras["problem_low"][row, at[0]]
            targets.setdefault(key, []).append((row, at, batch.extras["returns"][row, at[0]] - 0.3 * ratio))
    assert sorted(map(len, targets.values())) == [2, 3]
    for members in targets.values():
        for row, at, _ in members:
            np.testing.assert_allclose(batch.extras["q0"][row, at], np.mean([m[2] for m in members]), atol=1e-6)
    again = with_group_q0(batch, 0.3)
    np.testing.assert_array_equal(again.extras["q0"], batch.extras["q0"])


def test_credit():
    objective, batch, log = made(beta=0.1)
    learned = np.asarray(batch.loss_mask) > 0
    expected = {np.float32(soft_value(r, 0.1)) for r in ([0.0, 1.0], [1.0, 0.0, 0.0])}
    assert set(np.asarray(batch.extras["q0"])[learned]) == expected
    assert log["episodes"] == 5 and log["without_gradient"] == 0 and log["groups_without_signal"] == 0
    (group, *_) = groups()
    group.episodes[0].status = "truncated"
    assert [c is None for c in objective.credit(group.episodes)] == [True, False, False]
    keep = make_objective(Settings(truncated="keep"), max_new_tokens=16)
    keep.reference_rewards["p0"] = [0.0]
    assert None not in keep.credit(group.episodes)
    keep.reference_rewards["p0"] = []  # none could be judged
    assert keep.credit(group.episodes) == [None] * 3
    del keep.reference_rewards["p0"]
    with pytest.raises(UserError, match="p0 has no samples of the reference policy"):
        keep.credit(group.episodes)


@pytest.mark.parametrize(("settings", "text"), [
    ({"beta": 0.0}, "beta"),
    ({"dynamic_sampling": True}, "dynamic_sampling = True must be False"),
    ({"q0": "uniform", "reward_max": 2.0}, "reward_max = 2.0 must be 1"),
    ({"q0": "group", "q0_half_success": True}, "q0_half_success"),
])  # fmt: skip
def test_settings(settings, text):
    with pytest.raises(UserError, match=text):
        check_settings(Settings(**settings), "grpo.loss")


def test_cross_entropy_needs_the_best_reward():
    objective = make_objective(Settings(loss="cross_entropy", q0="uniform"), max_new_tokens=16)
    with pytest.raises(UserError, match=r"must be at most grpo.loss.reward_max = 1"):
        objective.credit(groups(((0.0, 2.0),))[0].episodes)
