"""Questions with synthesised tests in the schema of AceCode-87K (AceCoder, arXiv 2502.01718).

Reads TIGER-Lab/AceCode-87K, or the questions.jsonl of python -m jaxrl.synthesize. A row has `id`, `source`, `question`,
`test_cases`, a list of asserts, and `inferences`, a list of {"completion", "model_name", "pass_rate"}. The function's
name is that which the first assert calls. Rows that do not fit are rejected, and counted by reason in Task.rejected.
"""

from __future__ import annotations

import ast
import builtins
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from jaxrl.config.rules import Count, NonNegative, Positive
from jaxrl.config.task import DataSettings
from jaxrl.tasks import Judge, Task
from jaxrl.tasks.behaviour import by_behaviour
from jaxrl.tasks.extract import code_block
from jaxrl.tasks.rewards import judge_program
from jaxrl.tasks.rows import DataError, Row, read_rows
from jaxrl.tasks.sampling import without_held_out
from rollouts.episode import Problem, Reward, Submission
from rollouts.services import Services
from sandbox.verdict import AssertTest, CallTest, Test

INSTRUCTION = "Answer with one fenced Python code block."
HELD_OUT_SHARE = 20  # one problem in this many, by a hash of its id
MODULES = ("math", "collections", "copy")  # that tests may name without importing them


@dataclass
class Settings(DataSettings):
    """Questions with synthesised tests."""

    prompt_style: Literal["chat", "question"] = "chat"  # question: it alone, without the function's name and tests
    public_tests: Count = 3  # the first ones, whose failures the model may see; the chat prompt shows them
    min_tests: Positive = 1  # fewer are rejected
    reward: Literal["binary", "fraction"] = "binary"  # 1 for passing all tests, or the share of them
    tolerance: NonNegative = 0.0  # of expected floats, absolute and relative; 0: as the tests are written
    answers: Literal["none", "behaviour"] = "none"  # by which programs vote: what they give on public inputs


def make_task(settings: Settings, seed: int) -> Task:
    """The task. Raises DataError, with the counts by reason, when no problem is left."""
    if not settings.path:
        raise DataError("task acecode needs task.path, a file or TIGER-Lab/AceCode-87K")
    rejected: Counter[str] = Counter()
    problems = read_problems(settings.path, settings, rejected)
    if settings.held_out_path:
        train, held_out = problems, read_problems(settings.held_out_path, settings, rejected)
    else:
        held_out = [p for p in problems if is_held_out(p.id)]
        train = [p for p in problems if not is_held_out(p.id)] or held_out
        held_out = held_out or train  # a handful of problems: nothing can be held out
    train = without_held_out(train, held_out, rejected)
    train, held_out = train[: settings.train_problems], held_out[: settings.held_out_problems]
    task = Task(
        name="acecode",
        train=train,
        held_out=held_out,
        judge=make_judge(settings),
        extract=extract,
        demonstrations=[p for p in train if p.demonstration][: settings.demonstrations],
        rejected=dict(rejected),
        slices=lambda problem: {"source": problem.meta["source"]},
    )
    return by_behaviour(task) if settings.answers == "behaviour" else task


def is_held_out(name: str) -> bool:
    """By the id alone: the same in every file that has the question, so that pairs and rates can be split alike."""
    return zlib.crc32(name.encode()) % HELD_OUT_SHARE == 0


def read_problems(path: str, settings: Settings, rejected: Counter[str]) -> list[Problem]:
    """The problems of a file; others are counted. Raises DataError for an id that comes twice, and if none is left."""
    problems: dict[str, Problem] = {}
    for row in read_rows(path, settings.split):
        problem = make_problem(row, settings)
        if isinstance(problem, str):
            rejected[problem] += 1
        elif problem.id in problems:
            raise DataError(f"{row.where}: id {problem.id!r} comes twice")
        else:
            problems[problem.id] = problem
    if not problems:
        counts = ", ".join(f"{reason}: {count}" for reason, count in rejected.items())
        raise DataError(f"{path}: no problem is left ({counts})")
    return list(problems.values())


