"""Unified diffs: made from files, read, applied. Standard library only."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

NOWHERE = "/dev/null"
_GIT = re.compile(r'diff --git "?a/(.+?)"? "?b/(.+?)"?$')
_HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@ ?(.*)")
_NO_NEWLINE = "\\ No newline at end of file"


class PatchError(ValueError):
    """A text that is not a unified diff, or does not fit the files."""


class Hunk(NamedTuple):
    """Lines from old_start and new_start on, counted from 1; each of `lines` begins with a blank, -, + or backslash."""

    old_start: int
    old_length: int
    new_start: int
    new_length: int
    section: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        section = f" {self.section}" if self.section else ""
        head = f"@@ -{self.old_start},{self.old_length} +{self.new_start},{self.new_length} @@{section}"
        return "\n".join([head, *self.lines])


class FileChange(NamedTuple):
    """What a diff does to one file: `old` is "" for a new file, `new` for one that is deleted."""

    old: str
    new: str
    hunks: tuple[Hunk, ...] = ()
    binary: bool = False


def diff_lines(old: str, new: str) -> str:
    """The hunks of a file's change with three lines of context, without the file's names; "" for no change of lines."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), n=3, lineterm="")
    return "\n".join(islice(lines, 2, None))


def read_patch(text: str) -> list[FileChange]:
    """The files of a diff, git's or a plain one. Raises PatchError with the number of the line that does not belong.

    Other lines may stand before a file's names, but not between its hunks.
    """
    found: list[FileChange] = []
    lines = text.removesuffix("\n").split("\n")
    i, begun, open_file, source = 0, False, False, None  # begun: the file is from "diff --git" and has no hunk yet
    while i < len(lines):
        line = lines[i]
        if git := _GIT.match(line.rstrip()):
            found.append(FileChange(git[1], git[2]))
            begun, open_file, source = True, True, None
        elif line.startswith("--- "):
            open_file, source = begun, _name(line)
        elif line.startswith("+++ ") and source is not None:
            names = FileChange(source, _name(line))
            found = [*found[:-1], names] if begun else [*found, names]
            open_file, source = True, None
        elif begun and line.startswith("new file mode"):
            found[-1] = found[-1]._replace(old="")
        elif begun and line.startswith("deleted file mode"):
            found[-1] = found[-1]._replace(new="")
        elif begun and line.startswith(("Binary files ", "GIT binary patch")):
            found[-1] = found[-1]._replace(binary=True)
        elif line.startswith("@@ "):
            if not open_file:
                raise PatchError(f"line {i + 1}: a hunk without a file")
            hunk, i = _read_hunk(lines, i)
            found[-1] = found[-1]._replace(hunks=(*found[-1].hunks, hunk))
            begun = False
            continue
        elif line:
            open_file = begun
        i += 1
    return found


def _name(line: str) -> str:
    """The path of a line such as "--- a/path<TAB>time"; "" for none."""
    name = line[4:].split("\t")[0].strip().strip('"')
    return "" if name == NOWHERE else re.sub("^[abciow12]/", "", name)


def _read_hunk(lines: list[str], at: int) -> tuple[Hunk, int]:
    """The hunk whose head is line `at`, and the index of the line after it."""
    head = _HUNK.match(lines[at])
    if head is None:
        raise PatchError(f"line {at + 1}: not the head of a hunk: {lines[at][:60]!r}")
    lengths = int(head[2] or 1), int(head[4] or 1)
    (old, new), body, i = lengths, [], at + 1
    while old > 0 or new > 0:
        line = (lines[i] or " ") if i < len(lines) else "end of text"  # editors cut the blank of an empty line
        if line[0] not in " -+\\":
            raise PatchError(f"line {i + 1}: a hunk is shorter than its head says")
        old, new = old - (line[0] in " -"), new - (line[0] in " +")
        if old < 0 or new < 0:
            raise PatchError(f"line {i + 1}: a hunk is longer than its head says")
        body.append(line)
        i += 1
    if i < len(lines) and lines[i].startswith("\\"):
        body.append(lines[i])
        i += 1
    return Hunk(int(head[1]), lengths[0], int(head[3]), lengths[1], head[5], tuple(body)), i


