"""Episodes to packed device arrays: several episodes share a row, told apart by segment ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from jaxrl.algorithms.advantages import advantages, has_signal, overlong_penalty, usable
from jaxrl.config import PolicyGradientConfig
from models.attention import most_segments
from rollouts.episode import Episode, Group

Array = np.ndarray | jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Packed rows. What stands at index t describes token t: its logprob comes from the model's output at t - 1.

    The first token of an episode has no such output and is never in the loss. Padding is 0 in every array.
    The loss is the sum of loss_weights * (a term for each token) over all rows, see `token_weights`.
    """

    tokens: Array  # i32[B, T]
    positions: Array  # i32[B, T], from 0 in each episode
    segment_ids: Array  # i32[B, T], 0: padding; 1, 2, ...: the row's episodes
    loss_mask: Array  # f32[B, T], 1 where the model sampled the token (or is to learn it)
    loss_weights: Array  # f32[B, T], 0 where loss_mask is
    advantages: Array  # f32[B, T], 0 where loss_mask is
    behaviour_logprobs: Array  # f32[B, T], of the sampler, 0 where loss_mask is
    old_logprobs: Array | None = None  # f32[B, T], of the trainer before the first of several updates
    reference_logprobs: Array | None = None  # f32[B, T], where a KL term is used


class Example(NamedTuple):
    """One sequence to train on, not yet packed."""

    name: str  # for error messages
    tokens: np.ndarray  # i32[n]
    learned: np.ndarray  # bool[n], the tokens in the loss
    logprobs: np.ndarray  # f32[n], the sampler's, 0 where not learned
    advantage: float


def make_batch(
    groups: Sequence[Group],
    loss: PolicyGradientConfig,
    *,
    max_new_tokens: int,
    row_length: int,
    microbatch_rows: int,
) -> tuple[Batch, dict[str, float]]:
    """The batch of one update, and what is worth logging about it.

    Advantages are computed within each group, after the overlong penalty where that is on. `sandbox_error` episodes
    are left out of everything. With overlong = filter, truncated episodes count in their group's mean and std but are
    not trained on. Without a KL term episodes of advantage 0 give no gradient: they count in the average, but are not
    in the rows, which saves their whole computation (of a batch without any gradient, the first few are).
    B is a multiple of microbatch_rows, at least one; the log counts what was left out.

    Raises ValueError for a wrong setting, an episode longer than row_length, and an episode that cannot be trained on
    (no prompt, nothing sampled, missing or non-finite logprobs, a non-finite reward), naming its problem.
    """
    loss.check()
    examples, filtered = [], 0
    for group in groups:
        episodes = usable(group)
        group_advantages = advantages(_shaped_rewards(episodes, loss, max_new_tokens), loss)
        for episode, advantage in zip(episodes, group_advantages):
            if loss.overlong == "filter" and episode.status == "truncated":
                filtered += 1
            else:
                examples.append(_episode_example(episode, float(advantage)))
    lengths = [int(e.learned.sum()) for e in examples]
    weights = token_weights(lengths, loss, max_new_tokens)
    used = [i for i, e in enumerate(examples) if e.advantage or loss.kl_coefficient]
    # A batch is computed anyway: instead of padding it shows how well sampler and trainer agree.
    used = used or list(range(min(len(examples), microbatch_rows)))
    batch = pack([examples[i] for i in used], weights[used], row_length, microbatch_rows)
    log = {
        "groups": len(groups),
        "groups_without_signal": sum(not has_signal(g) for g in groups),
        "episodes": len(examples),
        "sandbox_errors": sum(len(g.episodes) - len(usable(g)) for g in groups),
        "overlong_filtered": filtered,
        "without_gradient": len(examples) - len(used),
        "sampled_tokens": sum(lengths),
    } | fill(batch)
    return batch, log


def sft_batch(examples: Sequence[tuple[np.ndarray, np.ndarray]], *, row_length: int, microbatch_rows: int) -> Batch:
    """A batch of demonstrations, tokens i32[n] and learned bool[n]; the loss is the mean over all learned tokens.

    Raises ValueError for one that begins with a learned token, has none, or is longer than row_length, naming its
    index.
    """
    sequences = []
    for index, (tokens, learned) in enumerate(examples):
        if not learned.any() or learned[0]:
            raise ValueError(f"demonstration {index}: the {'prompt' if learned.any() else 'answer'} has no tokens")
        sequences.append(Example(f"demonstration {index}", tokens, learned, np.zeros(len(tokens), np.float32), 1.0))
    total = sum(int(e.learned.sum()) for e in sequences)
    return pack(sequences, np.full(len(sequences), 1 / max(total, 1)), row_length, microbatch_rows)


def fill_behaviour(batch: Batch, logprobs: Array) -> Batch:
    """The batch with the trainer's logprobs f32[B, T] where nobody sampled a token that is learned all the same."""
    given = np.asarray(batch.behaviour_logprobs)
    return dataclasses.replace(batch, behaviour_logprobs=np.where(np.isnan(given), np.asarray(logprobs), given))


def fill(batch: Batch) -> dict[str, float]:
    """Rows of the batch, the share of their positions that are not padding, and the rows that are padding alone.

    Every row is computed: 1 - row_fill of the update's time goes into padding.
    """
    real = np.asarray(batch.segment_ids) > 0
    return {"rows": len(real), "row_fill": float(real.mean()), "padding_rows": int((~real.any(axis=1)).sum())}


