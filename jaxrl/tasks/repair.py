"""Programs to repair: right ones with mistakes put in, benchmarks of bugs, or what a model got wrong.

Chain-of-Edits (arXiv 2507.05065) repairs them with a line editor, environment `edits`: a problem's prompt shows the
program with numbered lines and what its public tests say, and a demonstration undoes the mistakes one by one. With
style "direct" the answer is the whole program, with "plan" a plan and then the program, in environment `single_turn`:
what edits are compared with.

Sources: task functions; MBPP (task.path); HumanEvalFix (OctoPack's humanevalpack_python.jsonl, arXiv 2308.07124) and
QuixBugs (one JSON object a program: name, buggy, correct, cases), both of which are evaluated on alone.
"""

from __future__ import annotations

import atexit
import dataclasses
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from jaxrl.config.rules import Count, Positive
from jaxrl.config.task import DataSettings
from jaxrl.errors import UserError
from jaxrl.tasks import Task, functions, humaneval, mbpp
from jaxrl.tasks.corruption import Lines, corrupt
from jaxrl.tasks.extract import code_block
from jaxrl.tasks.rewards import judge_program
from jaxrl.tasks.rows import DataError, Row, read_rows
from jaxrl.tasks.sampling import Generated
from rollouts.editor import EXIT, Command, apply, lines_of, render
from rollouts.environments.edits import BROKEN, feedback_lines
from rollouts.episode import Group, Problem, Reward, Submission
from rollouts.services import Services
from sandbox.pool import Pool
from sandbox.verdict import AssertTest, CallTest, CheckTest, Limits, Program, Test, Verdict

COMMANDS = """Fix the mistakes in a Python program. Answer with one command and nothing else:
### DELL n                  deletes line n
### ADDL n >>>text          text becomes line n
### REPL n >>>text          line n becomes text
### REPW n >>>old >>>new    the first old in line n becomes new
### EXIT                    the program is right
You then see the program and what its tests say."""
WHOLE = {
    "direct": "Fix the mistakes in a Python program. Answer with the whole program in one fenced Python code block.",
    "plan": "Fix the mistakes in a Python program. Say what is wrong, then write the whole program in one fenced "
    "Python code block.",
}
PUBLIC_TESTS = 2  # of functions and QuixBugs
DONORS, DRAWS = 4, 40
CORPUS_PROBLEMS = 600
HELD_OUT_SEED = 40_000_003  # the same held-out problems for every run


@dataclass
class Settings(DataSettings):
    """Programs to repair."""

    source: Literal["functions", "mbpp", "humanevalfix", "quixbugs"] = "functions"
    style: Literal["edits", "direct", "plan"] = "edits"  # commands, the whole program, or a plan before it
    explain: bool = True  # the prompt begins with the commands and what they do
    least_mistakes: Annotated[int, Ge(1), Le(20)] = 1
    most_mistakes: Annotated[int, Ge(1), Le(20)] = 5
    families: tuple[Literal["list", "text", "number"], ...] = ("list", "text", "number")  # of source functions
    max_difficulty: Annotated[int, Ge(2), Le(functions.MAX_DIFFICULTY)] = 4  # of source functions: steps at most
    failures: Count = 3  # shown at most in prompts and demonstrations; the same in rollout.environment
    characters: Positive = 120  # of each of them; the same in rollout.environment
    broken_path: str = ""  # samples file of an evaluation on the source: what was wrong there is repaired
    # Fewer than of other tasks: each is run in the sandbox when it is made.
    train_problems: Positive = 2000
    demonstrations: Positive = 2000

    def check(self, where: str = "task") -> None:
        """Raises UserError for settings that contradict each other."""
        if self.least_mistakes > self.most_mistakes:
            raise UserError(
                f"{where}.least_mistakes = {self.least_mistakes} must be at most {where}.most_mistakes = "
                f"{self.most_mistakes}"
            )
        if self.broken_path and self.source in ("humanevalfix", "quixbugs"):
            raise UserError(f"{where}.broken_path needs {where}.source = 'functions' or 'mbpp': {self.source} has bugs")


