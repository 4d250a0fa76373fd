"""Curricula: which training problems come when, by how much there is to learn from them.

A problem that is solved with probability p has the potential 4 p (1 - p): 1 where half of the answers are right, 0
where all are or none is (R1-Code-Interpreter, arXiv 2505.21668).

- `potential`: stages by a file of python -m jaxrl.potential, in which several agents have tried each problem. A stage
  has all problems whose potential is at least its threshold, so that each one adds to those before.
- `pass_rate`: the policy's own success, of each problem or of each value of a slice, as it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxrl.config.training import CurriculumConfig
from jaxrl.errors import UserError
from jaxrl.tasks import Task
from jaxrl.tasks.rows import DataError, read_rows
from jaxrl.tasks.sampling import Forgetful, Selection, shuffled
from rollouts.episode import Group, Problem

LEAST = 0.05  # potential that a problem keeps in the draw: it may have become solvable
MEMORY = 0.5  # weight of the newest group in a running pass rate
RANDOM = 11  # stream of random numbers, beside the run's seed


def potential(rate: float) -> float:
    """4 p (1 - p) of a pass rate p."""
    return 4 * rate * (1 - rate)


def curriculum(config: CurriculumConfig, task: Task, seed: int, draws: int = 1) -> Selection:
    """The selection of a run's training problems; `draws` are those of a step.

    Raises UserError for a task with a selection of its own and for a slice that it does not have, DataError for a file
    that is of another task.
    """
    if config.order == "uniform":
        return task.select(seed)
    if task.selection is not None:
        raise UserError(f"grpo.curriculum.order = {config.order!r}: task {task.name} has a selection of its own")
    if config.order == "potential":
        known = read_potentials(config.path, task.train)
        pools = [[p for p, value in known if value >= least] for least in config.thresholds]
        if not pools[0]:
            best = max(value for _, value in known)
            raise UserError(
                f"grpo.curriculum.thresholds[0] = {config.thresholds[0]:g}: no problem of {config.path} has this "
                f"potential; the most is {best:g}"
            )
        return Stages(pools, [steps * draws for steps in config.steps], seed)
    name = config.slice
    if name and len(task.train) and name not in task.slices(task.train[0]):
        has = ", ".join(task.slices(task.train[0])) or "none"
        raise UserError(f"grpo.curriculum.slice = {name!r}: task {task.name} does not have it; it has {has}")
    key = (lambda problem: str(task.slices(problem)[name])) if name else (lambda problem: problem.id)
    return ByPassRate(task.train, seed, config.candidates, key)


def read_potentials(path: str, train: Sequence[Problem]) -> list[tuple[Problem, float]]:
    """The problems of a file of jaxrl.potential, and theirs. Raises DataError where they are not those of `train`."""
    by_id = {p.id: p for p in train} if isinstance(train, list) else {}  # others are made when they are wanted
    known = []
    for row in read_rows(path):
        index, name, n = int(row.number("index")), row.name("id"), row.number("n")
        problem = by_id.get(name) or (train[index] if 0 <= index < len(train) else None)
        if problem is None or problem.id != name:
            raise DataError(
                f"{row.where}: problem {name!r} is not training problem {index} of this task; the file was made with "
                "other settings of the task, or another seed"
            )
        if not 0 <= row.number("solved") <= n or n < 1:
            raise DataError(f"{row.where}: solved must be from 0 to n, and n at least 1")
        known.append((problem, potential(row.number("solved") / n)))
    return known


@dataclass(frozen=True)
class Stages(Forgetful):
    """Each stage draws from its own pool, every problem once a pass.

    Args:
        pools: the problems of each stage.
        draws: of each stage; the last one has no end.
    """

    pools: Sequence[Sequence[Problem]]
    draws: Sequence[int]
    seed: int

    def next(self, draw: int, size: int) -> list[Problem]:
        ends = np.cumsum(self.draws, dtype=int)
        stage = int(np.searchsorted(ends, draw, side="right"))
        start = int(ends[stage - 1]) if stage else 0
        return shuffled(self.pools[stage], self.seed + stage, (draw - start) * size, size)


@dataclass
class ByPassRate:
    """Draws from the next problems of an endless shuffle, in proportion to the potential by the running pass rate.

    Rates start at one half, which is the most potential: what was never tried comes first.

    Args:
        candidates: problems that each one drawn is chosen from.
        key: of a problem, those with an equal key share a rate.
    """

    problems: Sequence[Problem]
    seed: int
    candidates: int
    key: Callable[[Problem], str]
    rates: dict[str, float] = field(default_factory=dict)

    def next(self, draw: int, size: int) -> list[Problem]:
        wide = size * self.candidates
        near = shuffled(self.problems, self.seed, draw * wide, wide)
        once = list({p.id: p for p in near}.values())
        near = once if len(once) >= size else near  # of a few problems some must come more than once
        weights = np.array([max(potential(self.rates.get(self.key(p), 0.5)), LEAST) for p in near])
        # The largest log(u) / w: a draw without replacement in proportion to w (Efraimidis and Spirakis, 2006).
        u = np.random.default_rng([self.seed, RANDOM, draw]).random(len(near))
        chosen = np.argsort(-np.log(u) / weights, kind="stable")[:size]
        return [near[i] for i in sorted(chosen)]

    def observe(self, groups: Sequence[Group]) -> None:
        for group in groups:
            judged = [e.reward.solved for e in group.episodes if e.status != "sandbox_error"]
            if judged:
                key = self.key(group.problem)
                before = self.rates.get(key, 0.5)
                self.rates[key] = before + MEMORY * (float(np.mean(judged)) - before)

    def state(self) -> dict[str, Any]:
        return {"rates": self.rates}

    def restore(self, state: dict[str, Any]) -> None:
        self.rates = dict(state["rates"])
