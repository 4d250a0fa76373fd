"""Multi-digit arithmetic: too much for a small model's head, a few lines of Python for its tools.

    n = 58: multiply by 37, add 48, return it.

Every problem may be answered in two ways: with the value, "\\boxed{2194}", or with a program that defines f and must
return the right values for other numbers too. The instruction that a config puts after the problem says which: DIRECT
and TOOL want the value (by head, or with the interpreter), PROGRAM the program (which may see the public tests that
it fails). Demonstrations are of all three kinds, those of a careless teacher: a share of the programs does the last
step only. Two more kinds are for the prompts of a strategy over turns: a plan of the steps before the program, for
problems of all difficulties and never careless, and a program with comments.

The constants of steps are other ones in held-out problems than in training and demonstrations, as in task `functions`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from jaxrl.config.rules import Share
from jaxrl.config.task import TaskSettings
from jaxrl.errors import UserError
from jaxrl.tasks import Task
from jaxrl.tasks.extract import parses
from jaxrl.tasks.functions import Family, Plan, allowed_constants, extract, make_step, run, telling_inputs
from jaxrl.tasks.rewards import judge_program
from jaxrl.tasks.sampling import Generated
from rollouts.environments.feedback import failure_message
from rollouts.episode import Problem, Reward, Submission
from rollouts.services import Services
from sandbox.verdict import CallTest

DIRECT, TOOL, PROGRAM = "Answer at once.", "Use Python.", "Write f."
PLAN, COMMENT = "Plan first.", "Comment each line."  # a reasoning prompt, and an instruction (rollouts/strategies.py)
KINDS = {
    "direct": DIRECT,
    "tool": TOOL,
    "program": PROGRAM,
    "plan": f"{PROGRAM}\n{PLAN}",
    "comment": f"{PROGRAM}\n{COMMENT}",
}
PARTIAL_CREDIT = 0.2  # of a program, times the share of tests passed, when not all pass
PUBLIC_TESTS = 2
HELD_OUT_SEED = 30_000_001  # the same held-out problems for every run
CORPUS_PROBLEMS = 600
MAX_DIFFICULTY = 4

LARGEST = 9999  # of all values of f in problems
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
    words = ", ".join(step.phrases[0].format(c=c) for step, c in plan)
    return Problem(
        id=name,
        messages=({"role": "user", "content": f"{family.variable} = {inputs[-1]}: {words}."},),
        tests=tests,
        public_tests=tests[:PUBLIC_TESTS],
        answer=str(run(family, plan, inputs[-1])),
        meta={"difficulty": len(plan), "family": family.name, "plan": plan},
    )


def demonstrate(problem: Problem, rng: random.Random, kind: str, lazy: float) -> Problem:
    """The problem with an instruction and an answer of that kind, one of KINDS; careless with probability `lazy`."""
    family = next(f for f in FAMILIES if f.name == problem.meta["family"])
    plan: Plan = problem.meta["plan"]
    careless = plan[-1:] if rng.random() < lazy else plan
    makers = {"direct": _by_head, "tool": _with_tool, "program": _as_program, "plan": _planned, "comment": _commented}
    messages = makers[kind](problem, family, plan, careless, rng)
    (question,) = problem.messages
    with_kind = question | {"content": f"{question['content']}\n{KINDS[kind]}"}
    meta = {name: value for name, value in problem.meta.items() if name != "plan"}
    return Problem(
        problem.id, (with_kind,), tests=problem.tests, answer=problem.answer, demonstration=messages, meta=meta
    )


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _by_head(problem: Problem, *_: Any) -> tuple[dict[str, str], ...]:
    return (_assistant(f"\\boxed{{{problem.answer}}}"),)


def _with_tool(problem: Problem, family: Family, plan: Plan, careless: Plan, *_: Any) -> tuple[dict[str, str], ...]:
    v, (value,) = family.variable, problem.tests[-1].args  # type: ignore[union-attr]
    *steps, last = [step.expression.format(c=c) for step, c in careless]
    code = "\n".join([f"{v} = {value}", *(f"{v} = {step}" for step in steps), f"print({last})"])
    output = str(run(family, careless, value))
    block = {"role": "output", "content": f"```output\n{output}\n```\n"}
    return _assistant(f"```python\n{code}\n```\n"), block, _assistant(f"\\boxed{{{output}}}")


def _as_program(
    problem: Problem, family: Family, plan: Plan, careless: Plan, rng: random.Random
) -> tuple[dict[str, str], ...]:
    """A careless program is corrected in the next turn half of the time, else it is the last word."""
    first = (_assistant(_program(family, careless)),)
    if careless == plan or rng.random() < 0.5:
        return first
    failures = [
        f"f({t.args[0]!r}) gave {run(family, careless, t.args[0])!r}, expected {t.expected!r}"  # type: ignore
        for t in problem.tests[:PUBLIC_TESTS]
    ]
    return (*first, {"role": "user", "content": failure_message(failures)}, _assistant(_program(family, plan)))


def _planned(problem: Problem, family: Family, plan: Plan, *_: Any) -> tuple[dict[str, str], ...]:
    steps = "\n".join(step.expression.format(c=c) for step, c in plan)
    return _assistant(steps), {"role": "user", "content": PROGRAM}, _assistant(_program(family, plan))


def _commented(problem: Problem, family: Family, plan: Plan, careless: Plan, *_: Any) -> tuple[dict[str, str], ...]:
    return (_assistant(_program(family, careless, comments=True)),)


def _program(family: Family, plan: Plan, comments: bool = False) -> str:
    v = family.variable
    *steps, last = [step.expression.format(c=c) for step, c in plan]
    lines = [*(f"    {v} = {step}" for step in steps), f"    return {last}"]
    if comments:
        lines = [f"{line}  # {step.phrases[0].format(c=c)}" for line, (step, c) in zip(lines, plan)]
    return "\n".join([f"```python\ndef f({v}):", *lines, "```"])


def boxed(text: str) -> str | None:
    """What the last \\boxed{} of a text holds, without blanks; None if there is none."""
    found = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return found[-1].strip() if found else None


async def judge(problem: Problem, submission: Submission, services: Services) -> Reward:
    """1 for the right value in \\boxed{}, or for a program that passes all tests (a little for some of them)."""
    value = boxed(submission.text)
    if value is None:
        return await judge_program(problem, submission, services, partial=PARTIAL_CREDIT, part="tests")
    solved = value == problem.answer
    return Reward(float(solved), solved, {"solved": float(solved)}, answer=value)


@dataclass
class Settings(TaskSettings):
    """Multi-digit arithmetic."""

    max_difficulty: Annotated[int, Ge(2), Le(MAX_DIFFICULTY)] = 4  # steps of the longest problem
    # In turn; plan and comment are programs with a strategy's prompts.
    demonstration_kinds: tuple[Literal["direct", "tool", "program", "plan", "comment"], ...] = (
        "direct", "tool", "program",
    )  # fmt: skip
    hard_demonstrations: Share = 0.1  # share of demonstrations of up to max_difficulty steps
    lazy_demonstrations: Share = 0.0  # share of the programs that does the last step only

    def check(self, where: str = "task") -> None:
        """Raises UserError where no kind of demonstration is named."""
        if not self.demonstration_kinds:
            raise UserError(f"{where}.demonstration_kinds = () must name at least one of: {', '.join(KINDS)}")


def make_task(settings: Settings, seed: int) -> Task:
    """The task; a config's rollout.instruction says which kind of answer it wants."""
    spoken = [k for k in KINDS if k not in ("plan", "comment") or k in settings.demonstration_kinds]

    def plain(name: str, seed: int, hard: float = 1.0, held_out: bool = False) -> Callable[[int], Problem]:
        """Problems of two steps; a share `hard` of them is evenly of all difficulties from 2 up."""

        def make(i: int) -> Problem:
            rng = random.Random(f"compute {name} {seed} {i}")
            difficulty = rng.randrange(2, settings.max_difficulty + 1) if rng.random() < hard else 2
            return generate(rng, difficulty, held_out, f"compute/{name}/{i}")

        return make

    def shown(i: int) -> Problem:
        rng = random.Random(f"compute shown {seed} {i}")
        kind = settings.demonstration_kinds[i % len(settings.demonstration_kinds)]
        hard, lazy = (1.0, 0.0) if kind == "plan" else (settings.hard_demonstrations, settings.lazy_demonstrations)
        return demonstrate(plain("demonstration", seed, hard)(i), rng, kind, lazy)

    def corpus() -> Iterable[str]:
        """The same for every seed, so that runs with different seeds have the same tokenizer."""
        for i in range(CORPUS_PROBLEMS):
            problem = demonstrate(plain("corpus", 0)(i), random.Random(i), spoken[i % len(spoken)], 0.5)
            for message in (*problem.messages, *(problem.demonstration or ())):
                yield f"{message['role']}\n{message['content']}"  # type: ignore[index]

    held_out = plain("held_out", HELD_OUT_SEED, held_out=True)
    return Task(
        name="compute",
        train=Generated(settings.train_problems, plain("train", seed)),
        held_out=[held_out(i) for i in range(settings.held_out_problems)],
        judge=judge,
        extract=extract,
        answers=True,
        demonstrations=Generated(settings.demonstrations, shown),
        corpus=corpus,
        well_formed=lambda problem, submission: boxed(submission.text) is not None or parses(submission.program or ""),
    )
