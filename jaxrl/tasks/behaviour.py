"""What a program does, as its answer in majority votes: programs that print or return the same vote together.

A vote by text splits programs that are equal in all but their names. Here each program runs in the sandbox on the
inputs of the problem's public tests and on generated ones; what it gave on them, in a normal form, is its answer. What
is right for these inputs is not looked at, and those of hidden tests are not used: at deployment there would be none.

Generated inputs are mutations of the public ones that keep their types (as in EvalPlus, arXiv 2305.01210), a function
of the problem's id alone. A program that reads its standard input has the public inputs only: their format is unknown.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxrl.tasks import Task
from jaxrl.tasks.extract import normal_form, parses
from rollouts.episode import Problem, Reward, Submission
from rollouts.services import Services
from sandbox.verdict import AssertTest, CallTest, CheckTest, Limits, Program, StdioTest, Test, TestResult

GENERATED = 8  # inputs beside the public ones
DIGITS = 6  # of floats; tests compare them within 1e-6
NOTHING_IS = "\0no program gives this"  # what the tests expect, so that they show what was given

Inputs = Callable[[Problem, random.Random], Sequence[CallTest]]


def by_behaviour(task: Task, inputs: Inputs | None = None) -> Task:
    """The task with what a program does as its answer.

    Args:
        inputs: calls for a problem (their `expected` is not used) in place of its public tests and their mutations.
    """

    async def judge(problem: Problem, submission: Submission, services: Services) -> Reward:
        of_tests, of_inputs = task.judge(problem, submission, services), answer(problem, submission, services, inputs)
        reward, found = await asyncio.gather(of_tests, of_inputs)
        return dataclasses.replace(reward, answer=found)

    return dataclasses.replace(task, judge=judge, answers=True)


async def answer(
    problem: Problem, submission: Submission, services: Services, inputs: Inputs | None = None
) -> str | None:
    """A digest of what the program gives on the problem's inputs. Without inputs, the normal form of its text.

    None, which has no vote, if it gives nothing on any of them, or the sandbox failed.
    """
    program, rng = submission.program or "", random.Random(f"behaviour {problem.id}")
    tests = tuple(inputs(problem, rng)) if inputs else with_mutations(public_inputs(problem), rng)
    if not tests:
        return normal_form(program)
    asked = tuple(
        dataclasses.replace(t, stdout=NOTHING_IS, compare="exact", checker="")
        if isinstance(t, StdioTest)
        else dataclasses.replace(t, expected=NOTHING_IS)
        for t in tests
    )
    verdict = await services.run(Program(program, asked, problem.meta.get("limits", Limits())))
    if verdict.status == "sandbox_error" or not any(t.status == "wrong_answer" for t in verdict.tests):
        return None
    found = [given(test, result) for test, result in zip(asked, verdict.tests)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def public_inputs(problem: Problem) -> list[CallTest | StdioTest]:
    """The inputs of the problem's public tests, each once: calls with literal arguments, and standard inputs."""
    found: dict[str, CallTest | StdioTest] = {}
    for test in problem.public_tests:
        for probe in _inputs_of(test):
            key = probe.stdin if isinstance(probe, StdioTest) else repr((probe.function, probe.args, probe.kwargs))
            found.setdefault(key, probe)
    return list(found.values())


def _inputs_of(test: Test) -> Iterator[CallTest | StdioTest]:
    if isinstance(test, (CallTest, StdioTest)):
        yield test
    elif isinstance(test, (AssertTest, CheckTest)) and parses(test.code):
        for node in ast.walk(ast.parse(test.code)):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if isinstance(node, ast.Call) and called and not hasattr(builtins, called):
                named = test.entry_point if isinstance(test, CheckTest) and called == "candidate" else called
                try:
                    args = tuple(ast.literal_eval(a) for a in node.args)
                    kwargs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords if k.arg}
                except ValueError:  # not a literal
                    continue
                if len(kwargs) == len(node.keywords):
                    yield CallTest(named, args, kwargs=kwargs)


def with_mutations(tests: Sequence[CallTest | StdioTest], rng: random.Random) -> tuple[CallTest | StdioTest, ...]:
    """The tests, and GENERATED calls more, each with some of its arguments changed."""
    calls = [t for t in tests if isinstance(t, CallTest) and t.args]
    more: list[CallTest] = []
    for _ in range(GENERATED if calls else 0):
        call = rng.choice(calls)
        chosen = rng.randrange(len(call.args))
        args = tuple(mutated(a, rng) if i == chosen or rng.random() < 0.3 else a for i, a in enumerate(call.args))
        more.append(dataclasses.replace(call, args=args))
    return (*tests, *more)


def mutated(value: Any, rng: random.Random) -> Any:
    """A value of the same type near this one; what has no neighbours stays."""
    if isinstance(value, bool):
        return rng.random() < 0.5
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, value + rng.randrange(-10, 11), 2 * value, -value, 0))
    if isinstance(value, float):
        return rng.choice((value + rng.uniform(-1, 1), 2 * value, -value, 0.0))
    if isinstance(value, str):
        return "".join(_changed(list(value), rng, lambda c: rng.choice(value)))
    if isinstance(value, (list, tuple)):
        return type(value)(_changed(list(value), rng, lambda x: mutated(x, rng)))
    if isinstance(value, (set, frozenset)):
        return type(value)(_changed(sorted(value, key=repr), rng, lambda x: mutated(x, rng)))
    if isinstance(value, dict) and value:
        chosen = rng.choice(list(value))
        return value | {chosen: mutated(value[chosen], rng)}
    return value


def _changed(items: list[Any], rng: random.Random, change: Callable[[Any], Any]) -> list[Any]:
    """The items without one, with one twice, in another order, or with one changed."""
    if not items:
        return items
    kind, i = rng.randrange(4), rng.randrange(len(items))
    if kind == 0 and len(items) > 1:
        return items[:i] + items[i + 1 :]
    if kind == 1:
        return items[: i + 1] + items[i:]
    if kind == 2 and len(items) > 1:
        return rng.sample(items, len(items))
    return [*items[:i], change(items[i]), *items[i + 1 :]]


def given(test: CallTest | StdioTest, result: TestResult) -> list[str]:
    """What the program gave, or how it failed."""
    if result.status != "wrong_answer":
        return [result.status]
    if isinstance(test, StdioTest):
        lines = [line.rstrip() for line in result.actual.rstrip().splitlines()]
        return [result.status, "\n".join(lines), result.digest]
    return [result.status, normal_value(result.actual), result.digest]


def normal_value(text: str) -> str:
    """The same for texts of equal values: floats to DIGITS digits, whole floats as ints, sets and dicts in order."""
    try:
        return _ordered(ast.literal_eval(text))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _ordered(value: Any) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.{DIGITS}g}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(map(_ordered, value))})"
    if isinstance(value, (set, frozenset)):
        return f"set({', '.join(sorted(map(_ordered, value)))})"
    if isinstance(value, dict):
        return f"dict({', '.join(sorted(f'{_ordered(k)}: {_ordered(v)}' for k, v in value.items()))})"
    return repr(value)
