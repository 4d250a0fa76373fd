"""One policy-gradient loss; GRPO, Dr.GRPO, RLOO, DAPO, GSPO, CISPO and SAPO are settings of it.

Four policies assign probabilities to the same sampled tokens, and arguments named after them are logprobs f32[B, T]:
pi, which is updated; old, which is pi before the first update on this batch; sampler, which drew the tokens with other
kernels or older weights; reference, the frozen one of the KL term. rho = pi / old.

The settings (fields of Settings) that give a paper's loss, as TRL and verl compute it:

    GRPO     arXiv 2402.03300   averaging=sequence, kl_coefficient=0.04
    Dr.GRPO  arXiv 2503.20783   advantage=group_mean, averaging=constant
    RLOO     arXiv 2402.14740   advantage=leave_one_out, averaging=constant, constant_length=1, with minibatches=1
    DAPO     arXiv 2503.14476   clip_high=0.28, dynamic_sampling=True, overlong=penalty
    GSPO     arXiv 2507.18071   ratio=sequence, averaging=sequence, clip_low=3e-4, clip_high=4e-4
    CISPO    arXiv 2506.13585   objective=cispo, clip_low=1, clip_high=4: no lower bound, rho at most 5
    SAPO     arXiv 2511.20347   objective=sapo, averaging=sequence
    REINFORCE++  arXiv 2501.03262   advantage=reward, batch_scale=whiten (with baseline: advantage=group_mean)

Formulas, conventions and where others differ: docs/reference/policy_gradient.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Le

from jaxrl.algorithms import LossMetrics
from jaxrl.algorithms.across import (
    KEYS,
    divided,
    episodes_of,
    log_ratio,
    marks,
    whitened,
    with_entropy_mask,
    with_kl_in_reward,
)
from jaxrl.algorithms.batch import Array, Batch
from jaxrl.algorithms.credit import (
    advantages,
    finite_rewards,
    on_tokens,
    overlong_penalty,
    token_weights,
    turn_advantages,
    turn_rewards,
    usable,
)
from jaxrl.algorithms.objective import Credit, Objective, Outputs
from jaxrl.config.rules import AboveZero, Count, Infinite, NonNegative, Off, Positive, Share, check_settings
from jaxrl.config.training import ObjectiveSettings
from jaxrl.errors import UserError
from rollouts.episode import Episode, Group

ROUNDING = 1e-4  # of a ratio of two f32 probabilities of one token


@dataclass
class Settings(ObjectiveSettings):
    """One policy-gradient loss; its published variants are these settings."""

    advantage: Literal["group_std", "group_mean", "leave_one_out", "reward"] = "group_std"  # GRPO, Dr.GRPO, RLOO, none
    credit: Literal["episode", "turn", "turn_reward"] = (
        "episode"  # or of each turn: what it and later ones earn; it alone
    )
    batch_scale: Literal["none", "std", "whiten"] = "none"  # over all problems of a step: TRL's batch, REINFORCE++
    std_ddof: Literal[0, 1] = 1  # 1: sample std, as TRL and verl; 0: population std
    advantage_epsilon: NonNegative = 1e-4  # added to the std
    objective: Literal["clip", "cispo", "sapo"] = "clip"  # PPO, MiniMax-M1, a sigmoid instead of clipping
    ratio: Literal["token", "sequence"] = "token"  # sequence: GSPO
    clip_low: Annotated[float, Gt(0), Le(1)] = 0.2
    clip_high: Annotated[float, Gt(0), Infinite] = 0.2  # DAPO: 0.28
    dual_clip: Annotated[float, Gt(1), Off] = 0.0  # c of 1912.09729, e.g. 3; 0: off
    sapo_tau_positive: AboveZero = 1.0  # temperature of SAPO's gate where the advantage is positive
    sapo_tau_negative: AboveZero = 1.05
    averaging: Literal["token", "sequence", "constant"] = "token"  # DAPO, GRPO, Dr.GRPO
    constant_length: Count = 0  # tokens; divisor of `constant` averaging, 0: rollout.max_new_tokens
    kl_coefficient: NonNegative = 0.0  # 0: no reference model is kept
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"  # see docs/reference/policy_gradient.md
    kl_corrected: bool = False  # times pi / old with its gradient, so that k3 pulls as KL(pi || reference) does
    kl_in_reward: NonNegative = 0.0  # beta of RLHF: reward - beta * sum over the episode of log old - log reference
    entropy_coefficient: NonNegative = 0.0  # of a bonus for the entropy of the distribution that is sampled from
    top_entropy: Annotated[float, Gt(0), Le(1)] = 1.0  # share of tokens, those of most entropy, that are trained
    sampler_correction: Literal["none", "truncate", "mask", "reject"] = "none"  # TIS, IcePop, or whole episodes
    sampler_correction_level: Literal["token", "sequence"] = "token"
    sampler_ratio_min: Share = 0.5  # used by mask
    sampler_ratio_max: Annotated[float, Ge(1), Infinite] = 2.0
    old_logprobs: Literal["trainer", "sampler"] = "trainer"  # recomputed before the first update, or the engine's
    overlong: Literal["none", "penalty", "filter"] = "none"  # DAPO's soft punishment, or mask 0 for truncated episodes
    overlong_buffer: Positive = 16  # tokens over which the penalty grows to 1

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient > 0 or self.kl_in_reward > 0

    def check(self, where: str = "grpo.loss") -> None:
        """Raises UserError for settings that contradict each other."""
        if self.batch_scale != "none" and self.advantage == "group_std":
            raise UserError(
                f"{where}.batch_scale = {self.batch_scale!r} needs another {where}.advantage than 'group_std', which "
                "has a scale already"
            )
        by_episode = {"batch_scale": "none", "kl_in_reward": 0.0, "overlong": "none"}
        if self.credit != "episode" and (other := [n for n, v in by_episode.items() if getattr(self, n) != v]):
            raise UserError(
                f"{where}.credit = {self.credit!r} must be 'episode' with {where}.{other[0]} = "
                f"{getattr(self, other[0])!r}, which changes the reward of whole episodes"
            )
        if self.batch_scale == "std" and self.advantage == "reward":
            raise UserError(
                f"{where}.batch_scale = 'std' needs {where}.advantage = 'group_mean' or 'leave_one_out'; "
                "'whiten' subtracts a mean itself"
            )
        if self.kl_estimator == "k1":
            raise UserError(
                f"{where}.kl_estimator = 'k1' must be k2 or k3: the gradient of k1 is 0 in expectation, so it adds "
                "noise and no pull to the reference; k2 has the gradient of KL(policy || reference), k3 the reverse; "
                f"{where}.kl_in_reward is k1 in the reward"
            )
        if self.kl_in_reward and self.overlong == "filter":
            raise UserError(
                f"{where}.overlong = 'filter' must be none or penalty with {where}.kl_in_reward above 0: the logprobs "
                "of filtered episodes, and so their rewards, are not computed"
            )
        if self.kl_corrected and not (self.kl_coefficient and self.kl_estimator == "k3"):
            raise UserError(f"{where}.kl_corrected = True needs {where}.kl_coefficient above 0 and kl_estimator = 'k3'")
        if self.sampler_correction == "reject" and self.sampler_correction_level != "sequence":
            raise UserError(
                f"{where}.sampler_correction = 'reject' needs {where}.sampler_correction_level = 'sequence': it drops "
                "whole episodes"
            )
        if self.old_logprobs == "sampler" and self.sampler_correction != "none":
            raise UserError(
                f"{where}.sampler_correction = {self.sampler_correction!r} needs {where}.old_logprobs = 'trainer': "
                "with the sampler's own logprobs as the old policy there is nothing to correct"
            )


def make_objective(settings: Settings, *, max_new_tokens: int, where: str = "grpo.loss") -> Objective:
    """The objective of these settings, for episodes of at most max_new_tokens.

    Credit is the advantage within the group, after the overlong penalty where that is on; with overlong = filter,
    truncated episodes count in the group's mean and std but are not trained on. Raises UserError for a wrong setting,
    named as `where`.NAME.
    """
    check_settings(settings, where)
    if settings.overlong == "penalty" and settings.overlong_buffer > max_new_tokens:
        raise UserError(
            f"{where}.overlong_buffer = {settings.overlong_buffer} must be at most rollout.max_new_tokens = "
            f"{max_new_tokens}"
        )

    def loss(outputs: Outputs, batch: Batch) -> tuple[jax.Array, LossMetrics]:
        return policy_gradient_loss(outputs.logprobs, batch, settings, outputs.entropy)

    def rewards_of(episodes: Sequence[Episode]) -> np.ndarray:
        rewards = finite_rewards(episodes)
        if settings.overlong == "penalty":
            rewards += [overlong_penalty(e.length, max_new_tokens, settings.overlong_buffer) for e in episodes]
        return rewards

    def credit(episodes: Sequence[Episode]) -> list[Credit | None]:
        rewards = rewards_of(episodes)
        found = _advantages(rewards, settings) if settings.credit == "episode" else _by_turn(episodes, settings)
        left_out = [settings.overlong == "filter" and e.status == "truncated" for e in episodes]
        extras = [marks(e, reward=r) if settings.kl_in_reward else {} for e, r in zip(episodes, rewards)]
        return [None if out else Credit(a, x) for out, a, x in zip(left_out, found, extras)]

    def weights(lengths: Sequence[int]) -> np.ndarray:
        return token_weights(lengths, settings.averaging, settings.constant_length or max_new_tokens)

    return Objective(
        "policy_gradient",
        loss,
        credit,
        weights,
        needs=_needs(settings),
        entropy_gradient=settings.entropy_coefficient > 0,
        extras=(
            *(("old_entropy", "entropy_mask") if settings.top_entropy < 1 else ()),
            *(("reward", *KEYS) if settings.kl_in_reward else ()),
        ),
        across=lambda batches, groups: _across(batches, groups, settings, rewards_of),
        measure=lambda batch: _measure(batch, settings),
        # Not so where an episode of advantage 0 has another term, or counts in the mean or the quantile of its tokens.
        zero_credit_trains=settings.needs_reference
        or settings.entropy_coefficient > 0
        or settings.top_entropy < 1
        or settings.batch_scale == "whiten",
        smallest_group=1 if settings.advantage == "reward" else 2,
    )


def _advantages(rewards: np.ndarray, settings: Settings) -> np.ndarray:
    return advantages(rewards, settings.advantage, std_ddof=settings.std_ddof, epsilon=settings.advantage_epsilon)


def _by_turn(episodes: Sequence[Episode], settings: Settings) -> list[np.ndarray]:
    """f64[learned tokens] of each episode. Raises UserError where the environment gives turns no rewards."""
    rewards = []
    for e in episodes:
        if e.reward.turns is None:
            raise UserError(
                f"grpo.loss.credit = {settings.credit!r} needs an environment that rewards each turn, such as edits; "
                f"problem {e.problem.id} was played in one that does not"
            )
        turn_rewards(e)  # checks that they are as many as the turns
        rewards.append(e.reward.turns)
    kind, returns = settings.advantage, settings.credit == "turn"
    found = turn_advantages(
        rewards, kind, returns=returns, std_ddof=settings.std_ddof, epsilon=settings.advantage_epsilon
    )
    return [on_tokens(e, a) for e, a in zip(episodes, found)]


def _needs(settings: Settings) -> frozenset[str]:
    again = settings.updates > 1 or settings.kl_in_reward > 0
    asked = {
        "old_logprobs": again and settings.old_logprobs == "trainer",
        "old_entropy": settings.top_entropy < 1,
        "reference_logprobs": settings.needs_reference,
    }
    return frozenset(name for name, wanted in asked.items() if wanted)


def _across(
    batches: Sequence[Batch],
    groups: Sequence[Group],
    settings: Settings,
    rewards_of: Callable[[Sequence[Episode]], np.ndarray],
) -> Sequence[Batch]:
    """What the settings ask for that depends on all of a step's problems."""
    if settings.top_entropy < 1:
        batches = with_entropy_mask(batches, settings.top_entropy)
    if settings.kl_in_reward:
        credit = partial(_advantages, settings=settings)
        found = [with_kl_in_reward(b, _old(b, settings), settings.kl_in_reward, credit) for b in batches]
        batches, rewards = [b for b, _ in found], [r for _, r in found]
    else:
        rewards = [rewards_of(usable(g)) for g in groups]
    if settings.batch_scale == "std":
        rewards = np.concatenate(rewards)
        batches = divided(batches, rewards, ddof=settings.std_ddof, epsilon=settings.advantage_epsilon)
    elif settings.batch_scale == "whiten":
        batches = whitened(batches, epsilon=settings.advantage_epsilon)
    return batches


