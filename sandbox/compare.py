"""Whether an answer is right. Runs in the judge's process, on plain data only.

The data of a hostile process are compared while still encoded (sandbox/plain.py), along the structure of the expected
value. Unordered collections are compared by text keys: the sender's values are never hashed. The work is bounded by the
size of the expected value; more raises TooMuchWork.
"""

from __future__ import annotations

import collections
import decimal
import json
import math
import re
from typing import Any

from sandbox.partners import (
    Item,
    TooMuchWork,
    Work,
    all_hit,
    all_inside,
    each_to_one,
    have_partners,
    interval,
    with_partners,
)
from sandbox.plain import decode, encode

__all__ = ["TooMuchWork", "equal", "matches", "same_output"]

_to_json = json.JSONEncoder().encode
_LISTS = ("list", "tuple", "ndarray", "typed", "iterator")
_SETS = ("set", "frozenset", "keys")
_MAPPINGS = ("dict", "Counter", "OrderedDict", "defaultdict")
_INTEGER = re.compile(r"[+-]?\d+")


def equal(actual: Any, expected: Any, tolerance: float = 0.0, order: str = "same") -> bool:
    """Whether a call's value is the expected one; both are plain Python values. See `matches`."""
    return matches(encode(actual), encode(expected), tolerance, order)


def matches(actual: Any, expected: Any, tolerance: float = 0.0, order: str = "same") -> bool:
    """Whether an encoded value is the expected, encoded one.

    Numbers compare by value: exactly where an int is expected, within `tolerance` (absolute and relative) where a float
    is; NaN equals NaN; True is not 1. A list, a tuple, an array and an iterator with the same items are equal (JSON
    data has only lists); otherwise the types must agree.

    Args:
        order: "same"; "any": items of the outermost list in any order; "set": and any number of times.

    Raises:
        TooMuchWork: for a value too large or too deep for the size of the expected one.
        ValueError, TypeError, KeyError, IndexError, ArithmeticError: for what is not an encoded value.
    """
    work = Work(expected)
    if order == "same" or _kind(expected) not in (*_LISTS, *_SETS):
        if _kind(expected) in _LISTS and _same_text(actual, expected):
            return True  # found faster than item by item
        return _matches(actual, expected, tolerance, work)
    if _kind(actual) not in (*_LISTS, *_SETS):
        return False
    return _same_items(_content(actual), _content(expected), tolerance, order == "any", work)


def _same_text(actual: Any, expected: Any) -> bool:
    try:
        return _to_json(actual) == _to_json(expected)
    except RecursionError:
        return False


def _matches(actual: Any, expected: Any, tolerance: float, work: Work) -> bool:
    if expected is None or isinstance(expected, (bool, str)):
        return type(actual) is type(expected) and actual == expected
    kind, given = _kind(expected), _kind(actual)
    if kind in _LISTS:
        if given not in _LISTS:
            return False
        ours, theirs = _content(expected), _content(actual)
        return len(theirs) == len(ours) and all(_matches(t, o, tolerance, work) for t, o in zip(theirs, ours))
    if kind in _SETS:
        return given == kind and _same_items(actual[1], expected[1], tolerance, True, work)
    if kind in _MAPPINGS:
        if given not in _MAPPINGS or len(actual[1]) != len(expected[1]):
            return False
        ours = {_key(k, work): v for k, v in expected[1]}
        theirs = {_key(k, work): v for k, v in actual[1]}
        return theirs.keys() == ours.keys() and all(_matches(theirs[k], ours[k], tolerance, work) for k in ours)
    if isinstance(actual, bool):
        return False
    if _is_number(expected):
        return _is_number(actual) and _same_number(decode(actual), decode(expected), tolerance)
    if kind == given == "Decimal":
        return actual == expected or decimal.Decimal(actual[1]) == decimal.Decimal(expected[1])
    return given == kind and actual == expected


def _kind(value: Any) -> str:
    return (
        value[0] if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) else type(value).__name__
    )


def _content(value: Any) -> list[Any]:
    content = value[1] if isinstance(value, list) else value
    if _kind(value) in ("ndarray", "typed"):
        return _content(content if _kind(value) == "ndarray" else content[1])
    return content if isinstance(content, list) else [content]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or _kind(value) in ("int", "complex")


