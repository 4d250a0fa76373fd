"""Larger and larger inputs from one example: the expansions of BigO(Bench), arXiv 2503.15242.

A variable is an argument, or a dimension of one that is a list of lists. A series varies some of them together by one
method, with the other arguments as in the example ("small") or copied 1000 times ("large"). All inputs are functions
of (series, size) alone. Standard library only: this file also runs inside the sandbox, beside the measured program.

    copy               what is there, again and again; a number times the size
    identity           the same value everywhere
    random             letters, words, or numbers up to the size, half of the new ones on either side of the old
    random_verylarge   numbers from 1e6 to 1e7

What is not a text, a number or a list of them (or of lists of them) is left as it is. Texts that hold numbers are
varied as the numbers. Beyond the benchmark: all numbers together are a series too, and random words stay short.
"""

from __future__ import annotations

from random import Random  # by name: a program that is measured could replace random.Random
from typing import Any, NamedTuple

OTHERS = 1000  # copies in "large" arguments
LARGEST = 1_000_000  # items of an argument; larger inputs are left out
SAME = {"str": "a", "list[int]": 9998, "list[float]": 9998.0, "list[str]": "aaaaaa", "list[bool]": True}
COPIED, FILLED = ("copy",), ("copy", "identity", "random")
METHODS = {
    "int": COPIED, "float": COPIED, "str": FILLED, "list[int]": (*FILLED, "random_verylarge"), "list[float]": FILLED,
    "list[bool]": FILLED, "list[str]": FILLED,
}  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ROWS, COLUMNS, BOTH = 1, 2, 0  # dimensions of a list of lists; 0 also of everything else

Variable = tuple[int, int]  # number of the argument, dimension


class Series(NamedTuple):
    """Variables varied together, how, and how large the other arguments are."""

    varied: tuple[Variable, ...]
    method: str
    others: str  # small, large, or "" where there are none


def kind(value: Any) -> str:
    """str, int, float, list[T] of these or of bool, list[list[T]], or "" for what is not varied."""
    if isinstance(value, (list, tuple)) and value:
        kinds = {kind(v) for v in value} if isinstance(value[0], (list, tuple)) else {type(v).__name__ for v in value}
        inner = "float" if kinds == {"int", "float"} else kinds.pop() if len(kinds) == 1 else ""
        known = f"list[{inner}]"
        return known if known in METHODS or known.removeprefix("list[").removesuffix("]") in METHODS else ""
    return type(value).__name__ if type(value).__name__ in ("str", "int", "float") else ""


def variables(example: tuple[Any, ...]) -> list[Variable]:
    """The variables of the arguments: two for a list of lists, none for what is not varied."""
    found: list[Variable] = []
    for i, value in enumerate(example):
        k = kind(numbers_of(value))
        found += [(i, ROWS), (i, COLUMNS)] if k.startswith("list[list") else [(i, 0)] if k else []
    return found


def series_of(example: tuple[Any, ...]) -> list[Series]:
    """All series of an example: of each variable, then joint ones."""
    kinds = [kind(numbers_of(value)) for value in example]
    plans: list[tuple[tuple[Variable, ...], str]] = []
    for i, k in enumerate(kinds):
        if k.startswith("list[list"):
            rows = [(((i, d),), m) for d in (ROWS, COLUMNS) for m in METHODS[k[5:-1]]]
            plans += [*rows, (((i, ROWS), (i, COLUMNS)), "copy"), (((i, ROWS), (i, COLUMNS)), "random")]
        elif k:
            plans += [(((i, 0),), m) for m in METHODS[k]]
    plans += _joint(kinds)
    found = []
    for varied, method in dict.fromkeys(plans):
        alone = len({i for i, _ in varied}) == len([k for k in kinds if k])
        found += [Series(varied, method, o) for o in ([""] if alone else ["small", "large"])]
    return found


def _joint(kinds: list[str]) -> list[tuple[tuple[Variable, ...], str]]:
    """Arguments of one kind together, and each list, and all texts, with all whole numbers."""
    first = [(i, ROWS if k.startswith("list[list") else 0) for i, k in enumerate(kinds)]
    texts = tuple(v for v, k in zip(first, kinds) if k == "str")
    lists = tuple(v for v, k in zip(first, kinds) if k.startswith("list"))
    numbers = tuple(v for v, k in zip(first, kinds) if k == "int")
    found = [(texts, m) for m in FILLED if len(texts) > 1] + [(lists, "random")] * (len(lists) > 1)
    found += [(numbers, "copy")] * (len(numbers) > 1)
    found += [((one, *numbers), m) for one in lists for m in ("copy", "random") if numbers]
    found += [((*texts, *numbers), m) for m in FILLED if texts and numbers]
    return [(tuple(sorted(varied)), method) for varied, method in found]


