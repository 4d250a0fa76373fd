"""Seeds: pieces of Python code that questions are made from."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxrl.tasks.extract import normal_form
from jaxrl.tasks.rows import DataError, expanded, read_rows

LEAST_LINES, MOST_LINES = 3, 80  # of a function that is cut out of a file


class Seed(NamedTuple):
    """A piece of code and, where it answers one, its instruction."""

    id: str
    source: str
    code: str
    instruction: str = ""


def read_seeds(path: str, count: int, rejected: Counter[str]) -> list[Seed]:
    """The first `count` seeds (0: all) of a folder of .py files or a file of rows with "code"; others are counted.

    A row may have "id", "source" and "instruction". Code that says the same but for its layout is a seed once. Raises
    DataError where none is left.
    """
    folder = expanded(path)
    found = _of_folder(folder, rejected) if folder.is_dir() else _of_rows(path, rejected)
    seeds: dict[str, Seed] = {}
    for seed in found:
        form = normal_form(seed.code) or seed.code
        if form in seeds:
            rejected["seed: duplicate"] += 1
        else:
            seeds[form] = seed
        if len(seeds) == count:
            break
    if not seeds:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in rejected.items())
        raise DataError(f"synthesis.path = {path!r} has no seeds ({reasons or 'no .py files'})")
    return list(seeds.values())


def _of_rows(path: str, rejected: Counter[str]) -> Iterator[Seed]:
    for row in read_rows(path):
        code = row.text("code", "content", "solution")
        reason = "" if (tree := _parsed(code)) is not None else "seed: not Python"
        if tree is not None and not any(isinstance(n, (ast.FunctionDef, ast.ClassDef)) for n in tree.body):
            reason = "seed: no function or class"
        if reason:
            rejected[reason] += 1
            continue
        source = row.optional_text("source") or Path(path).name.partition(".")[0]
        name = row.name("id") if "id" in row.fields else f"{source}_{_digest(code)}"
        yield Seed(name, source, code, row.optional_text("instruction"))


def _of_folder(folder: Path, rejected: Counter[str]) -> Iterator[Seed]:
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text("utf-8", "replace")
        tree = _parsed(text)
        if tree is None:
            rejected["seed: file is not Python"] += 1
            continue
        for code in cut_functions(text, tree, rejected):
            yield Seed(f"{folder.name}_{_digest(code)}", folder.name, code)


def cut_functions(text: str, tree: ast.Module, rejected: Counter[str]) -> Iterator[str]:
    """The source of each plain function at the top of a file, with its decorators; others are counted."""
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        lines = text.splitlines()[start - 1 : node.end_lineno]
        arguments = node.args
        taken = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
        gives = any(isinstance(n, ast.Return) and n.value is not None for n in ast.walk(node))
        if isinstance(node, ast.AsyncFunctionDef) or node.name.startswith("test"):
            rejected["seed: a test, or async"] += 1
        elif not LEAST_LINES <= len(lines) <= MOST_LINES:
            rejected[f"seed: not {LEAST_LINES} to {MOST_LINES} lines"] += 1
        elif not gives or not (taken or arguments.vararg):
            rejected["seed: takes or returns nothing"] += 1
        else:
            yield "\n".join(lines)


def _parsed(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode("utf-8", "replace")).hexdigest()[:12]