def _same_number(actual: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(expected, complex):
        actual = complex(actual)
        return _close(actual.real, expected.real, tolerance) and _close(actual.imag, expected.imag, tolerance)
    if isinstance(actual, complex):
        return False
    if isinstance(expected, int):
        return actual == expected  # exactly: Python does not round the int for it
    return _close(actual, expected, tolerance)


def _close(actual: float, expected: float, tolerance: float) -> bool:
    try:
        if math.isnan(expected):
            return math.isnan(actual)
        return actual == expected or (
            math.isfinite(expected) and abs(actual - expected) <= tolerance * max(1.0, abs(expected))
        )
    except OverflowError:  # an int too large for a float
        return False


def _key(value: Any, work: Work, depth: int = 0) -> str:
    """A text that is the same for values that are equal without a tolerance, and only for these."""
    work.spend(1 + (len(value) if isinstance(value, str) else 0), depth)
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return f"s{len(value)}:{value}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return hex(int(value)) if value.is_integer() else value.hex()
    if isinstance(value, int):
        return hex(value)
    if not isinstance(value, list):
        raise ValueError("a JSON object is not an encoded value")
    kind, content = value
    if kind in _LISTS:
        items = _content(value)
        return f"L{len(items)}[{','.join(_key(v, work, depth + 1) for v in items)}]"
    if kind in _SETS:
        return f"{kind}{len(content)}[{','.join(sorted(_key(v, work, depth + 1) for v in content))}]"
    if kind in _MAPPINGS:
        pairs = sorted(f"{_key(k, work, depth + 1)}={_key(v, work, depth + 1)}" for k, v in content)
        return f"M{len(pairs)}[{','.join(pairs)}]"
    if kind == "int":
        work.spend(len(content), depth)
        return hex(int(content, 16))
    return f"{kind}({_key(content, work, depth + 1) if isinstance(content, str) else _plain_key(content, work)})"


def _keys(values: list[Any], work: Work) -> list[str]:
    if set(map(type, values)) == {int}:  # a fast path: there may be a million
        work.spend(len(values))
        return list(map(hex, values))
    return [_key(v, work) for v in values]


def _plain_key(content: Any, work: Work) -> str:
    """The key of what is within a range, a complex number and the like: a few numbers."""
    work.spend(len(content), 0)
    return ",".join(_key(v, work) for v in content)


def _has_float(value: Any, tolerance: float) -> bool:
    """Whether a value with another key can match the expected value."""
    if isinstance(value, float):
        return tolerance > 0 and math.isfinite(value)
    if not isinstance(value, list):
        return False
    kind, content = value
    if kind == "complex":
        return True
    if kind in _LISTS or kind in _SETS:
        return any(_has_float(v, tolerance) for v in _content(value))
    return kind in _MAPPINGS and any(_has_float(v, tolerance) for _, v in content)


def _same_items(actual: list[Any], expected: list[Any], tolerance: float, once: bool, work: Work) -> bool:
    """Each item of one list has its own partner in the other (`once`), or at least one there and back.

    Equal items are found by their keys. Other partners are possible only where floats are expected.
    """
    if once and len(actual) != len(expected):
        return False
    ours, theirs = _keys(expected, work), _keys(actual, work)
    wanted, given = collections.Counter(ours), collections.Counter(theirs)
    if given == wanted or (not once and given.keys() == wanted.keys()):
        return True
    inexact = {key for key, e in zip(ours, expected) if _has_float(e, tolerance)}
    if any(given[key] < (count if once else 1) for key, count in wanted.items() if key not in inexact):
        return False
    if not once:
        near = [e for key, e in zip(ours, expected) if key in inexact]
        alone = [a for key, a in zip(theirs, actual) if key not in wanted]
        missed = [e for key, e in zip(ours, expected) if key not in given]
        return _each_near_one(alone, near, actual, missed, tolerance, work)
    left = []
    for key, a in zip(theirs, actual):
        if key not in inexact and wanted[key] > 0:  # any of several equal items will do
            wanted[key] -= 1
        else:
            left.append(a)
    return _each_near_its_own(left, [e for key, e in zip(ours, expected) if key in inexact], tolerance, work)


def _each_near_its_own(actual: list[Any], expected: list[Any], tolerance: float, work: Work) -> bool:
    """Whether the items can be paired. Floats are paired by their order, others by trying."""
    points, rest, intervals, others = _apart(actual, expected, tolerance)
    if not each_to_one(points, intervals):
        return False
    given, wanted = ([_item(v, work) for v in values] for values in (rest, others))
    return have_partners(given, wanted, tolerance, lambda a, e: _fits(a, e, tolerance, work), work)


def _each_near_one(
    alone: list[Any], near: list[Any], actual: list[Any], missed: list[Any], tolerance: float, work: Work
) -> bool:
    """Whether each of `alone` has a partner in `near`, and each of `missed` one in `actual`."""
    points, rest, intervals, others = _apart(alone, near, tolerance)
    all_points, all_rest, missed_intervals, missed_others = _apart(actual, missed, tolerance)
    if not (all_inside(points, intervals) and all_hit(all_points, missed_intervals)):
        return False

    def having(actual: list[Any], expected: list[Any]) -> tuple[int, int]:
        given, wanted = ([_item(v, work) for v in values] for values in (actual, expected))
        return with_partners(given, wanted, tolerance, lambda a, e: _fits(a, e, tolerance, work), work)

    return having(rest, others)[0] == len(rest) and having(all_rest, missed_others)[1] == len(missed_others)


def _apart(
    actual: list[Any], expected: list[Any], tolerance: float
) -> tuple[list[float], list[Any], list[tuple[float, float]], list[Any]]:
    """Real numbers and other values of the actual items, floats' intervals and other values of the expected ones.

    Where complex numbers are expected nothing is separated: a real number may match one.
    """
    if any(_kind(e) == "complex" for e in expected):
        return [], actual, [], expected
    points = [decode(a) for a in actual if _is_finite(a)]
    intervals = [interval(e, tolerance) for e in expected if isinstance(e, float)]
    return (
        points,
        [a for a in actual if not _is_finite(a)],
        intervals,
        [e for e in expected if not isinstance(e, float)],
    )


def _fits(actual: Any, expected: Any, tolerance: float, work: Work) -> bool:
    work.spend(10)
    return _matches(actual, expected, tolerance, work)


def _item(value: Any, work: Work) -> Item:
    numbers: list[float] = []
    return Item(_outline(value, work, numbers), tuple(numbers), value)


def _outline(value: Any, work: Work, numbers: list[float], depth: int = 0) -> str:
    """What is left of a key without the numbers, which are appended; partners have the same."""
    if _is_number(value) and not isinstance(value, bool):
        number = decode(value).real
        numbers.append(number if number == number else math.inf)  # numbers are for the order only
        return "#"
    if not isinstance(value, list):
        return _key(value, work, depth)
    kind, content = value
    work.spend(1, depth)
    if kind in _LISTS:
        return f"L[{','.join(_outline(v, work, numbers, depth + 1) for v in _content(value))}]"
    if kind in _SETS:
        return f"{kind}{len(content)}"  # the partner may order it differently
    if kind in _MAPPINGS:
        pairs = sorted((_key(k, work, depth + 1), i) for i, (k, _) in enumerate(content))
        return f"M[{','.join(k + '=' + _outline(content[i][1], work, numbers, depth + 1) for k, i in pairs)}]"
    return _key(value, work, depth)


def _is_finite(value: Any) -> bool:
    """Whether it is a real number other than NaN and the infinities, which have no partners but their equals."""
    if isinstance(value, float):
        return math.isfinite(value)
    return (isinstance(value, int) and not isinstance(value, bool)) or _kind(value) == "int"


def same_output(actual: str, expected: str, how: str = "lines", tolerance: float = 0.0) -> bool:
    """Whether a printed output is the expected one; a correct prefix is not.

    Args:
        how: "lines": line by line, trailing blanks and trailing blank lines aside; "tokens": the words between any
            white space; "words": as tokens, and upper case is lower case; "exact": every character; "stripped": as
            "lines", but blanks before a line and all blank lines do not count, and words that are numbers are compared
            by value.
        tolerance: where it is not 0, words that are numbers are compared by value, and may differ by it (absolute or
            relative) where the expected one is not an integer.
    """
    if how == "exact":
        return actual == expected
    if how == "words":
        actual, expected = actual.lower(), expected.lower()
    if how in ("tokens", "words"):
        return _same_words(actual.split(), expected.split(), tolerance, tolerance > 0)
    ours, theirs = _lines(expected), _lines(actual)
    if how == "stripped":
        ours, theirs = ([line.strip() for line in lines if line.strip()] for lines in (ours, theirs))
    if ours == theirs:
        return True
    by_value = tolerance > 0 or how == "stripped"
    return by_value and len(ours) == len(theirs) and all(
        _same_words(t.split(), o.split(), tolerance, True) for o, t in zip(ours, theirs)
    )  # fmt: skip


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _same_words(actual: list[str], expected: list[str], tolerance: float, by_value: bool) -> bool:
    return len(actual) == len(expected) and all(
        a == e or (by_value and _same_word(a, e, tolerance)) for a, e in zip(actual, expected)
    )


def _same_word(actual: str, expected: str, tolerance: float) -> bool:
    """Whether two different words are the same number, or near enough where the expected one is not an integer."""
    try:
        if _INTEGER.fullmatch(expected) or not tolerance:
            ours, theirs = decimal.Decimal(expected), decimal.Decimal(actual)
            return "_" not in actual + expected and not ours.is_snan() and not theirs.is_snan() and ours == theirs
        return "_" not in actual and _close(float(actual), float(expected), tolerance)
    except (ValueError, ArithmeticError):
        return False
