"""Contest problems: LiveCodeBench, CodeContests, TACO, APPS, LeetCodeDataset, DeepCoder's, open-r1's.

jaxrl/tasks/contest_sets.py has a reader for each. Rows that do not fit the settings are rejected, and counted by reason
in Task.rejected. A malformed row is a DataError in open-r1's schema, and counted too in the others, whose authors'
faults nobody can mend here.

Programs are judged as by the judges of the sets: eval/testing_util.py of hendrycks/apps (which TACO uses too),
lcb_runner/evaluation/testing_util.py of LiveCodeBench, execution/tester_sandboxer.cc of google-deepmind/code_contests.
- Outputs: blanks around lines and blank lines do not count, numbers compare by value; where a float is expected within
  1e-5 (numpy.allclose in APPS; not in LiveCodeBench). In CodeContests lines and upper case do not count either. An
  output that stops too early is wrong: open-r1's own reward compares only the lines that are there.
- Function calls: text inputs have one JSON value a line, which is one argument (LiveCodeBench); a dictionary's keys are
  ints where all are digits (APPS: JSON has only strings); a value in a list of one is taken out of it where all outputs
  of the problem are such lists. APPS takes either for every test, which lets 5 pass for [5].
- Time: each test has the row's time limit, or APPS' four seconds, LiveCodeBench's six (`limits_of`).

LiveCodeBench is for evaluation: its problems are both training and held-out problems unless held_out_path names others.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from jaxrl.config.rules import Count, Positive, Share
from jaxrl.config.task import DataSettings
from jaxrl.errors import UserError
from jaxrl.tasks import Task
from jaxrl.tasks.behaviour import by_behaviour
from jaxrl.tasks.contest_sets import DATED, READERS, REFERENCES, UNMARKED, Found, names_of
from jaxrl.tasks.contest_tests import Rejected
from jaxrl.tasks.extract import code_block, with_imports
from jaxrl.tasks.rewards import judge_program
from jaxrl.tasks.rows import HUB_FILE, DataError, Row, expanded, stream_rows
from jaxrl.tasks.sampling import without_held_out
from rollouts.episode import Problem, Reward, Submission
from rollouts.services import Services
from sandbox.pool import Pool
from sandbox.verdict import Limits, Program, StdioTest, Test

HELD_OUT_SHARE = 20  # one problem in this many, by a hash of its id
MIN_S, MAX_S = 10.0, 60.0  # seconds of CPU of a program: least and most
MIN_OUTPUT_KB, MAX_OUTPUT_KB = Limits().output_kb, 1 << 16
MAX_MEMORY_MB = 4096  # LiveCodeBench's
Source = Literal["open_r1", "livecodebench", "codecontests", "taco", "apps", "leetcode", "deepcoder"]
_RELEASE = re.compile(r"release_v([1-9])|v([1-9])(?:_v([1-9]))?")


@dataclass
class Settings(DataSettings):
    """Contest problems; what is rejected is counted by reason."""

    source: Source = "open_r1"  # the schema of path: see jaxrl/tasks/contest_sets.py
    # of held_out_path; "": as source
    held_out_source: Literal[
        "", "open_r1", "livecodebench", "codecontests", "taco", "apps", "leetcode", "deepcoder"
    ] = ""
    subset: str = ""  # configuration of a hub data set, such as deepcoder's taco
    release: str = ""  # livecodebench in a folder or on the hub: release_v5 (all until then), v5 (the new ones), v4_v6
    start_date: str = ""  # YYYY-MM-DD, of held-out problems (of all, without held_out_path); earlier ones are rejected
    end_date: str = ""  # later ones
    train_until: str = ""  # of training problems beside a held_out_path; later ones are rejected
    min_tests: Positive = 1  # fewer are rejected
    max_tests: Positive = 64  # more are cut
    cut: Literal["evenly", "longest"] = "evenly"  # which hidden tests stay; longest: those with the longest inputs
    public_tests: Count = 2  # at most; those the set shows, or the first ones: the model may see how they fail
    max_prompt_characters: Count = 0  # longer ones are rejected; 0: no limit
    language: str = "python"  # of open_r1; others are rejected
    require_solution: bool = False  # reject a problem none of whose first three solutions passes
    # what does not reject a problem though its statement says so (not looked for in open_r1 and livecodebench)
    keep: tuple[Literal["image", "interactive", "several answers"], ...] = ("several answers",)
    partial_credit: Share = 0.2  # for passing some tests, times their share
    answers: Literal["none", "behaviour"] = "none"  # by which programs vote: what they give on public inputs

    def check(self, where: str = "task") -> None:
        """Raises UserError for an invalid date or release, and for a setting that the sources have no use for."""
        held_out = self.held_out_source or self.source
        sources = {self.source, held_out}
        dates = {"start_date": held_out, "end_date": held_out, "train_until": self.source}
        for name, source in dates.items():
            value = getattr(self, name)
            if value and not _is_date(value):
                raise UserError(f"{where}.{name} = {value!r} must be YYYY-MM-DD")
            if value and source not in DATED:
                raise UserError(
                    f"{where}.{name} = {value!r} needs a source with dates ({', '.join(DATED)}), not {source}"
                )
        if self.start_date and self.end_date and self.start_date > self.end_date:
            raise UserError(f"{where}.end_date = {self.end_date!r} must not be before start_date")
        if self.release and not _RELEASE.fullmatch(self.release):
            raise UserError(f"{where}.release = {self.release!r} must be like release_v5, v5 or v4_v6")
        unused = {
            "release": (self.release and "livecodebench" not in sources, "source livecodebench"),
            "language": (self.language != "python" and "open_r1" not in sources, "source open_r1"),
            "keep": (self.keep != ("several answers",) and sources <= set(UNMARKED), "another source"),
            "held_out_source": (self.held_out_source and not self.held_out_path, "a held_out_path"),
            "train_until": (self.train_until and not self.held_out_path, "a held_out_path"),
        }
        for name, (is_unused, needed) in unused.items():
            if is_unused:
                raise UserError(f"{where}.{name} = {getattr(self, name)!r} does nothing without {needed}")


def make_task(settings: Settings, seed: int) -> Task:
    """The task. Raises DataError, with the counts by reason, when no problem is left."""
    if not settings.path:
        raise DataError("task contest needs task.path, a file or open-r1/verifiable-coding-problems-python")
    rejected: Counter[str] = Counter()
    window = settings.start_date, settings.end_date
    of_train = ("", settings.train_until) if settings.held_out_path else window
    problems = _select(settings.path, settings.source, settings, of_train, rejected)
    if settings.held_out_path:
        source = settings.held_out_source or settings.source
        train, held_out = problems, _select(settings.held_out_path, source, settings, window, rejected)
    elif settings.source == "livecodebench":
        train = held_out = problems
    else:
        held_out = [p for p in problems if zlib.crc32(p.id.encode()) % HELD_OUT_SHARE == 0]
        ids = {p.id for p in held_out}
        train = [p for p in problems if p.id not in ids] or held_out
        held_out = held_out or train  # a handful of problems: nothing can be held out
    train = without_held_out(train, held_out, rejected)
    train, held_out = train[: settings.train_problems], held_out[: settings.held_out_problems]
    task = Task(
        name="contest",
        train=train,
        held_out=held_out,
        judge=partial(judge, partial_credit=settings.partial_credit),
        extract=extract,
        demonstrations=[p for p in train if p.demonstration][: settings.demonstrations],
        rejected=dict(rejected),
    )
    return by_behaviour(task) if settings.answers == "behaviour" else task


def _select(
    path: str, source: str, settings: Settings, window: tuple[str, str], rejected: Counter[str]
) -> list[Problem]:
    """The problems of a source that fit the settings; the others are counted. Raises DataError where none is left."""
    problems, malformed, here = [], "", Counter[str]()
    for row in rows_of(path, source, settings):
        try:
            problems.append(make_problem(row, source, settings, window))
        except Rejected as reason:
            here[str(reason)] += 1
        except DataError as error:
            if source == "open_r1":
                raise
            here["malformed row"] += 1
            malformed = malformed or f"; {error}"
    if settings.require_solution:
        problems = _solvable(problems, here)
    if not problems:
        counts = ", ".join(f"{reason}: {count}" for reason, count in here.items() if count)
        raise DataError(f"{path}: no problem is left ({counts}){malformed}")
    rejected.update(here)
    return problems


def rows_of(path: str, source: str, settings: Settings) -> Iterator[Row]:
    """The rows of a path; of LiveCodeBench's folder, here or on the hub, those of the files of the release."""
    if source != "livecodebench" or not settings.release:
        yield from stream_rows(path, settings.split, settings.subset)
        return
    if expanded(path).is_file():
        raise UserError(f"task.release = {settings.release!r} needs a folder or a hub name; {path} is one file")
    upto, first, last = _RELEASE.fullmatch(settings.release).groups()  # type: ignore[union-attr]  # checked
    folder = str(expanded(path)) if expanded(path).is_dir() else f"{HUB_FILE}{path}"
    for number in range(1, int(upto) + 1) if upto else range(int(first), int(last or first) + 1):
        yield from stream_rows(f"{folder}/test{number if number > 1 else ''}.jsonl")


