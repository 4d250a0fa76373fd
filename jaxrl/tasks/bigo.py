"""How a program's cost grows, told, asked for and compared: BigO(Bench), arXiv 2503.15242.

    predict     say the class of a program: O(n*m)
    generate    write a program that passes the tests and has the class
    rank        the same, and the smaller its coefficient among other people's, the better

Without task.path problems are made (jaxrl/tasks/growth/templates.py); with it they are the benchmark's rows. Classes of
written programs are measured in the sandbox by counting operations, so a reward is the same each time. A program that
could hide its work from the count has no class.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from jaxrl.config.rules import Share
from jaxrl.config.task import TaskSettings
from jaxrl.errors import UserError
from jaxrl.tasks import Task
from jaxrl.tasks.extract import code_block
from jaxrl.tasks.growth import fit, templates
from jaxrl.tasks.growth.benchmark import Solution, percentile, read_solutions
from jaxrl.tasks.growth.count import hides_work
from jaxrl.tasks.growth.inputs import arguments, series_of
from jaxrl.tasks.growth.measure import Found, Measurement, found, request
from jaxrl.tasks.growth.names import answer_in, normal_form, order, same
from jaxrl.tasks.sampling import Generated
from rollouts.episode import Group, Problem, Reward, Submission
from rollouts.services import Services
from sandbox.verdict import CallTest, Limits, Program

RIGHT_ORDER, TESTS, NEAR_ORDER = 0.2, 0.2, 0.1  # parts of the reward of what is not all right
TESTS_OF_EXERCISES = 8
MEASURED_TESTS = (16, 128)  # sizes
EXAMPLES = ([3, 1], [2, 3])  # of x and y, from which programs are measured
LETTERS = "xpqvwghzkmrt"  # of f's argument; a quarter of them, others for each exercise, is held out
HELD_OUT_SEED = 70_000_027  # the same held-out problems for every run
CORPUS_PROBLEMS = 600
LIMITS = Limits(wall_s=60.0, cpu_s=40.0, memory_mb=1024)
WASTE = "for n in {x}:\n        n\n    "  # what makes a reference slower and leaves its class
TELL = (
    "What is the worst-case {kind} complexity of this Python program? Answer with O(...), one letter for each part of "
    "the input.\n\n{code}"
)
WRITE = (
    "{text}\n\nWrite a Python program that reads the standard input and solves this. Its {kind} complexity must be "
    "{label}. Answer with one fenced Python code block."
)


@dataclass
class Settings(TaskSettings):
    """Complexity classes of programs."""

    kind: Literal["predict", "generate", "rank"] = "predict"
    path: str = ""  # rows of BigO(Bench), .jsonl or .json; "": made
    wrong_demonstrations: Share = (
        0.0  # predict: share with a wrong class; else with the slowest program, no class asked
    )
    answer_rule: Literal["balanced", "bigobench"] = "balanced"  # predict; bigobench: up to the first parenthesis
    clock: Literal["operations", "time"] = "operations"  # generate and rank; people's seconds compare with time only
    end: Annotated[int, Ge(8), Le(3100)] = 512  # generate and rank: largest size that is measured
    operations: Annotated[int, Ge(1000), Le(10_000_000)] = 20_000  # and of one call, at most

    def check(self, where: str = "task") -> None:
        """Raises UserError for settings that do nothing."""
        default = Settings()
        unused = ("clock", "end", "operations") if self.kind == "predict" else ("answer_rule",)
        for name in (*unused, *(("wrong_demonstrations",) if self.path else ())):
            if getattr(self, name) != getattr(default, name):
                why = f"{where}.path" if name == "wrong_demonstrations" else f"{where}.kind = {self.kind!r}"
                raise UserError(f"{where}.{name} = {getattr(self, name)!r} does nothing with {why}; leave it out")


def make_task(settings: Settings, seed: int) -> Task:
    """The task. Raises DataError for rows that cannot be read."""
    shown: Sequence[Problem] = ()
    if settings.path:
        train, held_out = _of_file(settings)
    else:
        make = _told if settings.kind == "predict" else _asked
        held_out = _distinct(make, settings)
        train = Generated(settings.train_problems, lambda i: make(f"train {seed} {i}", False, 0.0, settings))
        shown = Generated(
            settings.demonstrations,
            lambda i: make(f"shown {seed} {i}", False, settings.wrong_demonstrations, settings),
        )
    people: dict[str, tuple[float, ...]] = {}  # coefficients of the references that were measured
    judge = judge_class if settings.kind == "predict" else judge_program
    ranked = settings.kind == "rank"
    return Task(
        name="bigo",
        train=train,
        held_out=held_out,
        judge=lambda problem, submission, services: judge(problem, submission, services, settings, people),
        extract=None if settings.kind == "predict" else lambda problem, text: code_block(text, names=("f",)),
        demonstrations=shown,
        corpus=lambda: _corpus(settings),
        metrics=(lambda group: {"percentile": _mean(group, "percentile")}) if ranked else None,
        headline="percentile" if ranked else "pass@1",
        slices=lambda problem: {"class": problem.answer},
        answers=settings.kind == "predict",
        strata=None if settings.kind == "predict" and not settings.path else lambda p: (p.meta["of"], order(p.answer)),
        well_formed=(lambda p, s: class_in(s.text, settings) is not None) if settings.kind == "predict" else None,
    )


def _mean(group: Group, part: str) -> float:
    return sum(e.reward.parts.get(part, 0.0) for e in group.episodes) / len(group.episodes)


# --- problems


def _told(key: str, held_out: bool, wrong: float, settings: Settings) -> Problem:
    """A program whose class is asked for."""
    rng = random.Random(f"bigo {key}")
    code, form = templates.program(rng, held_out)
    label = form.label
    if rng.random() < wrong:
        label = rng.choice([name for name in sorted({f.label for f in templates.FORMS}) if name != form.label])
    content = f"{code}Class?"
    meta = {"of": form.name, "form": form.name}
    return Problem(f"bigo/{key.replace(' ', '/')}", ({"role": "user", "content": content},), answer=form.label,
                   demonstration=label.replace("o", "O", 1), meta=meta)  # fmt: skip


def _asked(key: str, held_out: bool, wrong: float, settings: Settings) -> Problem:
    """A function to write, in a class."""
    rng = random.Random(f"bigo {key}")
    pairs = [
        (i, x) for i in range(len(templates.EXERCISES)) for k, x in enumerate(LETTERS) if ((i + k) % 4 == 0) == held_out
    ]
    number, letter = rng.choice(pairs)
    exercise = templates.EXERCISES[number]
    label, asked = rng.choice([*exercise.programs]), True
    if rng.random() < wrong:
        label, asked = max(exercise.programs, key=order), False
    given = f"{letter}, y" if exercise.arguments == 2 else letter
    words = f"Write f({given}) that {_renamed(exercise.asked, letter)}"
    words += f" in {label.replace('o', 'O', 1)}." if asked else "."
    tests = _tests(number)
    meta = {"of": f"{exercise.name} {letter}", "exercise": number, "limits": LIMITS}
    return Problem(f"bigo/{key.replace(' ', '/')}", ({"role": "user", "content": words},), tests=tests, answer=label,
                   demonstration=_renamed(templates.solution(exercise, label), letter), meta=meta)  # fmt: skip


def _renamed(text: str, letter: str) -> str:
    return re.sub(r"\bx\b", letter, text)


@cache
def _tests(number: int) -> tuple[CallTest, ...]:
    """The tests of an exercise: the same in every problem."""
    exercise = templates.EXERCISES[number]
    rng = random.Random(f"{exercise.name} tests")
    function, tests = templates.right(exercise), []
    for size in range(2, TESTS_OF_EXERCISES + 2):
        given = tuple([rng.randrange(12) for _ in range(size)] for _ in range(exercise.arguments))
        tests.append(CallTest("f", given, function(*given)))
    # The inputs by which the class is measured, too: else a program could do its work for short ones only.
    example = EXAMPLES[: exercise.arguments]
    for series in series_of(example):
        for size in MEASURED_TESTS:
            made = arguments(example, series, size)
            if made is not None:
                tests.append(CallTest("f", made, function(*made)))
    return tuple(tests)


def _distinct(make: Any, settings: Settings) -> list[Problem]:
    """Held-out problems that differ, as many as there are."""
    problems: dict[str, Problem] = {}
    for i in range(20 * settings.held_out_problems):
        problem = make(f"held_out {HELD_OUT_SEED} {i}", True, 0.0, settings)
        problems.setdefault(problem.messages[-1]["content"], problem)
        if len(problems) == settings.held_out_problems:
            break
    return [*problems.values()]


def _corpus(settings: Settings) -> Iterable[str]:
    """The same for every seed, so that runs with different seeds have the same tokenizer."""
    make = _told if settings.kind == "predict" else _asked
    for i in range(0 if settings.path else CORPUS_PROBLEMS):
        problem = make(f"corpus {i}", False, 0.0, settings)
        yield f"user\n{problem.messages[-1]['content']}"
        yield f"assistant\n{problem.demonstration}"


def _of_file(settings: Settings) -> tuple[list[Problem], list[Problem]]:
    """The first `held_out_problems` solutions, and all others of their problems, are held out."""
    solutions = read_solutions(settings.path)
    if settings.kind == "rank" and settings.clock == "operations" and any(s.kind == "time" for s in solutions):
        raise UserError("task.clock = 'operations' must be 'time' for the seconds of people's solutions in task.path")
    taken = {s.problem for s in solutions[: settings.held_out_problems]}
    problems = [(s.problem in taken, problem_of(s, settings)) for s in solutions]
    train = [p for held, p in problems if not held]
    return train[: settings.train_problems], [p for held, p in problems if held]


def problem_of(solution: Solution, settings: Settings) -> Problem:
    """The problem of a row."""
    if settings.kind == "predict":
        text = TELL.format(kind=solution.kind, code=solution.code)
    else:
        text = WRITE.format(text=solution.description, kind=solution.kind, label=solution.label)
    program = settings.kind != "predict"
    return Problem(
        f"bigo/{solution.id}/{solution.kind}", ({"role": "user", "content": text},),
        tests=solution.tests if program else (), public_tests=solution.tests[: solution.public] if program else (),
        answer=solution.label.lower(), meta={"of": solution.problem, "solution": solution, "limits": LIMITS},
    )  # fmt: skip


# --- judging


def class_in(text: str, settings: Settings) -> str | None:
    """The normal form of the class that a text names last."""
    answer = answer_in(text, settings.answer_rule)
    return normal_form(answer) if answer else None


async def judge_class(
    problem: Problem, submission: Submission, services: Services, settings: Settings, people: dict
) -> Reward:
    """1 for the class, RIGHT_ORDER for another one whose dominating term has the right order."""
    form = class_in(submission.text, settings)
    right = form is not None and same(form, problem.answer)
    near = form is not None and not right and order(form) == order(problem.answer)
    parts = {"solved": float(right), "order": RIGHT_ORDER * near}
    return Reward(sum(parts.values()), right, parts, answer=form)


async def judge_program(
    problem: Problem, submission: Submission, services: Services, settings: Settings, people: dict
) -> Reward:
    """1 for all tests and the class (rank: times its percentile), and a little for tests and for a near order."""
    code = submission.program or ""
    verdict = await services.run(Program(code, problem.tests, problem.meta["limits"]))
    parts = {"solved": 0.0, "tests": TESTS * verdict.pass_fraction, "order": 0.0}
    if verdict.status == "sandbox_error" or not verdict.pass_fraction:
        return Reward(sum(parts.values()), False, parts, verdict)
    result = await measured(problem, code, services, settings)
    growth = result.growth
    right = verdict.passed and growth is not None and same(growth.text, problem.answer)
    parts["order"] = NEAR_ORDER * (growth is not None and abs(order(growth.text) - order(problem.answer)) <= 0.5)
    parts["solved"] = float(right)
    if settings.kind == "rank":
        share = 0.0
        if right and growth is not None:
            others = await coefficients(problem, services, settings, people)
            share = percentile(_coefficient(growth.coefficient, problem, settings), others)
        parts["solved"], parts["percentile"] = 0.0, share
    return Reward(sum(parts.values()), right, parts, verdict)


async def measured(problem: Problem, code: str, services: Services, settings: Settings) -> Found:
    """What the program's cost is; no class for one that could hide its work."""
    try:
        if name := hides_work(code):
            return Found({}, None, f"{name} is not allowed")
        solution = problem.meta.get("solution")
        if solution:
            clock = "space" if solution.kind == "space" else settings.clock
            asked = solution.measurement(code, clock=clock, end=settings.end, operations=settings.operations)
        else:
            example = EXAMPLES[: templates.EXERCISES[problem.meta["exercise"]].arguments]
            asked = Measurement(code, "f", example, "", settings.clock, settings.end, settings.operations)
        return found(asked, await services.run(request(asked, LIMITS)))
    except (SyntaxError, ValueError, RecursionError) as error:
        return Found({}, None, str(error))


async def coefficients(
    problem: Problem, services: Services, settings: Settings, people: dict[str, tuple[float, ...]]
) -> tuple[float, ...]:
    """Those of people's solutions; of a made problem, of its reference and of two that waste a pass or two."""
    if "solution" in problem.meta:
        return problem.meta["solution"].coefficients
    exercise, label = templates.EXERCISES[problem.meta["exercise"]], problem.answer
    key = f"{exercise.name} {label}"
    if key not in people:
        code, values = templates.solution(exercise, label), []
        for waste in range(3):
            slower = code.replace("\n    ", "\n    " + waste * WASTE.format(x="x"), 1)
            result = await measured(problem, slower, services, settings)
            values += [_coefficient(result.growth.coefficient, problem, settings)] if result.growth else []
        people[key] = tuple(sorted(values, reverse=True))
    return people[key]


def _coefficient(value: float, problem: Problem, settings: Settings) -> float:
    """In the unit of people's: bytes, or seconds by the wall clock; operations in made problems."""
    solution = problem.meta.get("solution")
    seconds = solution is not None and solution.kind == "time"
    return value / fit.SCALE * (1e-9 if seconds else 1)
