"""A model's questions and tests: what it is asked, what of its reply is used, and which tests survive the filter.

Every reply and every test that is not used is counted, by reason.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jaxrl.tasks import Task
from jaxrl.tasks.acecode import MODULES, calls, parsed
from jaxrl.tasks.extract import normal_form
from jaxrl.tasks.synthesis.seeds import Seed
from rollouts.episode import Problem, Reward, Submission
from rollouts.services import Services

LEAST_TESTS = 4  # of a candidate: no filter keeps a question with fewer

_CLASS = re.compile(
    r"^\s*class \w+|\b(?:write|implement|create|design|define) (?:a|the) (?:\w+ )?class\b", re.IGNORECASE | re.MULTILINE
)
_NOT_CONSTANT = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Await, ast.NamedExpr)
_ASKS = """Below is a piece of Python code. Let it give you the idea for a programming exercise, and write tests for it.

1. The exercise: a short text in the style of LeetCode that can be solved by writing one function. Say what the function
is called, what its arguments are and what it returns. No classes, no files, no network, no printing, no random numbers.
Do not give the solution, and put no tests into the text.
2. The tests: about {tests} lines of Python such as `assert name(1, [2]) == 3`. Each calls the function once, with
constants, and compares what it returns with a constant. No test may need another one. Cover small, large and unusual
arguments.

Answer with one JSON object and nothing else: {{"question": "...", "tests": ["assert ...", ...]}}
"""


def writing_task(seeds: Sequence[Seed], tests: int) -> Task:
    """The task of writing a question with tests for each seed; a reply is right if it can be used."""

    async def judge(problem: Problem, submission: Submission, services: Services) -> Reward:
        usable = read_reply(submission.text, Counter()) is not None
        return Reward(float(usable), usable)

    problems = [Problem(seed.id, ({"role": "user", "content": asked(seed, tests)},)) for seed in seeds]
    return Task("questions", problems, [], judge, well_formed=lambda problem, submission: True)


def asked(seed: Seed, tests: int) -> str:
    """The prompt for a seed."""
    text = _ASKS.format(tests=tests)
    if seed.instruction:
        text += f"\nThe code was written for this:\n{seed.instruction.strip()}\n"
    return f"{text}\n```python\n{seed.code.strip()}\n```"


def candidate(seed: Seed, reply: str, rejected: Counter[str]) -> dict[str, Any] | None:
    """The row of a question before the filter, in the schema of AceCode-87K."""
    found = read_reply(reply, rejected)
    if found is None:
        return None
    question, tests = found
    return {"id": seed.id, "source": seed.source, "question": question, "test_cases": tests, "inferences": []}


def read_reply(reply: str, rejected: Counter[str]) -> tuple[str, list[str]] | None:
    """Question and usable tests of a reply; None, with its reason counted, for one that cannot be used."""
    found = find_object(reply)
    if found is None:
        rejected["reply: no JSON object"] += 1
        return None
    question, tests = found.get("question"), found.get("tests")
    if not isinstance(question, str) or not question.strip() or not isinstance(tests, list):
        rejected["reply: no question, or no tests"] += 1
        return None
    if not question.isascii():
        rejected["reply: question is not ASCII"] += 1
        return None
    if _CLASS.search(question):
        rejected["reply: asks for a class"] += 1
        return None
    usable = usable_tests(tests, rejected)
    if len(usable) < LEAST_TESTS:
        rejected[f"reply: fewer than {LEAST_TESTS} usable tests"] += 1
        return None
    return question.strip(), usable


def find_object(text: str) -> dict[str, Any] | None:
    """The first JSON object with a question in a text: alone, in a fence, or between other words."""
    decoder = json.JSONDecoder(strict=False)
    for start in (match.start() for match in re.finditer(r"\{", text)):
        try:
            value, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and "question" in value:
            return value
    return None


def usable_tests(tests: Sequence[Any], rejected: Counter[str]) -> list[str]:
    """The tests that are one assert about one call of the same function with constants; the others are counted."""
    usable: dict[str, str] = {}
    name = None
    for test in tests:
        called = reason = None
        if isinstance(test, str):
            called, reason = read_test(test)
        else:
            reason = "not a text"
        if called is not None and name is not None and called != name:
            reason = "calls another function"
        form = (normal_form(test) or test) if called is not None else ""
        if reason is None and form in usable:
            reason = "duplicate"
        if reason is not None:
            rejected[f"test: {reason}"] += 1
            continue
        name = called
        usable[form] = str(test).strip()
    return list(usable.values())


def read_test(test: str) -> tuple[str | None, str | None]:
    """(the function's name, None) of a usable test, else (None, the reason)."""
    statement = parsed(test)
    if statement is None:
        return None, "not one assert"
    found = calls(statement)
    if any(isinstance(n, ast.Attribute) and isinstance(n.value, ast.Call) for n in ast.walk(statement)):  # A().push(1)
        return None, "uses an object's methods"
    if len(found) != 1:
        return None, "calls no function" if not found else "more than one call"
    call = found[0]
    assert isinstance(call.func, ast.Name)
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    if not all(is_constant(v) for v in values) or any(keyword.arg is None for keyword in call.keywords):
        return None, "arguments are not constant"
    inside = {id(node) for node in ast.walk(call)}
    for node in (n for n in ast.walk(statement.test) if id(n) not in inside):
        unknown = isinstance(node, ast.Name) and not hasattr(builtins, node.id) and node.id not in MODULES
        if unknown or isinstance(node, _NOT_CONSTANT):
            return None, "the expected value is not constant"
    return call.func.id, None


def is_constant(node: ast.expr) -> bool:
    """Whether it is a literal."""
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False
    return True


def filtered(
    row: dict[str, Any], passed: Sequence[bool], completion: str, model: str, least: int, rejected: Counter[str]
) -> dict[str, Any] | None:
    """The row with the tests that the reference program passes; None, counted, if fewer than `least` are left.

    The paper keeps questions with 5 tests or more, its code those with more than 3. `removed_tests` are the others.
    """
    kept = [test for test, ok in zip(row["test_cases"], passed, strict=True) if ok]
    removed = [test for test, ok in zip(row["test_cases"], passed, strict=True) if not ok]
    rejected["test: the reference program fails it"] += len(removed)
    if len(kept) < least:
        rejected[f"question: fewer than {least} tests kept"] += 1
        return None
    answer = {"completion": completion, "completion_id": 0, "model_name": model, "pass_rate": 1.0}
    return row | {"test_cases": kept, "removed_tests": removed, "inferences": [*row["inferences"], answer]}