def make_problem(row: Row, source: str, settings: Settings, window: tuple[str, str] = ("", "")) -> Problem:
    """The problem of a row, of a contest between these days. Raises Rejected with the reason, and DataError for a row
    of another schema."""
    found = READERS[source](row, settings.language)
    if len(found.tests) + len(found.public) < settings.min_tests:
        raise Rejected("too few tests")
    if settings.max_prompt_characters and len(found.statement) > settings.max_prompt_characters:
        raise Rejected("prompt too long")
    for mark in found.marks:
        if mark not in settings.keep:
            raise Rejected(mark)
    if any(window) and not found.date:
        raise Rejected("no date")
    if any(window) and not window[0] <= found.date <= (window[1] or "9999"):
        raise Rejected("outside of the dates")
    public, hidden = _cut(found, settings)
    names = found.meta.get("names") or names_of(public + hidden)
    shown = found.solutions[0] if found.solutions else None
    return Problem(
        id=f"{'contest' if source == 'open_r1' else source}/{found.name}",
        messages=({"role": "user", "content": found.statement},),
        tests=public + hidden,
        # Where the data does not say which: statements mostly show the first. One at least stays hidden.
        public_tests=(public or hidden[: max(len(hidden) - 1, 1)])[: settings.public_tests],
        demonstration=_fenced(shown) if shown else None,
        meta={
            **{name: value for name, value in found.meta.items() if value},
            **({"date": found.date} if found.date else {}),
            "source": found.meta.get("source", ""),
            "limits": limits_of(found, public + hidden),
            "names": names,
            "around": (found.before, found.after),
            "solutions": found.solutions,
            "no_solution": found.no_solution,
        },
    )


