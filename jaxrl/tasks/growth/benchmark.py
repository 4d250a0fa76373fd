"""The rows of BigO(Bench) (arXiv 2503.15242): solutions with the class that its framework found.

Files are JSON lines of solutions, or one object {problem: {class: solution}} as in the published tiny sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from jaxrl.tasks.growth.fit import Kind
from jaxrl.tasks.growth.measure import Measurement
from jaxrl.tasks.growth.names import normal_form
from jaxrl.tasks.rows import DataError, Row, described, read_rows
from sandbox.verdict import StdioTest


class Solution(NamedTuple):
    """A program that reads its standard input, and what the benchmark says of it."""

    id: str
    problem: str  # its id
    title: str
    description: str
    code: str
    input_code: str  # defines class Input: from_str, __repr__
    example: str  # an input
    kind: Kind
    label: str  # class
    coefficients: tuple[float, ...]  # of people's solutions of this problem and class, largest first
    tests: tuple[StdioTest, ...]
    public: int  # tests, the first ones

    def measurement(self, code: str | None = None, **fields: object) -> Measurement:
        """What measures the solution, or another program in its place."""
        clock = "space" if self.kind == "space" else "operations"
        given = {"example": self.example, "input_code": self.input_code, "clock": clock} | fields
        return Measurement(self.code if code is None else code, **given)  # type: ignore[arg-type]


def read_solutions(path: str) -> list[Solution]:
    """All solutions of a file. Raises DataError naming the line and the field."""
    found = [_solution(row) for row in _rows(path)]
    if not found:
        raise DataError(f"task.path: {path} has no solutions")
    return found


def _rows(path: str) -> Iterator[Row]:
    for row in read_rows(path):
        if "solution_code" in row.fields:
            yield row
        else:
            for label, fields in row.fields.items():
                if not isinstance(fields, dict):
                    raise DataError(f"{row.where}, {label}: must be a solution, is {described(fields)}")
                yield Row(f"{row.where}, {label}", fields)


def _solution(row: Row) -> Solution:
    kind: Kind = "space" if "space_complexity_inferred" in row.fields else "time"
    label = row.text(f"{kind}_complexity_inferred")
    if normal_form(label) is None:
        raise DataError(f"{row.where}: {kind}_complexity_inferred = {label!r} is not a class")
    values = row.values(f"problem_{kind}_curve_coefficient_list")
    tests: list[StdioTest] = []
    public, given = 0, row.part("tests")
    for part in ("public_tests", "private_tests", "generated_tests"):
        if part in given.fields:
            tests += [StdioTest(t.text("input"), t.text("output"), "stripped") for t in given.parts(part)]
            public = public or len(tests)
    code, example = row.text("solution_code"), row.text("inputs_example")
    title, description = row.text("problem_name"), row.text("description")
    return Solution(
        row.name("solution_id"), row.name("problem_id"), title, description, code,
        row.text("dataclass_code"), example, kind, label, tuple(sorted(map(float, values), reverse=True)),
        tuple(tests), public,
    )  # fmt: skip


def percentile(coefficient: float, people: tuple[float, ...]) -> float:
    """The share of people's coefficients that are at least this one; 0 without any."""
    return sum(c >= coefficient for c in people) / len(people) if people else 0.0
