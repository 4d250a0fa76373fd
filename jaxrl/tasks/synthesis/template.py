"""Questions with tests of known truth, made without a model from problems that have a right program and CallTests.

What a model would write, mistakes included: a share of the tests expects a wrong value, and a share of the reference
programs is wrong. Whether a filter raises the share of right tests can then be measured.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import random
from collections.abc import Sequence
from typing import Any

from jaxrl.errors import UserError
from jaxrl.tasks.behaviour import NOTHING_IS, mutated
from jaxrl.tasks.extract import code_block
from jaxrl.tasks.mutants import mutants
from jaxrl.tasks.synthesis.seeds import Seed
from rollouts.episode import Problem
from rollouts.services import Services
from sandbox.verdict import CallTest, Program

TRIES = 4  # changed arguments for each test that is wanted: some come twice
DRAWS = 20  # of a wrong value that differs from the right one


def template_seed(problem: Problem) -> Seed:
    """The seed of a problem: its program."""
    return Seed(problem.id.replace("/", "_"), problem.id.partition("/")[0], code_block(str(problem.demonstration)))


async def with_more_tests(problem: Problem, count: int, services: Services) -> Problem:
    """The problem with up to `count` tests: calls on changed arguments, whose values the right program gives.

    Raises UserError for a problem without a right program, or with tests that are not CallTests.
    """
    own = [test for test in problem.tests if isinstance(test, CallTest)]
    if not problem.demonstration or not own or len(own) < len(problem.tests):
        raise UserError(
            f"synthesis.writer = 'template': problem {problem.id} needs a right program and tests that are calls; set "
            "config.task to one like functions"
        )
    rng, asked = random.Random(f"tests {problem.id}"), {}
    for _ in range(TRIES * count):
        test = rng.choice(own)
        args = tuple(mutated(argument, rng) for argument in test.args)
        asked[repr((args, test.kwargs))] = dataclasses.replace(test, args=args, expected=NOTHING_IS)
    for test in own:
        asked.pop(repr((test.args, test.kwargs)), None)
    more = list(asked.values())[: max(count - len(own), 0)]
    if not more:
        return dataclasses.replace(problem, tests=tuple(own[:count]))
    verdict = await services.run(Program(code_block(str(problem.demonstration)), tuple(more)))
    for test, result in zip(more, verdict.tests):
        if result.status == "wrong_answer" and not result.digest and is_literal(result.actual):
            own.append(dataclasses.replace(test, expected=ast.literal_eval(result.actual)))
    return dataclasses.replace(problem, tests=tuple(own[:count]))


def is_literal(text: str) -> bool:
    """Whether a text is a constant of Python."""
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return True


def template_reply(problem: Problem, wrong: float, rng: random.Random) -> str:
    """The reply of a model that asks for the problem, and gets each expected value wrong with probability `wrong`."""
    tests = [as_assert(test, wrong, rng) for test in problem.tests if isinstance(test, CallTest)]
    question = problem.messages[-1]["content"] if problem.messages else str(problem.prompt)
    return json.dumps({"question": question, "tests": tests})


def as_assert(test: CallTest, wrong: float, rng: random.Random) -> str:
    """The test as an assert, whose expected value is wrong with probability `wrong`."""
    expected = test.expected
    if rng.random() < wrong:
        for _ in range(DRAWS):
            expected = changed(test.expected, rng)
            if expected != test.expected:
                break
    arguments = [repr(a) for a in test.args] + [f"{k}={v!r}" for k, v in test.kwargs.items()]
    return f"assert {test.function}({', '.join(arguments)}) == {expected!r}"


def changed(value: Any, rng: random.Random) -> Any:
    """A value near this one; of what has no neighbours, another one."""
    if value is None or (isinstance(value, (str, list, tuple, set, dict)) and not value):
        return 0
    return mutated(value, rng)


def template_reference(problem: Problem, wrong: float, rng: random.Random) -> str:
    """The answer of a model that writes the problem's program, or with probability `wrong` one with a mistake."""
    code = code_block(str(problem.demonstration))
    mistakes = mutants(code, rng, 1) if rng.random() < wrong else []
    return f"```python\n{mistakes[0] if mistakes else code}\n```"


def validity(rows: Sequence[dict[str, Any]], problems: Sequence[Problem]) -> float:
    """The share of the rows' tests that expect what the problems' own tests do."""
    exact = random.Random()
    truth = {
        template_seed(p).id: {as_assert(t, 0, exact) for t in p.tests if isinstance(t, CallTest)} for p in problems
    }
    right = [test in truth[row["id"]] for row in rows for test in row["test_cases"]]
    return sum(right) / len(right)
