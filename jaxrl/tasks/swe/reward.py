"""How similar a change of files is to the one that was made: the reward of SWE-RL (arXiv 2502.18449).

    reward = mean over the paths that either change touches of ratio(predicted diff, oracle diff)

ratio is difflib's (Ratcliff and Obershelp) without its heuristic for frequent characters; it is not symmetric. A path
that only one of them touches counts 0. An answer that is not in the format, or does not fit the files, is worth -1.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import Match, SequenceMatcher

import numpy as np

from rollouts.blocks import Files, FormatError, apply_edits, read_answer
from rollouts.unified import PatchError, diff_lines, read_patch

WRONG_FORMAT = -1.0
Changes = Mapping[str, str]  # diffs by path


def reward_of_answer(files: Files, oracle: Files, text: str, longest: int = 0) -> float:
    """The reward of an answer with search/replace blocks. `oracle` are the new contents of the files to change."""
    try:
        predicted = apply_edits(files, read_answer(text)[1])
    except FormatError:
        return WRONG_FORMAT
    return reward_of_contents(files, oracle, predicted, longest)


def reward_of_contents(files: Files, oracle: Files, predicted: Files, longest: int = 0) -> float:
    """The reward of new contents of some files, in [0, 1]."""
    return similarity(changes(files, predicted), changes(files, oracle), longest)


def reward_of_patches(oracle: str, predicted: str, longest: int = 0) -> float:
    """The reward of one unified diff by another, in [0, 1]; a text that is not a diff changes nothing."""
    return similarity(changes_of_patch(predicted), changes_of_patch(oracle), longest)


def changes(files: Files, new: Files) -> dict[str, str]:
    """The diff of each file that has other lines than before. A last line's end makes no difference."""
    made = {path: diff_lines(files.get(path, ""), content) for path, content in new.items()}
    return {path: diff for path, diff in made.items() if diff}


def changes_of_patch(text: str) -> dict[str, str]:
    """The hunks of each file of a unified diff; {} for a text that is none.

    A file that is renamed stands under its old name and says so; binary files are left out.
    """
    try:
        read = read_patch(text)
    except PatchError:
        return {}
    found = {}
    for file in read:
        if not file.binary:
            renamed = bool(file.old and file.new and file.old != file.new)
            head = [f"rename from {file.old} to {file.new}"] if renamed else []
            found[file.old or file.new] = "\n".join([*head, *(str(hunk).strip() for hunk in file.hunks)])
    return found


def similarity(predicted: Changes, oracle: Changes, longest: int = 0) -> float:
    """The mean over all paths, in [0, 1]; 1 where neither changes anything. `longest`: see `ratio`."""
    paths = sorted({*predicted, *oracle})
    ratios = [ratio(predicted.get(path, ""), oracle.get(path, ""), longest) for path in paths]
    return sum(ratios) / len(ratios) if ratios else 1.0


def ratio(predicted: str, oracle: str, longest: int = 0) -> float:
    """2 M / T for M matching of all T characters; 0 where one of the two is empty.

    Of texts of more than `longest` characters (0: no limit) only the first `longest` can match, and T counts them
    whole; equal texts are worth 1 however long they are. Two texts of 10,000 characters take a second, and the time
    grows with the square of the length.
    """
    if not predicted or not oracle:
        return 0.0
    if predicted == oracle:
        return 1.0
    end = longest or None
    blocks = _Matcher(predicted[:end], oracle[:end]).get_matching_blocks()
    return 2.0 * sum(block.size for block in blocks) / (len(predicted) + len(oracle))


class _Matcher(SequenceMatcher):
    """difflib's matcher, whose search for the longest match goes through the table of all pairs row by row in NumPy."""

    def __init__(self, a: str, b: str):
        super().__init__(None, a, b, autojunk=False)
        self._a, self._b = (np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32) for text in (a, b))

    def find_longest_match(self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None) -> Match:
        b = self._b[blo:bhi]
        run = np.zeros(len(b) + 1, np.int32)  # run[j + 1]: how many characters match up to a[i] and b[j]
        best = Match(alo, blo, 0)
        for i, character in enumerate(self._a[alo:ahi], alo):
            run[1:] = (run[:-1] + 1) * (b == character)
            j = int(run.argmax())
            if run[j] > best.size:  # the first of the longest ones, as in difflib
                size = int(run[j])
                best = Match(i + 1 - size, blo + j - size, size)
        return best
