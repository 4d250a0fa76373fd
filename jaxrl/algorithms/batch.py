"""The arrays of one update: several episodes share a row and are told apart by segment ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import numpy as np

Array = np.ndarray | jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Packed rows. What stands at index t describes token t: its logprob comes from the model's output at t - 1.

    The first token of an episode has no such output and is never in the loss. Padding is 0 in every array.
    The loss is the sum of loss_weights * (a term for each token) over all rows, see `credit.token_weights`.
    """

    tokens: Array  # i32[B, T]
    positions: Array  # i32[B, T], from 0 in each episode
    segment_ids: Array  # i32[B, T], 0: padding; 1, 2, ...: the row's episodes
    loss_mask: Array  # f32[B, T], 1 where the model sampled the token (or is to learn it)
    loss_weights: Array  # f32[B, T], 0 where loss_mask is
    advantages: Array  # f32[B, T], 0 where loss_mask is
    behaviour_logprobs: Array  # f32[B, T], of the sampler, 0 where loss_mask is
    old_logprobs: Array | None = None  # f32[B, T], of the trainer before the first of several updates
    reference_logprobs: Array | None = None  # f32[B, T], where a KL term is used
    extras: Mapping[str, Array] = field(default_factory=dict)  # f32[B, T] by name, 0 where loss_mask is


def fill_behaviour(batch: Batch, logprobs: Array) -> Batch:
    """The batch with the trainer's logprobs f32[B, T] where a token is learned that nobody sampled."""
    given = np.asarray(batch.behaviour_logprobs)
    return dataclasses.replace(batch, behaviour_logprobs=np.where(np.isnan(given), np.asarray(logprobs), given))


def fill(batch: Batch) -> dict[str, float]:
    """Rows of the batch, the share of their positions that are not padding, and the rows that are only padding.

    Every row is computed, so 1 - row_fill of the update's time is spent on padding.
    """
    real = np.asarray(batch.segment_ids) > 0
    return {"rows": len(real), "row_fill": float(real.mean()), "padding_rows": int((~real.any(axis=1)).sum())}


def token_counts(batch: Batch) -> tuple[int, float]:
    """Tokens of the batch, without padding, and the mean number of tokens that each attends to."""
    real = np.asarray(batch.segment_ids) > 0
    return int(real.sum()), float((np.asarray(batch.positions)[real] + 1).mean()) if real.any() else 0.0


def named_arrays(batch: Batch) -> dict[str, np.ndarray]:
    """The batch's arrays by field, extras as extras/NAME, on the host; fields that are None are left out."""
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if f.name != "extras"}
    fields |= {f"extras/{name}": array for name, array in batch.extras.items()}
    return {name: np.asarray(array) for name, array in fields.items() if array is not None}
