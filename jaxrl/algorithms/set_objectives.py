"""Credit for what k samples of a problem do together: pass@k and maj@k; the loss is that of policy_gradient.py.

The objective of a problem is J_k = E f(y_1 .. y_k), where f is the best reward of the k samples (pass@k) or the reward
of the answer that most of them give (maj@k). Its gradient is E sum_i (f(I) - f(I without i)) grad log pi(y_i) (leave
one out, arXiv 2503.19595). A group of n >= k samples averages this over its subsets of size k, which stays unbiased.
In the loss's scale, a mean over the n samples, the advantage of sample i is

    A_i = n / C(n, k) sum_{I with i, |I| = k} (f(I) - f(I without i)).

Where samples are older than the policy, each has its own importance ratio; no product over the k samples is applied.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal

import numpy as np

from jaxrl.algorithms import policy_gradient
from jaxrl.algorithms.credit import advantages, finite_rewards
from jaxrl.algorithms.objective import Credit, Objective
from jaxrl.config.rules import Count, Positive
from jaxrl.errors import UserError
from rollouts.episode import Episode

MOST_SUBSETS = 2_000  # enumerated; of more than this, this many are drawn for each sample


@dataclass
class Settings(policy_gradient.Settings):
    """pass@k or maj@k of the samples of a problem; clipping, averaging and KL as in policy_gradient."""

    advantage: Literal["pass_at_k", "pkpo", "maj_at_k"] = "pass_at_k"  # pyright: ignore[reportIncompatibleVariableOverride]
    objective_k: Positive = 4  # samples that are judged together, from 2 to grpo.group_size
    objective_k_last: Count = 0  # k of the last steps, in a straight line from objective_k, rounded; 0: k stays
    objective_k_steps: Count = 0  # of the stage, until k is objective_k_last
    objective_on: Literal["solved", "value"] = "solved"  # value: the reward with its partial credit
    objective_centred: bool = False  # subtract the group's mean advantage: biased, and wrong samples are pushed down
    averaging: Literal["token", "sequence", "constant"] = "sequence"  # token weighs long answers more

    def check(self, where: str = "grpo.loss") -> None:
        """Raises UserError for settings that contradict each other."""
        super().check(where)
        if self.objective_k < 2:
            raise UserError(
                f"{where}.objective_k = {self.objective_k} must be at least 2; for the mean reward take objective "
                "policy_gradient with advantage = 'leave_one_out'"
            )
        if bool(self.objective_k_last) != bool(self.objective_k_steps) or self.objective_k_last == self.objective_k:
            raise UserError(
                f"{where}.objective_k_last = {self.objective_k_last} and {where}.objective_k_steps = "
                f"{self.objective_k_steps} must both be above 0, with another k than {where}.objective_k, or both 0"
            )
        if self.overlong == "penalty":
            raise UserError(
                f"{where}.overlong = 'penalty' must be none or filter with {where}.advantage = {self.advantage!r}: "
                "the best of penalized rewards is not pass@k"
            )
        if self.kl_in_reward:
            raise UserError(
                f"{where}.kl_in_reward = {self.kl_in_reward:g} must be 0 with {where}.advantage = {self.advantage!r}; "
                f"{where}.kl_coefficient is of each sample alone"
            )
        if self.credit != "episode":
            raise UserError(
                f"{where}.credit = {self.credit!r} must be episode with {where}.advantage = {self.advantage!r}"
            )
        if self.batch_scale != "none":
            raise UserError(
                f"{where}.batch_scale = {self.batch_scale!r} must be none with {where}.advantage = {self.advantage!r}: "
                "the size of these advantages says how rare a right sample is"
            )
        if self.advantage == "pkpo" and self.objective_on == "value":
            raise UserError(f"{where}.objective_on = 'value' must be solved with {where}.advantage = 'pkpo'")


def make_objective(settings: Settings, *, max_new_tokens: int, where: str = "grpo.loss") -> Objective:
    """The objective of these settings. Groups of fewer than k usable episodes get no credit.

    Raises UserError for a wrong setting, named as `where`.NAME.
    """
    base = policy_gradient.make_objective(settings, max_new_tokens=max_new_tokens, where=where)
    base = dataclasses.replace(base, name="set_objectives", needs_answers=settings.advantage == "maj_at_k")
    if not settings.objective_k_last:
        return _with_k(base, settings, settings.objective_k)

    def at_step(stage_step: int) -> Objective:
        k = k_at(settings, stage_step)
        return dataclasses.replace(_with_k(base, settings, k), measure=lambda batch: {"objective/k": float(k)})

    most = max(settings.objective_k, settings.objective_k_last)
    return dataclasses.replace(_with_k(base, settings, most), at_step=at_step)


def k_at(settings: Settings, stage_step: int) -> int:
    """k of a step of the stage, 1 the first: objective_k there, objective_k_last from step objective_k_steps on."""
    done = min((stage_step - 1) / max(settings.objective_k_steps - 1, 1), 1.0)
    return round(settings.objective_k + done * (settings.objective_k_last - settings.objective_k))


def _with_k(base: Objective, settings: Settings, k: int) -> Objective:
    def credit(episodes: Sequence[Episode]) -> list[Credit | None]:
        if len(episodes) < k:
            return [None] * len(episodes)
        left_out = [settings.overlong == "filter" and e.status == "truncated" for e in episodes]
        return [None if out else Credit(float(a)) for out, a in zip(left_out, _advantages(episodes, settings, k))]

    return dataclasses.replace(base, credit=credit, smallest_group=max(k, 2), fewest_usable=k)


def _advantages(episodes: Sequence[Episode], settings: Settings, k: int) -> np.ndarray:
    """f64[n], of the usable episodes of one problem. With k = 1 the gradient is that of the mean: leave one out."""
    rewards, answers = finite_rewards(episodes), [e.reward.answer for e in episodes]
    majority = settings.advantage == "maj_at_k"
    if settings.objective_on == "solved":
        rewards = np.array([e.reward.solved for e in episodes], np.float64)
    if settings.advantage == "pkpo":
        found = pkpo_weights(rewards, k)
    elif k == 1:
        rewards = np.array([vote([a], [r]) for a, r in zip(answers, rewards)]) if majority else rewards
        found = advantages(rewards, "leave_one_out")
    elif majority:
        seed = zlib.crc32(str(episodes[0].problem.id).encode())
        found = maj_advantages(answers, rewards, k, seed=seed)
    else:
        found = max_advantages(rewards, k)
    if settings.objective_centred and len(np.unique(found)) < 2:  # a rounded mean would leave dust
        return np.zeros_like(found)
    return found - found.mean() if settings.objective_centred else found


def max_advantages(rewards: np.ndarray, k: int) -> np.ndarray:
    """A f64[n] for f = max, of any rewards [n], 2 <= k <= n, exactly.

    Sorted, g_(0) <= .. <= g_(n-1), C(l, k - 2) of the subsets have g_(j) as their best and g_(l) next:

        A_(j) = n / C(n, k) sum_{l < j} (g_(j) - g_(l)) C(l, k - 2).
    """
    rewards = np.asarray(rewards, np.float64)
    n, order = len(rewards), np.argsort(rewards, kind="stable")
    g = rewards[order]
    ways = np.array([comb(l, k - 2) / comb(n, k) for l in range(n)])
    found = np.zeros(n)
    found[order] = [n * np.sum((g[j] - g[:j]) * ways[:j]) for j in range(n)]
    return found


def pkpo_weights(solved: np.ndarray, k: int) -> np.ndarray:
    """PKPO's weights f64[n] of binary rewards [n] (arXiv 2505.15201), in the loss's scale.

    k for right samples; for wrong ones k times pass@(k - 1) of the other n - 1. Unbiased too, without a baseline.
    """
    solved = np.asarray(solved) > 0
    n, c = len(solved), int(solved.sum())
    others = 1 - comb(n - 1 - c, k - 1) / comb(n - 1, k - 1) if c < n else 1.0
    return np.where(solved, float(k), k * others)


def maj_advantages(
    answers: Sequence[Hashable | None], rewards: np.ndarray, k: int, *, most: int = MOST_SUBSETS, seed: int = 0
) -> np.ndarray:
    """A f64[n] for f = the reward of the majority's answer, see `vote`; 2 <= k <= n.

    Exact where there are at most `most` subsets; else the mean over `most` drawn for each sample, unbiased too.
    """
    n = len(answers)

    def f(subset: Sequence[int]) -> float:
        return vote([answers[i] for i in subset], [rewards[i] for i in subset])

    if comb(n, k) <= most and comb(n, k - 1) <= most:
        return subset_advantages(f, n, k)
    rng, found = np.random.default_rng(seed), np.zeros(n)
    for i in range(n):  # n / C(n, k) times the C(n - 1, k - 1) subsets that i is in is k
        others = [j for j in range(n) if j != i]
        drawn = [rng.choice(others, k - 1, replace=False).tolist() for _ in range(most)]
        found[i] = k * np.mean([f([*subset, i]) - f(subset) for subset in drawn])
    return found


def subset_advantages(f: Callable[[Sequence[int]], float], n: int, k: int) -> np.ndarray:
    """A f64[n] of any f of a subset of range(n), by enumeration."""
    found = np.zeros(n)
    for subset in combinations(range(n), k):
        whole = f(subset)
        for at, i in enumerate(subset):
            found[i] += whole - f(subset[:at] + subset[at + 1 :])
    found[np.abs(found) < 1e-9] = 0  # thirds leave dust where they cancel
    return found * n / comb(n, k)


def vote(answers: Sequence[Hashable | None], rewards: Sequence[float]) -> float:
    """The mean reward of the answer that most give; a tie is shared evenly. None has no vote; without votes 0."""
    sizes = Counter(a for a in answers if a is not None)
    largest = [a for a, size in sizes.items() if size == max(sizes.values())]
    scores = [sum(r for b, r in zip(answers, rewards) if b == a) / sizes[a] for a in largest]
    return float(sum(scores) / len(scores)) if scores else 0.0
