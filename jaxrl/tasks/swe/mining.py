"""Problems of a git history: a commit's message as the issue, its files before, and what it made of them.

SWE-RL (arXiv 2502.18449) takes pull requests that fix a linked issue; a history alone has no issues, and its messages
describe the change. As there, files that did not change are shown, too, so that editing is not always right.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jaxrl.tasks.swe.history import LINK, SUBMODULE, Change, Commit, chunks, read_commits, read_objects, read_tree
from jaxrl.tasks.swe.reward import changes
from rollouts.blocks import FormatError, edits_between

CODE = (
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".java", ".js", ".jsx", ".kt", ".lua", ".php",
    ".rb", ".rs", ".scala", ".sh", ".swift", ".ts", ".tsx", ".vue",
)  # fmt: skip
LEAST_WORDS = 3  # of a message
BYTES = 4  # of a character, at most
_AUTOMATIC = re.compile(r"(merge|revert|bump|release|version|v?\d+\.\d+)\b", re.IGNORECASE)
_TRAILER = re.compile(r"([\w-]+-(by|id)|cc|closes|fixes): .*|\(cherry picked from .*\)", re.IGNORECASE)
OF_TESTS = re.compile(
    r"(^|/)(tests?|testing|__tests__|spec)/|(^|/)test_[^/]*$|[._-](test|spec)\.\w+$|(^|/)conftest\.py$"
)
OF_OTHERS = re.compile(
    r"(^|/)(vendor|vendored|third_party|node_modules|dist|build|\.yarn|migrations)/|\.min\.\w+$|_pb2(_grpc)?\.pyi?$"
    r"|\.(pb|generated|gen)\.\w+$|(^|/)_?version\.py$"
)
_GENERATED = re.compile(r"@generated|do not edit|automatically generated|auto-generated", re.IGNORECASE)


@dataclass(frozen=True)
class Rules:
    """What a commit must be."""

    files: int = 3  # changed at most
    characters: int = 30_000  # of a file, at most
    diff: int = 8_000  # characters of all its diffs, at most
    message: int = 4_000  # characters, at most
    others: int = 2  # unchanged files of the same folders that are shown, at most
    suffixes: tuple[str, ...] = CODE  # of code
    tests: bool = False  # changes of tests count, too


class Rejected(Exception):
    """Why a commit is no problem."""


def mine(
    repository: Path, name: str, ids: Sequence[str], rules: Rules, rejected: Counter[str], seen: set[Any]
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(number of commits read, the row of the last one or None) for each of these commits.

    Those that are not problems are counted by reason. `seen` remembers what a problem must not say again.
    """
    number = 0
    for part in chunks(ids):
        commits = read_commits(repository, part)
        wanted = [
            o for commit in commits for change in commit.changes for o in change.objects if _is_code(change, rules)
        ]
        contents = read_objects(repository, wanted, BYTES * rules.characters)
        for commit in commits:
            number += 1
            try:
                row = make_row(repository, name, commit, contents, rules)
                key = row["problem_statement"], tuple(sorted(row["oracle"].items()))
                if key in seen:
                    raise Rejected("the same as an earlier one")
                seen.add(key)
                yield number, row
            except Rejected as why:
                rejected[str(why)] += 1
                yield number, None


def make_row(
    repository: Path, name: str, commit: Commit, contents: dict[str, bytes | None], rules: Rules
) -> dict[str, Any]:
    """The row of a commit. Raises Rejected with the reason.

    instance_id, repository, base_commit, date; problem_statement; files and oracle: contents by path, before and after.
    """
    issue = issue_of(commit.message, rules)
    changed = [change for change in commit.changes if _is_code(change, rules)]
    _check_changes(changed, rules)
    files, oracle = {}, {}
    for change in changed:
        old, new = (_text(contents, name, mode, rules) for name, mode in zip(change.objects, change.modes))
        if change.kind == "M":
            files[change.path] = old
        oracle[change.path] = new
    diffs = changes(files, oracle)
    if not diffs:
        raise Rejected("no line of code changes")
    if sum(map(len, diffs.values())) > rules.diff:
        raise Rejected("diff too long")
    oracle = {path: oracle[path] for path in diffs}
    try:
        edits_between(files, oracle)
    except FormatError:
        raise Rejected("lines that look like the marks of a block") from None
    files |= _others(repository, commit, files, rules)
    return {
        "instance_id": f"{name}__{commit.id[:12]}",
        "repository": name,
        "base_commit": commit.parent,
        "date": commit.date,
        "problem_statement": issue,
        "files": dict(sorted(files.items())),
        "oracle": dict(sorted(oracle.items())),
    }