def make_task(settings: Settings, seed: int) -> Task:
    """The task. Raises DataError where there is nothing to repair."""
    if settings.source in ("humanevalfix", "quixbugs"):
        make = humanevalfix_problem if settings.source == "humanevalfix" else quixbugs_problem
        rows = _rows(settings)[: settings.held_out_problems]
        return _task(settings, [], [_with_prompt(make(row), settings) for row in rows], [])
    train, held_out, source = _right_programs(settings, seed)
    if settings.broken_path:
        broken = [_with_prompt(p, settings) for p in wrong_answers(settings.broken_path, source)]
        size = settings.held_out_problems
        return _task(settings, broken[: settings.train_problems], broken[:size], [])
    made = lambda problems, size, name, key: Generated(  # noqa: E731
        size, lambda i: with_mistakes(problems, i, f"repair/{name}/{i}", random.Random(f"{name} {key} {i}"), settings)
    )
    held = [*made(held_out, settings.held_out_problems, "held_out", HELD_OUT_SEED)]
    shown = made(train, settings.demonstrations, "demonstration", seed)
    return _task(settings, made(train, settings.train_problems, "train", seed), held, shown)


def _task(
    settings: Settings, train: Sequence[Problem], held_out: list[Problem], demonstrations: Sequence[Problem]
) -> Task:
    def corpus() -> Iterable[str]:
        train, _, _ = _right_programs(settings, 0)
        for i in range(CORPUS_PROBLEMS):
            problem = with_mistakes(train, i, f"corpus/{i}", random.Random(i), settings, run=False)
            for message in (*problem.messages, *(problem.demonstration or ())):
                yield f"{message['role']}\n{message['content']}"  # type: ignore[index]

    return Task(
        name="repair",
        train=train,
        held_out=held_out,
        judge=judge,
        extract=lambda problem, text: code_block(text, names=problem.meta["names"]),
        demonstrations=demonstrations,
        corpus=corpus if settings.source == "functions" else None,
        metrics=metrics if settings.style == "edits" else None,
        slices=lambda problem: {"kind": problem.meta["kind"]},
    )


async def judge(problem: Problem, submission: Submission, services: Services) -> Reward:
    """1 if the program passes all tests, else 0."""
    return await judge_program(problem, submission, services, limits=problem.meta["limits"])


def metrics(group: Group) -> dict[str, float]:
    """Shares of the episodes, beside those solved at their end."""
    n = len(group.episodes)
    parts = [e.reward.parts for e in group.episodes]
    return {
        "solved_once": sum(p.get("solved_once", 0.0) for p in parts) / n,
        "well_behaved": sum(not p.get("malformed") and not p.get("no_exit") for p in parts) / n,
    }


# --- right programs, and mistakes put into them


def _right_programs(settings: Settings, seed: int) -> tuple[Sequence[Problem], Sequence[Problem], Task]:
    """Problems of a source for training and held out, which have their program as a demonstration; and the source."""
    if settings.source == "functions":
        source = functions.make_task(
            functions.Settings(
                families=settings.families,
                max_difficulty=settings.max_difficulty,
                train_problems=settings.train_problems,
                held_out_problems=settings.held_out_problems,
            ),
            seed,
        )
    else:
        source = mbpp.make_task(mbpp.Settings(path=settings.path, split=settings.split, held_out_problems=500), seed)
    return source.train, source.held_out, source


