"""Contest problems in the schema of open-r1/verifiable-coding-problems-python.

A row has `problem`, `gold_standard_solution` and `verification_info`: {"language", "test_cases": [{"input", "output",
"type": "stdin_stdout" | "function_call", "fn_name"}]}. Rows that do not fit the settings are rejected, and counted by
reason in Task.rejected.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from typing import Any

from jaxrl.config import TaskConfig
from jaxrl.datafiles import DataError, Row, read_rows
from jaxrl.extract import code_block
from jaxrl.tasks import Task
from rollouts.episode import Problem, Reward
from sandbox.pool import Pool
from sandbox.verdict import CallTest, Limits, Program, StdioTest, Test

HELD_OUT_SHARE = 20  # one problem in so many, by a hash of its id
PARTIAL_CREDIT = 0.2  # for passing some tests, times their share
LIMITS = Limits(wall_s=20, cpu_s=10)


def make_task(config: TaskConfig, seed: int) -> Task:
    """The task; uses path, held_out_path, split, language, min_tests, max_tests, max_prompt_characters,
    require_solution, public_tests, train_problems and held_out_problems.

    Raises DataError, with the counts by reason, when no problem is left.
    """
    if not config.path:
        raise DataError("task contest needs task.path, a file or open-r1/verifiable-coding-problems-python")
    rejected: Counter[str] = Counter()
    problems = _select(read_rows(config.path, config.split), config, rejected)
    if config.held_out_path:
        train, held_out = problems, _select(read_rows(config.held_out_path, config.split), config, rejected)
    else:
        held_out = [p for p in problems if zlib.crc32(p.id.encode()) % HELD_OUT_SHARE == 0]
        train = [p for p in problems if p not in held_out] or held_out
        held_out = held_out or train  # a handful of problems: nothing can be held out
    if not problems:
        counts = ", ".join(f"{reason}: {count}" for reason, count in rejected.items()) or "the file is empty"
        raise DataError(f"{config.path}: no problem is left ({counts})")
    train, held_out = train[: config.train_problems], held_out[: config.held_out_problems]
    return Task(
        name="contest",
        train=train,
        held_out=held_out,
        score=score,
        demonstrations=[p for p in train if p.demonstration],
        rejected=dict(rejected),
        program=lambda problem, text: code_block(text),
    )


def _select(rows: list[Row], config: TaskConfig, rejected: Counter[str]) -> list[Problem]:
    """The problems that fit the settings; the others are counted."""
    problems = []
    for row in rows:
        reason, problem = make_problem(row, config)
        if problem is None:
            rejected[reason] += 1
        else:
            problems.append(problem)
    if config.require_solution:
        problems = _solvable(problems, rejected)
    return problems


def make_problem(row: Row, config: TaskConfig) -> tuple[str, Problem | None]:
    """The problem of a row, or the reason to reject it. Raises DataError for a row of another schema."""
    info = row.get("verification_info")
    info = json.loads(info) if isinstance(info, str) else info
    cases = info.get("test_cases") or []
    if info.get("language", "python") != config.language:
        return "language", None
    if not cases:
        return "no tests", None
    if len(cases) < config.min_tests:
        return "too few tests", None
    if config.max_prompt_characters and len(row.get("problem")) > config.max_prompt_characters:
        return "prompt too long", None
    if len({case.get("type", "stdin_stdout") for case in cases}) > 1:
        return "mixed kinds of tests", None
    step = -(-len(cases) // config.max_tests)
    solution = row.fields.get("gold_standard_solution")
    name = row.fields.get("problem_id") or row.fields.get("in_source_id") or row.where.rsplit("/", 1)[-1]
    tests = tuple(_test(row, case) for case in cases[::step])
    return "", Problem(
        id=f"contest/{name}",
        messages=({"role": "user", "content": row.get("problem")},),
        tests=tests,
        public_tests=tests[: config.public_tests],  # the data does not say which; statements mostly show the first
        demonstration=f"```python\n{code_block(solution).strip()}\n```" if solution else None,
        meta={"source": row.fields.get("source", ""), "limits": LIMITS},
    )


def _test(row: Row, case: dict[str, Any]) -> Test:
    kind = case.get("type", "stdin_stdout")
    if kind == "stdin_stdout":
        return StdioTest(_joined(case["input"]), _joined(case["output"]))
    if kind == "function_call":
        name = case.get("fn_name")
        if not name:
            raise DataError(f"{row.where}: a function_call test has no fn_name")
        expected = case["output"]
        if isinstance(expected, list) and len(expected) == 1:  # the source wraps the value in a list
            expected = expected[0]
        return CallTest(name, tuple(case["input"]), expected)
    raise DataError(f"{row.where}: test type {kind!r} must be stdin_stdout or function_call")


def _joined(text: Any) -> str:
    """Some sources give the lines as a list."""
    return "\n".join(map(str, text)) if isinstance(text, list) else str(text)


def _solvable(problems: list[Problem], rejected: Counter[str]) -> list[Problem]:
    """The problems whose own solution passes their tests."""
    with_solution = [p for p in problems if p.demonstration]
    rejected["no solution"] += len(problems) - len(with_solution)
    with Pool() as pool:
        verdicts = pool.run([Program(code_block(str(p.demonstration)), p.tests, LIMITS) for p in with_solution])
    rejected["its solution does not pass"] += sum(not v.passed for v in verdicts)
    return [p for p, v in zip(with_solution, verdicts) if v.passed]


async def score(problem: Problem, text: str, pool: Pool) -> Reward:
    """1 if all tests pass, else a little for the share that does."""
    verdict = await pool.run_async(Program(code_block(text), problem.tests, LIMITS))
    partial = 0.0 if verdict.passed else PARTIAL_CREDIT * verdict.pass_fraction
    parts = {"solved": float(verdict.passed), "partial": partial}
    return Reward(sum(parts.values()), verdict.passed, parts, verdict)
