"""Stages: a run is a list of them, each with its own objective, optimizer and steps.

A new stage is one file with a function that makes its Stage, and a class with its `step`; jaxrl/train.py lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from jaxrl.algorithms.objective import Objective
from jaxrl.config import OptimizerConfig
from jaxrl.training.learner import TrainState


@dataclass(frozen=True)
class Stage:
    """Steps start + 1 .. end of the run."""

    name: str  # in records and reports
    start: int
    end: int
    optimizer: OptimizerConfig
    objective: Objective
    begin: Callable[..., Progressing]  # (trainer, stage, learner, state, done) -> the stage after step `done`
    updates: int = 1  # of the optimizer in a step, at most
    temperature: float = 1.0  # of the distribution whose logprobs the objective sees
    samples: bool = True  # whether the engine samples for it, in evaluations at least

    @property
    def steps(self) -> int:
        return self.end - self.start


class Progressing:
    """A stage that is under way. Only `step` must be written."""

    def step(self, state: TrainState, step: int, stage_step: int) -> tuple[TrainState, dict[str, float]]:
        """One step of the run; its metrics have at least loss, tokens and flops."""
        raise NotImplementedError

    def wait(self) -> None:
        """Returns when nothing of the stage uses the engine."""

    def evaluate(self, state: TrainState, step: int, after: str) -> str:
        """An evaluation in place of the usual one, in stages without an engine; why the run should stop, or ""."""
        raise NotImplementedError

    def evaluated(self, state: TrainState, step: int) -> None:
        """After an evaluation, in which the engine had the parameters that the next update donates."""

    def can_save(self, step: int) -> bool:
        """Whether a checkpoint may be written after `step`."""
        return True

    def save(self, step: int) -> dict[str, Any]:
        """Saves what is not in the state; what it returns, JSON, is in the checkpoint's place."""
        return {}

    def close(self, wait: bool = True) -> None:
        """Ends all that the stage has started; at once if not `wait`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(wait=kind is not KeyboardInterrupt)
