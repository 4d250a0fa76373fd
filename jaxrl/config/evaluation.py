"""Settings of held-out evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from jaxrl.config.plugins import PLUGINS
from jaxrl.config.rules import Count, NonNegative, Positive
from jaxrl.config.task import TaskSettings
from jaxrl.errors import UserError


@dataclass
class EvaluationConfig:
    """Held-out evaluation before, between and after the stages."""

    task: Annotated[TaskSettings, PLUGINS["task"]] = field(
        default_factory=TaskSettings
    )  # whose held-out problems; "": the run's task
    samples: Positive = 1  # completions a problem
    temperature: NonNegative = 1.0  # 0: greedy
    at_start: bool = True  # also before the first step
    every: Count = 0  # steps from one to the next; 0: only between stages
    beside: bool = False  # those within a stage run on an engine of their own, while training continues
    k: tuple[Positive, ...] = ()  # pass@k, maj@k, n@k and best-of-k for these too, beside 1 and `samples`
    submissions: Positive = 1  # n of n@k: programs submitted at most, of those that pass the public tests
    # Scorer of best-of-k: mean or summed logprob, public tests, reward.model; all of them side by side; "": none.
    best_of: Literal["", "logprob", "public", "logprob_sum", "reward", "all"] = ""
    regenerate: Count = 0  # times at most to sample again an answer that is not well formed
    bootstrap: Count = 1000  # resamples of the problems for the 95% intervals; 0: no intervals

    def check(self, where: str = "evaluation") -> None:
        """Raises UserError for settings that contradict each other."""
        if self.task.name and self.task.rates.path:
            raise UserError(f"{where}.task.rates.path has no effect: it chooses training problems")
        if self.beside and not self.every:
            raise UserError(f"{where}.beside = True has no effect with {where}.every = 0: nothing is trained meanwhile")
        if any(k > self.samples for k in self.k):
            raise UserError(f"{where}.k = {self.k!r} must be in 1 .. {where}.samples = {self.samples}")
        if self.regenerate and not self.temperature:
            raise UserError(
                f"{where}.regenerate = {self.regenerate} must be 0 with {where}.temperature = 0, which gives the same "
                "text again"
            )
