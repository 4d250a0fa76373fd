"""Tasks: where problems come from, and what a text is worth.

A task is one module of this package with `make_task(config: TaskConfig, seed: int) -> Task`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import overload

import numpy as np

from jaxrl.config import TaskConfig
from jaxrl.extract import code_block, parses
from rollouts.episode import Problem, Reward
from sandbox.pool import Pool

Score = Callable[[Problem, str, Pool], Awaitable[Reward]]


@dataclass(frozen=True)
class Task:
    """Problems and their reward.

    `score(problem, text, pool)` judges the text that the model sampled for the problem.
    `demonstrations` are problems that have a `demonstration`, for SFT; `corpus` is text like that of the task,
    for training a small tokenizer; `rejected` counts the problems that filters dropped, by reason.

    For evaluation, where a task has them: `program` is the program that a text stands for, `answer` its answer in
    normal form (hashable; None if it gives none) for majority votes, `well_formed` whether it is worth judging at all.
    """

    name: str
    train: Sequence[Problem]
    held_out: Sequence[Problem]
    score: Score
    demonstrations: Sequence[Problem] = ()
    corpus: Callable[[], Iterable[str]] | None = None
    rejected: dict[str, int] = field(default_factory=dict)
    program: Callable[[Problem, str], str] | None = None
    answer: Callable[[Problem, str], Hashable | None] | None = None
    well_formed: Callable[[Problem, str], bool] | None = None

    def is_well_formed(self, problem: Problem, text: str) -> bool:
        """By the task's own rule, else whether the program of the text is Python."""
        if self.well_formed is not None:
            return self.well_formed(problem, text)
        return parses(self.program(problem, text) if self.program else code_block(text))

    def batch(self, seed: int, step: int, size: int) -> list[Problem]:
        """`size` training problems, a function of (seed, step) alone; each pass over `train` is a new shuffle."""
        return shuffled(self.train, seed, step, size)


@dataclass(frozen=True)
class Generated(Sequence[Problem]):
    """`size` problems made when they are asked for; `make(i)`, a function of i alone, gives the i-th."""

    size: int
    make: Callable[[int], Problem]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        chosen = range(self.size)[index]  # negative indices and IndexError as a list has them
        return self.make(chosen) if isinstance(chosen, int) else [self.make(i) for i in chosen]


def shuffled(problems: Sequence[Problem], seed: int, step: int, size: int) -> list[Problem]:
    """Items step * size .. (step + 1) * size - 1 of an endless sequence of shuffles of `problems`."""
    chosen, orders = [], {}
    for index in range(step * size, (step + 1) * size):
        epoch, offset = divmod(index, len(problems))
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(len(problems))
        chosen.append(problems[int(orders[epoch][offset])])
    return chosen


def load_task(config: TaskConfig, seed: int) -> Task:
    """The task of module `jaxrl.tasks.<config.name>`. Raises ValueError naming the nearest task."""
    names = [m.name for m in pkgutil.iter_modules(__path__)]
    if config.name not in names:
        near = get_close_matches(config.name, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
        raise ValueError(f"task.name = {config.name!r} is no task; {hint}")
    return importlib.import_module(f"jaxrl.tasks.{config.name}").make_task(config, seed)
