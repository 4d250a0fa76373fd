"""Contest problems in the schema of open-r1/verifiable-coding-problems-python.

A row has `problem`, `gold_standard_solution` and `verification_info`: {"language", "test_cases": [{"input", "output",
"type": "stdin_stdout" | "function_call", "fn_name"}]}. Rows that do not fit the settings are rejected, and counted by
reason in Task.rejected; malformed ones are a DataError.

The problems are those of APPS, TACO and the like, and are judged as by their judges: eval/testing_util.py of
hendrycks/apps (which TACO uses too) and lcb_runner/evaluation/testing_util.py of LiveCodeBench.
- Outputs: blanks around lines and blank lines do not count, numbers compare by value; where a float is expected within
  1e-5 (numpy.allclose in APPS).
- Function calls: text inputs have one JSON value a line, which is one argument (LiveCodeBench); a dictionary's keys are
  ints where all are digits (APPS: JSON has only strings); a value in a list of one is taken out of it where all outputs
  of the problem are such lists. APPS takes either for every test, which lets 5 pass for [5].
- Time: each test has the row's time limit, or APPS' four seconds (`limits_of`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxrl.config.rules import Count, Positive
from jaxrl.config.task import DataSettings
from jaxrl.tasks import Task
from jaxrl.tasks.behaviour import by_behaviour
from jaxrl.tasks.extract import code_block
from jaxrl.tasks.rewards import judge_program
from jaxrl.tasks.rows import DataError, Row, described, read_rows
from rollouts.episode import Problem, Reward, Submission
from rollouts.services import Services
from sandbox.pool import Pool
from sandbox.verdict import CallTest, Limits, Program, StdioTest, Test

HELD_OUT_SHARE = 20  # one problem in this many, by a hash of its id
PARTIAL_CREDIT = 0.2  # for passing some tests, times their share
TOLERANCE = 1e-5
TEST_S, MIN_S, MAX_S = 4.0, 10.0, 60.0  # seconds of CPU: of a test without a time limit; least and most of a program
MIN_OUTPUT_KB, MAX_OUTPUT_KB = Limits().output_kb, 1 << 16
_SECONDS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|milliseconds?|s|sec|seconds?)?\s*", re.IGNORECASE)


@dataclass
class Settings(DataSettings):
    """Contest problems; what is rejected is counted by reason."""

    min_tests: Positive = 1  # fewer are rejected
    max_tests: Positive = 64  # more are cut, evenly
    public_tests: Count = 2  # the first ones, whose failures the model may see
    max_prompt_characters: Count = 0  # longer ones are rejected; 0: no limit
    language: str = "python"  # others are rejected
    require_solution: bool = False  # reject a problem whose reference solution does not pass
    answers: Literal["none", "behaviour"] = "none"  # by which programs vote: what they give on public inputs


def make_task(settings: Settings, seed: int) -> Task:
    """The task. Raises DataError, with the counts by reason, when no problem is left."""
    if not settings.path:
        raise DataError("task contest needs task.path, a file or open-r1/verifiable-coding-problems-python")
    rejected: Counter[str] = Counter()
    problems = _select(read_rows(settings.path, settings.split), settings, rejected)
    if settings.held_out_path:
        train, held_out = problems, _select(read_rows(settings.held_out_path, settings.split), settings, rejected)
    else:
        held_out = [p for p in problems if zlib.crc32(p.id.encode()) % HELD_OUT_SHARE == 0]
        train = [p for p in problems if p not in held_out] or held_out
        held_out = held_out or train  # a handful of problems: nothing can be held out
    if not problems:
        counts = ", ".join(f"{reason}: {count}" for reason, count in rejected.items()) or "the file is empty"
        raise DataError(f"{settings.path}: no problem is left ({counts})")
    train, held_out = train[: settings.train_problems], held_out[: settings.held_out_problems]
    task = Task(
        name="contest",
        train=train,
        held_out=held_out,
        judge=judge,
        extract=extract,
        demonstrations=[p for p in train if p.demonstration],
        rejected=dict(rejected),
    )
    return by_behaviour(task) if settings.answers == "behaviour" else task


def _select(rows: list[Row], settings: Settings, rejected: Counter[str]) -> list[Problem]:
    """The problems that fit the settings; the others are counted."""
    problems = []
    for row in rows:
        reason, problem = make_problem(row, settings)
        if problem is None:
            rejected[reason] += 1
        else:
            problems.append(problem)
    if settings.require_solution:
        problems = _solvable(problems, rejected)
    return problems


def make_problem(row: Row, settings: Settings) -> tuple[str, Problem | None]:
    """The problem of a row, or the reason to reject it. Raises DataError for a row of another schema."""
    info, statement = row.part("verification_info"), row.text("problem")
    cases = info.parts("test_cases") if info.fields.get("test_cases") else []
    if (info.optional_text("language") or "python") != settings.language:
        return "language", None
    if not cases:
        return "no tests", None
    if len(cases) < settings.min_tests:
        return "too few tests", None
    if settings.max_prompt_characters and len(statement) > settings.max_prompt_characters:
        return "prompt too long", None
    if len({_kind(case) for case in cases}) > 1:
        return "mixed kinds of tests", None
    tests = _tests(cases)[:: -(-len(cases) // settings.max_tests)]
    solution = row.optional_text("gold_standard_solution")
    named = next((field for field in ("problem_id", "in_source_id") if row.fields.get(field)), None)
    name = row.name(named) if named else row.where.rsplit("/", 1)[-1]
    names = sorted({test.function for test in tests if isinstance(test, CallTest)})
    return "", Problem(
        id=f"contest/{name}",
        messages=({"role": "user", "content": statement},),
        tests=tests,
        public_tests=tests[: settings.public_tests],  # the data does not say which; statements mostly show the first
        demonstration=f"```python\n{code_block(solution, names=names).strip()}\n```" if solution else None,
        meta={"source": row.optional_text("source"), "limits": limits_of(row, info, tests), "names": names},
    )


def limits_of(row: Row, info: Row, tests: Sequence[Test]) -> Limits:
    """Bounds on all tests of a problem together, which is what the sandbox bounds.

    CPU: the time limit of a test, from the field time_limit ("2.0 seconds", "1500 ms", 2) of the row, of its
    verification_info or of its metadata, times the number of tests, from MIN_S to MAX_S seconds; twice as much wall
    time. Output: twice the longest that is expected, at least the usual 64 kB.
    """
    metadata = row.fields.get("metadata")
    with contextlib.suppress(json.JSONDecodeError):
        metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
    places = (row.fields, info.fields, metadata if isinstance(metadata, dict) else {})
    stated = next((place["time_limit"] for place in places if place.get("time_limit") is not None), TEST_S)
    parts = _SECONDS.fullmatch(str(stated))
    seconds = float(parts[1]) / (1000 if (parts[2] or "").lower().startswith("m") else 1) if parts else 0.0
    if not seconds:
        raise DataError(f"{row.where}: time_limit {_short(stated)} must be a number above 0, of seconds or ms")
    cpu_s = min(max(seconds * len(tests), MIN_S), MAX_S)
    longest = max((len(test.stdout.encode()) for test in tests if isinstance(test, StdioTest)), default=0)
    output_kb = min(max(MIN_OUTPUT_KB, -(-2 * longest // 1024)), MAX_OUTPUT_KB)
    return dataclasses.replace(Limits(), cpu_s=cpu_s, wall_s=2 * cpu_s, output_kb=output_kb)


def _kind(case: Row) -> str:
    return case.optional_text("type") or "stdin_stdout"


def _tests(cases: Sequence[Row]) -> tuple[Test, ...]:
    kind = _kind(cases[0])
    if kind == "stdin_stdout":
        return tuple(StdioTest(_joined(c, "input"), _joined(c, "output"), "stripped", TOLERANCE) for c in cases)
    if kind == "function_call":
        return _call_tests(cases)
    raise DataError(f"{cases[0].where}: type {kind!r} must be stdin_stdout or function_call")


def _call_tests(cases: Sequence[Row]) -> tuple[CallTest, ...]:
    outputs = []
    for case in cases:
        as_text = isinstance(case.get("input"), str) and isinstance(case.get("output"), str)
        outputs.append(_json(case, "output", case.text("output")) if as_text else case.get("output"))
    wrapped = all(isinstance(output, list) and len(output) == 1 for output in outputs)
    return tuple(
        CallTest(
            case.identifier("fn_name"),
            tuple(map(_with_int_keys, _arguments(case))),
            _with_int_keys(output[0] if wrapped else output),
        )
        for case, output in zip(cases, outputs)
    )


def _arguments(case: Row) -> list[Any]:
    """The arguments of a call: a list of them, or a text with the JSON of one a line."""
    if not isinstance(case.get("input"), str):
        return case.values("input")
    return [_json(case, "input", line) for line in case.text("input").split("\n") if line.strip()]


def _json(case: Row, name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{case.where}: {name} {_short(text)} is not JSON: {error.msg}") from None


def _with_int_keys(value: Any) -> Any:
    """A dictionary as it was before JSON made its int keys strings."""
    if isinstance(value, dict) and value and all(re.fullmatch(r"-?\d{1,18}", key) for key in value):
        return {int(key): v for key, v in value.items()}
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _joined(case: Row, field: str) -> str:
    """The text of a field, or of its lines, as which some sources give it; a line may be a number."""
    value = case.get(field)
    if not isinstance(value, list):
        return case.name(field)
    for i, line in enumerate(value):
        if not isinstance(line, str) and type(line) not in (int, float):
            raise DataError(f"{case.where}: {field}[{i}] must be a text or a number, is {described(line)}")
    return "\n".join(map(str, value))


def _solvable(problems: list[Problem], rejected: Counter[str]) -> list[Problem]:
    """The problems whose own solution passes their tests."""
    with_solution = [p for p in problems if p.demonstration]
    rejected["no solution"] += len(problems) - len(with_solution)
    with Pool() as pool:
        verdicts = pool.run(
            [Program(extract(p, str(p.demonstration)), p.tests, p.meta["limits"]) for p in with_solution]
        )
    rejected["its solution does not pass"] += sum(not v.passed for v in verdicts)
    return [p for p, v in zip(with_solution, verdicts) if v.passed]


def extract(problem: Problem, text: str) -> str:
    """The program in a text."""
    return code_block(text, names=problem.meta["names"])


async def judge(problem: Problem, submission: Submission, services: Services) -> Reward:
    """1 if all tests pass, else a little for the share that does."""
    return await judge_program(problem, submission, services, partial=PARTIAL_CREDIT, limits=problem.meta["limits"])
