"""Small Python functions from a description: the task of the default run.

A problem describes a function f of a list, a text or a number, step by step in plain English; the answer is its
source, one line a step:

    Write f(x) of a list: keep numbers above 17, add 5 to each, return the sum.

The difficulty is the number of steps, the last of which returns. Hidden tests call f. They are drawn together with
the problem, so that every near miss fails at least one of them: the function without one of its steps or without all
of them, or with one constant off by one (on integers that is also `>` for `>=`). Arithmetic is Python's: remainders
are not negative.

Held-out problems differ from training problems in kind and in constants. A fixed fifth of the pairs of neighbouring
steps never occurs in training or demonstrations, and every held-out problem has one. Of the constants from 10 to 99 a
fixed quarter, another one for each step, occurs with that step in held-out problems only, and no others do there
("add 17" never in training, though "remove every 17" may be). Only where a step has no constants but small ones ("drop
the first 2") are they in both.
"""

from __future__ import annotations

import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from jaxrl.config.rules import Share
from jaxrl.config.task import TaskSettings
from jaxrl.errors import UserError
from jaxrl.tasks import Task
from jaxrl.tasks.behaviour import by_behaviour
from jaxrl.tasks.extract import code_block, normal_form
from jaxrl.tasks.rewards import judge_program
from jaxrl.tasks.sampling import Generated
from rollouts.episode import Problem, Reward, Submission
from rollouts.services import Services
from sandbox.verdict import CallTest

PARTIAL_CREDIT = 0.2  # times the share of tests passed, when not all pass
TESTS = 6  # at least; each near miss that none of them tells adds one
DRAWS = 40  # inputs tried to tell a near miss
VOTING_INPUTS = 12
LONGEST_VALUE = 160  # characters of an input or output
MAX_DIFFICULTY = 6
HELD_OUT_SEED = 20_000_003  # the same held-out problems for every run
RESERVED_PAIRS, RESERVED_CONSTANTS = 5, 4  # one in this many is held out
CORPUS_PROBLEMS = 1000


@dataclass(frozen=True)
class Step:
    """One step: how it is worded (several ways) and its expression; `{c}` is its constant."""

    name: str
    phrases: tuple[str, ...]
    expression: str
    constants: range | None = None


@dataclass(frozen=True)
class Family:
    """What f is a function of; `draw(rng, near)` makes an input, some of it from the numbers `near`."""

    name: str
    variable: str
    draw: Callable[[random.Random, Sequence[int]], Any]
    steps: tuple[Step, ...]
    returns: tuple[Step, ...]


Plan = list[tuple[Step, int]]  # steps with their constants (0 where a step has none); the last one is the return


def make_step(name: str, phrases: str, expression: str, constants: range | None = None) -> Step:
    return Step(name, tuple(phrases.split(" | ")), expression, constants)


ANY, FEW, FACTORS, REPEATS = range(1, 100), range(1, 5), range(3, 100), range(2, 5)  # constants

LIST_STEPS = (
    make_step("keep_above", "keep numbers above {c} | drop numbers up to {c}", "[v for v in x if v > {c}]", ANY),
    make_step("keep_below", "keep numbers below {c} | drop numbers from {c} up", "[v for v in x if v < {c}]", ANY),
    make_step("remove", "remove every {c} | drop every {c}", "[v for v in x if v != {c}]", ANY),
    make_step("keep_even", "keep even numbers | drop odd numbers", "[v for v in x if v % 2 == 0]"),
    make_step("keep_odd", "keep odd numbers | drop even numbers", "[v for v in x if v % 2 == 1]"),
    make_step("add", "add {c} to each | increase each by {c}", "[v + {c} for v in x]", ANY),
    make_step("subtract", "subtract {c} from each | decrease each by {c}", "[v - {c} for v in x]", ANY),
    make_step("multiply", "multiply each by {c} | take each times {c}", "[v * {c} for v in x]", FACTORS),
    make_step("modulo", "take each modulo {c} | take each remainder by {c}", "[v % {c} for v in x]", FACTORS),
    make_step("square", "square each | take the square of each", "[v * v for v in x]"),
    make_step("append", "append {c} | put {c} at the end", "x + [{c}]", ANY),
    make_step("prepend", "prepend {c} | put {c} at the front", "[{c}] + x", ANY),
    make_step("skip", "skip the first {c} | drop the first {c}", "x[{c}:]", FEW),
    make_step("first", "take the first {c} | keep only the first {c}", "x[:{c}]", FEW),
    make_step("reverse", "reverse the list | reverse the order", "x[::-1]"),
    make_step("sort", "sort the list | sort from small to large", "sorted(x)"),
    make_step("unique", "remove duplicates | keep each number only once", "list(dict.fromkeys(x))"),
)
LIST_RETURNS = (
    make_step("list", "return the list", "x"),
    make_step("sum", "return the sum", "sum(x)"),
    make_step("length", "return the length | return how many there are", "len(x)"),
    make_step("largest", "return the largest or 0 if empty", "max(x, default=0)"),
    make_step("smallest", "return the smallest or 0 if empty", "min(x, default=0)"),
    make_step("sum_plus", "return the sum plus {c} | return {c} plus the sum", "sum(x) + {c}", ANY),
    make_step("count_above", "return how many are above {c}", "sum(v > {c} for v in x)", ANY),
    make_step("joined", "return them joined by dashes", '"-".join(map(str, x))'),
)

