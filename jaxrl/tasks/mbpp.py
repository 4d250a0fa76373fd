"""MBPP (arXiv 2108.07732): a short function from a sentence and three asserts.

Reads mbpp.jsonl (974 problems), sanitized-mbpp.json (427) and EvalPlus' MBPP+. Held out are ids 11 to 510, the data's
test part; training problems and demonstrations are 511 to 974.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from jaxrl.config import ExtractionConfig, TaskConfig
from jaxrl.datafiles import DataError, Row, read_rows
from jaxrl.evalplus import PLUS_LIMITS, evalplus_test, is_evalplus
from jaxrl.extract import block_program
from jaxrl.tasks import Task
from rollouts.episode import Problem, Reward
from sandbox.pool import Pool
from sandbox.verdict import AssertTest, Limits, Program, Test

INSTRUCTION = "Answer with one fenced Python code block. Your code must pass these tests:"
TEST_IDS = range(11, 511)
TRAIN_IDS = range(511, 975)
PARTIAL_CREDIT = 0.2  # for passing some tests, times their share


def make_task(config: TaskConfig, seed: int) -> Task:
    """The task; uses path, held_out_path, held_out_part, split, extraction, train_problems and held_out_problems.

    Raises DataError when a part has no problems, ValueError for an unknown part.
    """
    if not config.path:
        raise DataError("task mbpp needs task.path, mbpp.jsonl or a hub name such as google-research-datasets/mbpp")
    if config.held_out_part not in ("test", "all"):
        raise ValueError(f"task.held_out_part = {config.held_out_part!r} must be one of: test, all")
    rows = read_rows(config.path, config.split)
    train = [make_problem(r) for r in rows if number(r) in TRAIN_IDS]
    other = read_rows(config.held_out_path, config.split) if config.held_out_path else rows
    held_out = [make_problem(r) for r in other if number(r) in TEST_IDS or config.held_out_part == "all"]
    for name, problems, ids in (("training", train, TRAIN_IDS), ("held-out", held_out, TEST_IDS)):
        if not problems:
            raise DataError(f"{config.path} has no {name} problems (task_id {ids.start} to {ids.stop - 1})")
    train, held_out = train[: config.train_problems], held_out[: config.held_out_problems]
    return Task(
        name="mbpp",
        train=train,
        held_out=held_out,
        score=partial(score, extraction=config.extraction),
        demonstrations=[p for p in train if p.demonstration],
        program=partial(program, extraction=config.extraction),
    )


def number(row: Row) -> int:
    """The task_id, which MBPP+ writes as Mbpp/N."""
    return int(str(row.get("task_id")).removeprefix("Mbpp/"))


def make_problem(row: Row) -> Problem:
    """One row of any of the three formats. Raises DataError for a problem without tests."""
    meta: dict[str, Any] = {"limits": PLUS_LIMITS if is_evalplus(row) else Limits()}
    if is_evalplus(row):
        tests: tuple[Test, ...] = (evalplus_test(row),)
        text = row.get("prompt").strip().strip('"').strip()
        statement, _, asserts = text.partition("\nassert")
        asserts, code = f"assert{asserts}", row.get("canonical_solution")
        public = (AssertTest(f"import math\n{asserts}" if "math." in asserts else asserts),)
    else:
        statement, code = row.get("text", "prompt"), row.get("code").replace("\r\n", "\n")
        if not row.get("test_list"):
            raise DataError(f"{row.where}: problem {row.get('task_id')} has no tests")
        setup = row.fields.get("test_setup_code") or "\n".join(row.fields.get("test_imports", ()))
        tests = tuple(AssertTest(f"{setup}\n{test}".strip()) for test in row.get("test_list"))
        asserts, public = "\n".join(row.get("test_list")), tests
    return Problem(
        id=f"mbpp/{number(row)}",
        messages=({"role": "user", "content": f"{statement.strip()} {INSTRUCTION}\n{asserts}"},),
        tests=tests,
        public_tests=public,  # those of the prompt
        demonstration=f"```python\n{code.strip()}\n```",
        meta=meta,
    )


def program(problem: Problem, text: str, extraction: ExtractionConfig | None = None) -> str:
    """The program that is judged."""
    return block_program(text, extraction)


async def score(problem: Problem, text: str, pool: Pool, extraction: ExtractionConfig | None = None) -> Reward:
    """1 if all tests pass, else a little for the share that does."""
    code = program(problem, text, extraction)
    verdict = await pool.run_async(Program(code, problem.tests, problem.meta["limits"]))
    partial = 0.0 if verdict.passed else PARTIAL_CREDIT * verdict.pass_fraction
    parts = {"solved": float(verdict.passed), "partial": partial}
    return Reward(sum(parts.values()), verdict.passed, parts, verdict)
