"""Algorithms: credit on the host, losses on the device.

A loss is a pure function (outputs, batch) -> (loss, LossMetrics), see objective.py. It never sees the model, and it is
a plain sum over the tokens of the batch: the weights that make it a mean of some kind are in `batch.loss_weights`.
So the losses, gradients and metrics of microbatches add up to those of the whole batch, however it is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np


class LossMetrics(NamedTuple):
    """What a loss measured on a microbatch, in a form that accumulates exactly. All values are scalars."""

    sums: dict[str, jax.Array]  # over the sampled tokens; sums["tokens"] is their number
    maxima: dict[str, jax.Array]  # over the sampled tokens, >= 0
    totals: Mapping[str, jax.Array] = {}  # terms weighted as those of the loss: they add up to the metric itself


def combine(a: LossMetrics, b: LossMetrics) -> LossMetrics:
    """The metrics of two microbatches together, on the host."""
    sums, totals = jax.tree.map(np.add, (a.sums, a.totals), (b.sums, b.totals))
    return LossMetrics(sums, jax.tree.map(np.maximum, a.maxima, b.maxima), totals)


def summarize(metrics: LossMetrics) -> dict[str, jax.Array]:
    """Means over the sampled tokens (0 if there are none), maxima, totals, and the number of tokens, on the host."""
    tokens = metrics.sums["tokens"]
    means = {name: value / np.maximum(tokens, 1) for name, value in metrics.sums.items()}
    return {**means, **metrics.maxima, **metrics.totals, "tokens": tokens}
