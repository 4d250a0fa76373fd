"""Pass rates of stored samples: the file's format, and problems chosen by them.

One JSON object a line: "id" (of the problem), "messages" (the prompt), "samples", a list of {"text", "tests", "model"}
where "tests" says for each test whether the sample passes it and "model" need not be there, and "kept", which says for
each test whether it survived the filter; all did where it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxrl.tasks.rows import DataError, Row, described, read_rows

Denominator = Literal["kept", "all"]


class Sample(NamedTuple):
    """One answer, and which tests it passes."""

    text: str
    tests: tuple[bool, ...]
    model: str


class Sampled(NamedTuple):
    """The samples of one problem."""

    id: str
    messages: list[dict[str, Any]]
    kept: tuple[bool, ...]  # by test: whether the reference passes it
    samples: list[Sample]

    def rates(self, of: Denominator) -> list[Fraction]:
        """The share of tests that each sample passes. Tests that were removed never count as passed.

        They count as tests for "all", as in AceCoder's code, and not for "kept", as in its paper (arXiv 2502.01718).
        """
        count = sum(self.kept) if of == "kept" else len(self.kept)
        return [Fraction(sum(k and t for k, t in zip(self.kept, s.tests, strict=True)), count) for s in self.samples]


def read_rates(path: str) -> list[Sampled]:
    """The problems of a rates file. Raises DataError with file and line, also for an id that comes twice."""
    problems: dict[str, Sampled] = {}
    for row in read_rows(path):
        problem = _sampled(row)
        if problem.id in problems:
            raise DataError(f"{row.where}: id {problem.id!r} comes twice")
        problems[problem.id] = problem
    return list(problems.values())


def _sampled(row: Row) -> Sampled:
    parts = row.parts("samples")
    if not parts:
        raise DataError(f"{row.where}: samples must not be empty")
    samples = [Sample(p.text("text"), _flags(p, "tests"), p.optional_text("model")) for p in parts]
    kept = _flags(row, "kept") if row.fields.get("kept") is not None else (True,) * len(samples[0].tests)
    if not any(kept):
        raise DataError(f"{row.where}: a problem needs a test that was kept")
    for part, sample in zip(parts, samples, strict=True):
        if len(sample.tests) != len(kept):
            raise DataError(f"{part.where}: tests must have {len(kept)} items, has {len(sample.tests)}")
    return Sampled(row.name("id"), [m.fields for m in row.parts("messages")], kept, samples)


def _flags(row: Row, name: str) -> tuple[bool, ...]:
    for i, value in enumerate(row.values(name)):
        if not isinstance(value, bool):
            raise DataError(f"{row.where}: {name}[{i}] must be true or false, is {described(value)}")
    return tuple(row.values(name))


def band(rates: Mapping[str, Sequence[float]], least: float, most: float) -> list[str]:
    """The ids of problems whose mean pass rate is in [least, most]."""
    return [name for name, values in rates.items() if least <= np.mean(values) <= most]


def hard_quarter(rates: Mapping[str, Sequence[float]]) -> list[str]:
    """AceCoder's hard 25% (arXiv 2502.01718, section 4): of the half with the lowest means, the half that varies most.

    Halves are rounded down; of equals the first counts as harder. The ids come in the order of `rates`.
    """
    low = sorted(rates, key=lambda name: np.mean(rates[name]))[: len(rates) // 2]
    varied = set(sorted(low, key=lambda name: -np.std(rates[name]))[: len(low) // 2])
    return [name for name in rates if name in varied]
