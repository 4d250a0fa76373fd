"""Packing, weights, and what is left out of a batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl.algorithms.batch import Batch, named_arrays
from jaxrl.algorithms.credit import turn_rewards
from jaxrl.algorithms.objective import Credit, Objective
from jaxrl.algorithms.policy_gradient import Settings, make_objective
from jaxrl.training.packing import first_fit_decreasing, make_batch, sft_batch
from models.attention import most_segments
from rollouts.episode import Episode, EpisodeStatus, Group, Problem, Reward, Turn


def episode(
    prompt: int,
    sampled: int,
    reward: float = 0.0,
    status: EpisodeStatus = "finished",
    tool: int = 0,
    more: int = 0,
    first: int = 1,
    problem: str = "p",
) -> Episode:
    """`prompt` tokens, `sampled` tokens, then perhaps `tool` tokens and `more` sampled; ids count up from `first`."""
    ids = np.arange(first, first + prompt + sampled + tool + more, dtype=np.int32)
    prompt_ids, first_turn, tool_ids, second_turn = np.split(ids, np.cumsum([prompt, sampled, tool]))
    turns = [Turn("assistant", first_turn, True, -first_turn.astype(np.float32))]
    if tool:
        turns.append(Turn("tool", tool_ids, False))
    if more:
        turns.append(Turn("assistant", second_turn, True, -second_turn.astype(np.float32)))
    return Episode(Problem(problem), prompt_ids, turns, Reward(reward, False), status, "")


def group(*episodes: Episode) -> Group:
    return Group(episodes[0].problem, list(episodes))


def build(groups: list[Group], row_length: int = 32, rows: int = 1, **loss: Any) -> tuple[Batch, dict[str, float]]:
    settings: dict[str, Any] = {"advantage": "group_mean"} | loss
    objective = make_objective(Settings(**settings), max_new_tokens=10)
    return make_batch(groups, objective, row_length=row_length, microbatch_rows=rows)


def episodes_of(batch: Batch) -> list[dict[str, np.ndarray]]:
    """The fields of each packed episode, read back by segment ids, in order of the first token."""
    fields, found = named_arrays(batch), []
    for b, ids in enumerate(batch.segment_ids):
        for segment in range(1, ids.max() + 1):
            found.append({name: array[b][ids == segment] for name, array in fields.items()})
    return sorted(found, key=lambda e: e["tokens"][0])


def test_episodes_come_back_whole_and_aligned():
    first, second = episode(3, 2, reward=1.0), episode(2, 3, tool=2, more=1, first=11)
    batch, _ = build([group(first, second)], row_length=16)
    chex.assert_shape(jax.tree.leaves(batch), (1, 16))
    a, b = episodes_of(batch)
    np.testing.assert_array_equal(a["tokens"], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(a["positions"], range(5))
    np.testing.assert_array_equal(a["loss_mask"], [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(a["behaviour_logprobs"], [0, 0, 0, -4, -5])
    np.testing.assert_array_equal(a["advantages"], [0, 0, 0, 0.5, 0.5])
    np.testing.assert_array_equal(b["tokens"], range(11, 19))
    np.testing.assert_array_equal(b["positions"], range(8))
    np.testing.assert_array_equal(b["loss_mask"], [0, 0, 1, 1, 1, 0, 0, 1])  # the tool's output is not learned
    np.testing.assert_array_equal(b["behaviour_logprobs"], [0, 0, -13, -14, -15, 0, 0, -18])
    np.testing.assert_array_equal(b["advantages"], [0, 0, -0.5, -0.5, -0.5, 0, 0, -0.5])
    padding = np.asarray(batch.segment_ids) == 0
    assert padding.sum() == 3
    for leaf in jax.tree.leaves(batch):
        assert not np.asarray(leaf)[padding].any()
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(batch)} == {"int32", "float32"}


def test_batch_is_a_pytree_whose_optional_fields_may_be_none():
    batch, _ = build([group(episode(1, 2), episode(1, 2))])
    assert len(jax.tree.leaves(batch)) == 7
    filled = dataclasses.replace(batch, old_logprobs=batch.behaviour_logprobs)
    doubled = jax.jit(lambda b: jax.tree.map(lambda x: 2 * x, b))(filled)
    assert isinstance(doubled, Batch) and doubled.reference_logprobs is None
    np.testing.assert_array_equal(doubled.old_logprobs, 2 * np.asarray(batch.behaviour_logprobs))


@given(st.lists(st.integers(1, 20), max_size=60))
def test_first_fit_decreasing_places_every_item_once(lengths):
    rows = first_fit_decreasing(lengths, 20, 60)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    used = [sum(lengths[i] for i in row) for row in rows]
    assert all(0 < u <= 20 for u in used)
    # Any two rows together hold more than one row could: the later one's first item found no room in the earlier.
    assert all(used[a] + used[b] > 20 for b in range(len(rows)) for a in range(b))
    assert rows == first_fit_decreasing(lengths, 20, 60)
    few = first_fit_decreasing(lengths, 20, 3)
    assert sorted(i for row in few for i in row) == list(range(len(lengths)))
    assert all(0 < len(row) <= 3 and sum(lengths[i] for i in row) <= 20 for row in few)


def test_first_fit_decreasing_by_hand():
    assert first_fit_decreasing([6, 5, 4, 3, 2], 10, 9) == [[0, 2], [1, 3, 4]]
    assert first_fit_decreasing([2, 2, 9, 2], 9, 9) == [[2], [0, 1, 3]]
    assert first_fit_decreasing([2, 2, 9, 2], 9, 2) == [[2], [0, 1], [3]]


@pytest.mark.parametrize("rows, expected", [(1, 3), (2, 4), (4, 4), (5, 5)])
def test_rows_are_padded_to_a_multiple_of_the_microbatch(rows, expected):
    batch, log = build([group(*[episode(4, 4, reward) for reward in (0, 1, 3)])], row_length=12, rows=rows)
    assert batch.tokens.shape == (expected, 12) and log["rows"] == expected
    assert not np.asarray(batch.segment_ids)[3:].any()
    np.testing.assert_allclose(log["row_fill"], 24 / (12 * expected))
    assert log["padding_rows"] == expected - 3


# Tokens of an episode: a log-normal prompt (median 150 or 300) and a log-normal completion, cut at a limit.
EPISODES = {  # median completion, sigma, limit, prompt
    "short": (200, 0.6, 1024, 150),
    "long": (1500, 0.8, 8192, 300),
    "often truncated": (800, 1.0, 2048, 150),
}


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("times", [1, 2, 4])
@pytest.mark.parametrize("name", EPISODES)
def test_rows_are_nine_tenths_full(name, times, rows):
    """512 episodes, in rows of 1 to 4 times the longest one (3 to 16 times the mean)."""
    median, sigma, limit, prompt = EPISODES[name]
    rng = np.random.default_rng(0)
    sampled = np.clip(rng.lognormal(np.log(median), sigma, 512), 1, limit).astype(int)
    lengths = np.clip(rng.lognormal(np.log(prompt), 0.3, 512), 1, 2 * prompt).astype(int) + sampled
    row_length = times * (limit + 2 * prompt)
    packed = len(first_fit_decreasing(lengths, row_length, most_segments(row_length)))
    assert lengths.sum() > 0.9 * row_length * -(-packed // rows) * rows


def test_sandbox_errors_are_left_out_of_statistics_and_averages():
    trained = [episode(2, 3, reward=1.0), episode(2, 2, reward=0.0, first=11)]
    broken = episode(2, 4, reward=-9.0, status="sandbox_error", first=21)
    batch, log = build([group(*trained, broken), group(broken)], averaging="sequence")
    assert log["sandbox_errors"] == 2 and log["episodes"] == 2 and log["sampled_tokens"] == 5
    assert log["groups"] == 2 and log["groups_without_signal"] == 1
    a, b = episodes_of(batch)
    np.testing.assert_allclose([a["advantages"][-1], b["advantages"][-1]], [0.5, -0.5])
    np.testing.assert_allclose([a["loss_weights"][-1], b["loss_weights"][-1]], [1 / (2 * 3), 1 / (2 * 2)])


def test_episodes_whose_time_was_up_before_a_token_are_no_sandbox_errors():
    broken = episode(2, 4, status="sandbox_error", first=11)
    groups = [group(episode(2, 3, reward=1.0), episode(2, 3, first=21), broken, episode(2, 0, status="out_of_time"))]
    _, log = build([*groups, group(episode(2, 2, status="out_of_time"), episode(2, 1))])  # cut off, but it said a word
    assert (log["sandbox_errors"], log["nothing_sampled"], log["episodes"]) == (1, 1, 4)


def test_nothing_but_sandbox_errors_gives_a_microbatch_of_padding():
    batch, log = build([group(episode(2, 3, status="sandbox_error"))], rows=4)
    assert batch.tokens.shape == (4, 32) and log["episodes"] == 0 and log["row_fill"] == 0
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(batch))


def test_overlong_filter_keeps_truncated_episodes_in_the_baseline_only():
    episodes = [episode(2, 3, reward=1.0), episode(2, 10, reward=0.0, status="truncated", first=11)]
    batch, log = build([group(*episodes)], overlong="filter")
    (kept,) = episodes_of(batch)
    assert log["overlong_filtered"] == 1 and log["episodes"] == 1 and log["sampled_tokens"] == 3
    np.testing.assert_allclose(kept["advantages"], [0, 0, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(np.sum(kept["loss_weights"]), 1)


def test_overlong_penalty_is_part_of_the_reward():
    episodes = [episode(2, 4, reward=1.0), episode(2, 8, reward=1.0, first=11)]  # of at most 10: half of the buffer
    batch, _ = build([group(*episodes)], overlong="penalty", overlong_buffer=4)
    a, b = episodes_of(batch)
    np.testing.assert_allclose([a["advantages"][-1], b["advantages"][-1]], [0.25, -0.25])
    with_tool = [episode(2, 4, reward=1.0), episode(2, 3, reward=1.0, tool=3, more=2, first=11)]  # 8 of 10, too
    again, _ = build([group(*with_tool)], overlong="penalty", overlong_buffer=4)
    np.testing.assert_allclose([e["advantages"][-1] for e in episodes_of(again)], [0.25, -0.25])


def no_logprobs(e: Episode) -> None:
    e.turns[0].logprobs = None


def short_logprobs(e: Episode) -> None:
    e.turns[0].logprobs = np.zeros(1, np.float32)


def infinite_logprob(e: Episode) -> None:
    e.turns[0].logprobs = np.array([-1, -np.inf, -1], np.float32)


def nothing_sampled(e: Episode) -> None:
    e.turns = []


def no_prompt(e: Episode) -> None:
    e.prompt = np.zeros(0, np.int32)


def nan_reward(e: Episode) -> None:
    e.reward = Reward(float("nan"), False)


@pytest.mark.parametrize("damage, message", [
    (no_logprobs, "sampled turn of 3 tokens needs as many finite logprobs"),
    (short_logprobs, "sampled turn of 3 tokens needs as many finite logprobs"),
    (infinite_logprob, "sampled turn of 3 tokens needs as many finite logprobs"),
    (nothing_sampled, "without sampled tokens"),
    (no_prompt, "without prompt tokens"),
    (nan_reward, "reward of an episode is nan"),
])  # fmt: skip
def test_an_episode_that_cannot_be_trained_on_names_its_problem(damage, message):
    bad = episode(2, 3, problem="HumanEval/7")
    damage(bad)
    with pytest.raises(ValueError, match=rf"problem HumanEval/7: .*{message}"):
        build([group(episode(2, 3)), group(bad)])


def test_an_episode_longer_than_a_row_names_its_problem():
    with pytest.raises(ValueError, match="problem MBPP/3: 9 tokens do not fit a row of 8"):
        build([group(episode(4, 5, problem="MBPP/3"), episode(4, 3, 1.0))], row_length=8)


def test_sft_batch():
    examples = [(np.array([5, 6, 7, 8, 9]), np.arange(5) >= 2), (np.array([15, 16]), np.arange(2) >= 1)]
    batch = sft_batch(examples, row_length=8, microbatch_rows=2)
    chex.assert_shape(batch.tokens, (2, 8))
    a, b = episodes_of(batch)
    np.testing.assert_array_equal(a["tokens"], [5, 6, 7, 8, 9])
    np.testing.assert_array_equal(a["loss_mask"], [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(a["loss_weights"], np.array([0, 0, 0.25, 0.25, 0.25], np.float32))
    np.testing.assert_array_equal(b["loss_weights"], np.array([0, 0.25], np.float32))
    np.testing.assert_array_equal(b["advantages"], [0, 1])
    with pytest.raises(ValueError, match="demonstration 1: the answer has no tokens"):
        sft_batch([examples[0], (np.array([1]), np.array([False]))], row_length=8, microbatch_rows=1)
    with pytest.raises(ValueError, match="demonstration 0: 5 tokens do not fit a row of 4"):
        sft_batch(examples, row_length=4, microbatch_rows=1)


def per_token(extras: tuple[str, ...] = ("turn_reward",), **given: Any) -> Objective:
    """Credit that says for each learned token which token it is, and what its turn was worth."""

    def credit_of(episode: Episode) -> Credit:
        tokens = np.concatenate([turn.tokens for turn in episode.turns if turn.learned])
        return Credit(given.get("advantage", tokens * 10.0), {"turn_reward": turn_rewards(episode)})

    return dataclasses.replace(
        make_objective(Settings(), max_new_tokens=10),
        credit=lambda episodes: [*map(credit_of, episodes)],
        extras=extras,
    )


def test_credit_for_each_token_and_rewards_of_turns_land_on_their_tokens():
    first, second = episode(3, 2), episode(2, 3, tool=2, more=2, first=11)
    first.reward, second.reward = Reward(0.0, False, turns=(0.5,)), Reward(0.0, False, turns=(-1.0, 2.0))
    batch, _ = make_batch([group(first, second)], per_token(), row_length=16, microbatch_rows=1)
    assert batch.extras.keys() == {"turn_reward"} and batch.extras["turn_reward"].dtype == np.float32
    a, b = episodes_of(batch)
    np.testing.assert_array_equal(a["advantages"], [0, 0, 0, 40, 50])
    np.testing.assert_array_equal(a["extras/turn_reward"], [0, 0, 0, 0, 0.5])
    np.testing.assert_array_equal(b["advantages"], [0, 0, 130, 140, 150, 0, 0, 180, 190])
    np.testing.assert_array_equal(b["extras/turn_reward"], [0, 0, 0, 0, -1, 0, 0, 0, 2])
    masked = np.asarray(batch.loss_mask) == 0
    assert not batch.advantages[masked].any() and not batch.extras["turn_reward"][masked].any()


def test_extras_are_there_and_zero_when_nothing_is_packed():
    batch, _ = make_batch([], per_token(), row_length=8, microbatch_rows=2)
    np.testing.assert_array_equal(batch.extras["turn_reward"], np.zeros((2, 8), np.float32))


@pytest.mark.parametrize("objective, message", [
    (per_token(advantage=np.zeros(3)), r"advantage has shape \(3,\), must be \(2,\): one for each learned token"),
    (per_token(advantage=float("nan")), "advantage must be finite"),
    (per_token(advantage=np.array([1, np.inf])), "advantage must be finite"),
    (per_token(extras=("returns",)), "turn_reward must be among the objective's extras: returns"),
])  # fmt: skip
def test_credit_that_does_not_fit_names_the_problem(objective, message):
    bad = episode(3, 2, problem="HumanEval/7")
    bad.reward = Reward(0.0, False, turns=(0.5,))
    with pytest.raises(ValueError, match=f"problem HumanEval/7: objective policy_gradient: {message}"):
        make_batch([group(bad)], objective, row_length=8, microbatch_rows=1)
