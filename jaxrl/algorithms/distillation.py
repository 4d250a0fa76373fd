"""On-policy distillation: a teacher judges each token of the policy's own samples.

GKD (arXiv 2306.13649), MiniLLM (2306.08543); as here, by Thinking Machines Lab, "On-Policy Distillation" (2025).
pi and old are the policies of policy_gradient.py, tau is the teacher. A token a of state s has the reward

    log tau(a | s) - log old(a | s)

and no part in those of other tokens: its discount is 0. On average over the policy's tokens that is -KL(old || tau) in
s, and its policy gradient is the gradient of

    sum over t of KL(pi(. | s_t) || tau(. | s_t))        with the states s_t held fixed.

The loss is that of policy_gradient.py with the advantage `coefficient` times this reward, to which reward = "task" adds
the advantage of the task's reward within its group. All logprobs are those of softmax(logits / temperature), the
teacher's too. Settings, and where others differ: docs/reference/distillation.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrl.algorithms import LossMetrics, policy_gradient
from jaxrl.algorithms.batch import Array, Batch
from jaxrl.algorithms.credit import usable
from jaxrl.algorithms.objective import Credit, Objective, Outputs
from jaxrl.algorithms.policy_gradient import before_update
from jaxrl.config.rules import AboveZero
from jaxrl.errors import UserError
from rollouts.episode import Episode

TEACHER = "teacher_logprobs"
# Settings of the task's reward, which do nothing without it.
OF_REWARD = ("advantage", "credit", "batch_scale", "std_ddof", "advantage_epsilon", "kl_in_reward")


@dataclass
class Settings(policy_gradient.Settings):
    """Reverse KL to a teacher on the policy's own samples; the loss is that of the policy gradient."""

    teacher: str = ""  # as model.path; it must know the policy's tokens, and is not trained
    coefficient: AboveZero = 1.0  # beta, of the reverse KL in the advantages
    reward: Literal["none", "task"] = "none"  # task: beside the advantage of the task's reward

    @property
    def teacher_path(self) -> str:
        return self.teacher

    def check(self, where: str = "grpo.loss") -> None:
        """Raises UserError for settings that contradict each other."""
        super().check(where)
        if self.dynamic_sampling:
            raise UserError(f"{where}.dynamic_sampling = True must be False: every group has a gradient by its teacher")
        if self.reward == "task":
            return
        usual = Settings()
        for name in OF_REWARD:
            if getattr(self, name) != getattr(usual, name):
                raise UserError(f"{where}.{name} = {getattr(self, name)!r} needs {where}.reward = 'task'")
        if self.overlong == "penalty":
            raise UserError(f"{where}.overlong = 'penalty' needs {where}.reward = 'task': it is a part of the reward")


def make_objective(settings: Settings, *, max_new_tokens: int) -> Objective:
    """The objective of these settings. Raises UserError for a wrong one."""
    plain = policy_gradient.make_objective(settings, max_new_tokens=max_new_tokens)
    alone = settings.reward == "none"

    def credit(episodes: Sequence[Episode]) -> list[Credit | None]:
        left_out = [settings.overlong == "filter" and e.status == "truncated" for e in episodes]
        return [None if out else Credit(0.0) for out in left_out]

    def loss(outputs: Outputs, batch: Batch) -> tuple[jax.Array, LossMetrics]:
        kl = reverse_kl(outputs.logprobs, batch, settings)
        taught = dataclasses.replace(batch, advantages=batch.advantages - settings.coefficient * kl)
        value, metrics = plain.loss(outputs, taught)
        return value, metrics._replace(sums={**metrics.sums, "distill/reverse_kl": jnp.sum(kl)})

    return dataclasses.replace(
        plain,
        name="distillation",
        loss=loss,
        credit=credit if alone else plain.credit,
        needs=plain.needs | {TEACHER},
        extras=(*plain.extras, TEACHER),
        zero_credit_trains=True,
        has_signal=lambda group: bool(usable(group)),
        smallest_group=1 if alone else plain.smallest_group,
    )


def reverse_kl(logprobs: Array, batch: Batch, settings: Settings) -> jax.Array:
    """log old - log tau f32[B, T] of each learned token, without gradient; 0 elsewhere.

    A sample of KL(old || tau) in the token's state (k1 of J. Schulman, "Approximating KL divergence", 2020), below 0
    where the teacher finds the token likelier.

    Args:
        logprobs: f32[B, T], of pi; anything where batch.loss_mask is 0.
    """
    sampler = settings.old_logprobs == "sampler"
    old = jnp.asarray(batch.behaviour_logprobs) if sampler else before_update(logprobs, batch)
    return jnp.where(batch.loss_mask > 0, old - batch.extras[TEACHER], 0.0)
