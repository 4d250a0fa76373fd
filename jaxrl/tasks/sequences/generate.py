"""Programs drawn at random, by the grammar of the KoLMogorov Test (arXiv 2503.13992, appendix); our own code.

One to `bases` sequences are begun; each may be reversed, filtered, shifted and so on, with the paper's probabilities;
then they are joined. A draw whose result is not a sequence of bytes, or does not have the wanted length, is made again.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from jaxrl.tasks.sequences.language import Line, ProgramError, Reference, Values, run

DRAWS = 200
GATE = 0.4  # of each of the four families of changes


class Shape(NamedTuple):
    """What is drawn."""

    bases: int = 5  # sequences at most
    least: int = 5  # values of a base sequence
    most: int = 25
    largest: int = 255  # value
    longest: int = 256  # values of the result
    lines: int = 64  # at most


def generate(rng: random.Random, shape: Shape = Shape()) -> tuple[list[Line], Values]:
    """A program and its sequence. Raises RuntimeError where no draw fits the shape."""
    for _ in range(DRAWS):
        lines = _draw(rng, shape)
        try:
            values = run(lines)
        except ProgramError:
            continue
        if (
            len(values) >= 2
            and len(values) <= shape.longest
            and max(values) <= shape.largest
            and len(lines) <= shape.lines
        ):
            return lines, values
    raise RuntimeError(f"no program of {shape} was found in {DRAWS} draws")


def _draw(rng: random.Random, shape: Shape) -> list[Line]:
    lines: list[Line] = []
    ends: list[int] = []  # the line of each sequence that is to be joined
    update, math_update, filtered, joined = (rng.random() < GATE for _ in range(4))
    for _ in range(rng.randint(1, shape.bases)):
        lines.append(_base(rng, shape))
        for gate, changes in ((update, LIST_CHANGES), (math_update, MATH_CHANGES), (filtered, FILTER_CHANGES)):
            for probability, change in changes if gate else ():
                if rng.random() < probability:
                    lines.append(change(rng, shape, Reference(len(lines) - 1)))
        ends.append(len(lines) - 1)
    if joined and len(ends) > 1 and rng.random() < 0.5:
        first, second = (Reference(i) for i in rng.sample(ends, 2))
        lines.append(Line(rng.choice(["add_two_lists", "subtract_two_lists", "modulo_two_lists"]), (first, second)))
        ends = [i for i in ends if i not in (first.line, second.line)] + [len(lines) - 1]
    if rng.random() < 0.2:
        ends.append(rng.choice(ends))  # used again
    if len(ends) == 2 and rng.random() < 0.2:
        lines.append(Line("interleave", tuple(map(Reference, ends))))
    elif len(ends) > 1:
        lines.append(Line("concatenate", tuple(map(Reference, ends))))
    return lines if ends[-1] == len(lines) - 1 or len(ends) > 1 else lines[: ends[-1] + 1]


def _base(rng: random.Random, shape: Shape) -> Line:
    n, top = rng.randint(shape.least, shape.most), shape.largest
    kind = rng.choice(["range_func_up", "range_func_interval", "repeat_num", "set_list"])
    if kind == "range_func_up":
        a = rng.randint(0, max(top - n, 0))
        return Line(kind, (a, min(a + n - 1, top)))
    if kind == "range_func_interval":
        step = rng.randint(2, 5)
        a = rng.randint(0, max(top - n * step, 0))
        return Line(kind, (a, min(a + n * step, top), step))
    if kind == "repeat_num":
        return Line(kind, (min(n, 20), rng.randint(0, top)))
    return Line(kind, (tuple(rng.randint(0, top) for _ in range(n)),))


def _extremes(rng: random.Random, shape: Shape, x: Reference) -> Line:
    return Line(rng.choice(["max_n", "min_n"]), (x, rng.randint(3, max(shape.least - 2, 3))))


def _between(rng: random.Random, shape: Shape, x: Reference) -> Line:
    i = rng.randint(0, 2)
    return Line("get_subsequence_between_indices", (x, i, i + rng.randint(2, shape.least)))


LIST_CHANGES = (
    (0.1, lambda rng, shape, x: Line("reverse_list", (x,))),
    (0.1, lambda rng, shape, x: Line("repeat_list", (rng.randint(2, 4), x))),
    (0.1, lambda rng, shape, x: Line("substitute", (x, rng.randint(0, shape.largest), rng.randint(0, shape.largest)))),
    (0.05, lambda rng, shape, x: Line("get_subsequence_with_jumps", (x, rng.randint(2, 5)))),
    (0.05, _between),
)
MATH_CHANGES = (
    (0.1, _extremes),
    (0.1, lambda rng, shape, x: Line(rng.choice(["add_item_list", "subtract_item_list"]), (x, rng.randint(1, 20)))),
    (0.1, lambda rng, shape, x: Line("modulo_item_list", (x, rng.randint(2, 20)))),
    (0.1, lambda rng, shape, x: Line("scan_add", (x,))),
)
FILTER_CHANGES = ((0.3, lambda rng, shape, x: Line("filter", (rng.choice(["is_even", "is_odd", "is_not_zero"]), x))),)
