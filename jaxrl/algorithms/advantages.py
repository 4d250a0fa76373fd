"""Rewards of a group to advantages, on the host in float64; which groups carry a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrl.config import PolicyGradientConfig
from rollouts.episode import Episode, Group


def advantages(rewards: np.ndarray, config: PolicyGradientConfig) -> np.ndarray:
    """Advantages f64[G] of the rewards [G] of one problem's episodes.

    group_std: (r - mean) / (std + epsilon), DeepSeekMath (arXiv 2402.03300); `std_ddof` chooses the divisor of std.
    group_mean: r - mean, Dr.GRPO (2503.20783). leave_one_out: r - mean of the others, RLOO (2402.14740).
    Equal rewards, one reward among them, give exactly 0.
    """
    rewards = np.asarray(rewards, np.float64)
    if len(np.unique(rewards)) < 2:  # a rounded mean would leave dust, and the std of one reward is undefined
        return np.zeros_like(rewards)
    G = len(rewards)
    centred = rewards - rewards.mean()
    if config.advantage == "group_mean":
        return centred
    if config.advantage == "leave_one_out":  # r_i - (sum - r_i) / (G - 1) = G / (G - 1) (r_i - mean)
        return centred * G / (G - 1)
    return centred / (rewards.std(ddof=config.std_ddof) + config.advantage_epsilon)


def overlong_penalty(length: int, max_length: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), in [-1, 0], to be added to the reward.

    0 up to max_length - buffer tokens, then falling linearly to -1 at max_length, -1 beyond.
    Raises ValueError unless 1 <= buffer <= max_length.
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"grpo.loss.overlong_buffer = {buffer} must be from 1 to the episode's {max_length} tokens")
    return -min(max(length - (max_length - buffer), 0) / buffer, 1.0)


def usable(group: Group) -> list[Episode]:
    """The episodes that say something about the policy: not if the sandbox failed, or time was up before any token."""
    failed = lambda e: e.status == "sandbox_error" or (e.status == "out_of_time" and not e.sampled_length)  # noqa: E731
    return [e for e in group.episodes if not failed(e)]


def has_signal(group: Group) -> bool:
    """Whether the rewards of the usable episodes differ. Length penalties do not count (DAPO filters on accuracy)."""
    return len({e.reward.value for e in usable(group)}) > 1


def select_groups(groups: Sequence[Group], wanted: int) -> list[Group]:
    """Dynamic sampling (DAPO): the first `wanted` groups with a signal, in the order drawn, or fewer if there are.

    The caller draws more problems until there are enough or its bound is reached. The batch is never filled up with
    groups without a signal: in the average they would only shrink the step.
    """
    return [g for g in groups if has_signal(g)][:wanted]


def minibatches(groups: Sequence[Group], count: int, seed: int, step: int) -> list[list[Group]]:
    """The groups in random order, a function of (seed, step), cut into `count` parts whose sizes differ by at most 1.

    Groups stay whole, so that the advantages of each update are centred. Raises ValueError if there are fewer groups
    than parts.
    """
    if not 1 <= count <= len(groups):
        raise ValueError(f"grpo.loss.minibatches = {count} must be from 1 to the {len(groups)} groups of a batch")
    order = np.random.default_rng([seed, step]).permutation(len(groups))
    return [[groups[i] for i in part] for part in np.array_split(order, count)]
