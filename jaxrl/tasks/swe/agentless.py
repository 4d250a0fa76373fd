"""Agentless mini, the pipeline around SWE-RL's model (arXiv 2502.18449), as functions: tree, patches, their choice.

    1. The model names files of the tree (environment `localize`, task.shown = "paths").
    2. It writes several patches with those files before it, in an order drawn anew for each.
    3. Of the patches that apply, those count that break the fewest regression tests, of these the ones that pass the
       most reproduction tests, and of these the patch that was given most often, up to layout and comments.

Tests are callables: contents of the changed files -> share of tests that pass. Running a repository's own tests is up
to them.
"""

from __future__ import annotations

import ast
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from jaxrl.tasks.swe.reward import changes
from rollouts.blocks import Files, FormatError, apply_edits, read_answer

Passed = Callable[[Files], float]  # new contents of the changed files -> share of the tests that pass


def tree_text(paths: Iterable[str], indent: int = 4, rng: random.Random | None = None) -> str:
    """The paths as a tree, a file or folder a line; in the order of their names, or drawn from `rng` in each folder."""
    tree: dict[str, dict] = {}
    for path in sorted(paths):
        at = tree
        for part in path.split("/"):
            at = at.setdefault(part, {})
    return "\n".join(_tree_lines(tree, indent, rng))


def _tree_lines(tree: dict[str, dict], indent: int, rng: random.Random | None) -> list[str]:
    names = rng.sample([*tree], len(tree)) if rng else [*tree]
    lines = []
    for name in names:
        lines.append(f"{name}/" if tree[name] else name)
        lines += [f"{' ' * indent}{line}" for line in _tree_lines(tree[name], indent, rng)]
    return lines


def contents_of(files: Files, text: str) -> dict[str, str] | None:
    """The new contents that an answer gives the files it changes; None where it does not apply or changes no line."""
    try:
        new = apply_edits(files, read_answer(text)[1])
    except FormatError:
        return None
    diffs = changes(files, new)
    return {path: new[path] for path in diffs} or None


def normal_patch(files: Files, new: Files) -> str:
    """A change in a form that layout, comments and docstrings of Python do not alter; "" for one of these alone."""
    pairs = {path: (_normal(path, files.get(path, "")), _normal(path, text)) for path, text in new.items()}
    diffs = changes({p: old for p, (old, _) in pairs.items()}, {p: text for p, (_, text) in pairs.items()})
    return "\n".join(f"### {path}\n{diff}" for path, diff in sorted(diffs.items()))


def _normal(path: str, text: str) -> str:
    if path.endswith(".py"):
        with suppress(SyntaxError, ValueError, RecursionError, MemoryError):  # unparsing recurses deeper than parsing
            return ast.unparse(_without_docstrings(ast.parse(text)))
    return "\n".join(line.rstrip() for line in text.splitlines())


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def choose(
    files: Files, answers: Sequence[str], regression: Passed | None = None, reproduction: Passed | None = None
) -> int | None:
    """The index of the answer that is handed in, by the rules above and then the first; None where none applies."""
    new = {i: contents for i, text in enumerate(answers) if (contents := contents_of(files, text))}
    left = [*new]
    for passed in (regression, reproduction):
        if passed is not None and left:
            shares = {i: passed(new[i]) for i in left}
            left = [i for i in left if shares[i] == max(shares.values())]
    patches = {i: normal_patch(files, new[i]) for i in left}
    votes = Counter(patches.values())
    return max(left, key=lambda i: (votes[patches[i]], -i), default=None)


def choose_reproduction(tests: Sequence[str], passed: Callable[[str], bool]) -> int | None:
    """The index of the reproduction test to use: of those that fail before any patch (`passed(test)` is False), the one
    written most often, up to layout and comments, then the first; None where all pass."""
    left = [i for i, test in enumerate(tests) if not passed(test)]
    forms = {i: _normal("test.py", tests[i]) for i in left}
    votes = Counter(forms.values())
    return max(left, key=lambda i: (votes[forms[i]], -i), default=None)
