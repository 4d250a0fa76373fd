"""Rewards of a problem's episodes to credit, on the host in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrl.errors import UserError
from rollouts.episode import Episode, Group


def advantages(rewards: np.ndarray, kind: str = "group_std", *, std_ddof: int = 1, epsilon: float = 1e-4) -> np.ndarray:
    """Advantages f64[G] of the rewards [G] of one problem's episodes.

    group_std: (r - mean) / (std + epsilon), DeepSeekMath (arXiv 2402.03300); std's divisor is G - std_ddof.
    group_mean: r - mean, Dr.GRPO (2503.20783). leave_one_out: r - mean of the others, RLOO (2402.14740).
    Of these, equal rewards, or a single one, give exactly 0. reward: r as it is, REINFORCE.
    """
    rewards = np.asarray(rewards, np.float64)
    if kind == "reward":
        return rewards
    if len(np.unique(rewards)) < 2:  # a rounded mean would leave dust, and the std of one reward is undefined
        return np.zeros_like(rewards)
    G = len(rewards)
    centred = rewards - rewards.mean()
    if kind == "group_mean":
        return centred
    if kind == "leave_one_out":  # r_i - (sum - r_i) / (G - 1) = G / (G - 1) (r_i - mean)
        return centred * G / (G - 1)
    return centred / (rewards.std(ddof=std_ddof) + epsilon)


def token_weights(lengths: Sequence[int], averaging: str, constant_length: int = 1) -> np.ndarray:
    """For each of E episodes with `lengths` learned tokens, the weight f64[E] of each of its tokens in the loss.

    token: 1 / all learned tokens (DAPO). sequence: 1 / (E |o_i|) (GRPO, GSPO). constant: 1 / (E constant_length)
    (Dr.GRPO).
    """
    counts, E = np.asarray(lengths, np.float64), len(lengths)
    if averaging == "token":
        return np.full(E, 1 / max(counts.sum(), 1))
    if averaging == "constant":
        return np.full(E, 1 / (max(E, 1) * constant_length))
    return 1 / (E * counts)


def finite_rewards(episodes: Sequence[Episode]) -> np.ndarray:
    """The episodes' rewards, f64[len(episodes)]. Raises ValueError, naming the problem, for one that is not finite."""
    rewards = np.array([e.reward.value for e in episodes], np.float64)
    for e, reward in zip(episodes, rewards):
        if not np.isfinite(reward):
            raise ValueError(f"problem {e.problem.id}: the reward of an episode is {reward}, must be finite")
    return rewards


def turn_rewards(episode: Episode) -> np.ndarray:
    """The rewards of the episode's sampled turns on the last learned token of each: f64[learned tokens], 0 elsewhere.

    Raises ValueError, naming the problem, if the episode has none (Reward.turns is None), unless there is one finite
    number for each sampled turn, and for a reward other than 0 of a turn without learned tokens.
    """
    name, turns = f"problem {episode.problem.id}", episode.reward.turns
    sampled = sum(turn.sampled for turn in episode.turns)
    if turns is None or len(turns) != sampled:
        given = "none" if turns is None else len(turns)
        raise ValueError(f"{name}: an episode of {sampled} sampled turns has {given} turn rewards, must have {sampled}")
    if not np.isfinite(turns).all():
        raise ValueError(f"{name}: the turn rewards of an episode are {turns}, must be finite")
    parts, values = [np.zeros(0)], iter(turns)
    for turn in episode.turns:
        part, value = np.zeros(len(turn.tokens) if turn.learned else 0), next(values) if turn.sampled else 0.0
        if len(part):
            part[-1] = value
        elif value:
            raise ValueError(f"{name}: a turn of an episode has the reward {value} and no learned token to carry it")
        parts.append(part)
    return np.concatenate(parts)


def turn_advantages(
    rewards: Sequence[Sequence[float]], kind: str, *, returns: bool, std_ddof: int = 1, epsilon: float = 1e-4
) -> list[np.ndarray]:
    """An advantage for each turn of each of G episodes, among the episodes that have that turn (arXiv 2507.05065).

    `rewards` are those of an episode's turns; with `returns` a turn is worth what it and the later ones earn. `kind`
    and the rest are those of `advantages`; a turn that one episode alone has gets 0.
    """
    worth = [
        np.cumsum(np.asarray(r, np.float64)[::-1])[::-1] if returns else np.asarray(r, np.float64) for r in rewards
    ]
    found = [np.zeros(len(w)) for w in worth]
    for turn in range(max(map(len, worth), default=0)):
        alive = [i for i, w in enumerate(worth) if turn < len(w)]
        here = np.array([worth[i][turn] for i in alive])
        for i, advantage in zip(alive, advantages(here, kind, std_ddof=std_ddof, epsilon=epsilon)):
            found[i][turn] = advantage
    return found


def on_tokens(episode: Episode, turns: np.ndarray) -> np.ndarray:
    """f64[learned tokens]: the number of its sampled turn on each token, that of the turn before on inserted ones."""
    parts, number = [np.zeros(0)], -1
    for turn in episode.turns:
        number += turn.sampled
        if turn.learned:
            parts.append(np.full(len(turn.tokens), turns[max(number, 0)], np.float64))
    return np.concatenate(parts)


def overlong_penalty(length: int, max_length: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), in [-1, 0], to add to the reward.

    0 up to max_length - buffer tokens, then falling linearly to -1 at max_length, -1 beyond.
    Raises UserError unless 1 <= buffer <= max_length.
    """
    if not 1 <= buffer <= max_length:
        raise UserError(f"grpo.loss.overlong_buffer = {buffer} must be from 1 to the episode's {max_length} tokens")
    return -min(max(length - (max_length - buffer), 0) / buffer, 1.0)


def is_usable(episode: Episode) -> bool:
    """Whether it says something about the policy: not if the sandbox failed, or time ran out before any token."""
    nothing = episode.status == "out_of_time" and not episode.sampled_length
    return episode.status != "sandbox_error" and not nothing


def usable(group: Group) -> list[Episode]:
    """The group's episodes that say something about the policy."""
    return [e for e in group.episodes if is_usable(e)]


def minibatches(groups: Sequence[Group], count: int, seed: int, step: int) -> list[list[Group]]:
    """The groups in random order, a function of (seed, step), in `count` parts whose sizes differ by at most 1.

    Groups stay whole, so that the advantages of each update are centred. Raises UserError if there are fewer groups
    than parts.
    """
    if not 1 <= count <= len(groups):
        raise UserError(f"grpo.loss.minibatches = {count} must be from 1 to the {len(groups)} groups of a batch")
    order = np.random.default_rng([seed, step]).permutation(len(groups))
    return [[groups[i] for i in part] for part in np.array_split(order, count)]