def apply_patch(files: Mapping[str, str], text: str) -> dict[str, str | None]:
    """The new contents of the files that a diff changes, None for those it deletes.

    Lines must be where the diff says, as they are. Raises PatchError for those that are not, and for binary files.
    """
    changed: dict[str, str | None] = {}
    for file in read_patch(text):
        if file.binary:
            raise PatchError(f"{file.new or file.old}: a binary file")
        if file.old and file.old not in files:
            raise PatchError(f"{file.old}: no such file")
        content = _applied(file, files.get(file.old, ""))
        if file.old and file.old != file.new:
            changed[file.old] = None
        if file.new:
            changed[file.new] = content
    return changed


def _applied(file: FileChange, content: str) -> str:
    lines, made, at = _with_ends(content), [], 0  # the lines before `at` are done
    for hunk in file.hunks:
        start = hunk.old_start - (1 if hunk.old_length else 0)
        old, new = _sides(hunk)
        if start < at or lines[start : start + len(old)] != old:
            raise PatchError(f"{file.old}: its lines from {hunk.old_start} on are not those of the diff")
        made += [*lines[at:start], *new]
        at = start + len(old)
    return "".join([*made, *lines[at:]])


def _sides(hunk: Hunk) -> tuple[list[str], list[str]]:
    """The lines of a hunk before and after, with their ends."""
    old, new = [], []
    for line, after in zip(hunk.lines, [*hunk.lines[1:], ""]):
        text = line[1:] + ("" if after.startswith("\\") else "\n")
        old += [text] if line[0] in " -" else []
        new += [text] if line[0] in " +" else []
    return old, new


def write_patch(files: Mapping[str, str], new: Mapping[str, str]) -> str:
    """A diff as git writes it, of the new contents of some files; "" for no change. A path not in `files` is new."""
    parts = []
    for path, content in sorted(new.items()):
        old = files.get(path, "")
        if old == content and path in files:
            continue
        parts.append(f"diff --git a/{path} b/{path}\n")
        if path not in files:
            parts.append("new file mode 100644\n")
        names = f"a/{path}" if path in files else NOWHERE, f"b/{path}"
        for line in difflib.unified_diff(_with_ends(old), _with_ends(content), *names):
            parts.append(line if line.endswith("\n") else f"{line}\n{_NO_NEWLINE}\n")
    return "".join(parts)


def as_git(changes: Sequence[FileChange]) -> str:
    """A diff of these changes and nothing else, so that git and its readers agree about what it changes.

    Raises PatchError for a binary file, and for a path that would have to be quoted or leads out of the tree.
    """
    parts = []
    for old, new, hunks, binary in changes:
        if binary:
            raise PatchError(f"{new or old}: a binary file")
        for path in filter(None, (old, new)):
            odd = not path.isprintable() or path != path.strip() or not {'"', "\\"}.isdisjoint(path)
            if odd or path.startswith("/") or ".." in path.split("/"):
                raise PatchError(f"{path!r} is not a plain path in the tree")
        if old == new and not hunks:
            continue
        parts.append(f"diff --git a/{old or new} b/{new or old}\n")
        if not old or not new:
            parts.append(f"{'deleted' if old else 'new'} file mode 100644\n")
        elif old != new:
            parts.append(f"rename from {old}\nrename to {new}\n")
        if hunks:
            parts.append(f"--- {f'a/{old}' if old else NOWHERE}\n+++ {f'b/{new}' if new else NOWHERE}\n")
            parts += [f"{hunk}\n" for hunk in hunks]
    return "".join(parts)


def _with_ends(content: str) -> list[str]:
    """The lines with their ends, by line feeds alone."""
    return [line for line in re.split(r"(?<=\n)", content) if line]
