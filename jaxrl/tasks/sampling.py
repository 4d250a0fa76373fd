"""Which problems come next: sequences of problems, and selections that draw from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, overload

import numpy as np

from rollouts.episode import Group, Problem

T = TypeVar("T")


class Selection(Protocol):
    """Draws the problems of each batch. What it remembers is part of a run's checkpoint.

    It must depend on nothing but its seed, the numbers of the draws and the groups it was shown, so that a resumed run
    draws as one that was not stopped, and all processes of a run draw the same.
    """

    def next(self, draw: int, size: int) -> list[Problem]:
        """The problems of draw number `draw`, counted from 0."""
        ...

    def observe(self, groups: Sequence[Group]) -> None:
        """Sees the judged episodes of the last draw."""
        ...

    def state(self) -> dict[str, Any]:
        """All that it remembers, as JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""
        ...


class Forgetful:
    """The part of a selection that remembers nothing."""

    def observe(self, groups: Sequence[Group]) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class Uniform(Forgetful):
    """Every problem once in each pass, every pass in another order."""

    problems: Sequence[Problem]
    seed: int

    def next(self, draw: int, size: int) -> list[Problem]:
        return shuffled(self.problems, self.seed, draw * size, size)


@dataclass
class Mixture:
    """Problems of several selections in the ratio of their weights, in every stretch of draws as nearly as can be.

    Each part counts its own draws of one problem, so that its selection does not see the others.
    """

    parts: Mapping[str, Selection]
    weights: Mapping[str, float]
    part_of: Callable[[Problem], str]
    _given: tuple[int, ...] = ()  # problems of each part until the last draw: saves counting from 0 at each draw

    def next(self, draw: int, size: int) -> list[Problem]:
        chosen = []
        for name, number in self._places(draw * size, size):
            chosen += self.parts[name].next(number, 1)
        return chosen

    def _places(self, start: int, size: int) -> list[tuple[str, int]]:
        """The part of each problem from number `start`, and its number in that part: a function of these alone."""
        given = self._given if self._given and sum(self._given) <= start else (0,) * len(self.parts)
        weights = [self.weights[name] for name in self.parts]
        places, self._given = in_turn([*self.parts], weights, given, start + size)
        return places[start - sum(given) :]

    def observe(self, groups: Sequence[Group]) -> None:
        for name, selection in self.parts.items():
            selection.observe([g for g in groups if self.part_of(g.problem) == name])

    def state(self) -> dict[str, Any]:
        return {name: selection.state() for name, selection in self.parts.items()}

    def restore(self, state: dict[str, Any]) -> None:
        for name, selection in self.parts.items():
            selection.restore(state.get(name, {}))


@dataclass(frozen=True)
class Generated(Sequence[Problem]):
    """`size` problems made when they are wanted; `make(i)`, a function of i alone, gives the i-th."""

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


def chained(sequences: Sequence[Sequence[Problem]]) -> Generated:
    """The problems of the sequences, one sequence after the other."""
    ends = np.cumsum([len(s) for s in sequences], dtype=int)

    def make(i: int) -> Problem:
        place = int(np.searchsorted(ends, i, side="right"))
        return sequences[place][i - int(ends[place]) + len(sequences[place])]

    return Generated(int(ends[-1]) if len(ends) else 0, make)


def in_turn(
    names: Sequence[str], weights: Sequence[float], given: Sequence[int], end: int
) -> tuple[list[tuple[str, int]], tuple[int, ...]]:
    """Whose turn it is from turn sum(given) to `end`: (name, how many turns it had before); and the turns of each then.

    It is that of the one furthest behind its share.
    """
    turns, shares, places = list(given), np.array(weights, float) / sum(weights), []
    for index in range(sum(turns), end):
        part = int(np.argmax(shares * (index + 1) - turns))
        places.append((names[part], turns[part]))
        turns[part] += 1
    return places, tuple(turns)


def interleaved(sequences: Mapping[str, Sequence[Problem]], weights: Mapping[str, float]) -> Generated:
    """The problems of the sequences in the ratio of the weights, until one of them ends; empty ones are left out."""
    names = [name for name, sequence in sequences.items() if len(sequence)]
    total = sum(weights[name] for name in names)
    size = min((int(len(sequences[name]) * total / weights[name]) for name in names), default=0)
    places = in_turn(names, [weights[name] for name in names], [0] * len(names), size)[0] if names else []
    places = [(name, i) for name, i in places if i < len(sequences[name])]
    return Generated(len(places), lambda i: sequences[places[i][0]][places[i][1]])


def evenly(size: int, wanted: int) -> list[int]:
    """`wanted` places of `size`, evenly spaced; all for 0, or where there are not as many."""
    return [i * size // wanted for i in range(wanted)] if 0 < wanted < size else list(range(size))


def shuffled(problems: Sequence[T], seed: int, start: int, size: int) -> list[T]:
    """Items start .. start + size - 1 of an endless sequence of shuffles, which the seed alone decides."""
    chosen, orders = [], {}
    for index in range(start, start + size):
        epoch, offset = divmod(index, len(problems))
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(len(problems))
        chosen.append(problems[int(orders[epoch][offset])])
    return chosen


def without_held_out(train: list[Problem], held_out: Sequence[Problem], rejected: Counter[str]) -> list[Problem]:
    """The training problems that ask something else than the held-out ones; the others are counted.

    All of them where no others are left: the two parts are the same then, on purpose.
    """

    def asked(problem: Problem) -> str:
        return " ".join((problem.messages[-1]["content"] if problem.messages else problem.prompt or "").lower().split())

    taken = {asked(problem) for problem in held_out}
    kept = [problem for problem in train if asked(problem) not in taken]
    if not kept:
        return train
    if len(kept) < len(train):
        rejected["is a held-out problem, too"] += len(train) - len(kept)
    return kept