def with_mistakes(
    problems: Sequence[Problem], index: int, name: str, rng: random.Random, settings: Settings, run: bool = True
) -> Problem:
    """Problem number `index` of a source with mistakes in its program, which fails its tests; and how it is repaired.

    Without `run` nothing is run: the program may be right by chance, and what tests say is left out.
    """
    problem = problems[index % len(problems)]
    right = lines_of(code_block(str(problem.demonstration)))
    others = [problems[rng.randrange(len(problems))] for _ in range(DONORS)]
    donors = [line for p in others if p.id != problem.id for line in lines_of(code_block(str(p.demonstration)))]
    for _ in range(DRAWS):
        lines, repairs = corrupt(right, rng.randint(settings.least_mistakes, settings.most_mistakes), donors, rng)
        if lines != right and (not run or not verdict_of(problem, lines).passed):
            break
    else:
        raise DataError(
            f"problem {problem.id}: its tests pass whatever is changed in its program, so it cannot be used"
        )
    meta = {"kind": f"{len(repairs)} mistakes" if len(repairs) > 1 else "1 mistake", BROKEN: "\n".join(lines)}
    made = _with_prompt(dataclasses.replace(_described(problem), id=name, meta=_meta(problem) | meta), settings, run)
    shown = _demonstration(made, lines, repairs, right, settings, run)
    return dataclasses.replace(made, demonstration=shown)


def _described(problem: Problem) -> Problem:
    """The problem's text alone as its message, and public tests where it has none."""
    text = problem.messages[-1]["content"].split(f" {mbpp.INSTRUCTION}")[0]
    public = problem.public_tests or problem.tests[:PUBLIC_TESTS]
    return dataclasses.replace(problem, messages=({"role": "user", "content": text},), public_tests=public)


def _meta(problem: Problem) -> dict[str, Any]:
    limits = problem.meta.get("limits", Limits())
    return {"limits": limits, "names": problem.meta.get("names", ["f"]), "source": problem.id}


def _demonstration(
    problem: Problem, lines: Lines, repairs: Sequence[Command], right: Lines, settings: Settings, run: bool
) -> tuple[dict[str, str], ...]:
    """The messages that repair the program: each command and the state after it, or the right program."""
    if settings.style != "edits":
        plan = "".join(f"{_in_words(command)}\n" for command in repairs) if settings.style == "plan" else ""
        program = "\n".join(right)
        return ({"role": "assistant", "content": f"{plan}```python\n{program}\n```"},)
    messages = []
    for command in repairs:
        lines = apply(lines, command) or lines
        messages.append({"role": "assistant", "content": str(command)})
        messages.append({"role": "user", "content": _state(problem, lines, settings, run)})
    return (*messages, {"role": "assistant", "content": str(EXIT)})


def _in_words(command: Command) -> str:
    words = {"ADDL": "is missing", "DELL": "does not belong there", "REPL": "is wrong", "REPW": "has a typo"}
    return f"Line {command.line} {words[command.kind]}."


def _state(problem: Problem, lines: Lines, settings: Settings, run: bool) -> str:
    """As the environment shows it."""
    verdict = verdict_of(problem, lines, problem.public_tests) if run else None
    return render(lines, feedback_lines(verdict, settings.failures, settings.characters) if verdict else ())


def _with_prompt(problem: Problem, settings: Settings, run: bool = True) -> Problem:
    """The problem whose message asks for the repair of its program."""
    lines = lines_of(problem.meta[BROKEN])
    asked = [COMMANDS if settings.style == "edits" else WHOLE[settings.style]] if settings.explain else []
    asked += [
        problem.messages[-1]["content"].strip(),
        *map(shown, problem.meta.get("shown", problem.public_tests)),
        _state(problem, lines, settings, run),
    ]
    return dataclasses.replace(problem, messages=({"role": "user", "content": "\n".join(asked)},))


def shown(test: Test) -> str:
    """A public test as the prompt shows it."""
    if isinstance(test, CallTest):
        return f"assert {test.function}({', '.join(map(repr, test.args))}) == {test.expected!r}"
    return test.code.strip() if isinstance(test, (AssertTest, CheckTest)) else repr(test)


# --- wrong programs of others