def arguments(example: tuple[Any, ...], series: Series, size: int) -> tuple[Any, ...] | None:
    """The arguments of the series at a size: new objects each time. None if they would be too large."""
    rng = Random(f"{series.varied} {series.method} {size}")
    made = []
    for i, value in enumerate(example):
        dimensions = [d for j, d in series.varied if j == i]
        if dimensions:
            made.append(_changed(value, dimensions, series.method, size, rng))
        elif series.others == "large" and kind(numbers_of(value)):
            made.append(_changed(value, [ROWS], "copy", OTHERS, rng))
        else:
            made.append(_again(value))
        if made[-1] is None and value is not None:
            return None
    return tuple(made)


def numbers_of(value: Any) -> Any:
    """The numbers in a text, or in a list of texts, that holds nothing else; other values as they are."""
    if isinstance(value, str) and value.split():
        found = [_number(word) for word in value.split()]
        return value if None in found else found[0] if len(found) == 1 else found
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        found = [_number(v) for v in value]
        return value if None in found else found
    return value


def _number(word: str) -> int | None:
    return int(word) if word.isascii() and word.removeprefix("-").isdigit() and len(word) < 19 else None


def _changed(value: Any, dimensions: list[int], method: str, size: int, rng: Random) -> Any:
    """One argument, larger; None if it would be too large."""
    number = numbers_of(value)
    k = kind(number)
    if _items(number) * size ** len(dimensions) > LARGEST and k not in ("int", "float"):
        return None
    if k.startswith("list[list"):
        made = [[*row] for row in number]
        if ROWS in dimensions:
            made = _more_rows(made, k[5:-1], method, size, rng)
        if COLUMNS in dimensions:
            made = [_larger(_base(row, k[5:-1], method, rng), k[5:-1], method, size, rng) for row in made]
        return [tuple(row) for row in made] if isinstance(value[0], tuple) else made
    made = _larger(_base(number, k, method, rng), k, method, size, rng)
    if number is value:
        return tuple(made) if isinstance(value, tuple) else made
    if isinstance(value, str):
        return " ".join(map(str, made)) if isinstance(made, list) else str(made)
    return [str(v) for v in made]


def _items(value: Any) -> int:
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
        return sum(map(len, value))
    return len(value) if hasattr(value, "__len__") else 1


def _again(value: Any) -> Any:
    """A copy that the program may change."""
    return [_again(v) for v in value] if isinstance(value, list) else value.copy() if hasattr(value, "copy") else value


def _base(value: Any, kind: str, method: str, rng: Random) -> Any:
    """The example as the method begins with it."""
    if method == "copy" or kind in ("int", "float"):
        return [*value] if kind.startswith("list") else value
    made = [SAME[kind]] * len(value) if method == "identity" else _fresh(kind, method, len(value), 1001, rng)
    return "".join(made) if kind == "str" else made


def _fresh(kind: str, method: str, count: int, size: int, rng: Random) -> list[Any]:
    """Random values: numbers from 1 below the size."""
    if kind == "str":
        return rng.choices(LETTERS, k=count)
    if kind == "list[str]":
        return ["".join(rng.choices(LETTERS, k=rng.randint(3, 10))) for _ in range(count)]
    if kind == "list[bool]":
        return rng.choices((False, True), k=count)
    low, high = (10**6, 10**7) if method == "random_verylarge" else (1, max(size - 1, 1))
    draw = rng.uniform if kind == "list[float]" else rng.randint
    return [draw(low, high) for _ in range(count)]


def _larger(base: Any, kind: str, method: str, size: int, rng: Random) -> Any:
    """The base `size` times as large; random values that are new stand before and after it."""
    if method in ("copy", "identity") or kind in ("int", "float"):
        return base * size
    before = _fresh(kind, method, (size - 1) // 2 * len(base), size, rng)
    after = _fresh(kind, method, (size - 1 - (size - 1) // 2) * len(base), size, rng)
    return "".join(before) + base + "".join(after) if kind == "str" else before + base + after


def _more_rows(rows: list[list[Any]], kind: str, method: str, size: int, rng: Random) -> list[list[Any]]:
    """`size` times as many rows, of the lengths of the example's."""
    base = [_base(row, kind, method, rng) for row in rows]
    if method in ("copy", "identity"):
        return [[*row] for _ in range(size) for row in base]
    half = (size - 1) // 2
    fresh = lambda count: [_fresh(kind, method, len(row), size, rng) for _ in range(count) for row in base]  # noqa: E731
    return fresh(half) + base + fresh(size - 1 - half)
