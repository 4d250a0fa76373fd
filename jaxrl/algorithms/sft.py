"""Supervised fine-tuning: the cross-entropy of demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from jaxrl.algorithms import LossMetrics
from jaxrl.algorithms.batch import Array, Batch
from jaxrl.algorithms.credit import token_weights
from jaxrl.algorithms.objective import Credit, Objective, Outputs
from jaxrl.config.training import ObjectiveSettings


@dataclass
class Settings(ObjectiveSettings):
    """Cross-entropy; as the objective of RL, that of the episodes that solve their problem (arXiv 2308.01825)."""


def make_objective(settings: ObjectiveSettings = Settings(), *, max_new_tokens: int = 0) -> Objective:
    """The mean cross-entropy of all learned tokens. Of sampled episodes those are learned that solve their problem."""

    def loss(outputs: Outputs, batch: Batch) -> tuple[jax.Array, LossMetrics]:
        return sft_loss(outputs.logprobs, batch)

    return Objective(
        "sft",
        loss,
        lambda episodes: [Credit(1.0) if e.reward.solved else None for e in episodes],
        partial(token_weights, averaging="token"),
    )


def sft_loss(logprobs: Array, batch: Batch) -> tuple[jax.Array, LossMetrics]:
    """-sum of loss_weights * logprobs f32[B, T], in nats per answer token with the weights of `sft_batch`.

    Metric: nll, the mean over answer tokens.
    """
    learned = jnp.where(batch.loss_mask > 0, logprobs, 0.0)  # what stands elsewhere may be inf
    sums = {"tokens": jnp.sum(batch.loss_mask), "nll": -jax.lax.stop_gradient(jnp.sum(learned))}
    return -jnp.sum(batch.loss_weights * learned), LossMetrics(sums, {})
