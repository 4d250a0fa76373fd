"""`python -m sandbox attack`: the hostile corpus against this sandbox or against any other grader.

A grader is a command. It reads one JSON request from stdin ({"program", "tests", "entry_point", "limits"}, as
`python -m sandbox score` takes it) and answers with exit status 0 and `pass` or `fail` as the last word on its last
line; anything else, or no answer in time, is an error. After each hostile program an honest right one and an honest
wrong one are graded in the same place: a changed verdict there is a finding.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sandbox.cage import Answer, Cage, run_command
from sandbox.corpus import (
    ATTACK_LIMITS,
    DEFAULT_FOLDER,
    FORMS,
    HONEST_LIMITS,
    KINDS,
    CorpusError,
    Hostile,
    as_program,
    form_of,
    read_corpus,
    request,
)
from sandbox.pool import Pool

SLACK_S = 1.0  # above a program's own wall time and what an honest program takes
# The grader of one attack: a request to ("pass", "fail" or "error", seconds, detail).
Grade = Callable[[dict[str, Any]], tuple[str, float, str]]


@dataclass
class Place:
    """Where one attack is graded. spoiled: an honest program's verdict has changed there."""

    grade: Grade
    spoiled: bool = False


@dataclass(frozen=True)
class Row:
    """One attack: a hostile program with one kind of test, and the honest neighbours after it.

    verdict: "pass", "fail", "error", or "unsupported" where the grader cannot tell right from wrong in such tests.
    """

    name: str
    kind: str
    form: str
    verdict: str
    seconds: float = 0.0
    detail: str = ""
    neighbour: str = ""  # "" when both honest verdicts were right
    slow: bool = False


def own_grader(pool: Pool) -> Grade:
    """This sandbox: a verdict that is the sandbox's own fault is an error."""

    def grade(data: dict[str, Any]) -> tuple[str, float, str]:
        start = time.monotonic()
        [verdict] = pool.run([as_program(data)])
        answer = "pass" if verdict.passed else "error" if verdict.status == "sandbox_error" else "fail"
        return answer, time.monotonic() - start, verdict.status

    return grade


def command_grader(run: Callable[[str], Answer]) -> Grade:
    """A grader's command, started once for each program."""

    def grade(data: dict[str, Any]) -> tuple[str, float, str]:
        try:
            answer = run(json.dumps(data))
        except OSError as error:
            return "error", 0.0, str(error)
        verdict, detail = read_answer(answer)
        return verdict, answer.seconds, detail

    return grade


def read_answer(answer: Answer) -> tuple[str, str]:
    """("pass" | "fail" | "error", a detail)."""
    if answer.exit_code is None:
        return "error", "no answer in time"
    lines = answer.output.strip().splitlines()
    words = lines[-1].split() if lines else []
    if answer.exit_code == 0 and words and words[-1] in ("pass", "fail"):
        return words[-1], ""
    last = (answer.errors.strip().splitlines() or lines or ["no output"])[-1]
    return "error", f"exit status {answer.exit_code}: {last[:200]}"


class Attack:
    """Runs attacks against one grader; `grader` gives a fresh place to grade in for each attack."""

    def __init__(self, grader: Callable[[], contextlib.AbstractContextManager[Place]]):
        self._grader = grader
        self._honest_s: dict[tuple[str, bool], float | None] = {}
        self._why: dict[tuple[str, bool], str] = {}

    def learn(self, pairs: Iterable[tuple[str, tuple[str, ...]]]) -> None:
        """How long honest programs take with each form, and which forms the grader can judge at all."""
        for form, command in dict.fromkeys(pairs):
            with self._grader() as place:
                test = form_of(form, command)
                right, seconds, why = place.grade(request(test, test.right, HONEST_LIMITS, command))
                wrong, _, _ = place.grade(request(test, test.wrong, HONEST_LIMITS, command))
            able = (right, wrong) == ("pass", "fail")
            self._honest_s[form, bool(command)] = seconds if able else None
            self._why[form, bool(command)] = "" if able else f"honest right: {right}, wrong: {wrong}; {why}"

    def run(self, hostile: Hostile, form: str) -> Row:
        """One program with one form, and its neighbours."""
        row = Row(hostile.name, hostile.kind, form, "unsupported")
        honest_s = self._honest_s[form, bool(hostile.command)]
        if honest_s is None:
            return replace(row, detail=self._why[form, bool(hostile.command)])
        test, limits = form_of(form, hostile.command), ATTACK_LIMITS | hostile.limits
        with self._grader() as place:
            verdict, seconds, detail = place.grade(request(test, hostile.code, limits, hostile.command))
            slow = seconds > honest_s + limits["wall_s"] + SLACK_S
            right, _, why = place.grade(request(test, test.right, HONEST_LIMITS, hostile.command))
            wrong, _, also = place.grade(request(test, test.wrong, HONEST_LIMITS, hostile.command))
            place.spoiled = (right, wrong) != ("pass", "fail")
        changed = [f"right: {right} {why}".strip()] if right != "pass" else []
        changed += [f"wrong: {wrong} {also}".strip()] if wrong != "fail" else []
        return replace(row, verdict=verdict, seconds=seconds, detail=detail, neighbour="; ".join(changed), slow=slow)


