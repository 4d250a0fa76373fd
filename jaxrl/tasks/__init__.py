"""Tasks: where problems come from, and what a submission is worth.

A task is one module with a class Settings(TaskSettings) and `make_task(settings: Settings, seed: int) -> Task`: of this
package, or from anywhere (jaxrl/config/plugins.py). docs/extending.md has a worked example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxrl.config.plugins import PLUGINS, load_plugin, plugin_name
from jaxrl.config.rules import check_settings
from jaxrl.config.task import TaskSettings
from jaxrl.tasks.extract import code_block, parses
from jaxrl.tasks.rates import by_rates
from jaxrl.tasks.sampling import Selection, Uniform
from rollouts.episode import Group, Problem, Reward, Submission
from rollouts.services import Services

Judge = Callable[[Problem, Submission, Services], Awaitable[Reward]]


def difficulty(problem: Problem) -> dict[str, Any]:
    """The slice of a problem whose meta says how difficult it is."""
    return {"difficulty": problem.meta["difficulty"]} if "difficulty" in problem.meta else {}


@dataclass(frozen=True)
class Task:
    """Problems and what their submissions are worth.

    `judge(problem, submission, services)` is the reward of what an episode submits; `extract(problem, text)` is the
    program in a text, for tasks that ask for programs. `demonstrations` are problems that have a `demonstration`, for
    SFT; `corpus` is text like that of the task, for training a small tokenizer; `rejected` counts the problems that
    filters dropped, by reason.

    For evaluation: `metrics(group)` are values of a problem by name, beside pass@k; `headline` is the metric of
    progress lines, reports and comparisons; `slices(problem)` are the parts of the problems that the headline is
    reported for, {"difficulty": 3}; `answers` says that rewards have an `answer`, for majority votes; `well_formed`
    says whether a submission is worth judging at all. `strata(problem)` is (what it is a variant of, rank), where a
    question is asked in several variants: see jaxrl.evaluation.metrics.

    `selection(train, seed)` draws the training problems: without it each comes once a pass. `environments` are settings
    of environments by Problem.meta["part"], where the problems of a task do not all have the run's.
    """

    name: str
    train: Sequence[Problem]
    held_out: Sequence[Problem]
    judge: Judge
    extract: Callable[[Problem, str], str] | None = None
    demonstrations: Sequence[Problem] = ()
    corpus: Callable[[], Iterable[str]] | None = None
    rejected: dict[str, int] = field(default_factory=dict)
    metrics: Callable[[Group], dict[str, float]] | None = None
    headline: str = "pass@1"
    slices: Callable[[Problem], dict[str, Any]] = difficulty
    answers: bool = False
    well_formed: Callable[[Problem, Submission], bool] | None = None
    strata: Callable[[Problem], tuple[str, float]] | None = None
    selection: Callable[[Sequence[Problem], int], Selection] | None = None
    environments: Mapping[str, Any] = field(default_factory=dict)

    def submission(self, problem: Problem, text: str) -> Submission:
        """The submission of a text."""
        return Submission(text, self.extract(problem, text) if self.extract else None)

    def is_well_formed(self, problem: Problem, submission: Submission) -> bool:
        """By the task's own rule, else whether the program is Python."""
        if self.well_formed is not None:
            return self.well_formed(problem, submission)
        program = submission.program
        return parses(code_block(submission.text) if program is None else program)

    def select(self, seed: int) -> Selection:
        """Draws the training problems of a run with this seed."""
        return self.selection(self.train, seed) if self.selection else Uniform(self.train, seed)


def load_task(settings: TaskSettings, seed: int) -> Task:
    """The task of these settings, with the training problems that settings.rates chooses.

    Raises UserError naming the nearest task, what make_task raises, and what by_rates does.
    """
    check_settings(settings, "task")
    name = settings.name or plugin_name(PLUGINS["task"], type(settings))
    task = load_plugin(PLUGINS["task"], name).make_task(settings, seed)
    if not settings.rates.path:
        return task
    train, left_out = by_rates(task.train, settings.rates)
    return dataclasses.replace(task, train=train, rejected=task.rejected | left_out)