TEXT_STEPS = (
    make_step("upper", "make it upper case", "s.upper()"),
    make_step("lower", "make it lower case", "s.lower()"),
    make_step("reverse", "reverse it | reverse the order", "s[::-1]"),
    make_step("skip", "skip the first {c} | drop the first {c}", "s[{c}:]", FEW),
    make_step("first", "take the first {c} | keep only the first {c}", "s[:{c}]", FEW),
    make_step("append", "append {c} | put {c} at the end", 's + "{c}"', ANY),
    make_step("prepend", "prepend {c} | put {c} at the front", '"{c}" + s', ANY),
    make_step("dashes", "replace spaces by dashes", 's.replace(" ", "-")'),
)
TEXT_RETURNS = (
    make_step("text", "return it", "s"),
    make_step("repeat", "return it {c} times | return it repeated {c} times", "s * {c}", REPEATS),
    make_step("words", "return the list of words", "s.split()"),
)

NUMBER_STEPS = (
    make_step("add", "add {c} | increase it by {c}", "n + {c}", ANY),
    make_step("subtract", "subtract {c} | decrease it by {c}", "n - {c}", ANY),
    make_step("multiply", "multiply it by {c} | take it times {c}", "n * {c}", FACTORS),
    make_step("divide", "divide it by {c} rounding down", "n // {c}", FACTORS),
    make_step("modulo", "take it modulo {c} | take the remainder by {c}", "n % {c}", FACTORS),
    make_step("square", "square it | take the square", "n * n"),
    make_step("absolute", "take the absolute value", "abs(n)"),
    make_step("at_most", "lower it to at most {c}", "min(n, {c})", ANY),
    make_step("at_least", "raise it to at least {c}", "max(n, {c})", ANY),
)
NUMBER_RETURNS = (
    make_step("number", "return it", "n"),
    make_step("even", "return whether it is even", "n % 2 == 0"),
    make_step("text", "return it as text", "str(n)"),
)


def _draw_list(rng: random.Random, near: Sequence[int]) -> list[int]:
    spread = rng.choice((9, 60, 120))
    values: list[int] = []
    for _ in range(rng.choice((0, 1, 5, 6, 7, 8, 9))):
        if values and rng.random() < 0.2:
            values.append(rng.choice(values))
        else:
            values.append(_draw_number(rng, near, spread))
    return values


