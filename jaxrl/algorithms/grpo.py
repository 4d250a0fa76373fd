"""One policy-gradient loss; GRPO, Dr.GRPO, RLOO, DAPO, GSPO, CISPO and SAPO are settings of it.

Four policies judge the same sampled tokens, and all arguments named after them are logprobs f32[B, T]:
pi, which is updated; old, as pi was before the first update on this batch; sampler, which drew the tokens with other
kernels or older weights; reference, the frozen one of the KL term. rho = pi / old.

The settings (fields of PolicyGradientConfig) that give a paper's loss:

    GRPO     arXiv 2402.03300   averaging=sequence, kl_coefficient=0.04
    Dr.GRPO  arXiv 2503.20783   advantage=group_mean, averaging=constant
    RLOO     arXiv 2402.14740   advantage=leave_one_out
    DAPO     arXiv 2503.14476   clip_high=0.28, dynamic_sampling=True, overlong=penalty
    GSPO     arXiv 2507.18071   ratio=sequence, averaging=sequence, clip_low=3e-4, clip_high=4e-4
    CISPO    arXiv 2506.13585   objective=cispo
    SAPO     arXiv 2511.20347   objective=sapo
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.algorithms import LossMetrics
from jaxrl.batch import Array, Batch
from jaxrl.config import PolicyGradientConfig


def policy_gradient_loss(
    logprobs: Array,  # f32[B, T], of pi, temperature applied; anything where batch.loss_mask is 0
    batch: Batch,
    config: PolicyGradientConfig,  # checked before (config.check())
) -> tuple[jax.Array, LossMetrics]:
    """The loss to minimize, a sum over the batch's tokens, differentiable in `logprobs`; and its metrics.

    loss = -sum_{i,t} w_{i,t} [c_{i,t} J(rho_{i,t}, A_i) - beta KL_{i,t}] with w the batch's loss_weights (the
    averaging), c the sampler correction and J the objective. A batch without old_logprobs is in its first and only
    update: old is pi without its gradient, rho exactly 1.

    Metrics, means over tokens: clip_fraction; kl/old and kl/reference, of pi; mismatch/kl (sampler to old, k3);
    mismatch/clipped, the share outside the bounds of the correction. Maximum: mismatch/max, of |log old / sampler|.
    """
    mask = batch.loss_mask > 0

    def on_sampled_tokens(x: Array) -> jax.Array:
        return jnp.where(mask, x, 0.0)  # not a product: what stands elsewhere may be inf

    pi, sampler = on_sampled_tokens(logprobs), on_sampled_tokens(batch.behaviour_logprobs)
    recomputed = jax.lax.stop_gradient(pi) if batch.old_logprobs is None else on_sampled_tokens(batch.old_logprobs)
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
    if config.kl_coefficient:
        if batch.reference_logprobs is None:
            raise ValueError(f"grpo.loss.kl_coefficient = {config.kl_coefficient} needs batch.reference_logprobs")
        kl = kl_estimate(pi, on_sampled_tokens(batch.reference_logprobs), config.kl_estimator)
        objective = objective - config.kl_coefficient * kl
        sums["kl/reference"] = kl
    loss = -jnp.sum(batch.loss_weights * objective)

    sums = {name: jax.lax.stop_gradient(jnp.sum(on_sampled_tokens(x))) for name, x in sums.items()}
    maxima = {"mismatch/max": jax.lax.stop_gradient(jnp.max(jnp.abs(recomputed - sampler)))}
    return loss, LossMetrics(sums, maxima)


def ratio(pi: jax.Array, old: jax.Array, batch: Batch, config: PolicyGradientConfig) -> jax.Array:
    """rho f32[B, T]: pi / old of each token, or its geometric mean over the episode (GSPO, equation 7).

    The sequence ratio stands at every token of the episode, so that the average over its tokens is GSPO's term, and
    its gradient goes through all of them.
    """
    log_rho = pi - old
    if config.ratio == "sequence":
        length = episode_sum(batch.loss_mask, batch.segment_ids)
        log_rho = episode_sum(log_rho, batch.segment_ids) / jnp.maximum(length, 1)
    return jnp.exp(log_rho)


def clipped_objective(
    rho: jax.Array, pi: jax.Array, advantage: jax.Array, config: PolicyGradientConfig
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

    With d = q - p: k1 = -d (unbiased), k2 = d^2 / 2 (biased, low variance), k3 = exp(d) - d - 1 (unbiased, >= 0);
    J. Schulman, "Approximating KL divergence" (2020). In a loss these are differentiated as they stand, as GRPO does.
    """
    d = q - p
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d**2 / 2
    return jnp.expm1(d) - d


def sampler_weight(
    old: jax.Array, sampler: jax.Array, batch: Batch, config: PolicyGradientConfig
) -> tuple[jax.Array, jax.Array]:
    """The weight f32[B, T] of each token's objective that corrects for the sampler, and where it is at work, bool.

    The importance ratio old / sampler without gradient, of the token or of the whole episode (the product). truncate:
    at most sampler_ratio_max (F. Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"). mask: 0 outside [sampler_ratio_min, sampler_ratio_max] (IcePop, Ling team 2025).
    """
    if config.sampler_correction == "none":
        return jnp.ones_like(old), jnp.zeros_like(old, bool)
    log_weight = jax.lax.stop_gradient(old - sampler)
    if config.sampler_correction_level == "sequence":
        log_weight = episode_sum(log_weight, batch.segment_ids)
    weight = jnp.exp(log_weight)
    above = weight > config.sampler_ratio_max
    if config.sampler_correction == "truncate":
        return jnp.minimum(weight, config.sampler_ratio_max), above
    outside = above | (weight < config.sampler_ratio_min)
    return jnp.where(outside, 0.0, weight), outside


def episode_sum(values: Array, segment_ids: Array) -> jax.Array:
    """The sum of values f32[B, T] over each episode of each row, at every token of that episode."""
    T = values.shape[1]

    def row(values: jax.Array, ids: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, ids, num_segments=T + 1)[ids]

    return jax.vmap(row)(jnp.asarray(values), jnp.asarray(segment_ids))