def _old(batch: Batch, settings: Settings) -> Array | None:
    return batch.behaviour_logprobs if settings.old_logprobs == "sampler" else batch.old_logprobs


def _measure(batch: Batch, settings: Settings) -> dict[str, float]:
    """kl/episode: the mean of k1, log old - log reference, of whole episodes."""
    k1 = log_ratio(batch, episodes_of(batch), _old(batch, settings)) if settings.kl_in_reward else []
    return {"kl/episode": float(np.mean(k1))} if len(k1) else {}


def policy_gradient_loss(
    logprobs: Array,  # f32[B, T], of pi, temperature applied; anything where batch.loss_mask is 0
    batch: Batch,
    config: Settings,  # checked before (config.check())
    entropy: Array | None = None,  # f32[B, T], where entropy_coefficient is above 0
) -> tuple[jax.Array, LossMetrics]:
    """The loss to minimize, a sum over the batch's tokens, differentiable in `logprobs` and `entropy`; and its metrics.

    loss = -sum_{i,t} w_{i,t} [m_{i,t} (c_{i,t} J(rho_{i,t}, A_i) + alpha H_{i,t}) - beta KL_{i,t}] with w the batch's
    loss_weights (the averaging), m the entropy mask (1 without), c the sampler correction, J the objective and alpha
    the entropy's coefficient. A batch without old_logprobs is in its first and only update: old is pi without its
    gradient, rho exactly 1.

    Metrics, means over tokens: clip_fraction; kl/old and kl/reference, of pi; mismatch/kl (sampler to old, k3);
    mismatch/clipped, the share outside the bounds of the correction; entropy/trained, the mask's share. Maximum:
    mismatch/max, of |log old / sampler|.
    The tokens are those in the rows: without a KL term, episodes of advantage 0 have none there (see make_batch).
    """
    mask = batch.loss_mask > 0

    def on_sampled_tokens(x: Array) -> jax.Array:
        return jnp.where(mask, x, 0.0)  # not a product: what stands elsewhere may be inf

    pi, sampler = on_sampled_tokens(logprobs), on_sampled_tokens(batch.behaviour_logprobs)
    recomputed = on_sampled_tokens(before_update(logprobs, batch))
    old = sampler if config.old_logprobs == "sampler" else recomputed

    rho = ratio(pi, old, batch, config)
    objective, clipped = clipped_objective(rho, pi, jnp.asarray(batch.advantages), config)
    correction, corrected = sampler_weight(recomputed, sampler, batch, config)
    objective = correction * objective
    sums = {
        "tokens": jnp.ones_like(pi),
        "clip_fraction": clipped,
        "kl/old": kl_estimate(old, pi, "k3"),
        # Where the sampler's logprobs serve as old, this is against pi: exact in the first update of a batch.
        "mismatch/kl": kl_estimate(sampler, recomputed, "k3"),
        "mismatch/clipped": corrected,
    }
    if config.entropy_coefficient:
        if entropy is None:
            raise ValueError(f"grpo.loss.entropy_coefficient = {config.entropy_coefficient} needs the entropy")
        objective = objective + config.entropy_coefficient * on_sampled_tokens(entropy)
    if config.top_entropy < 1:
        sums["entropy/trained"] = on_sampled_tokens(batch.extras["entropy_mask"])
        objective = objective * sums["entropy/trained"]
    if config.kl_coefficient:
        if batch.reference_logprobs is None:
            raise ValueError(f"grpo.loss.kl_coefficient = {config.kl_coefficient} needs batch.reference_logprobs")
        kl = kl_estimate(pi, on_sampled_tokens(batch.reference_logprobs), config.kl_estimator)
        kl = jnp.exp(pi - old) * kl if config.kl_corrected else kl  # DeepSeek-V3.2, arXiv 2512.02556
        objective = objective - config.kl_coefficient * kl
        sums["kl/reference"] = kl
    loss = -jnp.sum(batch.loss_weights * objective)

    sums = {name: jax.lax.stop_gradient(jnp.sum(on_sampled_tokens(x))) for name, x in sums.items()}
    maxima = {"mismatch/max": jax.lax.stop_gradient(jnp.max(jnp.abs(recomputed - sampler)))}
    return loss, LossMetrics(sums, maxima)


