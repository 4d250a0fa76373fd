"""Near misses: a right patch without its smallest part. Tests that let it pass do not see all that was asked for."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import PurePosixPath

from jaxrl.tasks.swe.mining import CODE, OF_OTHERS

_HEAD = re.compile(r"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@(.*)", re.DOTALL)
Section = tuple[list[str], list[list[str]]]  # of one file: the lines before its hunks, and the hunks


def near_miss(patch: str) -> str:
    """The patch without the code's smallest hunk, the first of equals.

    Of a single hunk its smallest run of changed lines is left out, of a single run its last added line. "" for a patch
    of which then nothing would be left. Generated files and documents count only where there is nothing else.
    """
    sections = _sections(patch)
    places = [(s, h) for s, (_, hunks) in enumerate(sections) for h in range(len(hunks))]
    code = [(s, h) for s, h in places if _is_code(sections[s][0])] or places
    if not code:
        return ""
    s, h = min(code, key=lambda place: _changed(sections[place[0]][1][place[1]]))
    if len(code) > 1:
        del sections[s][1][h]
    else:
        smaller = _smaller(sections[s][1][h])
        if not smaller:
            return ""
        sections[s][1][h] = smaller
    return "".join(line for head, hunks in sections if hunks for line in [*head, *_renumbered(hunks)])


def _sections(patch: str) -> list[Section]:
    sections: list[Section] = []
    for line in re.findall(r".*\n|.+$", patch):  # not splitlines, which splits at more than line feeds
        if line.startswith("diff --git "):
            sections.append(([line], []))
        elif line.startswith("@@ ") and sections:
            sections[-1][1].append([line])
        elif sections:
            head, hunks = sections[-1]
            (hunks[-1] if hunks else head).append(line)
    return sections


def _is_code(head: list[str]) -> bool:
    path = head[0].rstrip().rpartition(" b/")[2].rstrip('"')
    return PurePosixPath(path).suffix in CODE and not OF_OTHERS.search(path) and not path.startswith("docs/")


def _changed(hunk: list[str]) -> int:
    return sum(line[:1] in "+-" for line in hunk[1:])


def _smaller(hunk: list[str]) -> list[str]:
    """The hunk without its smallest run of changes, or without the last added line of its only one; [] for neither."""
    lines = hunk[1:]
    runs = [list(run) for changed, run in groupby(range(len(lines)), lambda i: lines[i][:1] in "+-\\") if changed]
    if len(runs) > 1:
        left_out = {*min(runs, key=len)}
    else:
        added = [i for i in range(len(lines)) if lines[i].startswith("+")]
        left_out = {*added[-1:]} if len(added) > 1 else set()
    if not left_out:
        return []
    kept, before = [hunk[0]], True
    for i, line in enumerate(lines):
        if line.startswith("\\"):  # no newline at the end of the line before
            kept += [line] if before else []
            continue
        before = i not in left_out or line.startswith("-")
        if before:
            kept.append(line if i not in left_out else " " + line[1:])
    return kept


def _renumbered(hunks: list[list[str]]) -> list[str]:
    """The hunks with the lengths and places that they now have."""
    lines, moved = [], 0
    for hunk in hunks:
        head = _HEAD.match(hunk[0])
        assert head is not None
        old, new = (sum(line[:1] in signs for line in hunk[1:]) for signs in (" -\n", " +\n"))
        start = int(head[1])
        at = start + moved + (old == 0) - (new == 0)
        lines += [f"@@ -{start},{old} +{at},{new} @@{head[3]}", *hunk[1:]]
        moved += new - old
    return lines
