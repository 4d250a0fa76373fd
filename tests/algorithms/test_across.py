"""Advantages on the scale of a step's whole batch, against loops over episodes as TRL and verl write them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_credit import group_of
from test_policy_gradient import MAX_NEW_TOKENS, make_case

from jaxrl.algorithms.policy_gradient import Settings, make_objective
from jaxrl.config.rules import check_settings
from jaxrl.errors import UserError
from jaxrl.training.packing import make_batch
from rollouts.episode import Episode, Group


def of_parts(groups: list[Group], config: Settings, parts: int = 1) -> dict[int, float]:
    """Advantages by token id of the step's groups, in that many updates' batches."""
    objective, cuts = (
        make_objective(config, max_new_tokens=MAX_NEW_TOKENS),
        np.array_split(np.arange(len(groups)), parts),
    )
    batches = [make_batch([groups[i] for i in cut], objective, row_length=40, microbatch_rows=2)[0] for cut in cuts]
    found: dict[int, float] = {}
    for batch in objective.across(batches, groups):
        mask = np.asarray(batch.loss_mask) > 0
        assert not np.asarray(batch.advantages)[~mask].any()
        found |= dict(zip(np.asarray(batch.tokens)[mask].tolist(), np.asarray(batch.advantages)[mask].tolist()))
    return found


def tokens_of(e: Episode) -> list[int]:
    return [int(t) for turn in e.turns if turn.sampled for t in turn.tokens]


def trl_batch(groups: list[Group], advantage: str, epsilon: float = 1e-4) -> dict[int, float]:
    """GRPOTrainer, scale_rewards = "batch": (rewards - mean of the group) / (rewards.std() + 1e-4)."""
    rewards = [e.reward.value for g in groups for e in g.episodes]
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    found = {}
    for g in groups:
        own = [e.reward.value for e in g.episodes]
        for i, e in enumerate(g.episodes):
            others = own if advantage == "group_mean" else own[:i] + own[i + 1 :]
            found |= dict.fromkeys(tokens_of(e), (own[i] - sum(others) / len(others)) / (std + epsilon))
    return found


def verl_reinforce_plus_plus(groups: list[Group], baseline: bool) -> dict[int, float]:
    """compute_reinforce_plus_plus(_baseline)_outcome_advantage: masked_whiten over the response's tokens, gamma 1."""
    found = {}
    for g in groups:
        mean = sum(e.reward.value for e in g.episodes) / len(g.episodes) if baseline else 0.0
        for e in g.episodes:
            found |= dict.fromkeys(tokens_of(e), e.reward.value - mean)
    n, mean = len(found), sum(found.values()) / len(found)
    variance = sum((a - mean) ** 2 for a in found.values()) / n * n / (n - 1)
    return {t: (a - mean) / math.sqrt(variance + 1e-8) for t, a in found.items()}


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("advantage", ["group_mean", "leave_one_out"])
def test_the_batchs_std_is_trls(advantage, parts):
    groups = make_case(seed=3, problems=6).groups
    for e in groups[2].episodes:  # no gradient, and no row: its rewards count in the std all the same
        e.reward = groups[0].episodes[0].reward
    found = of_parts(groups, Settings(advantage=advantage, batch_scale="std"), parts)
    expected = trl_batch(groups, advantage)
    absent = {t for t, a in expected.items() if abs(a) < 1e-12}
    assert found.keys() == expected.keys() - absent and absent >= {t for e in groups[2].episodes for t in tokens_of(e)}
    np.testing.assert_allclose([found[t] for t in found], [expected[t] for t in found], rtol=1e-6)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("baseline", [True, False])
def test_whitening_is_verls_reinforce_plus_plus(baseline, parts):
    groups = make_case(seed=4, problems=6).groups
    config = Settings(advantage="group_mean" if baseline else "reward", batch_scale="whiten", advantage_epsilon=0)
    found, expected = of_parts(groups, config, parts), verl_reinforce_plus_plus(groups, baseline)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[t] for t in expected], list(expected.values()), rtol=1e-6, atol=1e-6)


def test_without_a_baseline_the_advantage_is_the_reward():
    groups = make_case(seed=5).groups
    found = of_parts(groups, Settings(advantage="reward"))
    expected = {t: e.reward.value for g in groups for e in g.episodes for t in tokens_of(e) if e.reward.value}
    assert found == expected  # quarters are exact; a reward of 0 has no gradient and no row


@pytest.mark.parametrize("settings", [
    {"advantage": "group_mean", "batch_scale": "std"}, {"advantage": "reward", "batch_scale": "whiten"},
    {"advantage": "group_mean", "batch_scale": "whiten"},
])  # fmt: skip
def test_equal_rewards_give_exactly_zero(settings):
    objective = make_objective(Settings(**settings), max_new_tokens=4)
    groups = [group_of([0.1] * 3, name="p"), group_of([0.1] * 3, name="q")]
    batch, _ = make_batch(groups, objective, row_length=8, microbatch_rows=2)
    (batch,) = objective.across([batch], groups)
    assert not np.asarray(batch.advantages).any()


def test_unjudged_episodes_and_penalties_are_as_in_the_credit():
    """The sandbox's failure is not a reward of the batch; the overlong penalty is part of one."""
    groups = [group_of([0, 1, 1]), group_of([0, 1, 0.5], ["sandbox_error", "finished", "finished"], "q")]
    config = Settings(advantage="group_mean", batch_scale="std", overlong="penalty", overlong_buffer=2)
    objective = make_objective(config, max_new_tokens=2)  # an episode of one token: half of the penalty
    batch, _ = make_batch(groups, objective, row_length=8, microbatch_rows=2)
    before = np.asarray(batch.advantages)
    (batch,) = objective.across([batch], groups)
    std = np.std(np.array([0, 1, 1, 1, 0.5]) - 0.5, ddof=1)
    np.testing.assert_allclose(batch.advantages, before / (std + 1e-4), rtol=1e-6)


@pytest.mark.parametrize("settings", [
    {"batch_scale": "std"}, {"batch_scale": "whiten"}, {"advantage": "reward", "batch_scale": "std"},
])  # fmt: skip
def test_scales_that_contradict_the_advantage_are_refused(settings):
    with pytest.raises(UserError, match=r"grpo\.loss\.batch_scale = .* needs .*grpo\.loss\.advantage"):
        check_settings(Settings(**settings), "grpo.loss")
