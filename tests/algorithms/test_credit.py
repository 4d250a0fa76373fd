"""Advantages, length penalties, rewards of turns, and how groups are cut."""

from __future__ import annotations

import itertools
import math
from typing import Any

import chex
import numpy as np
import pytest

from jaxrl.algorithms.credit import (
    advantages,
    minibatches,
    on_tokens,
    overlong_penalty,
    token_weights,
    turn_advantages,
    turn_rewards,
)
from jaxrl.algorithms.policy_gradient import Settings
from rollouts.episode import Episode, Group, Problem, Reward, Turn


def reference_advantages(rewards: list[float], config: Settings) -> list[float]:
    G, mean = len(rewards), sum(rewards) / len(rewards)
    if config.advantage == "leave_one_out":
        return [r - sum(rewards[:i] + rewards[i + 1 :]) / (G - 1) for i, r in enumerate(rewards)]
    if config.advantage == "group_mean":
        return [r - mean for r in rewards]
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (G - config.std_ddof))
    return [(r - mean) / (std + config.advantage_epsilon) for r in rewards]


def advantages_of(rewards: np.ndarray, config: Settings) -> np.ndarray:
    return advantages(rewards, config.advantage, std_ddof=config.std_ddof, epsilon=config.advantage_epsilon)


@pytest.mark.parametrize("settings", [
    {"advantage": "group_std"}, {"advantage": "group_std", "std_ddof": 0}, {"advantage": "group_mean"},
    {"advantage": "leave_one_out"},
])  # fmt: skip
def test_advantages(settings):
    config = Settings(**settings)
    rng = np.random.default_rng(0)
    for G in (2, 3, 8, 64):
        rewards = rng.random(G)
        A = advantages_of(rewards, config)
        chex.assert_shape(A, (G,))
        np.testing.assert_allclose(A, reference_advantages(list(rewards), config), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(A.sum(), 0, atol=1e-9)
        np.testing.assert_allclose(advantages_of(rewards + 7, config), A, rtol=1e-9, atol=1e-9)
    # The mean of 0.1, 0.1, 0.1 is 0.10000000000000002 in floating point: equal rewards must not leave such dust.
    for equal in ([0.1] * 3, [1.0] * 4, [0.3], []):
        assert np.array_equal(advantages_of(np.array(equal), config), np.zeros(len(equal)))


def test_the_default_is_the_sample_standard_deviation():
    found = advantages(np.array([0, 0, 0, 1.0]), epsilon=0.0)
    np.testing.assert_allclose(found, [-0.5, -0.5, -0.5, 1.5], rtol=1e-12)


def test_leave_one_out_is_the_scaled_mean_baseline():
    rewards = np.random.default_rng(1).random(6)
    rloo = advantages(rewards, "leave_one_out")
    mean = advantages(rewards, "group_mean")
    np.testing.assert_allclose(rloo, 6 / 5 * mean, rtol=1e-12)


def test_overlong_penalty():
    assert [overlong_penalty(n, 100, 20) for n in (0, 80, 81, 90, 100, 130)] == [0, 0, -0.05, -0.5, -1, -1]
    for buffer in (0, 101):
        with pytest.raises(ValueError, match="overlong_buffer"):
            overlong_penalty(5, 100, buffer)


def group_of(rewards: list[float], statuses: list[str] | None = None, name: str = "p") -> Group:
    problem = Problem(name)
    turn = Turn("assistant", np.array([2], np.int32), True, np.array([-1.0], np.float32))
    statuses = statuses or ["finished"] * len(rewards)
    return Group(problem, [
        Episode(problem, np.array([1], np.int32), [turn], Reward(r, False), s, "")  # pyright: ignore[reportArgumentType]
        for r, s in zip(rewards, statuses)
    ])  # fmt: skip


def test_minibatches_are_a_function_of_seed_and_step():
    groups = [group_of([0, 1], name=f"p{i}") for i in range(10)]

    def names(seed: int, step: int) -> list[list[str]]:
        return [[g.problem.id for g in part] for part in minibatches(groups, 4, seed, step)]

    assert names(0, 5) == names(0, 5)
    assert len({str(names(seed, step)) for seed in (0, 1) for step in range(3)}) == 6
    assert sorted(itertools.chain(*names(0, 5))) == sorted(g.problem.id for g in groups)
    assert sorted(len(part) for part in names(0, 5)) == [2, 2, 3, 3]
    with pytest.raises(ValueError, match=r"minibatches = 11 must be from 1 to the 10 groups"):
        minibatches(groups, 11, 0, 0)


def test_token_weights():
    lengths = [1, 4, 5]
    for averaging, expected in (
        ("token", [1 / 10, 1 / 10, 1 / 10]),
        ("sequence", [1 / 3, 1 / 12, 1 / 15]),
        ("constant", [1 / 24, 1 / 24, 1 / 24]),
    ):
        np.testing.assert_allclose(token_weights(lengths, averaging, 8), expected, rtol=1e-12)


# --- rewards of turns ---


def turn(n: int, sampled: bool, learned: bool | None = None) -> Turn:
    logprobs = np.full(n, -1.0, np.float32) if sampled else None
    return Turn("assistant" if sampled else "tool", np.arange(n, dtype=np.int32), sampled, logprobs, learned)


def episode_of(turns: list[Turn], rewards: tuple[float, ...] | None) -> Episode:
    reward = Reward(1.0, True, turns=rewards)
    return Episode(Problem("HumanEval/7"), np.array([1], np.int32), turns, reward, "finished", "")


def test_turn_rewards_are_on_the_last_learned_token_of_each_sampled_turn():
    turns = [turn(2, True), turn(3, False), turn(3, True), turn(1, True)]
    np.testing.assert_array_equal(turn_rewards(episode_of(turns, (0.5, -1.0, 2.0))), [0, 0.5, 0, 0, -1, 2])
    learned = [turn(2, True), turn(2, False, learned=True), turn(1, True)]  # tool output in the loss has no reward
    np.testing.assert_array_equal(turn_rewards(episode_of(learned, (0.5, 1.0))), [0, 0.5, 0, 0, 1])
    nothing = [turn(2, True), turn(0, True)]  # a turn that ran out of time before a token
    np.testing.assert_array_equal(turn_rewards(episode_of(nothing, (0.5, 0.0))), [0, 0.5])


@pytest.mark.parametrize("rewards, message", [
    (None, "an episode of 2 sampled turns has none turn rewards, must have 2"),
    ((1.0,), "an episode of 2 sampled turns has 1 turn rewards, must have 2"),
    ((1.0, 2.0, 3.0), "an episode of 2 sampled turns has 3 turn rewards, must have 2"),
    ((1.0, math.inf), r"\(1.0, inf\), must be finite"),
    ((1.0, 0.5), "has the reward 0.5 and no learned token"),
])  # fmt: skip
def test_turn_rewards_that_do_not_fit_name_the_problem(rewards: Any, message: str):
    with pytest.raises(ValueError, match=rf"problem HumanEval/7: .*{message}"):
        turn_rewards(episode_of([turn(2, True), turn(1, False), turn(0, True)], rewards))


# --- credit of turns


def close(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_each_turn_is_compared_with_the_episodes_that_have_it():
    """The worth of turns is (1, 1, 0), (0, 0), (0): the third has one episode, and so no advantage."""
    rewards = [(0, 1, 0), (0, 0), (0,)]
    found = turn_advantages(rewards, "group_std", returns=True, std_ddof=0, epsilon=0)
    close(found, [(1.41421356, 1, 0), (-0.70710678, -1), (-0.70710678,)])
    alone = turn_advantages(rewards, "group_std", returns=False, std_ddof=0, epsilon=0)
    close(alone, [(0, 1, 0), (0, -1), (0,)])
    close(turn_advantages([(1, 0), (1, 0)], "group_std", returns=True), [(0, 0), (0, 0)])
    close(turn_advantages([], "group_std", returns=True), [])


def test_a_turns_number_stands_on_its_tokens():
    turns = [
        Turn("assistant", np.arange(2), True, np.zeros(2)),
        Turn("user", np.arange(3), False),
        Turn("assistant", np.arange(1), True, np.zeros(1)),
        Turn("user", np.arange(2), False, learned=True),
    ]
    episode = Episode(Problem("p"), np.arange(1), turns, Reward(0.0, False, turns=(1.0, 2.0)), "finished", "")
    np.testing.assert_array_equal(on_tokens(episode, np.array([0.5, -1.0])), [0.5, 0.5, -1, -1, -1])