def wrong_answers(path: str, source: Task) -> list[Problem]:
    """What was not solved in a samples file of the source, each program once. Raises DataError for nothing at all."""
    held_out = {p.id: p for p in source.held_out}
    found: dict[tuple[str, str], Problem] = {}
    for row in read_rows(path):
        problem = held_out.get(row.text("problem")) or _of_training(source, row.text("problem"))
        if problem is None or row.get("solved") or row.get("status") == "sandbox_error":
            continue
        program = code_block(row.text("text"), names=problem.meta.get("names", ["f"]))
        if program.strip():
            meta = _meta(problem) | {"kind": "a model's", BROKEN: program}
            name = f"{problem.id}/broken/{len(found)}"
            found[problem.id, program] = dataclasses.replace(
                _described(problem), id=name, meta=meta, demonstration=None
            )
    if not found:
        raise DataError(f"task.broken_path = {path!r} has no unsolved samples of task {source.name}")
    return list(found.values())


def _of_training(source: Task, name: str) -> Problem | None:
    """The training problem of that name, which ends with its number where problems are made when they are wanted."""
    if not isinstance(source.train, Generated):
        return next((p for p in source.train if p.id == name), None)
    number = name.rsplit("/")[-1]
    problem = source.train[int(number)] if number.isdecimal() and int(number) < len(source.train) else None
    return problem if problem and problem.id == name else None


def _rows(settings: Settings) -> list[Row]:
    if not settings.path:
        file = "humanevalpack_python.jsonl" if settings.source == "humanevalfix" else "quixbugs.jsonl"
        raise DataError(f"task.source = {settings.source!r} needs task.path, for example {file}")
    return read_rows(settings.path, settings.split)


def humanevalfix_problem(row: Row) -> Problem:
    """A row of HumanEvalFix: the buggy function with HumanEval's tests; public are the examples of its docstring."""
    name, declaration = row.identifier("entry_point"), row.text("declaration")
    meta = {"limits": Limits(), "names": [name], "kind": row.text("bug_type"), "shown": ()}
    return Problem(
        id=row.name("task_id"),
        messages=({"role": "user", "content": row.text("docstring")},),
        tests=(CheckTest(f"{humaneval.helpers(row)}\n\n{row.text('test')}", name),),
        public_tests=humaneval.examples(row),
        meta=meta | {BROKEN: f"{declaration}{row.text('buggy_solution')}".strip("\n")},
    )


_QUIXBUGS_CHECK = """
def plain(value):
    if isinstance(value, (list, tuple)) or hasattr(value, "__next__"):
        return [plain(v) for v in value]
    return value

got = plain({name}(*{arguments!r}))
assert got == {expected!r}, f"{name}(*{arguments!r}) gave {{got!r}}, expected {expected!r}"
"""


def quixbugs_problem(row: Row) -> Problem:
    """A row of QuixBugs: its cases are tests, the first of them public. Tuples and generators count as lists."""
    name = row.identifier("name")
    program, _, text = row.text("buggy").strip("\n").partition('\n"""')
    tests = tuple(
        AssertTest(_QUIXBUGS_CHECK.format(name=name, arguments=case.values("input"), expected=case.get("expected")))
        for case in row.parts("cases")
    )
    return Problem(
        id=f"quixbugs/{name}",
        messages=({"role": "user", "content": text.strip().strip('"').strip()},),
        tests=tests,
        public_tests=tests[:PUBLIC_TESTS],
        meta={"limits": Limits(), "names": [name], "kind": "quixbugs", "shown": (), BROKEN: program.rstrip()},
    )


# --- running them


@cache
def _pool() -> Pool:
    """For programs of files and of our own, so that the least isolation will do; a model's have the run's own pool."""
    pool = Pool(1, least="process")
    atexit.register(pool.close)
    return pool


def verdict_of(problem: Problem, lines: Lines, tests: Sequence[Test] | None = None) -> Verdict:
    """Of a program, by all tests of the problem or by these."""
    given = problem.tests if tests is None else tuple(tests)
    return _verdict("\n".join(lines), given, problem.meta.get("limits", Limits()))


def _verdict(program: str, tests: tuple[Test, ...], limits: Limits) -> Verdict:
    (verdict,) = _pool().run([Program(program, tests, limits)])
    if verdict.status == "sandbox_error":
        raise RuntimeError(f"the sandbox could not judge a program to repair: {verdict.stderr[:400]}")
    return verdict
