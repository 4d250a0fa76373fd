"""HumanEval (arXiv 2107.03374): complete a function from its signature and docstring.

Reads OpenAI's HumanEval.jsonl(.gz) and EvalPlus' HumanEval+ files. The data has no training part: its problems are
both training and held-out problems unless held_out_path names other ones. Train on it to try things out only.
"""

from __future__ import annotations

import ast
import doctest
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from jaxrl.config.task import DataSettings
from jaxrl.tasks import Task, evalplus
from jaxrl.tasks.behaviour import by_behaviour
from jaxrl.tasks.evalplus import PLUS_LIMITS, evalplus_tests, is_evalplus
from jaxrl.tasks.evalplus_hub import hub_test, is_hub
from jaxrl.tasks.extract import ExtractionConfig, function_program, parses
from jaxrl.tasks.rewards import judge_program
from jaxrl.tasks.rows import DataError, Row, read_rows
from rollouts.episode import Problem, Reward, Submission
from rollouts.services import Services
from sandbox.verdict import AssertTest, CheckTest, Limits, Test

INSTRUCTION = "Complete the following Python function. Answer with the whole function in one fenced code block."


@dataclass
class Settings(DataSettings):
    """HumanEval or HumanEval+."""

    # completion is for base models, with rollout.stop_strings; evalplus is EvalPlus' chat, with an answer begun
    prompt_style: Literal["chat", "completion", "evalplus"] = "chat"
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    answers: Literal["none", "behaviour"] = "none"  # by which programs vote: what they give on public inputs


def make_task(settings: Settings, seed: int) -> Task:
    """The task. Raises DataError for rows of another schema."""
    if not settings.path:
        raise DataError("task humaneval needs task.path, HumanEval.jsonl or a hub name such as openai/openai_humaneval")
    train = [make_problem(row, settings.prompt_style) for row in read_rows(settings.path, settings.split)]
    rows = read_rows(settings.held_out_path, settings.split) if settings.held_out_path else None
    held_out = [make_problem(row, settings.prompt_style) for row in rows] if rows else train
    task = Task(
        name="humaneval",
        train=train[: settings.train_problems],
        held_out=held_out[: settings.held_out_problems],
        judge=judge,
        extract=partial(extract, extraction=settings.extraction),
    )
    return by_behaviour(task) if settings.answers == "behaviour" else task


def make_problem(row: Row, style: str) -> Problem:
    """A chat problem, a plain completion (style "completion"), or EvalPlus' chat (style "evalplus")."""
    header, entry_point = row.text("prompt"), row.identifier("entry_point")
    before = helpers(row)
    tests: tuple[Test, ...]
    plus = is_evalplus(row) or is_hub(row)
    if plus:
        tests = evalplus_tests(row, header) if is_evalplus(row) else (hub_test(row),)
    else:
        tests = (CheckTest(f"{before}\n\n{row.text('test')}", entry_point),)
    content = f"{INSTRUCTION}\n\n```python\n{header}```"
    chats = {"chat": ({"role": "user", "content": content},), "evalplus": evalplus.messages(header)}
    meta = {"entry_point": entry_point, "header": header, "limits": PLUS_LIMITS if plus else Limits()}
    return Problem(
        id=row.name("task_id"),
        messages=chats.get(style, ()),
        prompt=header if style == "completion" else None,
        tests=tests,
        public_tests=examples(row),
        demonstration=f"```python\n{header}{row.text('canonical_solution')}```" if style == "chat" else None,
        meta=meta | ({"begun": evalplus.BEGUN} if style == "evalplus" else {}),
    )


def helpers(row: Row) -> str:
    """What a prompt defines beside the function to complete.

    It stands before the test, so that a test which uses a helper gets the prompt's, and not what the program has made
    of it: HumanEval/32 asks its helper whether the answer is right. Raises DataError for a prompt that is
    not Python up to the function's body, which a header without a docstring lacks.
    """
    header, entry_point = row.text("prompt"), row.identifier("entry_point")
    whole = next((code for code in (header, f"{header.rstrip()}\n    pass\n") if parses(code)), None)
    names = [getattr(s, "name", "") for s in ast.parse(whole).body] if whole is not None else []
    if whole is None or entry_point not in names:
        raise DataError(
            f"{row.where}: prompt must be Python that ends with the header of {entry_point}, its entry_point"
        )
    return "\n".join(ast.unparse(s) for s in ast.parse(whole).body if getattr(s, "name", "") != entry_point)


def examples(row: Row) -> tuple[AssertTest, ...]:
    """Tests that the prompt shows: the examples of its docstring; where it has none, that the function is there.

    Raises DataError for examples that doctest cannot read.
    """
    try:
        shown = doctest.DocTestParser().get_examples(row.text("prompt"))
    except ValueError as error:
        raise DataError(f"{row.where}: prompt has examples that cannot be read: {error}") from None
    tests = []
    for example in shown:
        source, want = example.source.strip(), example.want.strip()
        if want:
            claim = f"({source}) == ({want})"
        else:  # a comparison already, or the answer is None, which a prompt does not print
            claim = source if parses(source) and _compares(source) else f"({source}) is None"
        if parses(claim):
            tests.append(AssertTest(f"assert {claim}"))
    return tuple(tests) or (AssertTest(f"assert callable({row.identifier('entry_point')})"),)


def _compares(source: str) -> bool:
    statements = ast.parse(source).body
    value = statements[0].value if isinstance(statements[0], ast.Expr) else None
    return isinstance(value, (ast.Compare, ast.BoolOp)) or isinstance(getattr(value, "op", None), ast.Not)


def extract(problem: Problem, text: str, extraction: ExtractionConfig | None = None) -> str:
    """The program that is judged."""
    text = problem.meta.get("begun", "") + text
    return function_program(text, problem.meta["entry_point"], problem.meta["header"], extraction)


async def judge(problem: Problem, submission: Submission, services: Services) -> Reward:
    """1 if the program passes its test, else 0."""
    return await judge_program(problem, submission, services, limits=problem.meta["limits"])
