"""Answers that edit files: a thought, and blocks that each replace some lines of a file (SWE-RL, arXiv 2502.18449).

    <think>
    Why.
    </think>
    <solution>
    ```python
    ### path/of/file.py
    <<<<<<< SEARCH
    lines as they are
    =======
    lines as they should be
    >>>>>>> REPLACE
    ```
    </solution>

The rules are those of the paper's published reward, with their oddities: a search begins at the start of a line but may
end in the middle of one, every place where it occurs is replaced, and an empty search occurs before every line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Files = Mapping[str, str]  # contents by path
TAGS = ("<think>", "</think>", "<solution>", "</solution>")
BLOCK = re.compile(
    r"```.*?\n### (?P<path>.*)\n"
    r"<<<<<<< SEARCH\n(?P<search>[\s\S]*?)\n"
    r"=======\n(?P<replace>[\s\S]*?)\n"
    r">>>>>>> REPLACE\n```"
)


LONGEST = 1 << 20  # characters of a changed file


class FormatError(ValueError):
    """An answer that is not in the format, or whose edits do not fit the files."""


class Edit(NamedTuple):
    """One block."""

    path: str
    search: str
    replace: str


def read_answer(text: str) -> tuple[str, list[Edit]]:
    """The thought and the edits, in order. Raises FormatError, also where there is no thought or no edit.

    Each tag must occur once. Their order is not checked: what is between two of them is the text from the first up to
    the second, or up to the end.
    """
    for tag in TAGS:
        if text.count(tag) != 1:
            raise FormatError(f"{tag} occurs {text.count(tag)} times, not once")
    thought, solution = (text.partition(start)[2].partition(end)[0].strip() for start, end in (TAGS[:2], TAGS[2:]))
    if not thought:
        raise FormatError("the thought is empty")
    edits = [Edit(*found.groups()) for found in BLOCK.finditer(solution)]
    if not edits:
        raise FormatError("the solution has no block")
    return thought, edits


def apply_edits(files: Files, edits: Sequence[Edit]) -> dict[str, str]:
    """The new contents of the edited files; a path that is not in `files` is a new file.

    Raises FormatError for an edit that changes nothing, or whose search is not there.
    """
    changed: dict[str, str] = {}
    for path, search, replace in edits:
        if search == replace:
            raise FormatError(f"{path}: a block replaces a text by itself")
        content = "\n" + changed.get(path, files.get(path, ""))
        if f"\n{search}" not in content:
            raise FormatError(f"{path}: a searched text is not there")
        grown = len(content) + content.count(f"\n{search}") * (len(replace) - len(search))
        if grown > LONGEST:  # blocks that double a file fill the memory in a few lines
            raise FormatError(f"{path}: the changed file has {grown} characters, more than {LONGEST}")
        changed[path] = content.replace(f"\n{search}", f"\n{replace}")[1:]
    return changed


def write_answer(thought: str, edits: Sequence[Edit], language: str = "python") -> str:
    """An answer in the format; `language` stands after each opening fence."""
    blocks = "\n\n".join(write_edit(edit, language) for edit in edits)
    return f"<think>\n{thought}\n</think>\n<solution>\n{blocks}\n</solution>"


def write_edit(edit: Edit, language: str = "python") -> str:
    """One block."""
    path, search, replace = edit
    return f"```{language}\n### {path}\n<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n```"


def edits_between(files: Files, new: Files) -> list[Edit]:
    """Small edits that change the files into the new ones, as a demonstration has them.

    Each search is extended by lines until it occurs once. Raises FormatError for a change that blocks cannot express,
    because a file has lines that look like a block's marks.
    """
    edits = [edit for path in new for edit in _edits_of(path, files.get(path, ""), new[path])]
    if edits and [Edit(*found.groups()) for found in BLOCK.finditer(write_answer("", edits))] != edits:
        raise FormatError("a file has lines that look like the marks of a block")
    return edits


def _edits_of(path: str, old: str, new: str) -> list[Edit]:
    if old == new:
        return []
    a, b = old.split("\n"), new.split("\n")
    matched = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    changes = [(i1, i2, j1, j2) for kind, i1, i2, j1, j2 in matched if kind != "equal"]
    around = (changes[0][0], changes[-1][1], changes[0][2], changes[-1][3])
    for ranges in ([_unique(a, change) for change in changes], [_unique(a, around)], [(0, len(a), 0, len(b))]):
        edits = [Edit(path, "\n".join(a[i1:i2]), "\n".join(b[j1:j2])) for i1, i2, j1, j2 in _merged(ranges)]
        try:
            if apply_edits({path: old}, edits)[path] == new:
                return edits
        except FormatError:
            continue
    raise FormatError(f"{path}: its change cannot be written as blocks")


Range = tuple[int, int, int, int]  # lines i1 .. i2 of the old file become lines j1 .. j2 of the new one


def _unique(lines: Sequence[str], change: Range) -> Range:
    """The change with as many lines around it as it takes for its old text to occur once.

    Lines are replaced by lines: where some come or go alone, the line before or after them is taken, too.
    """
    i1, i2, j1, j2 = change
    text = "\n" + "\n".join(lines)
    for upwards in [True, False] * len(lines):
        search = "\n" + "\n".join(lines[i1:i2])
        if i1 < i2 and j1 < j2 and text.find(search, text.find(search) + 1) < 0:
            break
        if upwards and i1 > 0:
            i1, j1 = i1 - 1, j1 - 1
        elif not upwards and i2 < len(lines):
            i2, j2 = i2 + 1, j2 + 1
    return i1, i2, j1, j2


def _merged(ranges: Sequence[Range]) -> list[Range]:
    """The ranges, those that overlap made one. What is between two changes has the same length in both files."""
    merged: list[Range] = []
    for i1, i2, j1, j2 in ranges:
        if merged and i1 <= merged[-1][1]:
            first = merged.pop()
            i1, i2, j1, j2 = first[0], max(first[1], i2), first[2], max(first[3], j2)
        merged.append((i1, i2, j1, j2))
    return merged
