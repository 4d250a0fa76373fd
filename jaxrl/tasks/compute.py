"""Multi-digit arithmetic: too much for a small model's head, a few lines of Python for its tools.

    n = 58: multiply by 37, add 48, return it.

Every problem may be answered in two ways: with the value, "\\boxed{2194}", or with a program that defines f and must
return the right values for other numbers too. The instruction that a config puts after the problem says which: DIRECT
and TOOL want the value (by head, or with the interpreter), PROGRAM the program (which may be told the public tests that
it fails). Demonstrations are of all three kinds, those of a careless teacher: a share of the programs does the last
step only.

The constants of steps are other ones in held-out problems than in training and demonstrations, as in task `functions`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from typing import Any

from jaxrl.config import TaskConfig
from jaxrl.extract import code_block, parses
from jaxrl.tasks import Generated, Task
from jaxrl.tasks.functions import Family, Plan, allowed_constants, make_step, run, telling_inputs
from rollouts.environments.feedback import told
from rollouts.episode import Problem, Reward
from sandbox.pool import Pool
from sandbox.verdict import CallTest, Program

DIRECT, TOOL, PROGRAM = "Answer at once.", "Use Python.", "Write f."
PARTIAL_CREDIT = 0.2  # of a program, times the share of tests passed, when not all pass
PUBLIC_TESTS = 2
HELD_OUT_SEED = 30_000_001  # the same held-out problems for every run
CORPUS_PROBLEMS = 600
MAX_DIFFICULTY = 4

LARGEST = 9999  # of all values of f that are asked for
CONSTANTS, FACTORS = range(10, 100), range(11, 100)

FAMILIES = (
    Family(
        "number", "n", lambda rng, near: rng.randrange(10, 100),
        (
            make_step("add", "add {c}", "n + {c}", CONSTANTS),
            make_step("subtract", "subtract {c}", "n - {c}", CONSTANTS),
            make_step("multiply", "multiply by {c}", "n * {c}", FACTORS),
            make_step("square", "square it", "n * n"),
        ),
        (
            make_step("number", "return it", "n"),
            make_step("times", "return it times {c}", "n * {c}", FACTORS),
            make_step("modulo", "return it modulo {c}", "n % {c}", range(50, 100)),
        ),
    ),
)  # fmt: skip


def generate(rng: random.Random, difficulty: int, held_out: bool, name: str) -> Problem:
    """A problem of `difficulty` steps, the last of which returns. Its meta has the plan, for demonstrations."""
    family = rng.choice(FAMILIES)
    while True:
        steps = [*rng.choices(family.steps, k=difficulty - 1), rng.choice(family.returns)]
        plan = [(step, rng.choice(allowed_constants(step, held_out))) for step in steps]
        inputs = telling_inputs(rng, family, plan) or []
        tests = tuple(CallTest("f", (x,), run(family, plan, x)) for x in inputs)
        # A small model that can copy a number of four digits from a tool still cannot copy one of eight.
        if tests and any(c for _, c in plan) and all(abs(t.expected) <= LARGEST for t in tests):
            break
    said = ", ".join(step.phrases[0].format(c=c) for step, c in plan)
    return Problem(
        id=name,
        messages=({"role": "user", "content": f"{family.variable} = {inputs[-1]}: {said}."},),
        tests=tests,
        public_tests=tests[:PUBLIC_TESTS],
        answer=str(run(family, plan, inputs[-1])),
        meta={"difficulty": len(plan), "family": family.name, "plan": plan},
    )


def demonstrate(problem: Problem, rng: random.Random, kind: str, lazy: float) -> Problem:
    """The problem with an instruction and an answer of that kind; with probability `lazy` a careless one."""
    family = next(f for f in FAMILIES if f.name == problem.meta["family"])
    plan: Plan = problem.meta["plan"]
    careless = plan[-1:] if rng.random() < lazy else plan
    messages = {DIRECT: _by_head, TOOL: _with_tool, PROGRAM: _as_program}[kind](problem, family, plan, careless, rng)
    (question,) = problem.messages
    asked = question | {"content": f"{question['content']}\n{kind}"}
    meta = {name: value for name, value in problem.meta.items() if name != "plan"}
    return Problem(problem.id, (asked,), tests=problem.tests, answer=problem.answer, demonstration=messages, meta=meta)


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _by_head(problem: Problem, *_: Any) -> tuple[dict[str, str], ...]:
    return (_said(f"\\boxed{{{problem.answer}}}"),)


def _with_tool(problem: Problem, family: Family, plan: Plan, careless: Plan, *_: Any) -> tuple[dict[str, str], ...]:
    v, (value,) = family.variable, problem.tests[-1].args  # type: ignore[union-attr]
    *steps, last = [step.expression.format(c=c) for step, c in careless]
    code = "\n".join([f"{v} = {value}", *(f"{v} = {step}" for step in steps), f"print({last})"])
    output = str(run(family, careless, value))
    block = {"role": "output", "content": f"```output\n{output}\n```\n"}
    return _said(f"```python\n{code}\n```\n"), block, _said(f"\\boxed{{{output}}}")


def _as_program(
    problem: Problem, family: Family, plan: Plan, careless: Plan, rng: random.Random
) -> tuple[dict[str, str], ...]:
    """A careless program is corrected in the next turn half of the time, else it is the last word."""
    first = (_said(_program(family, careless)),)
    if careless == plan or rng.random() < 0.5:
        return first
    failures = [
        f"f({t.args[0]!r}) gave {run(family, careless, t.args[0])!r}, expected {t.expected!r}"  # type: ignore
        for t in problem.tests[:PUBLIC_TESTS]
    ]
    return (*first, {"role": "user", "content": told(failures)}, _said(_program(family, plan)))


def _program(family: Family, plan: Plan) -> str:
    v = family.variable
    *steps, last = [step.expression.format(c=c) for step, c in plan]
    lines = [f"def f({v}):", *(f"    {v} = {step}" for step in steps), f"    return {last}"]
    return "```python\n" + "\n".join(lines) + "\n```"


def boxed(text: str) -> str | None:
    """What the last \\boxed{} of a text holds, without blanks; None if there is none."""
    found = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return found[-1].strip() if found else None


async def score(problem: Problem, text: str, pool: Pool) -> Reward:
    """1 for the right value in \\boxed{}, or for a program that passes all tests (a little for some of them)."""
    value = boxed(text)
    if value is not None:
        return Reward(
            float(value == problem.answer), value == problem.answer, {"solved": float(value == problem.answer)}
        )
    verdict = await pool.run_async(Program(code_block(text), problem.tests))
    partial = 0.0 if verdict.passed else PARTIAL_CREDIT * verdict.pass_fraction
    parts = {"solved": float(verdict.passed), "tests": partial}
    return Reward(sum(parts.values()), verdict.passed, parts, verdict)


def make_task(config: TaskConfig, seed: int) -> Task:
    """Uses the numbers of problems, max_difficulty, demonstration_kinds, hard_demonstrations and lazy_demonstrations.

    Raises ValueError naming a field out of its range.
    """
    if not 2 <= config.max_difficulty <= MAX_DIFFICULTY:
        raise ValueError(f"task.max_difficulty = {config.max_difficulty} must be from 2 to {MAX_DIFFICULTY}")
    kinds = {"direct": DIRECT, "tool": TOOL, "program": PROGRAM}
    unknown = sorted(set(config.demonstration_kinds) - set(kinds))
    if unknown or not config.demonstration_kinds:
        raise ValueError(
            f"task.demonstration_kinds = {config.demonstration_kinds!r} must be some of: {', '.join(kinds)}"
        )

    def plain(name: str, seed: int, hard: float = 1.0, held_out: bool = False) -> Callable[[int], Problem]:
        """Problems of two steps; a share `hard` of them is evenly of all difficulties from 2 up."""

        def make(i: int) -> Problem:
            rng = random.Random(f"compute {name} {seed} {i}")
            difficulty = rng.randrange(2, config.max_difficulty + 1) if rng.random() < hard else 2
            return generate(rng, difficulty, held_out, f"compute/{name}/{i}")

        return make

    def shown(i: int) -> Problem:
        rng = random.Random(f"compute shown {seed} {i}")
        kind = kinds[config.demonstration_kinds[i % len(config.demonstration_kinds)]]
        return demonstrate(
            plain("demonstration", seed, config.hard_demonstrations)(i), rng, kind, config.lazy_demonstrations
        )

    def corpus() -> Iterable[str]:
        """The same for every seed, so that runs with different seeds have the same tokenizer."""
        for i in range(CORPUS_PROBLEMS):
            problem = demonstrate(plain("corpus", 0)(i), random.Random(i), list(kinds.values())[i % 3], 0.5)
            for message in (*problem.messages, *(problem.demonstration or ())):
                yield f"{message['role']}\n{message['content']}"  # type: ignore[index]

    held_out = plain("held_out", HELD_OUT_SEED, held_out=True)
    return Task(
        name="compute",
        train=Generated(config.train_problems, plain("train", seed)),
        held_out=[held_out(i) for i in range(config.held_out_problems)],
        score=score,
        demonstrations=Generated(config.demonstrations, shown),
        corpus=corpus,
        answer=lambda problem, text: boxed(text),
        well_formed=lambda problem, text: boxed(text) is not None or parses(code_block(text)),
    )
