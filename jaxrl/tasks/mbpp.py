"""MBPP (arXiv 2108.07732): a short function from a sentence and three asserts.

Reads mbpp.jsonl (974 problems), sanitized-mbpp.json (427) and EvalPlus' MBPP+. Held out are ids 11 to 510, the data's
test part; training problems and demonstrations are 511 to 974.
"""

from __future__ import annotations

import ast
import builtins
import re
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from jaxrl.config.task import DataSettings
from jaxrl.tasks import Task, evalplus
from jaxrl.tasks.behaviour import by_behaviour
from jaxrl.tasks.evalplus import PLUS_LIMITS, evalplus_tests, is_evalplus
from jaxrl.tasks.evalplus_hub import hub_test, is_hub
from jaxrl.tasks.extract import ExtractionConfig, block_program
from jaxrl.tasks.rewards import judge_program
from jaxrl.tasks.rows import DataError, Row, described, read_rows
from rollouts.episode import Problem, Reward, Submission
from rollouts.services import Services
from sandbox.verdict import AssertTest, Limits, Test

INSTRUCTION = "Answer with one fenced Python code block. Your code must pass these tests:"
TEST_IDS = range(11, 511)
TRAIN_IDS = range(511, 975)
PARTIAL_CREDIT = 0.2  # for passing some tests, times their share


@dataclass
class Settings(DataSettings):
    """MBPP, sanitized MBPP or MBPP+."""

    prompt_style: Literal["chat", "evalplus"] = "chat"  # evalplus: EvalPlus' chat, with an answer begun
    held_out_part: Literal["test", "all"] = "test"  # ids 11 to 510, or as EvalPlus counts (then train on none)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    answers: Literal["none", "behaviour"] = "none"  # by which programs vote: what they give on public inputs


def make_task(settings: Settings, seed: int) -> Task:
    """The task. Raises DataError when a part has no problems."""
    if not settings.path:
        raise DataError("task mbpp needs task.path, mbpp.jsonl or a hub name such as google-research-datasets/mbpp")
    rows = read_rows(settings.path, settings.split)
    style = settings.prompt_style
    train = [make_problem(r, style) for r in rows if number(r) in TRAIN_IDS]
    other = read_rows(settings.held_out_path, settings.split) if settings.held_out_path else rows
    held_out = [make_problem(r, style) for r in other if number(r) in TEST_IDS or settings.held_out_part == "all"]
    for name, problems, ids in (("training", train, TRAIN_IDS), ("held-out", held_out, TEST_IDS)):
        if not problems:
            raise DataError(f"{settings.path} has no {name} problems (task_id {ids.start} to {ids.stop - 1})")
    train, held_out = train[: settings.train_problems], held_out[: settings.held_out_problems]
    task = Task(
        name="mbpp",
        train=train,
        held_out=held_out,
        judge=judge,
        extract=partial(extract, extraction=settings.extraction),
        demonstrations=[p for p in train if p.demonstration],
    )
    return by_behaviour(task) if settings.answers == "behaviour" else task


def number(row: Row) -> int:
    """The task_id, which MBPP+ writes as Mbpp/N. Raises DataError for any other."""
    digits = row.name("task_id").removeprefix("Mbpp/")
    if not digits.isdecimal():
        raise DataError(f"{row.where}: task_id must be a number or Mbpp/NUMBER, is {described(row.get('task_id'))}")
    return int(digits)


def make_problem(row: Row, style: str = "chat") -> Problem:
    """One row of any of the three formats. Raises DataError for a problem without tests."""
    meta: dict[str, Any] = {"limits": PLUS_LIMITS if is_evalplus(row) or is_hub(row) else Limits()}
    setup = ""
    if is_evalplus(row):
        tests: tuple[Test, ...] = evalplus_tests(row)
        text = row.text("prompt").strip().strip('"').strip()
        statement, _, asserts = text.partition("\nassert")
        asserts, code = f"assert{asserts}", row.text("canonical_solution")
        public = (AssertTest(f"import math\n{asserts}" if "math." in asserts else asserts),)
    else:
        statement, code = row.text("text", "prompt"), row.text("code").replace("\r\n", "\n")
        listed = row.texts("test_list")
        if not listed or not all(test.strip() for test in listed):
            problem = f"problem {row.name('task_id')}"
            raise DataError(f"{row.where}: {problem} {'has an empty test' if listed else 'has no tests'} in test_list")
        setup = row.optional_text("test_setup_code") or "\n".join(row.optional_texts("test_imports"))
        tests = tuple(AssertTest(f"{setup}\n{test}".strip()) for test in listed)
        asserts, public = "\n".join(listed), tests
        if is_hub(row):
            tests = (hub_test(row),)
    content = f"{statement.strip()} {INSTRUCTION}\n{asserts}"
    if style == "evalplus":
        content = f'"""\n{statement.strip()}\n{asserts}\n"""'
        meta["begun"] = evalplus.BEGUN
    return Problem(
        id=f"mbpp/{number(row)}",
        messages=({"role": "user", "content": content},) if style == "chat" else evalplus.messages(content),
        tests=tests,
        public_tests=public,  # those of the prompt
        demonstration=f"```python\n{code.strip()}\n```" if style == "chat" else None,
        meta=meta | {"names": called(asserts, setup)},
    )


def called(asserts: str, setup: str = "") -> list[str]:
    """The names that all asserts call and that neither Python nor their setup defines: what a program has to define."""
    known = {*dir(builtins), *re.findall(r"\w+", setup)}
    try:
        statements = ast.parse(asserts).body
    except SyntaxError:
        return []
    calls = [
        {n.func.id for n in ast.walk(s) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)} - known
        for s in statements
    ]
    return sorted(set.intersection(*calls)) if calls else []


def extract(problem: Problem, text: str, extraction: ExtractionConfig | None = None) -> str:
    """The program that is judged."""
    text = problem.meta.get("begun", "") + text
    return block_program(text, extraction, problem.meta["names"])


async def judge(problem: Problem, submission: Submission, services: Services) -> Reward:
    """1 if all tests pass, else a little for the share that does."""
    return await judge_program(problem, submission, services, partial=PARTIAL_CREDIT, limits=problem.meta["limits"])