def issue_of(message: str, rules: Rules) -> str:
    """The message without its trailers. Raises Rejected for one that says too little or too much."""
    lines = [line.rstrip() for line in message.strip().splitlines() if not _TRAILER.fullmatch(line.strip())]
    issue = "\n".join(lines).strip()
    if _AUTOMATIC.match(issue):
        raise Rejected("merge, revert or version")
    if len(issue.split()) < LEAST_WORDS:
        raise Rejected("message too short")
    if len(issue) > rules.message:
        raise Rejected("message too long")
    return issue


def _is_code(change: Change, rules: Rules) -> bool:
    """Whether a change counts at all: others, such as of documents and locks, are left out of the problem."""
    path = change.path
    if PurePosixPath(path).suffix not in rules.suffixes or OF_OTHERS.search(path):
        return False
    return rules.tests or not OF_TESTS.search(path)


def _check_changes(changed: Sequence[Change], rules: Rules) -> None:
    """Raises Rejected for changes that blocks cannot express, or too many."""
    if not changed:
        raise Rejected("no code changes")
    kinds = {change.kind for change in changed}
    for kind, why in {"D": "a file is deleted", "R": "a file is renamed", "T": "a file becomes another type"}.items():
        if kind in kinds:
            raise Rejected(why)
    if kinds == {"A"}:
        raise Rejected("only new files")
    if {mode for change in changed for mode in change.modes} & {LINK, SUBMODULE}:
        raise Rejected("a link or submodule")
    if len(changed) > rules.files:
        raise Rejected("too many files")
    if any("\udc80" <= c <= "\udcff" or c in "\n`" for change in changed for c in change.path):
        raise Rejected("a path that is not plain text")


def _text(contents: dict[str, bytes | None], name: str, mode: str, rules: Rules) -> str:
    """The text of an object, with line feeds alone; "" for a file that is not there."""
    if mode == "000000":
        return ""
    if name not in contents:
        raise Rejected("an object is not in the repository")
    data = contents[name]
    if data is None:
        raise Rejected("file too long")
    if b"\0" in data:
        raise Rejected("a binary file")
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise Rejected("a file that is not UTF-8") from None
    if len(text) > rules.characters:
        raise Rejected("file too long")
    if _GENERATED.search(text[:400]):
        raise Rejected("a generated file")
    return text


def _others(repository: Path, commit: Commit, files: dict[str, str], rules: Rules) -> dict[str, str]:
    """Files of the same folders that the commit does not change, chosen by its id."""
    if not rules.others:
        return {}
    touched = {change.path for change in commit.changes}
    near = {}
    for folder in sorted({str(PurePosixPath(path).parent) for path in files}):
        for entry in read_tree(repository, commit.parent, "" if folder == "." else folder):
            change = Change("M", (entry.mode, entry.mode), (entry.object, entry.object), entry.path)
            if entry.path not in touched and 0 < entry.size <= rules.characters and _is_code(change, rules):
                near[entry.path] = entry
    chosen = random.Random(commit.id).sample(sorted(near), min(len(near), 2 * rules.others))
    contents = read_objects(repository, [near[path].object for path in chosen], BYTES * rules.characters)
    found = {}
    for path in chosen:
        try:
            found[path] = _text(contents, near[path].object, near[path].mode, rules)
        except Rejected:
            continue  # the next one takes its place
    return dict([*found.items()][: rules.others])
