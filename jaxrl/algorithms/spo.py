"""Soft Policy Optimization (SPO, arXiv 2503.05453): the log-ratio to a reference is regressed on the reward.

With reward r, reference ref and temperature beta, the policy that maximizes E r - beta KL(policy || ref) is
ref exp((r - V) / beta) with V = beta log E_ref exp(r / beta). So for every episode, whoever sampled it,

    Q_T = Q0 + beta sum_t (log pi - log ref) = r      where Q0 = V.

The loss is the distance between the two. It needs neither importance ratios nor clipping nor a value network. Formulas,
and what is not known of the paper: docs/reference/spo.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge

from jaxrl.algorithms import LossMetrics
from jaxrl.algorithms.across import KEYS, episodes_of, log_ratio, marks
from jaxrl.algorithms.batch import Array, Batch
from jaxrl.algorithms.credit import finite_rewards, token_weights, usable
from jaxrl.algorithms.objective import Credit, Objective, Outputs
from jaxrl.algorithms.policy_gradient import episode_sum
from jaxrl.config.rules import AboveZero, RewardValue, check_settings
from jaxrl.config.training import ObjectiveSettings
from jaxrl.errors import UserError
from rollouts.episode import Episode

NEAR_ONE = 1e-3  # nats below probability 1, where the cross-entropy becomes a straight line: it has a pole at 1


@dataclass
class Settings(ObjectiveSettings):
    """Soft Policy Optimization. `grpo.replay` adds old episodes, which this loss may learn from."""

    beta: AboveZero = 0.2  # temperature, in units of the reward
    loss: Literal["squared", "cross_entropy"] = "squared"
    q0: Literal["reference", "group", "uniform"] = "reference"  # samples of the reference, the batch, or closed form
    q0_samples: Annotated[int, Ge(2)] = 32  # K of q0 = reference, for each problem, before the stage
    q0_half_success: bool = False  # where none of the K has the best reward, count half a one
    reward_max: RewardValue = 1.0  # the best reward there is
    normalize: bool = False  # a gradient of (r - Q_T) grad log pi for every beta
    truncated: Literal["drop", "keep"] = "drop"  # episodes that were cut off

    @property
    def needs_reference(self) -> bool:
        return True

    def check(self, where: str = "grpo.loss") -> None:
        """Raises UserError for settings that contradict each other."""
        if self.dynamic_sampling:
            raise UserError(f"{where}.dynamic_sampling = True must be False: groups of equal reward have a gradient")
        if self.q0 == "uniform" and self.reward_max != 1:
            raise UserError(f"{where}.reward_max = {self.reward_max} must be 1 with {where}.q0 = 'uniform'")
        if self.q0_half_success and self.q0 != "reference":
            raise UserError(f"{where}.q0_half_success = True needs {where}.q0 = 'reference'")


def make_objective(settings: Settings, *, max_new_tokens: int, where: str = "grpo.loss") -> Objective:
    """The objective of these settings. Raises UserError for a wrong setting, named as `where`.NAME."""
    check_settings(settings, where)
    of_reference: dict[str, Sequence[float]] = {}

    def loss(outputs: Outputs, batch: Batch) -> tuple[jax.Array, LossMetrics]:
        return spo_loss(outputs.logprobs, batch, settings)

    def credit(episodes: Sequence[Episode]) -> list[Credit | None]:
        rewards = finite_rewards(episodes)
        if settings.loss == "cross_entropy" and (rewards > settings.reward_max).any():
            raise UserError(
                f"problem {episodes[0].problem.id}: the reward {rewards.max():g} must be at most "
                f"{where}.reward_max = {settings.reward_max:g} with {where}.loss = 'cross_entropy'"
            )
        q0 = _baseline(episodes[0].problem.id, of_reference, settings, where)
        if q0 is None:
            return [None] * len(episodes)
        return [
            None if settings.truncated == "drop" and e.status == "truncated" else _credit(e, float(r), q0, settings)
            for e, r in zip(episodes, rewards)
        ]

    by_group = settings.q0 == "group"
    return Objective(
        "spo",
        loss,
        credit,
        partial(token_weights, averaging="sequence"),
        needs=frozenset({"reference_logprobs", *(["old_logprobs"] if by_group else [])}),
        extras=("returns", "q0", *(KEYS if by_group else ())),
        prepare=partial(with_group_q0, beta=settings.beta) if by_group else lambda batch: batch,
        has_signal=lambda group: bool(usable(group)),
        smallest_group=2 if by_group else 1,
        fewest_usable=2 if by_group else 1,
        off_policy=True,
        reference_samples=settings.q0_samples if settings.q0 == "reference" else 0,
        reference_rewards=of_reference,
    )


def _baseline(problem: str, table: dict[str, Sequence[float]], settings: Settings, where: str) -> float | None:
    """Q0 of a problem; 0 where it is not known yet, None where the reference has no sample that could be judged."""
    if settings.q0 == "group":
        return 0.0
    if settings.q0 == "uniform":
        return uniform_value(settings.beta)
    if problem not in table:
        raise UserError(f"problem {problem} has no samples of the reference policy ({where}.q0 = 'reference')")
    best = settings.reward_max if settings.q0_half_success else None
    return soft_value(table[problem], settings.beta, best) if len(table[problem]) else None


def _credit(episode: Episode, reward: float, q0: float, settings: Settings) -> Credit:
    """Reward and Q0 at each learned token; for q0 = group also the problem, as two numbers that f32 holds exactly."""
    found = marks(episode, returns=reward, q0=q0)
    return Credit(0.0, {n: x for n, x in found.items() if settings.q0 == "group" or n not in KEYS})


def soft_value(rewards: Sequence[float], beta: float, best: float | None = None) -> float:
    """beta log mean exp(r / beta) of K rewards, by logsumexp in f64; what V is estimated by.

    With `best`, a problem none of whose rewards is that good has half a sample of it in the place of half of the mean
    of the others, so that its first success is not worth 1 / beta nats.
    """
    r = np.asarray(rewards, np.float64) / beta
    found = np.logaddexp.reduce(r) - np.log(len(r))
    if best is not None and r.max() < best / beta:
        half = 0.5 / len(r)
        found = np.logaddexp(np.log1p(-half) + found, np.log(half) + best / beta)
    return float(beta * found)


def uniform_value(beta: float) -> float:
    """V of rewards that are uniform on [0, 1] under the reference: beta log(beta (e^(1/beta) - 1)).

    Quantiles of a continuous reward are (QRPO, arXiv 2507.08068).
    """
    return float(beta * (1 / beta + np.log(beta) + np.log1p(-np.exp(-1 / beta))))


def with_group_q0(batch: Batch, beta: float) -> Batch:
    """The batch with Q0 = the mean of r - beta log(pi / ref) over the episodes of each problem.

    That minimizes the squared loss in Q0, so the gradient of the loss with this Q0 held fixed is that of the variance
    of r - beta log(pi / ref) within the group, times (G - 1) / G or 1, as one likes to divide.
    """
    of = episodes_of(batch)
    target = of.values(batch.extras["returns"]) - beta * log_ratio(batch, of, batch.old_logprobs)
    problem = of.problems(batch.extras)
    mean = np.bincount(problem, target) / np.bincount(problem)
    return dataclasses.replace(batch, extras=dict(batch.extras) | {"q0": of.spread(mean[problem])})


def spo_loss(logprobs: Array, batch: Batch, config: Settings) -> tuple[jax.Array, LossMetrics]:
    """The loss to minimize, a mean over episodes, differentiable in logprobs f32[B, T]; and its metrics.

    squared: (Q_T - r)^2. cross_entropy, of an event of log-probability Q_T - reward_max, see `cross_entropy`.
    normalize divides the first by 2 beta, the second by beta: the gradient's size no longer depends on beta.
    Metrics, means over episodes: spo/q (Q_T), spo/error (|r - Q_T|), spo/log_ratio (of the whole episode), spo/q0.
    """
    if batch.reference_logprobs is None:
        raise ValueError("spo needs batch.reference_logprobs")
    mask = batch.loss_mask > 0
    # Not a product: what stands elsewhere may be inf.
    log_ratio = jnp.where(mask, logprobs, 0.0) - jnp.where(mask, batch.reference_logprobs, 0.0)
    of_episode = episode_sum(log_ratio, batch.segment_ids)
    returns, q0 = jnp.asarray(batch.extras["returns"]), jnp.asarray(batch.extras["q0"])
    q = q0 + config.beta * of_episode
    if config.loss == "squared":
        terms, scale = (q - returns) ** 2, 2 * config.beta
    else:
        terms, scale = cross_entropy(q - config.reward_max, returns - config.reward_max), config.beta
    terms = jnp.where(mask, terms / scale if config.normalize else terms, 0.0)
    totals = {"spo/q": q, "spo/error": jnp.abs(returns - q), "spo/log_ratio": of_episode, "spo/q0": q0}
    totals = {
        n: jax.lax.stop_gradient(jnp.sum(batch.loss_weights * jnp.where(mask, x, 0.0))) for n, x in totals.items()
    }
    return jnp.sum(batch.loss_weights * terms), LossMetrics({"tokens": jnp.sum(batch.loss_mask)}, {}, totals)


def cross_entropy(log_p: jax.Array, log_target: jax.Array) -> jax.Array:
    """-[q log p + (1 - q) log(1 - p)] with q = exp(log_target), log_target <= 0.

    Beyond log p = -NEAR_ONE it rises as a line of the slope there, or stays, where it would fall: a probability above 1
    is pulled back, which a bound would not do.
    """
    target = jnp.exp(log_target)
    inside = jnp.minimum(log_p, -NEAR_ONE)
    value = -(target * inside + (1 - target) * log1mexp(inside))
    slope = (np.exp(-NEAR_ONE) - target) / -np.expm1(-NEAR_ONE)
    return value + jnp.maximum(slope, 0.0) * jnp.maximum(log_p + NEAR_ONE, 0.0)


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x < 0, exact at both ends."""
    near = x > -0.6931472
    return jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, x, -1.0))), jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))