def token_counts(batch: Batch) -> tuple[int, float]:
    """Tokens of the batch, padding aside, and the mean number of tokens that each attends to."""
    real = np.asarray(batch.segment_ids) > 0
    return int(real.sum()), float((np.asarray(batch.positions)[real] + 1).mean()) if real.any() else 0.0


def token_weights(lengths: Sequence[int], loss: PolicyGradientConfig, max_new_tokens: int) -> np.ndarray:
    """For each of E episodes with `lengths` sampled tokens, the weight f64[E] of each of its tokens in the loss.

    token: 1 / all sampled tokens (DAPO). sequence: 1 / (E |o_i|) (GRPO, GSPO).
    constant: 1 / (E constant_length), or max_new_tokens for it where it is 0 (Dr.GRPO).
    """
    counts, E = np.asarray(lengths, np.float64), len(lengths)
    if loss.averaging == "token":
        return np.full(E, 1 / max(counts.sum(), 1))
    if loss.averaging == "constant":
        return np.full(E, 1 / (max(E, 1) * (loss.constant_length or max_new_tokens)))
    return 1 / (E * counts)


def pack(examples: Sequence[Example], weights: np.ndarray, row_length: int, microbatch_rows: int) -> Batch:
    """Examples in rows of row_length, weights[i] for each learned token of example i; B as in `make_batch`."""
    for e in examples:
        if len(e.tokens) > row_length:
            raise ValueError(f"{e.name}: {len(e.tokens)} tokens do not fit a row of {row_length} (batch.row_length)")
    rows = first_fit_decreasing([len(e.tokens) for e in examples], row_length, most_segments(row_length))
    B = max(1, -(-len(rows) // microbatch_rows)) * microbatch_rows
    tokens, positions, segment_ids = np.zeros((3, B, row_length), np.int32)
    loss_mask, loss_weights, advantage, logprobs = np.zeros((4, B, row_length), np.float32)
    for b, row in enumerate(rows):
        start = 0
        for segment, i in enumerate(row, 1):
            e = examples[i]
            place = (b, slice(start, start + len(e.tokens)))
            tokens[place] = e.tokens
            positions[place] = np.arange(len(e.tokens))
            segment_ids[place] = segment
            loss_mask[place] = e.learned
            loss_weights[place] = e.learned * weights[i]
            advantage[place] = e.learned * e.advantage
            logprobs[place] = e.logprobs
            start += len(e.tokens)
    return Batch(tokens, positions, segment_ids, loss_mask, loss_weights, advantage, logprobs)


def first_fit_decreasing(lengths: Sequence[int], row_length: int, most: int) -> list[list[int]]:
    """Indices of the items of each row, at most `most`: longest first (ties in order), into the first row with room."""
    rows: list[list[int]] = []
    free = np.zeros(len(lengths), np.int64)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = np.flatnonzero(free[: len(rows)] >= lengths[i])
        if len(fitting):
            row = int(fitting[0])
        else:
            row = len(rows)
            rows.append([])
            free[row] = row_length
        rows[row].append(i)
        free[row] = free[row] - lengths[i] if len(rows[row]) < most else 0
    return rows


def _shaped_rewards(episodes: Sequence[Episode], loss: PolicyGradientConfig, max_new_tokens: int) -> np.ndarray:
    """f64[len(episodes)], with the overlong penalty where it is on."""
    rewards = np.array([e.reward.value for e in episodes], np.float64)
    for e, reward in zip(episodes, rewards):
        if not np.isfinite(reward):
            raise ValueError(f"problem {e.problem.id}: the reward of an episode is {reward}, must be finite")
    if loss.overlong == "penalty":
        rewards += [overlong_penalty(e.length, max_new_tokens, loss.overlong_buffer) for e in episodes]
    return rewards


def _episode_example(episode: Episode, advantage: float) -> Example:
    """Prompt and turns in one sequence. Raises ValueError naming the problem if it cannot be trained on."""
    name = f"problem {episode.problem.id}"
    if len(episode.prompt) == 0:
        raise ValueError(f"{name}: an episode without prompt tokens; the first token needs one before it")
    if episode.sampled_length == 0:
        raise ValueError(f"{name}: an episode without sampled tokens")
    learned, logprobs = [np.zeros(len(episode.prompt), bool)], [np.zeros(len(episode.prompt), np.float32)]
    for turn in episode.turns:
        # The sampler's logprobs of inserted tokens are not known; NaN where they are learned: see fill_behaviour.
        unknown = np.full(len(turn.tokens), np.nan if turn.learned else 0.0, np.float32)
        given = turn.logprobs if turn.sampled else unknown
        if given is None or len(given) != len(turn.tokens) or not (np.isfinite(given).all() or not turn.sampled):
            raise ValueError(f"{name}: a sampled turn of {len(turn.tokens)} tokens needs as many finite logprobs")
        learned.append(np.full(len(turn.tokens), turn.learned))
        logprobs.append(given)
    tokens = np.concatenate([episode.prompt, *(t.tokens for t in episode.turns)])
    return Example(name, tokens, np.concatenate(learned), np.concatenate(logprobs), advantage)
