"""An objective with a value head, as a plug-in: the policy gradient with a learned baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.algorithms import LossMetrics, policy_gradient
from jaxrl.algorithms.batch import Batch
from jaxrl.algorithms.credit import finite_rewards
from jaxrl.algorithms.objective import Credit, Objective, Outputs
from models.heads import Head
from rollouts.episode import Episode


@dataclass
class Settings(policy_gradient.Settings):
    """Those of the policy gradient, and of the head."""

    scale: float = 0.0  # standard deviation of the head's initial weights


def make_objective(settings: Settings, *, max_new_tokens: int) -> Objective:
    """The head learns the episode's reward at each token; the advantage is the reward minus the old value."""
    plain = policy_gradient.make_objective(settings, max_new_tokens=max_new_tokens)

    def credit(episodes: Sequence[Episode]) -> list[Credit]:
        lengths = [sum(len(turn.tokens) for turn in e.turns if turn.learned) for e in episodes]
        rewards = finite_rewards(episodes)
        return [Credit(0.0, {"returns": np.full(n, reward)}) for n, reward in zip(lengths, rewards)]

    def prepare(batch: Batch) -> Batch:
        advantages = np.asarray(batch.extras["returns"]) - np.asarray(batch.extras["old_value"])
        return dataclasses.replace(batch, advantages=advantages)

    def loss(outputs: Outputs, batch: Batch) -> tuple[jax.Array, LossMetrics]:
        value, metrics = plain.loss(outputs, batch)
        error = jnp.where(batch.loss_mask > 0, outputs.heads["value"] - batch.extras["returns"], 0.0)
        sums = metrics.sums | {"value/error": jax.lax.stop_gradient(jnp.sum(error**2))}
        return value + jnp.sum(batch.loss_weights * error**2), LossMetrics(sums, metrics.maxima)

    return dataclasses.replace(
        plain,
        name="baseline",
        loss=loss,
        credit=credit,
        needs=plain.needs | {"heads"},
        heads=(Head("value", scale=settings.scale),),
        extras=("returns", "old_value"),
        prepare=prepare,
        zero_credit_trains=True,
    )
