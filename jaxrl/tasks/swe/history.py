"""Commits of a git repository and the files in them, by a few plain git commands; nothing of it is changed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrl.errors import UserError

CHUNK = 200  # commits read at once
LINK, SUBMODULE = "120000", "160000"  # modes
# No hooks, pagers, signatures or fetches: a repository is data, whatever its settings say.
_COMMAND = ("git", "--no-pager", "--no-replace-objects", "-c", "log.showSignature=false", "-c", "core.fsmonitor=false")
_ENVIRONMENT = {"LC_ALL": "C", "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}


class Change(NamedTuple):
    """What a commit does to a file."""

    kind: str  # A: added, M: modified, D: deleted, R: renamed, T: another type
    modes: tuple[str, str]  # before and after
    objects: tuple[str, str]  # ids of the contents before and after
    path: str  # after a rename the new one


class Commit(NamedTuple):
    """A commit that is not a merge, with its changes against its parent; the first one of a history adds all files."""

    id: str
    parent: str  # "" of the first one of a history
    date: int  # of the commit, seconds since 1970
    message: str
    changes: tuple[Change, ...]


class Entry(NamedTuple):
    """A file of a commit's tree."""

    path: str
    mode: str
    object: str
    size: int  # bytes


def commit_ids(repository: Path, revision: str = "HEAD") -> list[str]:
    """The commits that lead to a revision, without merges, the oldest first. Raises UserError where git does."""
    return _git(repository, "rev-list", "--no-merges", "--reverse", "--end-of-options", revision).decode().split()


def read_commits(repository: Path, ids: Sequence[str]) -> list[Commit]:
    """These commits, in this order. Text that is not UTF-8 has replacement characters."""
    given = "".join(f"{i}\n" for i in ids).encode()
    shown = _git(
        repository,
        "log",
        "--no-walk=unsorted",
        "--stdin",
        "-z",
        "--encoding=UTF-8",
        "--format=%H%n%P%n%ct%n%B",
        given=given,
    )
    diffs = _git(repository, "diff-tree", "--stdin", "-r", "-z", "-M", "--root", "--raw", "--no-abbrev", given=given)
    changes = _changes(diffs)
    commits = {}
    for record in shown.decode("utf-8", "replace").split("\0"):
        if record:
            name, parent, date, message = record.lstrip("\n").split("\n", 3)
            commits[name] = Commit(name, parent, int(date), message, tuple(changes.get(name, ())))
    return [commits[i] for i in ids]


def _changes(text: bytes) -> dict[str, list[Change]]:
    """What `git diff-tree -z` says, by commit."""
    parts = iter(text.decode("utf-8", "surrogateescape").split("\0"))
    found: dict[str, list[Change]] = {}
    name = ""
    for part in parts:
        if part.startswith(":"):
            before, after, old, new, kind = part[1:].split(" ")
            path = next(parts)
            path = next(parts) if kind[0] in "RC" else path
            found[name].append(Change(kind[0], (before, after), (old, new), path))
        elif part:
            name = part.strip()
            found[name] = []
    return found


def read_tree(repository: Path, commit: str, folder: str) -> list[Entry]:
    """The files directly in a folder ("" for the top) of a commit."""
    text = _git(repository, "ls-tree", "-z", "-l", commit, *([f"{folder}/"] if folder else []))
    found = []
    for line in text.decode("utf-8", "surrogateescape").split("\0"):
        head, _, path = line.partition("\t")
        mode, kind, name, size = head.split() if head else ("", "", "", "-")
        if kind == "blob":
            found.append(Entry(path, mode, name, int(size) if size.isdecimal() else 0))
    return found


def read_objects(repository: Path, ids: Sequence[str], most: int) -> dict[str, bytes | None]:
    """The contents of objects by id, None for those of more than `most` bytes; what is not there is left out."""
    wanted = [*dict.fromkeys(ids)]
    given = "".join(f"{i}\n" for i in wanted).encode()
    sizes = {}
    for line in _git(repository, "cat-file", "--batch-check", given=given).decode().splitlines():
        name, *kind = line.split(" ")
        if len(kind) == 2 and kind[0] == "blob":
            sizes[name] = int(kind[1])
    found: dict[str, bytes | None] = dict.fromkeys(sizes)
    short = [name for name, size in sizes.items() if size <= most]
    text = _git(repository, "cat-file", "--batch", given="".join(f"{i}\n" for i in short).encode())
    at = 0
    for name in short:  # "ID blob SIZE", the contents, an empty line
        at = text.index(b"\n", at) + 1
        found[name] = text[at : at + sizes[name]]
        at += sizes[name] + 1
    return found


def read_files(repository: Path, commit: str, paths: Sequence[str], most: int) -> dict[str, bytes | None]:
    """The contents of files by path, None for one of more than `most` bytes; what is not a plain file is left out."""
    listed = _git(repository, "ls-tree", "-z", commit, "--", *paths).decode("utf-8", "surrogateescape") if paths else ""
    ids = {}
    for line in filter(None, listed.split("\0")):
        head, _, path = line.partition("\t")
        mode, kind, name = head.split()
        ids |= {path: name} if path in paths and kind == "blob" and mode != LINK else {}
    found = read_objects(repository, [*ids.values()], most)
    return {path: found[name] for path, name in ids.items() if name in found}


def read_diff(repository: Path, before: str, after: str, paths: Sequence[str]) -> str:
    """What changes in these paths between two commits, as `git apply` takes it. Raises UserError where git does."""
    plain = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--full-index", "--binary")
    names = [f":(literal){path}" for path in paths]
    text = _git(repository, "diff", *plain, "--src-prefix=a/", "--dst-prefix=b/", before, after, "--", *names)
    return text.decode("utf-8", "surrogateescape")


def chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """The ids in pieces that fit into memory with their files."""
    return (ids[i : i + CHUNK] for i in range(0, len(ids), CHUNK))


def _git(repository: Path, *arguments: str, given: bytes = b"") -> bytes:
    """What a git command prints. Raises UserError with git's own message."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | _ENVIRONMENT
    command = [*_COMMAND, "-C", str(repository), *arguments]
    try:
        done = subprocess.run(command, input=given, capture_output=True, env=environment, check=False)
    except FileNotFoundError:
        raise UserError("git is not installed, or not on PATH") from None
    if done.returncode:
        raise UserError(f"{repository}: git {arguments[0]}: {done.stderr.decode('utf-8', 'replace').strip()}")
    return done.stdout
