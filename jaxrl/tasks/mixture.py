"""Several tasks in one run.

    config.task = mixture.Settings(parts=(
        mixture.Part(functions.Settings(), weight=2),
        mixture.Part(compute.Settings(), environment=interpreter.Settings(max_calls=2)),
    ))

Batches of problems, and of demonstrations, have the parts in the ratio of their weights. Each part keeps its judge, its
environment and its row in evaluations (slice `part`). Parts are called by their task's name; a second one of task
functions is functions_2.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from jaxrl.config.plugins import PLUGINS, Named, settle
from jaxrl.config.rules import AboveZero
from jaxrl.config.task import TaskSettings
from jaxrl.errors import UserError
from jaxrl.tasks import Task, load_task
from jaxrl.tasks.sampling import Generated, Mixture, Selection, chained, interleaved
from rollouts.episode import Group, Problem, Reward, Submission
from rollouts.services import Services


@dataclass
class Part:
    """One task of a mixture."""

    task: Annotated[TaskSettings, PLUGINS["task"]]
    weight: AboveZero = 1.0  # problems of this part in a batch, beside those of the others
    environment: Annotated[Named | None, PLUGINS["environment"]] = None  # None: the run's
    instruction: str = "auto"  # put after every problem; auto: the run's, or the environment's own


@dataclass
class Settings(TaskSettings):
    """Several tasks in one run; the numbers of problems are those of the parts."""

    parts: tuple[Part, ...] = field(default_factory=tuple)

    def check(self, where: str = "task") -> None:
        """Raises UserError for a mixture without parts or in a mixture, and for a number that belongs to its parts."""
        if not self.parts:
            raise UserError(f"{where}.parts = () must have at least one mixture.Part")
        if any(isinstance(part.task, Settings) for part in self.parts):
            raise UserError(f"{where}.parts: a mixture cannot be a part of a mixture; give its parts instead")
        default = TaskSettings()
        for own in dataclasses.fields(TaskSettings):
            if own.name != "name" and getattr(self, own.name) != getattr(default, own.name):
                raise UserError(f"{where}.{own.name} has no effect; set {where}.parts[0].task.{own.name} and so on")


def make_task(settings: Settings, seed: int) -> Task:
    """The tasks of the parts as one. Raises UserError for a part that cannot be made."""
    settle(settings)
    parts = dict(zip(part_names(settings), settings.parts))
    seeds = {name: seed + 1_000_003 * i for i, name in enumerate(parts)}  # two parts of one task differ
    tasks = {name: with_part(part, name, load_task(part.task, seeds[name])) for name, part in parts.items()}
    weights = {name: part.weight for name, part in parts.items()}

    def of(problem: Problem) -> Task:
        return tasks[problem.meta["part"]]

    train = chained([task.train for task in tasks.values()])

    def selection(problems: Sequence[Problem], seed: int) -> Selection:
        kept = tasks
        if problems is not train:  # some were left out: their prompts are too long
            own = {name: [p for p in problems if p.meta["part"] == name] for name in tasks}
            kept = {name: dataclasses.replace(task, train=own[name]) for name, task in tasks.items() if own[name]}
        selections = {name: task.select(seeds[name]) for name, task in kept.items()}
        return Mixture(selections, weights, lambda problem: problem.meta["part"])

    def extract(problem: Problem, text: str) -> Any:
        return of(problem).submission(problem, text).program

    async def judge(problem: Problem, submission: Submission, services: Services) -> Reward:
        return await of(problem).judge(problem, submission, services)

    def metrics(group: Group) -> dict[str, float]:
        own = of(group.problem).metrics
        return own(group) if own else {}

    def corpus() -> Iterable[str]:
        for task in tasks.values():
            yield from task.corpus() if task.corpus else ()

    headlines = {task.headline for task in tasks.values()}
    rejected: Counter[str] = Counter()
    for name, task in tasks.items():
        rejected.update({f"{name}: {reason}": count for reason, count in task.rejected.items()})
    return Task(
        name="mixture",
        train=train,
        held_out=[*chained([task.held_out for task in tasks.values()])],
        judge=judge,
        extract=extract,
        demonstrations=interleaved({n: task.demonstrations for n, task in tasks.items()}, weights),
        corpus=corpus if any(task.corpus for task in tasks.values()) else None,
        rejected=dict(rejected),
        metrics=metrics,
        headline=headlines.pop() if len(headlines) == 1 else "pass@1",
        slices=lambda problem: {"part": problem.meta["part"]} | of(problem).slices(problem),
        answers=all(task.answers for task in tasks.values()),
        well_formed=lambda problem, submission: of(problem).is_well_formed(problem, submission),
        selection=selection,
        environments={n: part.environment for n, part in parts.items() if part.environment is not None},
    )


def part_names(settings: Settings) -> list[str]:
    """A name for each part: its task's, with a number where that is taken."""
    seen: Counter[str] = Counter()
    names = []
    for part in settings.parts:
        name = part.task.name.rpartition("/")[2].removesuffix(".py").rpartition(".")[2]
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return names


def with_part(part: Part, name: str, task: Task) -> Task:
    """The task whose problems know their part."""
    return dataclasses.replace(
        task,
        train=marked(part, name, task.train),
        held_out=marked(part, name, task.held_out),
        demonstrations=marked(part, name, task.demonstrations),
    )


def marked(part: Part, name: str, problems: Sequence[Problem]) -> Generated:
    """The problems with their part in their meta."""
    return Generated(len(problems), lambda i: mark(part, name, problems[i]))


def mark(part: Part, name: str, problem: Problem) -> Problem:
    """The problem with what its part says of it: see jaxrl/runs/prompts.py, `instruction`."""
    environment = part.environment.name if part.environment is not None else ""
    meta = {"part": name, "part.environment": environment, "part.instruction": part.instruction}
    meta["part.opening"] = getattr(part.environment, "opening", "")
    return dataclasses.replace(problem, id=f"{name}/{problem.id}", meta=problem.meta | meta)