def _cut(found: Found, settings: Settings) -> tuple[tuple[Test, ...], tuple[Test, ...]]:
    """The public tests and the hidden ones, max_tests together."""
    public, hidden = found.public[: settings.max_tests], found.tests
    room = settings.max_tests - len(public)
    if len(hidden) <= room:
        return public, hidden
    if not room:
        return public, ()
    if settings.cut == "evenly":
        return public, hidden[:: -(-len(hidden) // room)]
    longest = sorted(range(len(hidden)), key=lambda i: _input_size(hidden[i]), reverse=True)[:room]
    return public, tuple(hidden[i] for i in sorted(longest))


def _input_size(test: Test) -> int:
    return len(test.stdin) if isinstance(test, StdioTest) else len(repr((test.args, test.kwargs)))  # type: ignore


def limits_of(found: Found, tests: Sequence[Test]) -> Limits:
    """Bounds on all tests of a problem together, which is what the sandbox bounds.

    CPU: the time limit of a test times the number of tests, from MIN_S to MAX_S seconds; twice as much wall time.
    Output: twice the longest that is expected, at least the usual 64 kB. Memory: what is stated, if that is more than
    the usual 1 GB: limits below are meant for C++.
    """
    cpu_s = min(max(found.seconds * len(tests), MIN_S), MAX_S)
    longest = max((len(test.stdout.encode()) for test in tests if isinstance(test, StdioTest)), default=0)
    output_kb = min(max(MIN_OUTPUT_KB, -(-2 * longest // 1024)), MAX_OUTPUT_KB)
    memory_mb = min(max(Limits().memory_mb, found.memory_mb), MAX_MEMORY_MB)
    return dataclasses.replace(Limits(), cpu_s=cpu_s, wall_s=2 * cpu_s, output_kb=output_kb, memory_mb=memory_mb)


def _solvable(problems: list[Problem], rejected: Counter[str]) -> list[Problem]:
    """The problems one of whose solutions passes their tests; it becomes the demonstration."""
    solved: dict[int, Problem] = {}
    with Pool() as pool:
        for attempt in range(REFERENCES):
            left = [i for i, p in enumerate(problems) if i not in solved and len(p.meta["solutions"]) > attempt]
            shown = [_fenced(problems[i].meta["solutions"][attempt]) for i in left]
            programs = [
                Program(extract(problems[i], text), problems[i].tests, problems[i].meta["limits"], True)
                for i, text in zip(left, shown)
            ]
            for i, text, verdict in zip(left, shown, pool.run(programs)):
                if verdict.passed:
                    solved[i] = dataclasses.replace(problems[i], demonstration=text)
    for i, problem in enumerate(problems):
        if i not in solved:
            fails = "its solution does not pass"
            rejected[fails if problem.meta["solutions"] else problem.meta["no_solution"]] += 1
    return [solved[i] for i in sorted(solved)]


def _fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def extract(problem: Problem, text: str) -> str:
    """The program in a text, with what the set's judge puts around it."""
    code = code_block(text, names=problem.meta["names"])
    before, after = problem.meta.get("around", ("", ""))
    return with_imports(before, code) + after if code.strip() else code


async def judge(problem: Problem, submission: Submission, services: Services, *, partial_credit: float = 0.2) -> Reward:
    """1 if all tests pass, else a little for the share that does."""
    return await judge_program(problem, submission, services, partial=partial_credit, limits=problem.meta["limits"])
