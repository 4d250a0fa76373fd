"""Small Python functions from a description: the task of the default run.

A problem describes a function f of a list of integers, step by step in plain English; the answer is its source, one
line a step. The difficulty is the number of steps. Hidden tests call f; every problem is generated together with the
inputs that tell it from its near misses: without any one of its steps, or with any constant off by one, it fails.

Held-out problems differ from training problems in kind and in constants. Some pairs of neighbouring steps (a fixed
fifth of them) never occur in training or demonstrations, and every held-out problem has one; the constants from 1 to
99 are divided likewise.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrl.config import TaskConfig
from jaxrl.tasks import Task
from jaxrl.extract import code_block
from rollouts.episode import Problem, Reward
from sandbox.pool import Pool
from sandbox.verdict import CallTest, Program

TESTS = 6
PARTIAL_CREDIT = 0.2  # for passing some tests, times their share
HELD_OUT_SEED = 20_000_003  # the same held-out problems for every seed
RESERVED_PAIRS, RESERVED_CONSTANTS = 5, 4  # one in so many is held out

Values = list[int]


@dataclass(frozen=True)
class Step:
    """One step: how it is said (several ways), how it is written, what it does. `{n}` is its constant."""

    name: str
    phrases: tuple[str, ...]
    code: str  # a line of the function, with {n}
    run: Callable[[Any, int], Any]
    constant: tuple[int, int] | None = None  # smallest and largest


def _step(name: str, phrases: str, code: str, run: Callable, constant: tuple[int, int] | None = None) -> Step:
    return Step(name, tuple(phrases.split(" | ")), code, run, constant)


# From a list to a list.
STEPS = (
    _step("keep_above", "keep numbers above {n} | drop numbers up to {n}", "x = [v for v in x if v > {n}]",
          lambda x, n: [v for v in x if v > n], (1, 99)),
    _step("keep_below", "keep numbers below {n} | drop numbers from {n} up", "x = [v for v in x if v < {n}]",
          lambda x, n: [v for v in x if v < n], (1, 99)),
    _step("remove", "remove every {n} | drop all numbers equal to {n}", "x = [v for v in x if v != {n}]",
          lambda x, n: [v for v in x if v != n], (1, 99)),
    _step("keep_even", "keep the even numbers | drop the odd numbers", "x = [v for v in x if v % 2 == 0]",
          lambda x, n: [v for v in x if v % 2 == 0]),
    _step("keep_odd", "keep the odd numbers | drop the even numbers", "x = [v for v in x if v % 2 == 1]",
          lambda x, n: [v for v in x if v % 2 == 1]),
    _step("keep_positive", "keep the positive numbers", "x = [v for v in x if v > 0]",
          lambda x, n: [v for v in x if v > 0]),
    _step("add", "add {n} to each | increase each by {n}", "x = [v + {n} for v in x]",
          lambda x, n: [v + n for v in x], (1, 99)),
    _step("subtract", "subtract {n} from each | decrease each by {n}", "x = [v - {n} for v in x]",
          lambda x, n: [v - n for v in x], (1, 99)),
    _step("multiply", "multiply each by {n}", "x = [v * {n} for v in x]", lambda x, n: [v * n for v in x], (2, 99)),
    _step("modulo", "take each modulo {n} | replace each by its remainder by {n}", "x = [v % {n} for v in x]",
          lambda x, n: [v % n for v in x], (3, 99)),
    _step("at_least", "raise each to at least {n}", "x = [max(v, {n}) for v in x]",
          lambda x, n: [max(v, n) for v in x], (1, 99)),
    _step("at_most", "lower each to at most {n}", "x = [min(v, {n}) for v in x]",
          lambda x, n: [min(v, n) for v in x], (1, 99)),
    _step("square", "square each", "x = [v * v for v in x]", lambda x, n: [v * v for v in x]),
    _step("negate", "negate each | flip the sign of each", "x = [-v for v in x]", lambda x, n: [-v for v in x]),
    _step("absolute", "take absolute values", "x = [abs(v) for v in x]", lambda x, n: [abs(v) for v in x]),
    _step("append", "append {n} | put {n} at the end", "x = x + [{n}]", lambda x, n: [*x, n], (1, 99)),
    _step("prepend", "prepend {n} | put {n} at the front", "x = [{n}] + x", lambda x, n: [n, *x], (1, 99)),
    _step("skip", "skip the first {n} | drop the first {n}", "x = x[{n}:]", lambda x, n: x[n:], (1, 4)),
    _step("first", "take the first {n} | keep only the first {n}", "x = x[:{n}]", lambda x, n: x[:n], (2, 5)),
    _step("reverse", "reverse the list | reverse the order", "x = x[::-1]", lambda x, n: x[::-1]),
    _step("every_other", "take every second number", "x = x[::2]", lambda x, n: x[::2]),
    _step("sort", "sort ascending | sort from small to large", "x = sorted(x)", lambda x, n: sorted(x)),
    _step("sort_down", "sort descending | sort from large to small", "x = sorted(x)[::-1]",
          lambda x, n: sorted(x)[::-1]),
    _step("unique", "remove duplicates and sort", "x = sorted(set(x))", lambda x, n: sorted(set(x))),
    _step("double_list", "repeat the list twice", "x = x * 2", lambda x, n: x * 2),
)  # fmt: skip

# From a list to the answer.
ENDS = (
    _step("list", "return the list", "return x", lambda x, n: x),
    _step("sum", "return the sum", "return sum(x)", lambda x, n: sum(x)),
    _step("length", "return how many there are | return the count", "return len(x)", lambda x, n: len(x)),
    _step("largest", "return the largest or 0", "return max(x, default=0)", lambda x, n: max(x, default=0)),
    _step("smallest", "return the smallest or 0", "return min(x, default=0)", lambda x, n: min(x, default=0)),
    _step("sum_plus", "return the sum plus {n}", "return sum(x) + {n}", lambda x, n: sum(x) + n, (1, 99)),
    _step("count_of", "return how often {n} occurs", "return x.count({n})", lambda x, n: x.count(n), (1, 99)),
    _step("contains", "return whether {n} occurs", "return {n} in x", lambda x, n: n in x, (1, 99)),
    _step("joined", "return them joined by dashes", 'return "-".join(map(str, x))',
          lambda x, n: "-".join(map(str, x))),
    _step("distinct", "return how many different ones there are", "return len(set(x))", lambda x, n: len(set(x))),
)  # fmt: skip

Plan = list[tuple[Step, int]]  # steps with their constants


def reserved_pair(first: Step, second: Step) -> bool:
    """Whether the second step directly after the first is for held-out problems only."""
    return zlib.crc32(f"{first.name} {second.name}".encode()) % RESERVED_PAIRS == 0


def reserved_constant(n: int) -> bool:
    """Whether the constant is for held-out problems only; those under 10 are in both."""
    return n >= 10 and zlib.crc32(f"constant {n}".encode()) % RESERVED_CONSTANTS == 0


def generate(rng: np.random.Generator, steps: int, held_out: bool) -> Problem:
    """A problem of `steps` steps, the last of which returns; drawn again until its tests tell it from near misses."""
    while True:
        plan = _plan(rng, steps, held_out)
        if plan is None:
            continue
        inputs = _telling_inputs(rng, plan)
        if inputs is None:
            continue
        phrases = [str(rng.choice(step.phrases)).format(n=n) for step, n in plan]
        return Problem(
            id="",
            messages=({"role": "user", "content": "f(x): " + ", then ".join(phrases) + "."},),
            tests=tuple(CallTest("f", (x,), run(plan, x)) for x in inputs),
            demonstration="\n    ".join(["def f(x):", *(step.code.format(n=n) for step, n in plan)]),
            meta={"difficulty": steps, "kind": " ".join(step.name for step, _ in plan)},
        )


def run(plan: Plan, x: Values) -> Any:
    """The value of f(x)."""
    for step, n in plan:
        x = step.run(x, n)
    return x


def _plan(rng: np.random.Generator, count: int, held_out: bool) -> Plan | None:
    """Steps and constants, or None if the draw is not of the wanted kind."""
    steps = [STEPS[i] for i in rng.integers(len(STEPS), size=count - 1)] + [ENDS[rng.integers(len(ENDS))]]
    reserved = sum(reserved_pair(a, b) for a, b in zip(steps, steps[1:]))
    if (held_out and not reserved and count > 1) or (not held_out and reserved):
        return None
    plan = []
    for step in steps:
        low, high = step.constant or (0, 0)
        allowed = [n for n in range(low, high + 1) if high < 10 or reserved_constant(n) == held_out]
        plan.append((step, int(rng.choice(allowed))))
    return plan


def _telling_inputs(rng: np.random.Generator, plan: Plan) -> list[Values] | None:
    """Inputs on which every near miss of the plan differs somewhere, or None."""
    near = [n + d for step, n in plan for d in (-1, 0, 1) if step.constant]
    inputs: list[Values] = []
    for _ in range(TESTS):
        spread = int(rng.choice([9, 60, 120]))
        values = rng.integers(-spread // 3, spread, size=int(rng.integers(5, 10))).tolist()
        for i in range(len(values)):
            if near and rng.random() < 0.4:
                values[i] = int(rng.choice(near))
            elif i and rng.random() < 0.2:
                values[i] = values[int(rng.integers(i))]
        inputs.append(values)
    inputs[0] = inputs[0][: int(rng.integers(2))]
    expected = [run(plan, x) for x in inputs]
    if all(e == expected[1] for e in expected[2:]):
        return None
    for miss in _near_misses(plan):
        if all(run(miss, x) == e for x, e in zip(inputs, expected)):
            return None
    return inputs


def _near_misses(plan: Plan) -> Iterable[Plan]:
    """The plan without one of its steps, with a constant off by one, and with two neighbours exchanged or not."""
    for i, (step, n) in enumerate(plan):
        if i < len(plan) - 1:
            yield plan[:i] + plan[i + 1 :]
        if step.constant:
            yield [*plan[:i], (step, n + 1), *plan[i + 1 :]]
            yield [*plan[:i], (step, n - 1), *plan[i + 1 :]]


class Generated(Sequence[Problem]):
    """Problems made when they are asked for; the i-th is a function of (seed, i).

    `difficulties` are taken in turn.
    """

    def __init__(self, name: str, count: int, difficulties: Sequence[int], seed: int):
        self.name, self.count, self.difficulties, self.seed = name, count, difficulties, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.count))]
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, zlib.crc32(self.name.encode()), index])
        problem = generate(rng, self.difficulties[index % len(self.difficulties)], held_out=False)
        return _named(problem, f"functions/{self.name}/{index}")


def held_out_problems(count: int, max_difficulty: int) -> list[Problem]:
    """Different problems with a reserved pair and reserved constants, evenly of all difficulties from 2 up."""
    rng, problems, seen = np.random.default_rng(HELD_OUT_SEED), [], set()
    low = min(2, max_difficulty)
    while len(problems) < count:
        problem = generate(rng, low + len(problems) % (max_difficulty - low + 1), held_out=True)
        if problem.demonstration not in seen:
            seen.add(problem.demonstration)
            problems.append(_named(problem, f"functions/held_out/{len(problems)}"))
    return problems


def _named(problem: Problem, name: str) -> Problem:
    return Problem(**(vars(problem) | {"id": name}))


async def score(problem: Problem, text: str, pool: Pool) -> Reward:
    """1 if all hidden tests pass, else a little for the share that does."""
    verdict = await pool.run_async(Program(code_block(text), problem.tests))
    partial = 0.0 if verdict.passed else PARTIAL_CREDIT * verdict.pass_fraction
    parts = {"solved": float(verdict.passed), "partial": partial}
    return Reward(sum(parts.values()), verdict.passed, parts, verdict)


def make_task(config: TaskConfig, seed: int) -> Task:
    """The task; uses train_problems, held_out_problems, max_difficulty, demonstrations, demonstration_difficulty and
    hard_demonstrations.

    Demonstrations are mostly easy, training problems are all from two steps up: what is left to reinforcement
    learning is to write longer programs than most of those it was shown.
    """
    easy = range(1, config.demonstration_difficulty + 1)
    hard = range(config.demonstration_difficulty + 1, config.max_difficulty + 1)
    cycle = round(len(hard) / config.hard_demonstrations) if config.hard_demonstrations else len(easy)
    shown = [*(hard if config.hard_demonstrations else ()), *(d for _ in range(cycle) for d in easy)][:cycle]
    demonstrations = Generated("demonstration", config.demonstrations, shown, seed)

    def corpus() -> Iterable[str]:
        for p in demonstrations[:2000]:
            yield f"user\n{p.messages[-1]['content']}"
            yield f"assistant\n{p.demonstration}"

    return Task(
        name="functions",
        train=Generated("train", config.train_problems, range(min(2, config.max_difficulty), config.max_difficulty + 1), seed),
        held_out=held_out_problems(config.held_out_problems, config.max_difficulty),
        score=score,
        demonstrations=demonstrations,
        corpus=corpus,
    )
