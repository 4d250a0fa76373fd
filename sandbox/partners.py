"""Which items of two collections belong together when their order does not count, with a bound on the work."""

from __future__ import annotations

import heapq
import math
import sys
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

BASE, PER_UNIT = 200_000, 64  # steps allowed whatever was expected, and for each value and character of it
_HOLDERS = frozenset((list, str))  # what is larger than 1
Interval = tuple[float, float]


class TooMuchWork(ValueError):
    """A value that cannot be compared with the expected one in time that suits the expected one."""


class Work:
    """Steps left for a comparison; the bound is found when the first is taken."""

    def __init__(self, expected: Any):
        self._expected, self._left, self._depth = expected, -1, 0

    def spend(self, steps: int, depth: int = 0) -> None:
        """Raises TooMuchWork when none are left, or `depth` is more than what was expected can have."""
        if self._left < 0:
            size, levels = _extent(self._expected)
            self._left, self._depth = BASE + PER_UNIT * size, 2 * levels + 4
        if steps > self._left:
            raise TooMuchWork("the value is too large to be compared with what was expected")
        if depth > self._depth:
            raise TooMuchWork("the value is nested more deeply than what was expected")
        self._left -= steps


def _extent(value: Any) -> tuple[int, int]:
    """How many values and characters encoded data has, and how many levels."""
    if isinstance(value, str):
        return 1 + len(value), 0
    if not isinstance(value, list):
        return 1, 0
    if not any(map(_HOLDERS.__contains__, map(type, value))):
        return 1 + len(value), 1
    inner = [_extent(v) for v in value]
    return 1 + sum(size for size, _ in inner), 1 + max((levels for _, levels in inner), default=0)


def interval(expected: float, tolerance: float) -> Interval:
    """Least and greatest number within the tolerance; of an int or what is not finite, itself."""
    if isinstance(expected, int) or not math.isfinite(expected):
        return expected, expected
    reach = tolerance * max(1.0, abs(expected))
    return max(expected - reach, -sys.float_info.max), min(expected + reach, sys.float_info.max)


def each_to_one(points: Sequence[float], intervals: Sequence[Interval]) -> bool:
    """Whether each point can have an interval that holds it to itself, and each interval a point.

    Points in rising order take, of the intervals that have begun, the one that ends first (Glover 1967, "Maximum
    matching in a convex bipartite graph"). O(n log n).
    """
    if len(points) != len(intervals):
        return False
    begins, open_ends, next_one = sorted(intervals), [], 0
    for point in sorted(points):
        while next_one < len(begins) and begins[next_one][0] <= point:
            heapq.heappush(open_ends, begins[next_one][1])
            next_one += 1
        if not open_ends or heapq.heappop(open_ends) < point:
            return False
    return True


def all_inside(points: Sequence[float], intervals: Sequence[Interval]) -> bool:
    """Whether each point lies in at least one of the intervals."""
    begins = sorted(intervals)
    ends = list(accumulate((end for _, end in begins), max))
    places = [bisect_right(begins, (p, float("inf"))) - 1 for p in points]
    return all(i >= 0 and p <= ends[i] for i, p in zip(places, points))


def all_hit(points: Sequence[float], intervals: Sequence[Interval]) -> bool:
    """Whether each of the intervals holds at least one point."""
    ordered = sorted(points)
    places = [bisect_left(ordered, begin) for begin, _ in intervals]
    return all(i < len(ordered) and ordered[i] <= end for i, (_, end) in zip(places, intervals))


class Item(NamedTuple):
    """A value with what all its partners have in common, and its numbers, which are near to those of a partner."""

    common: str
    numbers: tuple[float, ...]
    value: Any


def have_partners(
    actual: Sequence[Item], expected: Sequence[Item], tolerance: float, fits: Callable[[Any, Any], bool], work: Work
) -> bool:
    """Whether each item can have one of the other side to itself that fits.

    Mostly the items fit in the order of their numbers; else partners are found by augmenting paths (Kuhn 1955).
    """
    if len(actual) != len(expected):
        return False
    actual, expected = sorted(actual), sorted(expected)
    if [a.common for a in actual] != [e.common for e in expected]:
        return False
    if all(fits(a.value, e.value) for a, e in zip(actual, expected)):
        return True
    begin = 0
    while begin < len(actual):
        end = bisect_right(actual, actual[begin].common, begin, key=lambda item: item.common)
        partners = _candidates(actual[begin:end], expected[begin:end], tolerance, fits, work)
        if not _perfect(partners, work):
            return False
        begin = end
    return True


def _by_common(items: Sequence[Item]) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.common, []).append(item)
    return groups


def with_partners(
    actual: Sequence[Item], expected: Sequence[Item], tolerance: float, fits: Callable[[Any, Any], bool], work: Work
) -> tuple[int, int]:
    """How many items of each side have at least one on the other that fits, whoever else has the same."""
    ours, theirs = _by_common(expected), _by_common(actual)
    found = [_candidates(theirs[c], ours[c], tolerance, fits, work) for c in ours.keys() & theirs.keys()]
    return sum(bool(near) for rows in found for near in rows), sum(len(set().union(*rows)) for rows in found)


def _candidates(
    actual: Sequence[Item], expected: Sequence[Item], tolerance: float, fits: Callable[[Any, Any], bool], work: Work
) -> list[list[int]]:
    """For each actual item the places of the expected ones that fit, tried where one of their numbers is near.

    That number is the one in which the expected items differ most.
    """
    places, near = list(range(len(expected))), [range(len(expected))] * len(actual)
    if expected[0].numbers and tolerance <= 1:  # then intervals begin and end in the order of their numbers
        column = max(range(len(expected[0].numbers)), key=lambda c: len({e.numbers[c] for e in expected}))
        places.sort(key=lambda i: expected[i].numbers[column])
        intervals = [interval(float(expected[i].numbers[column]), tolerance) for i in places]
        begins, ends = [i[0] for i in intervals], [i[1] for i in intervals]
        near = [range(bisect_left(ends, a.numbers[column]), bisect_right(begins, a.numbers[column])) for a in actual]
    found = []
    for a, rows in zip(actual, near):
        work.spend(len(rows))
        found.append([places[r] for r in rows if fits(a.value, expected[places[r]].value)])
    return found


def _perfect(partners: Sequence[Sequence[int]], work: Work) -> bool:
    """Whether every item can have a partner to itself, given the possible ones of each."""
    owner: dict[int, int] = {}  # of a partner: the item that has it
    has: dict[int, int] = {}  # of an item: its partner
    for start in range(len(partners)):
        reached_from: dict[int, int] = {}
        waiting, free = deque([start]), None
        while waiting and free is None:
            item = waiting.popleft()
            work.spend(1 + len(partners[item]))
            for p in partners[item]:
                if p not in reached_from:
                    reached_from[p] = item
                    if p not in owner:
                        free = p
                        break
                    waiting.append(owner[p])
        while free is not None:  # back along the path: each item takes the partner that was reached from it
            item = reached_from[free]
            owner[free], has[item], free = item, free, has.get(item)
        if start not in has:
            return False
    return True
