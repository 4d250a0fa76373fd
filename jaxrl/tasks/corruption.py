"""Mistakes put into right programs, each with the command that undoes it (Chain-of-Edits, arXiv 2507.05065).

Four kinds: a line deleted, a line of another program inserted, a line replaced by one of another program, a typo in a
word. Every mistake is proven reversible when it is made, by its command giving back the lines before it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rollouts.editor import Command, apply

Lines = tuple[str, ...]
_WORD = re.compile(r"[^\W\d]\w+")  # two characters at least


class Corrupted(NamedTuple):
    """A program with mistakes."""

    lines: Lines
    repairs: tuple[Command, ...]  # in the order in which they undo the mistakes, the last one first


def corrupt(
    lines: Lines, mistakes: int, donors: Sequence[str], rng: random.Random, kinds: Sequence[Kind] | None = None
) -> Corrupted:
    """The lines after that many mistakes, fewer where nothing can be changed.

    `donors` are lines of other programs, of the same part of the data, with their indentation; `kinds` are KINDS unless
    others are given.
    """
    kinds = kinds or KINDS
    repairs: list[Command] = []
    for _ in range(mistakes):
        for kind in rng.sample(kinds, len(kinds)):
            made = kind(lines, donors, rng)
            if made and made[0] != lines and apply(made[0], made[1]) == lines:
                lines = made[0]
                repairs.insert(0, made[1])
                break
    return Corrupted(lines, tuple(repairs))


Made = tuple[Lines, Command] | None
Kind = Callable[[Lines, Sequence[str], random.Random], Made]


def _delete(lines: Lines, donors: Sequence[str], rng: random.Random) -> Made:
    if len(lines) < 2:
        return None
    i = rng.randrange(len(lines))
    return (*lines[:i], *lines[i + 1 :]), Command("ADDL", i + 1, lines[i])


def _insert(lines: Lines, donors: Sequence[str], rng: random.Random) -> Made:
    if not donors:
        return None
    i = rng.randrange(len(lines) + 1)
    return (*lines[:i], rng.choice(donors), *lines[i:]), Command("DELL", i + 1)


def _replace(lines: Lines, donors: Sequence[str], rng: random.Random) -> Made:
    if not donors:
        return None
    i = rng.randrange(len(lines))
    return (*lines[:i], rng.choice(donors), *lines[i + 1 :]), Command("REPL", i + 1, lines[i])


def _misspell(lines: Lines, donors: Sequence[str], rng: random.Random) -> Made:
    places = [(i, found) for i, line in enumerate(lines) for found in _WORD.finditer(line)]
    if not places:
        return None
    i, found = rng.choice(places)
    word, at = found.group(), rng.randrange(len(found.group()) - 1)
    wrong = rng.choice((
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],  # two characters swapped, one dropped, one doubled
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
    ))  # fmt: skip
    line = lines[i][: found.start()] + wrong + lines[i][found.end() :]
    return (*lines[:i], line, *lines[i + 1 :]), Command("REPW", i + 1, f"{wrong} >>>{word}")


def _renumber(lines: Lines, donors: Sequence[str], rng: random.Random) -> Made:
    """A number becomes another one."""
    places = [(i, found) for i, line in enumerate(lines) for found in re.finditer(r"\d+", line)]
    if not places:
        return None
    i, found = rng.choice(places)
    line = f"{lines[i][: found.start()]}{rng.randrange(1, 100)}{lines[i][found.end() :]}"
    return (*lines[:i], line, *lines[i + 1 :]), Command("REPL", i + 1, lines[i])


KINDS: tuple[Kind, ...] = (_delete, _insert, _replace, _misspell)
WITH_NUMBERS: tuple[Kind, ...] = (*KINDS, _renumber)
IN_PLACE: tuple[Kind, ...] = (_replace, _misspell, _renumber)  # the number of lines stays
