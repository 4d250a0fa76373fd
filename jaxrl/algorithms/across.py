"""What the problems of a step have in common: advantages on one scale. On the host in f64.

These are the functions behind `Objective.across`. Every process of a run has all episodes and arrays of the step, so
that each computes the same numbers and nothing is sent.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrl.algorithms.batch import Array, Batch
from rollouts.episode import Episode

KEYS = ("problem_high", "problem_low")  # extras that tell problems apart: two f32 hold 48 bits


class Episodes(NamedTuple):
    """The E episodes in a batch's rows, in the order of rows, and their n learned tokens."""

    learned: np.ndarray  # bool[B, T]
    of_token: np.ndarray  # i64[n], the episode of each learned token
    first: np.ndarray  # i64[E], which of the n tokens is the episode's first

    def values(self, x: Array | None) -> np.ndarray:
        """f64[E]: x [B, T] at each episode's first learned token."""
        return self.tokens(x)[self.first]

    def sums(self, x: Array | None) -> np.ndarray:
        """f64[E]: the sum of x [B, T] over each episode's learned tokens."""
        return np.bincount(self.of_token, self.tokens(x), minlength=len(self.first))

    def tokens(self, x: Array | None) -> np.ndarray:
        """f64[n]: x [B, T] at the learned tokens."""
        return np.asarray(x, np.float64)[self.learned]

    def problems(self, extras: Mapping[str, Array]) -> np.ndarray:
        """i64[E]: a number for each problem, from the extras KEYS."""
        keys = np.stack([self.values(extras[name]) for name in KEYS], 1)
        return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """f32[B, T]: the values [E] at every learned token of their episodes, 0 elsewhere."""
        x = np.zeros(self.learned.shape, np.float32)
        x[self.learned] = values[self.of_token]
        return x


def episodes_of(batch: Batch) -> Episodes:
    """The episodes of a batch that have learned tokens."""
    learned = np.asarray(batch.loss_mask) > 0
    rows, segments = np.nonzero(learned)[0], np.asarray(batch.segment_ids)[learned]
    _, first, of_token = np.unique(rows * (learned.shape[1] + 1) + segments, return_index=True, return_inverse=True)
    return Episodes(learned, of_token.reshape(-1), first)


def marks(episode: Episode, **values: float) -> dict[str, np.ndarray]:
    """Extras f32[n] that are the same at each of the episode's n learned tokens: the values, and its problem's KEYS."""
    digest = hashlib.blake2b(str(episode.problem.id).encode(), digest_size=6).digest()
    values |= {name: int.from_bytes(part) for name, part in zip(KEYS, (digest[:3], digest[3:]))}
    n = sum(len(t.tokens) for t in episode.turns if t.learned)
    return {name: np.full(n, value, np.float32) for name, value in values.items()}


def with_kl_in_reward(
    batch: Batch, old: Array | None, beta: float, advantages: Callable[[np.ndarray], np.ndarray]
) -> tuple[Batch, np.ndarray]:
    """The batch with the advantages of r - beta k1 instead of r, and these rewards f64[E] of its episodes.

    k1 = sum over an episode's tokens of log old - log reference, as in RLHF. r is extras["reward"]; `advantages` is the
    credit of one problem's rewards.
    """
    of = episodes_of(batch)
    rewards = of.values(batch.extras["reward"]) - beta * log_ratio(batch, of, old)
    problems, found = of.problems(batch.extras), np.zeros(len(rewards))
    for problem in np.unique(problems):
        found[problems == problem] = advantages(rewards[problems == problem])
    return dataclasses.replace(batch, advantages=of.spread(found)), rewards


def log_ratio(batch: Batch, of: Episodes, old: Array | None) -> np.ndarray:
    """f64[E]: log old - log reference of each whole episode."""
    return of.sums(old) - of.sums(batch.reference_logprobs)


def divided(batches: Sequence[Batch], rewards: np.ndarray, *, ddof: int, epsilon: float) -> list[Batch]:
    """Advantages over the std of the rewards f64[E] of all the step's episodes: TRL's scale_rewards = "batch".

    A / (std + epsilon), std with the divisor E - ddof. Equal rewards, or a single one, give advantages of 0.
    """
    equal = len(np.unique(rewards)) < 2
    scale = 0.0 if equal else 1 / (np.std(rewards, ddof=ddof) + epsilon)
    return [dataclasses.replace(b, advantages=_f32(np.asarray(b.advantages, np.float64) * scale)) for b in batches]


def whitened(batches: Sequence[Batch], *, epsilon: float) -> list[Batch]:
    """Advantages less their mean, over their std, both over all learned tokens of the step (REINFORCE++, 2501.03262).

    (A - mean) / (std + epsilon) with the sample's std. Equal advantages give 0.
    """
    masks = [np.asarray(b.loss_mask) > 0 for b in batches]
    all_tokens = np.concatenate([np.asarray(b.advantages, np.float64)[m] for b, m in zip(batches, masks)])
    equal = len(np.unique(all_tokens)) < 2  # a rounded mean would leave dust
    mean, scale = (0.0, 0.0) if equal else (all_tokens.mean(), 1 / (all_tokens.std(ddof=1) + epsilon))
    return [
        dataclasses.replace(b, advantages=_f32(np.where(m, (np.asarray(b.advantages, np.float64) - mean) * scale, 0)))
        for b, m in zip(batches, masks)
    ]


def with_entropy_mask(batches: Sequence[Batch], share: float) -> list[Batch]:
    """The batches with extras["entropy_mask"]: 1 at the share of the step's learned tokens that had most entropy.

    That is at or above the quantile 1 - share of extras["old_entropy"], interpolated linearly ("80/20", 2506.01939).
    """
    masks = [np.asarray(b.loss_mask) > 0 for b in batches]
    entropies = [np.asarray(b.extras["old_entropy"], np.float64) for b in batches]
    every = np.concatenate([x[m] for x, m in zip(entropies, masks)])
    threshold = np.quantile(every, 1 - share) if len(every) else 0.0
    return [
        dataclasses.replace(b, extras=dict(b.extras) | {"entropy_mask": _f32(m & (x >= threshold))})
        for b, x, m in zip(batches, entropies, masks)
    ]


def _f32(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32)