def make_problem(row: Row, settings: Settings) -> Problem | str:
    """The problem of a row, or the reason to reject it. Raises DataError for a row of another schema."""
    asserts = [test.strip() for test in row.texts("test_cases") if test.strip()]
    if len(asserts) < settings.min_tests:
        return "too few tests"
    name = entry_point(asserts[0])
    if name is None:
        return "the first test calls no function"
    if any(parsed(test) is None for test in asserts):
        return "a test is not an assert"
    tests = tuple(make_test(test, settings.tolerance) for test in asserts)
    shown = asserts[: min(settings.public_tests, max(len(asserts) - 1, 1))]  # one at least stays hidden
    content = row.text("question").strip()
    if settings.prompt_style == "chat":
        content += f"\n\n{INSTRUCTION} The function's name must be `{name}`."
        content += "\nIt must pass these tests:\n" + "\n".join(shown) if shown else ""
    return Problem(
        id=row.name("id"),
        messages=({"role": "user", "content": content},),
        tests=tests,
        public_tests=tests[: len(shown)],
        demonstration=_right_answer(row),
        meta={"entry_point": name, "source": row.optional_text("source")},
    )


def _right_answer(row: Row) -> str | None:
    """The first stored answer that passes all tests, as its model gave it; a bare program gets a fence."""
    for answer in row.parts("inferences") if row.fields.get("inferences") else []:
        if answer.number("pass_rate") == 1:
            text = answer.text("completion").strip()
            return text if "```" in text else f"```python\n{text}\n```"
    return None


def parsed(test: str) -> ast.Assert | None:
    """The one assert of a test, which imports may stand before; None for another test."""
    try:
        *before, last = ast.parse(test).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    imports = all(isinstance(statement, (ast.Import, ast.ImportFrom)) for statement in before)
    return last if isinstance(last, ast.Assert) and imports else None


def calls(test: ast.Assert) -> list[ast.Call]:
    """The calls of functions that Python does not have itself, outermost first."""
    return [
        node
        for node in ast.walk(test)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not hasattr(builtins, node.func.id)
    ]


def entry_point(test: str) -> str | None:
    """The function that a test calls; None where it is no test, or calls none."""
    statement = parsed(test)
    found = calls(statement) if statement is not None else []
    return found[0].func.id if found and isinstance(found[0].func, ast.Name) else None


def make_test(test: str, tolerance: float = 0.0) -> Test:
    """The test as the sandbox runs it; with a tolerance, `f(...) == value` with a float in it compares within that."""
    statement = parsed(test)
    if tolerance and statement is not None and (call := as_call(statement)) is not None and _has_float(call.expected):
        return CallTest(call.function, call.args, call.expected, call.kwargs, tolerance)
    used = {node.id for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}
    imports = "".join(f"import {name}\n" for name in MODULES if name in used and f"import {name}" not in test)
    return AssertTest(imports + test)


def as_call(statement: ast.Assert) -> CallTest | None:
    """`assert f(values) == value` as data; None for a test of another form."""
    compared = statement.test
    if not isinstance(compared, ast.Compare) or len(compared.ops) != 1 or not isinstance(compared.ops[0], ast.Eq):
        return None
    call, value = compared.left, compared.comparators[0]
    if (
        not isinstance(call, ast.Call)
        or not isinstance(call.func, ast.Name)
        or any(k.arg is None for k in call.keywords)
    ):
        return None
    try:
        args = tuple(ast.literal_eval(argument) for argument in call.args)
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        return CallTest(call.func.id, args, ast.literal_eval(value), kwargs)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):  # not constants
        return None


def _has_float(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_float(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(_has_float(item) for item in value)
    return isinstance(value, float)


def extract(problem: Problem, text: str) -> str:
    """The program in a text."""
    return code_block(text, names=(problem.meta["entry_point"],))


def make_judge(settings: Settings) -> Judge:
    """1 if all tests pass, else 0, or the share of them that does."""
    partial = 1.0 if settings.reward == "fraction" else 0.0

    async def judge(problem: Problem, submission: Submission, services: Services) -> Reward:
        return await judge_program(problem, submission, services, partial=partial, part="tests")

    return judge