def before_update(logprobs: Array, batch: Batch) -> jax.Array:
    """Logprobs f32[B, T] of pi before the first update on the batch, without gradient: in its only one, pi itself."""
    return jax.lax.stop_gradient(jnp.asarray(logprobs if batch.old_logprobs is None else batch.old_logprobs))


def ratio(pi: jax.Array, old: jax.Array, batch: Batch, config: Settings) -> jax.Array:
    """rho f32[B, T]: pi / old of each token, or its geometric mean over the episode (GSPO, equation 7).

    Every token of the episode has the sequence ratio, so that the average over its tokens is GSPO's term, and its
    gradient goes through all of them.
    """
    log_rho = pi - old
    if config.ratio == "sequence":
        length = episode_sum(batch.loss_mask, batch.segment_ids)
        log_rho = episode_sum(log_rho, batch.segment_ids) / jnp.maximum(length, 1)
    return jnp.exp(log_rho)


def clipped_objective(
    rho: jax.Array, pi: jax.Array, advantage: jax.Array, config: Settings
) -> tuple[jax.Array, jax.Array]:
    """J f32[B, T], to be maximized, and whether clipping cut the token's gradient or weight, bool[B, T].

    clip:  min(rho A, clip(rho, 1 - low, 1 + high) A) (PPO, arXiv 1707.06347); with dual_clip c and A < 0 at least c A
           (arXiv 1912.09729).
    cispo: stop_gradient(clip(rho, 1 - low, 1 + high)) A log pi (arXiv 2506.13585): clipped tokens keep a gradient.
    sapo:  (4 / tau) sigmoid(tau (rho - 1)) A with tau by the sign of A (arXiv 2511.20347): slope 1 at rho = 1.
    """
    if config.objective == "sapo":
        tau = jnp.where(advantage > 0, config.sapo_tau_positive, config.sapo_tau_negative)
        return 4 / tau * jax.nn.sigmoid(tau * (rho - 1)) * advantage, jnp.zeros_like(rho, bool)

    bounded = jnp.clip(rho, 1 - config.clip_low, 1 + config.clip_high)
    if config.objective == "cispo":
        return jax.lax.stop_gradient(bounded) * advantage * pi, rho != bounded

    objective = jnp.minimum(rho * advantage, bounded * advantage)
    clipped = bounded * advantage < rho * advantage
    if config.dual_clip:
        least = jnp.where(advantage < 0, config.dual_clip * advantage, -jnp.inf)
        objective, clipped = jnp.maximum(objective, least), clipped | (objective < least)
    return objective, clipped


