"""When an answer is right. Runs in the trusted process, on plain data only."""

from __future__ import annotations

import math
from typing import Any


def equal(actual: Any, expected: Any, tolerance: float) -> bool:
    """Whether a call's value is the expected one.

    Numbers compare by value, floats within `tolerance` (absolute and relative), NaN equals NaN; True is not 1.
    A list and a tuple with the same items are equal (JSON data has no tuples); otherwise the types must agree.
    """
    if isinstance(actual, bool) or isinstance(expected, bool):
        return actual is expected
    if isinstance(expected, int) and isinstance(actual, int):
        return actual == expected
    if isinstance(expected, (int, float)) and isinstance(actual, (int, float)):
        return _close(actual, expected, tolerance)
    if isinstance(expected, complex) and isinstance(actual, (int, float, complex)):
        actual = complex(actual)
        return _close(actual.real, expected.real, tolerance) and _close(actual.imag, expected.imag, tolerance)
    if isinstance(expected, (list, tuple)) and isinstance(actual, (list, tuple)):
        return len(actual) == len(expected) and all(equal(a, e, tolerance) for a, e in zip(actual, expected))
    if isinstance(expected, dict) and isinstance(actual, dict):
        return actual.keys() == expected.keys() and all(equal(actual[k], expected[k], tolerance) for k in expected)
    return type(actual) is type(expected) and actual == expected


def _close(actual: float, expected: float, tolerance: float) -> bool:
    try:
        if math.isnan(expected):
            return math.isnan(actual)
        return actual == expected or abs(actual - expected) <= tolerance * max(1.0, abs(expected))
    except OverflowError:  # an int too large for a float
        return False


def same_output(actual: str, expected: str) -> bool:
    """Whether a printed output is the expected one: line by line, trailing blanks and trailing blank lines aside.

    The number of lines counts, so a correct beginning is not a correct output.
    """
    return _lines(actual) == _lines(expected)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines
