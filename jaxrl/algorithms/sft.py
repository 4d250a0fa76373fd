"""Supervised fine-tuning: the cross-entropy of demonstrations."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.algorithms import LossMetrics
from jaxrl.batch import Array, Batch


def sft_loss(logprobs: Array, batch: Batch) -> tuple[jax.Array, LossMetrics]:
    """-sum of loss_weights * logprobs f32[B, T], in nats per answer token with the weights of `sft_batch`.

    Metric: nll, the mean over answer tokens.
    """
    learned = jnp.where(batch.loss_mask > 0, logprobs, 0.0)  # what stands elsewhere may be inf
    sums = {"tokens": jnp.sum(batch.loss_mask), "nll": -jax.lax.stop_gradient(jnp.sum(learned))}
    return -jnp.sum(batch.loss_weights * learned), LossMetrics(sums, {})
