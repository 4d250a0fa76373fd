"""Rows of a Python repository's history: commits that change code and tests, of which some tests pass only afterwards.

The way of SWE-bench (Jimenez et al., arXiv 2310.06770): the tests' part of a change is run without and with the rest of
it; FAIL_TO_PASS are the tests that only then pass. The issue is the commit's message, as in jaxrl/tasks/swe/mining.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxrl.tasks.repositories.attempt import Repositories, graded, run_patch
from jaxrl.tasks.repositories.grade import Grade
from jaxrl.tasks.repositories.logs import Results, pytest_lines
from jaxrl.tasks.repositories.rows import Instance
from jaxrl.tasks.swe.history import LINK, SUBMODULE, Commit, chunks, read_commits, read_diff
from jaxrl.tasks.swe.mining import OF_OTHERS, OF_TESTS, Rejected, Rules, issue_of
from sandbox.checkout import Checkout, CheckoutError, Ran
from sandbox.layers import LEAST

PYTEST = "python -m pytest -rA -q -p no:cacheprovider"
OWNER = "local"  # of the rows' repositories, which are folders
_ODD = re.compile(r"[\s`;'\"$\\]")  # in a path that would have to be quoted
_COLLECTED = re.compile(r"(^|/)(test_[^/]*|[^/]*_test)\.py$")


@dataclass(frozen=True)
class Runs:
    """How the tests of commits are run."""

    cache: Path  # of the files of commits
    wall_s: float = 300.0  # of all tests of a commit
    least: str = LEAST


def mine_tests(
    repository: Path, name: str, ids: Sequence[str], rules: Rules, runs: Runs, rejected: Counter[str]
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(number of commits read, the row of the last one or None) for each of these commits; others are counted."""
    number = 0
    for part in chunks(ids):
        for commit in read_commits(repository, part):
            number += 1
            try:
                yield number, make_row(repository, name, commit, rules, runs)
            except Rejected as why:
                rejected[str(why)] += 1
                yield number, None


def make_row(repository: Path, name: str, commit: Commit, rules: Rules, runs: Runs) -> dict[str, Any]:
    """The row of a commit, as jaxrl/tasks/repositories/rows.py reads it. Raises Rejected with the reason."""
    issue = issue_of(commit.message, rules)
    tests, collected, rest = _parts(commit, rules)
    patch, test_patch = (read_diff(repository, commit.parent, commit.id, paths) for paths in (rest, tests))
    if len(patch) > rules.diff:
        raise Rejected("diff too long")
    command = " ".join([PYTEST, *collected])
    instance = Instance(
        f"{name}__{commit.id[:12]}", f"{OWNER}/{name}", commit.parent, issue, patch, test_patch, (), (), False,
        "parse_log_pytest", (command,),
    )  # fmt: skip
    must_pass, must_stay = _told_apart(instance, repository, runs)
    return {
        "instance_id": instance.id,
        "repo": instance.repo,
        "base_commit": commit.parent,
        "date": commit.date,
        "problem_statement": issue,
        "patch": patch,
        "test_patch": test_patch,
        "FAIL_TO_PASS": must_pass,
        "PASS_TO_PASS": must_stay,
        "log_parser": instance.log_parser,
        "test_cmd": command,
    }


def _parts(commit: Commit, rules: Rules) -> tuple[list[str], list[str], list[str]]:
    """Paths of tests, of those that pytest collects, and of the rest. Raises Rejected where one of them is missing."""
    if not commit.parent:
        raise Rejected("only new files")
    if any(change.kind == "R" for change in commit.changes):
        raise Rejected("a file is renamed")
    if {mode for change in commit.changes for mode in change.modes} & {LINK, SUBMODULE}:
        raise Rejected("a link or submodule")
    paths = [change.path for change in commit.changes]
    tests = [path for path in paths if OF_TESTS.search(path)]
    rest = [path for path in paths if path not in tests]
    collected = [c.path for c in commit.changes if c.path in tests and c.kind != "D" and _COLLECTED.search(c.path)]
    code = [path for path in rest if path.endswith(rules.suffixes) and not OF_OTHERS.search(path)]
    if not code:
        raise Rejected("no code changes")
    if not collected:
        raise Rejected("no tests of pytest change")
    if len(code) > rules.files:
        raise Rejected("too many files")
    if any(not path.isprintable() or _ODD.search(path) for path in paths):
        raise Rejected("a path that is not plain text")
    return tests, collected, rest


def _told_apart(instance: Instance, repository: Path, runs: Runs) -> tuple[list[str], list[str]]:
    """FAIL_TO_PASS and PASS_TO_PASS. Afterwards the tests run twice: what passes only once is in neither."""
    clones = Repositories(repository.resolve().parent, runs.cache)

    def run(patch: str) -> tuple[list[Ran], Results]:
        try:
            files = clones.files(f"{OWNER}/{repository.resolve().name}", instance.base_commit)
            with Checkout(str(files), least=runs.least) as checkout:
                ran = run_patch(checkout, instance, patch, files, runs.wall_s)
        except CheckoutError as error:
            raise Rejected(f"the working tree failed: {error}") from None
        except OSError as error:
            if error.errno is not None:  # of the machine, such as a full disk
                raise
            raise Rejected("its files cannot be read") from None
        if isinstance(ran, Grade):
            raise Rejected("a patch does not apply")
        if any(r.status != "finished" for r in ran):
            raise Rejected("the tests take too long")
        return ran, pytest_lines([r.output for r in ran])

    (without, before), (made, first) = run(""), run(instance.patch)
    passing = [test for test, status in first.items() if status == "passed"]
    if all(before.get(test) == "passed" for test in passing):
        raise Rejected("no test tells before from after")
    _, second = run(instance.patch)
    passing = [test for test in passing if second.get(test) == "passed"]
    must_pass = sorted(test for test in passing if before.get(test) != "passed")
    must_stay = sorted({*passing} - {*must_pass})
    whole = instance._replace(fail_to_pass=tuple(must_pass), pass_to_pass=tuple(must_stay))
    if not must_pass or not graded(whole, made).resolved or graded(whole, without).resolved:
        raise Rejected("no test tells before from after")
    return must_pass, must_stay
