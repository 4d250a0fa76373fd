"""HumanEval (arXiv 2107.03374): complete a function from its signature and docstring.

Reads OpenAI's HumanEval.jsonl(.gz) and EvalPlus' HumanEval+ files. The data has no training part: its problems are
both training and held-out problems unless held_out_path names other ones. Train on it to try things out only.
"""

from __future__ import annotations

import ast
import doctest
from functools import partial

from jaxrl.config import ExtractionConfig, TaskConfig
from jaxrl.datafiles import DataError, Row, read_rows
from jaxrl.evalplus import PLUS_LIMITS, evalplus_test, is_evalplus
from jaxrl.extract import function_program, parses
from jaxrl.tasks import Task
from rollouts.episode import Problem, Reward
from sandbox.pool import Pool
from sandbox.verdict import AssertTest, CheckTest, Limits, Program

INSTRUCTION = "Complete the following Python function. Answer with the whole function in one fenced code block."


def make_task(config: TaskConfig, seed: int) -> Task:
    """The task; uses path, held_out_path, split, prompt_style, extraction, train_problems and
    held_out_problems.
    """
    if not config.path:
        raise DataError("task humaneval needs task.path, HumanEval.jsonl or a hub name such as openai/openai_humaneval")
    train = [make_problem(row, config.prompt_style) for row in read_rows(config.path, config.split)]
    rows = read_rows(config.held_out_path, config.split) if config.held_out_path else None
    held_out = [make_problem(row, config.prompt_style) for row in rows] if rows else train
    return Task(
        name="humaneval",
        train=train[: config.train_problems],
        held_out=held_out[: config.held_out_problems],
        score=partial(score, extraction=config.extraction),
        program=partial(program, extraction=config.extraction),
    )


def make_problem(row: Row, style: str) -> Problem:
    """A chat problem, or a plain completion (style "completion")."""
    header, entry_point = row.get("prompt"), row.get("entry_point")
    if is_evalplus(row):
        test = evalplus_test(row, header)
    else:
        test = CheckTest(f"{helpers(header, entry_point)}\n\n{row.get('test')}", entry_point)
    content = f"{INSTRUCTION}\n\n```python\n{header}```"
    return Problem(
        id=row.get("task_id"),
        messages=({"role": "user", "content": content},) if style == "chat" else (),
        prompt=header if style == "completion" else None,
        tests=(test,),
        public_tests=examples(header, entry_point),
        demonstration=f"```python\n{header}{row.get('canonical_solution')}```" if style == "chat" else None,
        meta={"entry_point": entry_point, "header": header, "limits": PLUS_LIMITS if is_evalplus(row) else Limits()},
    )


def helpers(header: str, entry_point: str) -> str:
    """What a prompt defines beside the function that is asked for.

    It stands before the test, so that a test which uses a helper gets the prompt's, and not what the program has made
    of it: HumanEval/32 asks its helper whether the answer is right.
    """
    statements = ast.parse(header).body
    return "\n".join(ast.unparse(s) for s in statements if getattr(s, "name", "") != entry_point)


def examples(header: str, entry_point: str) -> tuple[AssertTest, ...]:
    """Tests that the prompt shows: the examples of its docstring; where it has none, that the function is there."""
    tests = []
    for example in doctest.DocTestParser().get_examples(header):
        source, want = example.source.strip(), example.want.strip()
        if want:
            claim = f"({source}) == ({want})"
        else:  # a comparison already, or the answer is None, which a prompt does not print
            claim = source if parses(source) and _compares(source) else f"({source}) is None"
        if parses(claim):
            tests.append(AssertTest(f"assert {claim}"))
    return tuple(tests) or (AssertTest(f"assert callable({entry_point})"),)


def _compares(source: str) -> bool:
    statements = ast.parse(source).body
    value = statements[0].value if isinstance(statements[0], ast.Expr) else None
    return isinstance(value, (ast.Compare, ast.BoolOp)) or isinstance(getattr(value, "op", None), ast.Not)


def program(problem: Problem, text: str, extraction: ExtractionConfig | None = None) -> str:
    """The program that is judged."""
    return function_program(text, problem.meta["entry_point"], problem.meta["header"], extraction)


async def score(problem: Problem, text: str, pool: Pool, extraction: ExtractionConfig | None = None) -> Reward:
    """1 if the program passes its test, else 0."""
    code = program(problem, text, extraction)
    verdict = await pool.run_async(Program(code, problem.tests, problem.meta["limits"]))
    return Reward(float(verdict.passed), verdict.passed, {"solved": float(verdict.passed)}, verdict)
