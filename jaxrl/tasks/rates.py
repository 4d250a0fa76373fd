"""Pass rates of stored samples: the file's format, and problems chosen by them.

One JSON object a line: "id" (of the problem), "messages" (the prompt), "samples", a list of {"text", "tests", "model"}
where "tests" says for each test whether the sample passes it and "model" need not be there, and "kept", which says for
each test whether it survived the filter; all did where it is missing. "index", the problem's place among the task's
training problems, saves making all of those to find it. Rows of AceCode-87K ("test_cases" and "inferences" with their
"pass_rate") are read too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxrl.config.task import ByRates
from jaxrl.errors import UserError
from jaxrl.tasks.rows import DataError, Row, described, read_rows
from rollouts.episode import Problem

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
    index: int = -1  # among the task's training problems; -1: not known

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
    if "samples" not in row.fields and "inferences" in row.fields:
        return _of_acecode(row)
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
    index = int(row.number("index")) if row.fields.get("index") is not None else -1
    return Sampled(row.name("id"), [m.fields for m in row.parts("messages")], kept, samples, index)


def _of_acecode(row: Row) -> Sampled:
    """A row of AceCode-87K, which has shares of tests: which ones passed is not known, and the first ones are taken."""
    count, parts = len(row.texts("test_cases")), row.parts("inferences")
    rates = [part.number("pass_rate") for part in parts]
    if not count or not parts or not all(0 <= rate <= 1 for rate in rates):
        raise DataError(f"{row.where}: needs test_cases, and inferences with a pass_rate from 0 to 1")
    samples = [
        Sample(part.text("completion"), tuple(i < round(rate * count) for i in range(count)), part.text("model_name"))
        for part, rate in zip(parts, rates)
    ]
    return Sampled(row.name("id"), [], (True,) * count, samples)


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


def by_rates(train: Sequence[Problem], settings: ByRates) -> tuple[list[Problem], dict[str, int]]:
    """The training problems that `settings` chooses, in the file's order, and counts of the others by reason.

    Raises UserError, naming the setting, where the file is of other problems or none is left.
    """
    stored = read_rates(settings.path)
    found = {sampled.id: problem for sampled, problem in zip(stored, _find(stored, train)) if problem is not None}
    if not found:
        raise UserError(
            f"task.rates.path = {settings.path!r}: none of its {len(stored)} problems is a training problem of this "
            "task; it was made with another task, other settings or another seed"
        )
    rates = {s.id: [_value(r, settings) for r in s.rates("kept")] for s in stored if s.id in found}
    names = hard_quarter(rates) if settings.choose == "hard_quarter" else band(rates, settings.least, settings.most)
    if not names:
        means = [np.mean(values) for values in rates.values()]
        raise UserError(
            f"task.rates.choose = {settings.choose!r} leaves none of {len(rates)} problems, whose mean rates are "
            f"{min(means):.2f} to {max(means):.2f}"
        )
    counts = {
        "no stored pass rate": len(train) - len(found),
        "other pass rate than wanted": len(found) - len(names),
        "stored pass rate of no training problem": len(stored) - len(found),
    }
    return [found[name] for name in names], {reason: count for reason, count in counts.items() if count}


def _value(rate: Fraction, settings: ByRates) -> float:
    return float(rate) if settings.of == "tests" else float(rate == 1)


def _find(stored: Sequence[Sampled], train: Sequence[Problem]) -> list[Problem | None]:
    """The training problem of each; None where there is none, or another one of that name (of another seed, say)."""
    at_index = [train[s.index] if 0 <= s.index < len(train) else None for s in stored]
    if all(p is not None and p.id == s.id for s, p in zip(stored, at_index)):
        by_id = {p.id: p for p in at_index if p is not None}
    else:
        by_id = {p.id: p for p in train}
    return [p if (p := by_id.get(s.id)) is not None and _asks(s, p) else None for s in stored]


def _asks(sampled: Sampled, problem: Problem) -> bool:
    """Whether the stored prompt is the problem's, which an instruction may follow."""
    own = problem.messages[-1]["content"] if problem.messages else problem.prompt or ""
    return not sampled.messages or str(sampled.messages[-1].get("content", "")).startswith(own)