def summary(rows: list[Row]) -> dict[str, int]:
    """Counts over all attacks that the grader's kinds of test allow."""
    ran = [r for r in rows if r.verdict != "unsupported"]
    return {
        "attacks": len(ran),
        "forged_passes": sum(r.verdict == "pass" for r in ran),
        "errors_chosen": sum(r.verdict == "error" for r in ran),
        "neighbours_changed": sum(bool(r.neighbour) for r in ran),
        "slow": sum(r.slow for r in ran),
        "unsupported": len(rows) - len(ran),
    }


def by_kind(rows: list[Row]) -> dict[str, dict[str, int]]:
    """`summary` for each kind of attack."""
    return {kind: summary([r for r in rows if r.kind == kind]) for kind in KINDS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("names", nargs="*", help="programs of the corpus (default: all)")
    parser.add_argument("--grader", default="", help="a command that reads a request and answers pass or fail")
    parser.add_argument("--corpus", type=Path, default=DEFAULT_FOLDER, help="folder of hostile programs")
    parser.add_argument("--forms", default="", help=f"kinds of test, with commas, or all: {', '.join(FORMS)}")
    parser.add_argument("--json", type=Path, default=None, help="file for the rows and the summary")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds after which a grader gives no answer")
    parser.add_argument("--workers", type=int, default=1, help="attacks at a time")
    parser.add_argument("--keep", action="append", default=[], help="a folder that a grader needs below /tmp or a home")
    parser.add_argument("--no-cage", action="store_true", help="run the grader unguarded: only on a machine to lose")


def main(options: argparse.Namespace, least: str) -> int:
    """Prints a row per attack and a summary. Returns 1 if anything passed, otherwise 0. Raises CorpusError."""
    corpus = read_corpus(options.corpus, tuple(options.names))
    forced = list(FORMS) if options.forms == "all" else [f for f in options.forms.split(",") if f]
    if unknown := [f for f in forced if f not in FORMS]:
        raise CorpusError(f"--forms {unknown[0]!r}: must be all or some of {', '.join(FORMS)}")
    if options.timeout <= 0 or options.workers < 1:
        raise CorpusError("--timeout must be above 0 and --workers at least 1")
    attacks = [(h, f) for h in corpus for f in (forced or h.forms) if not h.command or f in ("stdio", "checker")]
    rows: list[Row] = []
    with _graders(options, least) as grader, ThreadPoolExecutor(options.workers) as threads:
        attack = Attack(grader)
        attack.learn((form, h.command) for h, form in attacks)
        for row in threads.map(lambda pair: attack.run(*pair), attacks):
            rows.append(row)
            print(shown(row), flush=True)
    total = summary(rows)
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in total.items()))
    if options.json:
        grader_name = options.grader or "this sandbox"
        data = {"grader": grader_name, "date": time.strftime("%Y-%m-%d"), "python": sys.version.split()[0]}
        data |= {"summary": total, "kinds": by_kind(rows), "rows": [asdict(r) for r in rows]}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    return 1 if total["forged_passes"] else 0


def shown(row: Row) -> str:
    """A row as text."""
    marks = ["PASSED"] * (row.verdict == "pass") + ["ERROR"] * (row.verdict == "error") + ["SLOW"] * row.slow
    marks += [f"NEIGHBOUR {row.neighbour}"] * bool(row.neighbour)
    line = f"{row.name:32} {row.form:14} {row.verdict:12} {row.seconds:6.2f} s  {row.detail[:100]:20} {' '.join(marks)}"
    return line.rstrip()


@contextlib.contextmanager
def _graders(options: argparse.Namespace, least: str) -> Iterator[Callable[[], Any]]:
    """A function that gives a place to grade in, for one attack."""
    if options.grader:
        # A cage's commands start in its home, where programs can write as where graders usually run them.
        command = [os.path.abspath(w) if "/" in w and os.path.exists(w) else w for w in shlex.split(options.grader)]
        keep = tuple(options.keep)
        if not command or options.no_cage:
            yield lambda: contextlib.nullcontext(
                Place(command_grader(lambda text: run_command(command, text, options.timeout)))
            )
            return
        yield lambda: _caged(command, keep, options.timeout)
        return
    with contextlib.ExitStack() as stack:
        pools = collections.deque(stack.enter_context(Pool(1, least=least)) for _ in range(options.workers))

        @contextlib.contextmanager
        def place() -> Iterator[Place]:
            pool = pools.popleft()  # there are as many as threads
            here = Place(own_grader(pool))
            try:
                yield here
            finally:
                if here.spoiled:  # otherwise every later attack would be blamed
                    pool.close()
                    pool = stack.enter_context(Pool(1, least=least))
                pools.append(pool)

        yield place


@contextlib.contextmanager
def _caged(command: list[str], keep: tuple[str, ...], timeout_s: float) -> Iterator[Place]:
    with Cage(keep) as cage:
        yield Place(command_grader(lambda text: cage.run(command, text, timeout_s)))
