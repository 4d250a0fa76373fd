"""The class of one curve: a least-squares fit of each class, and a penalty for the steeper ones.

Values and transformed sizes are shifted to begin at 0, and one coefficient that is not negative is fitted. O(n) may
begin with another slope, up to the last size below KNEE, and O(1) may grow up to one. The smallest penalized sum of
squared residuals wins, the first class at ties. Sizes, knees and penalties are BigO(Bench)'s (arXiv 2503.15242).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

Curve = tuple[np.ndarray, np.ndarray]  # sizes f64[n] and values f64[n], both from the first size on
Kind = Literal["time", "space"]

SCALE = 10_000  # of the values
KNEE, EARLY_KNEE = 480, 20
DROP_FROM = 256  # a curve that falls from one size to the next, from here on, is aggregated in another way
LEAST_RESIDUAL = 1e-5  # of the other classes, where O(1) fits exactly
NAMES = ("1", "1", "logn", "n", "nlogn", "n^2", "n^3")
ORDERS = {"1": 0.0, "logn": 0.5, "n": 1.0, "nlogn": 1.5, "n^2": 2.0, "n^3": 3.0}
PENALTIES: dict[Kind, tuple[float, ...]] = {"time": (1, 1, 5, 4.5, 4.5, 3.5, 1e6), "space": (1, 1, 5, 1.5, 5, 2, 1e6)}


class Fit(NamedTuple):
    """A class fitted to a curve."""

    name: str
    residual: float  # sum of squares
    coefficient: float  # of the last segment; of O(1) its value
    at: Callable[[float], float]  # the shifted value at a size, by the last segment

    @property
    def order(self) -> float:
        """1 for n, 2 for n^2, and .5 for a logarithm."""
        return ORDERS[self.name]


def schedule(end: int = 3100) -> list[int]:
    """The sizes, as multiples of the example: 1, 2, 4, ... 512, then steps of 512."""
    sizes, m = [], 1
    while m <= end:
        sizes.append(m)
        m = min(2 * m, m + 512)
    return sizes


def prepared(series: Mapping[int, Sequence[float]]) -> Curve | None:
    """The curve of one value for each size; None unless there are four sizes and the first is 1.

    The least of the measurements; where that curve falls at large sizes the largest, and where that falls too the
    median. The first value is at most the least.
    """
    sizes = np.array(sorted(series), float)
    if len(sizes) <= 3 or sizes[0] != 1:
        return None
    for choose in (np.min, np.max, np.median):
        values = np.array([choose(series[int(n)]) for n in sizes], float)
        if not any(b < a for a, b, n in zip(values, values[1:], sizes) if n >= DROP_FROM):
            break
    values[0] = values.min()
    return sizes, values * SCALE


def fits(curve: Curve) -> list[Fit]:
    """Each class fitted, in the order of NAMES."""
    x, y = curve[0], curve[1] - curve[1][0]
    found = [_constant(x, y, KNEE), _constant(x, y, EARLY_KNEE), _scaled(x, y, "logn", np.log), _linear(x, y)]
    found.append(_scaled(x, y, "nlogn", lambda n: n * np.log(n)))
    return [*found, _scaled(x, y, "n^2", lambda n: n**2), _scaled(x, y, "n^3", lambda n: n**3)]


def best(found: Sequence[Fit], kind: Kind = "time") -> Fit:
    """The fit of the least penalized residual."""
    residuals = np.array([f.residual for f in found])
    if min(residuals[:2]) == 0:
        residuals[2:] = np.maximum(residuals[2:], LEAST_RESIDUAL)
    return found[int(np.argmin(residuals * PENALTIES[kind]))]


def _coefficient(x: np.ndarray, y: np.ndarray) -> float:
    """Of y = c x by least squares, at least 0."""
    return max(0.0, float(x @ y / (x @ x))) if x.any() else 0.0


def _scaled(x: np.ndarray, y: np.ndarray, name: str, grow: Callable[[Any], Any]) -> Fit:
    first = grow(x)[0]
    c = _coefficient(grow(x) - first, y)
    residual = float(((c * (grow(x) - first) - y) ** 2).sum())
    return Fit(name, residual, c, lambda n: float(c * (grow(np.float64(n)) - first)))


def _linear(x: np.ndarray, y: np.ndarray) -> Fit:
    """A line up to the last size below the knee, and one of another slope from there."""
    t = x - x[0]
    i = int(np.argmax(x > KNEE)) - 1 if (x > KNEE).any() else 0
    i = max(i, 0)
    before = y[i] / t[i] if i else 0.0
    c = _coefficient(t[i:] - t[i], y[i:] - y[i])
    residual = ((before * t[:i] - y[:i]) ** 2).sum() + ((y[i] + c * (t[i:] - t[i]) - y[i:]) ** 2).sum()
    return Fit("n", float(residual), c, lambda n: float(y[i] + c * (n - x[i])))


def _constant(x: np.ndarray, y: np.ndarray, knee: int) -> Fit:
    """A line through 0 before the knee, and the knee's value from there.

    Flat where a side has fewer than two points.
    """
    k = int(np.argmax(x > knee)) - 1 if (x > knee).any() else -1
    if k < 2 or len(x) - k < 2:
        return Fit("1", float((y**2).sum()), 0.0, lambda n: 0.0)
    before = _coefficient(x[:k], y[:k])
    residual = ((before * x[:k] - y[:k]) ** 2).sum() + ((y[k:] - y[k]) ** 2).sum()
    return Fit("1", float(residual), float(y[k]), lambda n: float(y[k]))