def kl_estimate(p: jax.Array, q: jax.Array, estimator: str) -> jax.Array:
    """KL(p || q) from tokens drawn from p, estimated at each token f32[B, T] from the two logprobs.

    With d = q - p: k2 = d^2 / 2 (biased, low variance), k3 = exp(d) - d - 1 (unbiased, >= 0); J. Schulman,
    "Approximating KL divergence" (2020). In a loss these are differentiated in p as they stand, as GRPO does. Over
    tokens drawn from p the gradient of k2 is then that of KL(p || q), the gradient of k3 that of KL(q || p). (That of
    k1 = -d would be 0.)
    """
    d = q - p
    return d**2 / 2 if estimator == "k2" else jnp.expm1(d) - d


def sampler_weight(old: jax.Array, sampler: jax.Array, batch: Batch, config: Settings) -> tuple[jax.Array, jax.Array]:
    """The weight f32[B, T] of each token's objective that corrects for the sampler, and where it takes effect, bool.

    The importance ratio old / sampler without gradient, of the token or of the whole episode (the product). truncate:
    at most sampler_ratio_max (F. Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"). mask: 0 outside [sampler_ratio_min, sampler_ratio_max] (IcePop, Ling team 2025).
    reject: 0 for all of an episode whose geometric mean ratio is outside these bounds, else 1.
    """
    if config.sampler_correction == "none":
        return jnp.ones_like(old), jnp.zeros_like(old, bool)
    log_weight = jax.lax.stop_gradient(old - sampler)
    if config.sampler_correction_level == "sequence":
        log_weight = episode_sum(log_weight, batch.segment_ids)
    weight = jnp.exp(log_weight)
    if config.sampler_correction == "reject":
        length = episode_sum(batch.loss_mask, batch.segment_ids)
        mean = jnp.exp(log_weight / jnp.maximum(length, 1))
        outside = (mean > config.sampler_ratio_max) | (mean < config.sampler_ratio_min)
        return jnp.where(outside, 0.0, 1.0), outside
    if config.sampler_correction == "truncate":
        # A bound of 1 (RLEF) would count every token whose two equal logprobs are rounded differently.
        return jnp.minimum(weight, config.sampler_ratio_max), weight > config.sampler_ratio_max * (1 + ROUNDING)
    outside = (weight > config.sampler_ratio_max) | (weight < config.sampler_ratio_min)
    return jnp.where(outside, 0.0, weight), outside


def episode_sum(values: Array, segment_ids: Array) -> jax.Array:
    """The sum of values f32[B, T] over each episode of each row, at every token of that episode."""
    T = values.shape[1]

    def row(values: jax.Array, ids: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, ids, num_segments=T + 1)[ids]

    return jax.vmap(row)(jnp.asarray(values), jnp.asarray(segment_ids))
