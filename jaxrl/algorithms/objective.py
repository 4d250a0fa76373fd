"""An objective: how episodes become credit, and what is minimized. Data, not a class hierarchy.

A new objective is one file with its settings and `make_objective(settings, ...) -> Objective`; policy_gradient.py and
sft.py are the first two. The order of things for one batch:

    credit         on the host, per problem: a number per episode, or one per learned token, and extras by name
    packing        puts these into the arrays of a Batch
    needs          the learner fills in what must be known before the first update
    prepare        on the host: the batch is complete after it (advantages from values, say)
    across         on the host, once a step: what depends on all its problems (advantages on one scale)
    loss           on the device, once per microbatch of each update
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np

from jaxrl.algorithms import LossMetrics
from jaxrl.algorithms.batch import Array, Batch
from jaxrl.algorithms.credit import usable
from jaxrl.config.training import OptimizerConfig
from models.heads import Head
from rollouts.episode import Episode, Group

OLD = frozenset({"old_logprobs", "old_entropy", "heads"})  # of the policy before the first update
NEEDS = OLD | {"reference_logprobs", "teacher_logprobs"}


class Outputs(NamedTuple):
    """What the model says about a batch. At index t all is about token t; see `Batch` and `models.heads.Head`."""

    logprobs: Array  # f32[b, T], temperature applied; anything where loss_mask is 0
    heads: Mapping[str, Array]  # f32[b, T] by name of the head
    # f32[b, T] of the distribution that the token was drawn from, temperature applied; no gradient unless
    # Objective.entropy_gradient.
    entropy: Array | None = None


class Credit(NamedTuple):
    """What one episode is worth. An episode has n learned tokens, in order."""

    advantage: float | np.ndarray  # of every learned token, or f64[n]
    extras: Mapping[str, np.ndarray] = {}  # f32[n] by name, for `Batch.extras`


def _as_it_is(batch: Batch) -> Batch:
    return batch


@dataclass(frozen=True)
class Objective:
    """What is maximized, and what the learner must know to do so.

    `loss` is a pure function and a plain sum over the tokens of its microbatch (see jaxrl.algorithms), so that it does
    not depend on how the batch is cut. `credit` gets the usable episodes of one problem and returns a Credit for each,
    or None for an episode that is part of the statistics but not trained on.
    """

    name: str
    loss: Callable[[Outputs, Batch], tuple[jax.Array, LossMetrics]]
    credit: Callable[[Sequence[Episode]], Sequence[Credit | None]]
    token_weights: Callable[[Sequence[int]], np.ndarray]  # learned tokens of E episodes -> f64[E]: of each token's term
    # What the learner fills in before the first update: "old_logprobs" and "reference_logprobs" in the fields of these
    # names, "old_entropy" and "teacher_logprobs" in `extras`, "heads" as `old_NAME` of each head in `extras`.
    needs: frozenset[str] = frozenset()
    vocabulary: bool = True  # False: loss and needs are about heads alone; logprobs and entropy are 0
    entropy_gradient: bool = False  # whether the loss differentiates Outputs.entropy
    heads: tuple[Head, ...] = ()
    extras: tuple[str, ...] = ()  # all names in Batch.extras; 0 until credit, needs or prepare gives a value
    # How the heads are trained where that is not as the decoder is, with AdamW settings of their own, and the first
    # steps of the stage in which nothing but the heads is trained.
    heads_optimizer: OptimizerConfig | None = None
    heads_first: int = 0
    prepare: Callable[[Batch], Batch] = _as_it_is
    # The prepared batches of a step, one for each update of a pass, and all groups they were made of -> the batches.
    across: Callable[[Sequence[Batch], Sequence[Group]], Sequence[Batch]] = field(
        default=lambda batches, groups: batches
    )
    measure: Callable[[Batch], dict[str, float]] = field(default=lambda batch: {})  # of a prepared batch, for the log
    zero_credit_trains: bool = True  # False: an episode whose credit is 0 has no gradient and needs no row

    # The objective for a step of the stage (the first is 1), if credit changes over the steps. It depends on the step
    # alone, so that a resumed run gives the same result. Loss, heads and needs are the same in every step.
    at_step: Callable[[int], Objective] | None = None
    has_signal: Callable[[Group], bool] | None = None  # None: see `signal`
    smallest_group: int = 1  # the least grpo.group_size
    fewest_usable: int = 1  # usable episodes; a problem with fewer gets no credit
    needs_answers: bool = False  # Reward.answer, which not every task gives
    off_policy: bool = False  # whether it may learn from episodes that others sampled (grpo.replay)
    # Episodes of each problem that the policy plays before the stage; their rewards by problem id are filled in then.
    reference_samples: int = 0
    reference_rewards: dict[str, Sequence[float]] = field(default_factory=dict, compare=False)

    def signal(self, group: Group) -> bool:
        """Whether a group's episodes have credit: for dynamic sampling, and counted in each step.

        That is, some advantage is not 0. Where `prepare` gives the advantages, every group that is not too small may.
        """
        if self.has_signal is not None:
            return self.has_signal(group)
        episodes = usable(group)
        if len(episodes) < self.fewest_usable:
            return False
        return self.prepare is not _as_it_is or any(
            c is not None and np.any(c.advantage) for c in self.credit(episodes)
        )

    def at(self, stage_step: int) -> Objective:
        """The objective of this step of the stage."""
        return self.at_step(stage_step) if self.at_step else self

    def __post_init__(self) -> None:
        if unknown := self.needs - NEEDS:
            raise ValueError(
                f"objective {self.name}: needs {sorted(unknown)} must be among: {', '.join(sorted(NEEDS))}"
            )
        names = [f"old_{head.name}" for head in self.heads] if "heads" in self.needs else []
        names += sorted(self.needs & {"old_entropy", "teacher_logprobs"})
        if self.heads_first and self.heads_optimizer is None:
            raise ValueError(f"objective {self.name}: heads_first = {self.heads_first} needs heads_optimizer")
        if missing := [name for name in names if name not in self.extras]:
            raise ValueError(f"objective {self.name}: by its needs, extras must name {', '.join(missing)}")
