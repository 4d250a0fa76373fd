"""When an answer is right. Runs in the judge's process, on plain data only.

What a hostile process sent is compared while it is still encoded (sandbox/plain.py), along the structure of what was
expected: it is never built into sets or dictionaries larger than the expected ones.
"""

from __future__ import annotations

import collections
import json
import math
from typing import Any

from sandbox.plain import decode, encode

MAX_PAIRS = 10**6
_LISTS = ("list", "tuple", "ndarray")
_SETS = ("set", "frozenset", "keys")
_MAPPINGS = ("dict", "Counter", "OrderedDict", "defaultdict")


def equal(actual: Any, expected: Any, tolerance: float = 0.0, order: str = "same") -> bool:
    """Whether a call's value is the expected one; both are plain Python values. See `matches`."""
    return matches(encode(actual), encode(expected), tolerance, order)


def matches(actual: Any, expected: Any, tolerance: float = 0.0, order: str = "same") -> bool:
    """Whether an encoded value is the expected, encoded one.

    Numbers compare by value, floats within `tolerance` (absolute and relative), NaN equals NaN; True is not 1.
    A list, a tuple, an array and an iterator with the same items are equal (JSON data has only lists); otherwise the
    types must agree.

    Args:
        order: "same"; "any": the items of the outermost list may stand in any order; "set": and any number of times.
    """
    if order != "same" and _kind(expected) in (*_LISTS, *_SETS):
        if _kind(actual) not in (*_LISTS, *_SETS, "iterator"):
            return False
        return _same_items(_content(actual), _content(expected), tolerance, once=order == "any")
    kind, given = _kind(expected), _kind(actual)
    if kind in _LISTS:
        ours, theirs = _content(expected), _content(actual)
        return (
            given in (*_LISTS, "iterator")
            and len(theirs) == len(ours)
            and all(map(matches, theirs, ours, [tolerance] * len(ours)))
        )
    if kind in _SETS:
        if given not in _SETS or len(actual[1]) != len(expected[1]) or _much_longer(actual[1], expected[1]):
            return False
        return given == kind and decode(["set", actual[1]]) == decode(["set", expected[1]])
    if kind in _MAPPINGS:
        if given not in _MAPPINGS or len(actual[1]) != len(expected[1]):
            return False
        if _much_longer(*([k for k, _ in side[1]] for side in (actual, expected))):
            return False
        ours, theirs = ({decode(k): v for k, v in side[1]} for side in (expected, actual))
        return theirs.keys() == ours.keys() and all(matches(theirs[k], ours[k], tolerance) for k in ours)
    if isinstance(expected, bool) or isinstance(actual, bool):
        return actual is expected
    if _is_number(expected) and _is_number(actual):
        return _same_number(decode(actual), decode(expected), tolerance)
    return given == kind and actual == expected


def _much_longer(actual: Any, expected: Any) -> bool:
    """Hashing and comparing what was made to collide takes the square of its length, and no deadline ends it."""
    return len(json.dumps(actual)) > 10_000 + 8 * len(json.dumps(expected))


def _kind(value: Any) -> str:
    return (
        value[0] if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) else type(value).__name__
    )


def _content(value: Any) -> list[Any]:
    content = value[1] if isinstance(value, list) else value
    if _kind(value) == "ndarray":
        return _content(content)
    return content if isinstance(content, list) else [content]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or _kind(value) in ("int", "complex")


def _same_number(actual: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(actual, complex) or isinstance(expected, complex):
        if not isinstance(expected, complex):
            return False
        actual = complex(actual)
        return _close(actual.real, expected.real, tolerance) and _close(actual.imag, expected.imag, tolerance)
    if isinstance(actual, int) and isinstance(expected, int):
        return actual == expected
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


def _same_items(actual: list[Any], expected: list[Any], tolerance: float, once: bool) -> bool:
    """Each item of one list has its own partner in the other (`once`), or at least one there and back."""
    if once and len(actual) != len(expected):
        return False
    ours, theirs = (collections.Counter(map(json.dumps, items)) for items in (expected, actual))
    if ours == theirs or (not once and ours.keys() == theirs.keys()):
        return True
    if len(actual) * len(expected) > MAX_PAIRS:
        return False  # too many to look for pairs that are equal but not the same
    left = list(expected)
    found = [False] * len(expected)
    for item in actual:
        places = [i for i, e in enumerate(left) if not (once and found[i]) and matches(item, e, tolerance)]
        if not places:
            return False
        for i in places[:1] if once else places:
            found[i] = True
    return all(found)


def same_output(actual: str, expected: str, how: str = "lines", tolerance: float = 0.0) -> bool:
    """Whether a printed output is the expected one. A correct beginning of it is not.

    Args:
        how: "lines": line by line, trailing blanks and trailing blank lines aside; "tokens": the words between any
            white space; "exact": every character.
        tolerance: where it is not 0, words that are numbers may differ by it (absolute or relative).
    """
    if how == "exact":
        return actual == expected
    if how == "tokens":
        return _same_words(actual.split(), expected.split(), tolerance)
    ours, theirs = _lines(expected), _lines(actual)
    if not tolerance:
        return ours == theirs
    return len(ours) == len(theirs) and all(_same_words(t.split(), o.split(), tolerance) for o, t in zip(ours, theirs))


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _same_words(actual: list[str], expected: list[str], tolerance: float) -> bool:
    return len(actual) == len(expected) and all(_same_word(a, e, tolerance) for a, e in zip(actual, expected))


def _same_word(actual: str, expected: str, tolerance: float) -> bool:
    if actual == expected or not tolerance:
        return actual == expected
    try:
        return _close(float(actual), float(expected), tolerance)
    except ValueError:
        return False