def _draw_number(rng: random.Random, near: Sequence[int], spread: int = 120) -> int:
    if near and rng.random() < 0.4:
        return rng.choice(near)
    return rng.randrange(-spread // 3, spread)


def _draw_text(rng: random.Random, near: Sequence[int]) -> str:
    pieces = [rng.choice("abcdeXYZ") for _ in range(rng.randrange(3, 9))] + [" "] * rng.randrange(3)
    if near and rng.random() < 0.5:
        pieces.append(str(rng.choice(near)))
    rng.shuffle(pieces)
    return "".join(pieces)


FAMILIES = (
    Family("list", "x", _draw_list, LIST_STEPS, LIST_RETURNS),
    Family("text", "s", _draw_text, TEXT_STEPS, TEXT_RETURNS),
    Family("number", "n", _draw_number, NUMBER_STEPS, NUMBER_RETURNS),
)


def reserved_pair(family: Family, first: Step, second: Step) -> bool:
    """Whether the second step directly after the first is for held-out problems only."""
    return zlib.crc32(f"{family.name} {first.name} {second.name}".encode()) % RESERVED_PAIRS == 0


def reserved_constant(step: Step, c: int) -> bool:
    """Whether the step has this constant in held-out problems only."""
    return c >= 10 and zlib.crc32(f"{step.name} {c}".encode()) % RESERVED_CONSTANTS == 0


@cache
def allowed_constants(step: Step, held_out: bool) -> tuple[int, ...]:
    """The constants of the step; only 0 if it has none."""
    constants = step.constants or (0,)
    return tuple(c for c in constants if reserved_constant(step, c) == held_out or max(constants) < 10)


@cache
def _function(variable: str, expression: str, c: int) -> Callable[[Any], Any]:
    # Expected values and demonstrations come from the same expressions of this file, so that they cannot disagree.
    return eval(f"lambda {variable}: {expression.format(c=c)}")


def run(family: Family, plan: Plan, value: Any) -> Any:
    """f(value)."""
    for step, c in plan:
        value = _apply(family, step, c, value)
    return value


def _apply(family: Family, step: Step, c: int, value: Any) -> Any:
    return _function(family.variable, step.expression, c)(value)


def generate(
    rng: random.Random,
    difficulty: int,
    held_out: bool,
    name: str,
    families: Sequence[Family] = FAMILIES,
    lazy: float = 0.0,
) -> Problem:
    """A problem of `difficulty` steps, the last of which returns, with tests that tell its near misses.

    With probability `lazy` the demonstration does the last step only.
    """
    family = rng.choice(families)
    while True:
        plan = _draw_plan(rng, family, difficulty, held_out)
        inputs = telling_inputs(rng, family, plan) if plan else None
        if plan and inputs:
            written = plan[-1:] if rng.random() < lazy else plan
            return _problem(rng, family, plan, written, inputs, name)


def _problem(rng: random.Random, family: Family, plan: Plan, written: Plan, inputs: list[Any], name: str) -> Problem:
    words = [rng.choice(step.phrases).format(c=c) for step, c in plan]
    lines = [f"{family.variable} = {step.expression.format(c=c)}" for step, c in written[:-1]]
    last, c = written[-1]
    return Problem(
        id=name,
        messages=({"role": "user", "content": f"Write f({family.variable}) of a {family.name}: {', '.join(words)}."},),
        tests=tuple(CallTest("f", (x,), run(family, plan, x)) for x in inputs),
        demonstration="\n    ".join([f"def f({family.variable}):", *lines, f"return {last.expression.format(c=c)}"]),
        meta={"difficulty": len(plan), "kind": " ".join([family.name, *(step.name for step, _ in plan)])},
    )


def _draw_plan(rng: random.Random, family: Family, difficulty: int, held_out: bool) -> Plan | None:
    """Steps and constants, or None if the draw is not of the wanted kind."""
    steps = [*rng.choices(family.steps, k=difficulty - 1), rng.choice(family.returns)]
    if any(reserved_pair(family, a, b) for a, b in pairwise(steps)) != held_out:
        return None
    return [(step, rng.choice(allowed_constants(step, held_out))) for step in steps]


def telling_inputs(rng: random.Random, family: Family, plan: Plan) -> list[Any] | None:
    """Inputs on which no near miss of the plan does all that the plan does, or None."""
    near = [c + d for step, c in plan for d in (-1, 0, 1) if step.constants]
    inputs = [family.draw(rng, near) for _ in range(TESTS)]
    expected = [run(family, plan, x) for x in inputs]
    shown = [repr(e) for e in expected]
    if Counter(shown).most_common(1)[0][1] > TESTS * 2 // 3 or max(map(len, shown)) > LONGEST_VALUE:
        return None  # a constant, or next to it; or too large
    for miss in near_misses(plan):
        if all(run(family, miss, x) == e for x, e in zip(inputs, expected)):
            found = _input_that_tells(rng, family, plan, miss, near)
            if found is None:
                return None
            inputs.append(found)
            expected.append(run(family, plan, found))
    return inputs


def _input_that_tells(rng: random.Random, family: Family, plan: Plan, miss: Plan, near: list[int]) -> Any:
    for _ in range(DRAWS):
        value = family.draw(rng, near)
        expected = run(family, plan, value)
        if run(family, miss, value) != expected and len(repr(expected)) <= LONGEST_VALUE:
            return value
    return None


def near_misses(plan: Plan) -> Iterator[Plan]:
    """The plan with its return alone, without one of its steps, and with one constant off by one."""
    if len(plan) > 2:
        yield plan[-1:]
    for i, (step, c) in enumerate(plan):
        if i < len(plan) - 1:
            yield plan[:i] + plan[i + 1 :]
        if step.constants:
            yield [*plan[:i], (step, c + 1), *plan[i + 1 :]]
            yield [*plan[:i], (step, c - 1), *plan[i + 1 :]]


def generated(
    name: str,
    size: int,
    weights: Sequence[float],
    seed: int,
    families: Sequence[Family] = FAMILIES,
    lazy: float = 0.0,
) -> Generated:
    """`size` problems that are not held out; one of difficulty d is drawn with weight `weights[d - 1]`."""

    def make(i: int) -> Problem:
        rng = random.Random(f"{name} {seed} {i}")
        difficulty = rng.choices(range(1, len(weights) + 1), weights)[0]
        return generate(rng, difficulty, False, f"functions/{name}/{i}", families, lazy)

    return Generated(size, make)


def held_out_problems(count: int, max_difficulty: int, families: Sequence[Family] = FAMILIES) -> list[Problem]:
    """Different problems with a reserved pair and reserved constants, evenly of all difficulties from 2 up.

    Raises UserError if there are not enough.
    """
    rng = random.Random(HELD_OUT_SEED)
    problems: dict[Any, Problem] = {}
    for i in range(count):
        for _ in range(1000):
            problem = generate(rng, 2 + i % (max_difficulty - 1), True, f"functions/held_out/{i}", families)
            if problem.demonstration not in problems:
                break
        else:
            raise UserError(f"task.held_out_problems = {count} is too many; only {i} different ones were found")
        problems[problem.demonstration] = problem
    return list(problems.values())


def extract(problem: Problem, text: str) -> str:
    """The program in a text."""
    return code_block(text, names=("f",))


async def judge(problem: Problem, submission: Submission, services: Services) -> Reward:
    """1 if all hidden tests pass, else PARTIAL_CREDIT times the share that does."""
    answer = normal_form(submission.program or "")
    return await judge_program(problem, submission, services, partial=PARTIAL_CREDIT, part="tests", answer=answer)


@dataclass
class Settings(TaskSettings):
    """Small functions from a description."""

    families: tuple[Literal["list", "text", "number"], ...] = ("list", "text", "number")  # what f may be a function of
    max_difficulty: Annotated[int, Ge(2), Le(MAX_DIFFICULTY)] = 4  # steps of the longest problem
    demonstration_difficulty: Annotated[int, Ge(1), Le(MAX_DIFFICULTY)] = 2  # steps of the longest easy demonstration
    hard_demonstrations: Share = 0.1  # share of demonstrations of up to max_difficulty steps
    lazy_demonstrations: Share = 0.0  # share that does the last step only
    answers: Literal["text", "behaviour"] = "text"  # by which programs vote: their text, or what they return

    def check(self, where: str = "task") -> None:
        """Raises UserError for settings that contradict each other."""
        if self.demonstration_difficulty > self.max_difficulty:
            raise UserError(
                f"{where}.demonstration_difficulty = {self.demonstration_difficulty} must be at most "
                f"{where}.max_difficulty = {self.max_difficulty}"
            )
        if not self.families:
            raise UserError(f"{where}.families = () must name at least one of: list, text, number")


def make_task(settings: Settings, seed: int) -> Task:
    """Demonstrations are mostly easy, training problems evenly of all difficulties from 2 up.

    What is left to reinforcement learning is to write longer programs than most of those it was shown.
    """
    families = [f for f in FAMILIES if f.name in settings.families]
    easy, hard = settings.demonstration_difficulty, settings.max_difficulty - settings.demonstration_difficulty
    share = settings.hard_demonstrations if hard else 0.0
    shown = [(1 - share) / easy] * easy + [share / max(hard, 1)] * hard
    trained = [0.0] + [1.0] * (settings.max_difficulty - 1)

    def corpus() -> Iterable[str]:
        """The same for every seed, so that runs with different seeds have the same tokenizer."""
        for problem in generated("corpus", CORPUS_PROBLEMS, trained, 0, families):
            yield f"user\n{problem.messages[-1]['content']}"
            yield f"assistant\n{problem.demonstration}"

    task = Task(
        name="functions",
        train=generated("train", settings.train_problems, trained, seed, families),
        held_out=held_out_problems(settings.held_out_problems, settings.max_difficulty, families),
        judge=judge,
        extract=extract,
        answers=True,
        demonstrations=generated(
            "demonstration", settings.demonstrations, shown, seed, families, settings.lazy_demonstrations
        ),
        corpus=corpus,
    )
    return by_behaviour(task, voting_inputs) if settings.answers == "behaviour" else task


def voting_inputs(problem: Problem, rng: random.Random) -> list[CallTest]:
    """Calls of f on inputs of the kind that tests have, by which programs are told apart; drawn from what is asked."""
    family = next(f for f in FAMILIES if f.name == problem.meta["kind"].split()[0])
    constants = [int(c) for c in re.findall(r"\d+", problem.messages[-1]["content"])]
    near = [c + d for c in constants for d in (-1, 0, 1)]
    return [CallTest("f", (family.draw(rng, near),)) for _ in range(VOTING_INPUTS)]
