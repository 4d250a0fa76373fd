"""Programs compared by their syntax trees: layout, comments, quotes and brackets do not count, docstrings do.

Of a hostile program's texts the judge makes trees only in a process that can be ended (sandbox/bounded.py).
"""

from __future__ import annotations

import ast
import warnings
from typing import Any

from sandbox.results import Result, cut_middle, digest

MAX_PROGRAM = 4000  # characters kept of a program


def tree_text(source: str) -> str | None:
    """ast.dump of the program, the same for u"" and ""; None for what is not Python, or nested too deeply."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant):
                node.kind = None
        return ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def tree_digest(source: str) -> str:
    """What TestResult.digest is for a call that gave this program; "" for what is not Python."""
    tree = tree_text(source)
    return "" if tree is None else digest(tree)


def compare(function: str, given: list[Any], value: Any, expected: Any) -> Result | None:
    """None where `value` is the `expected` program, else the failure. `given`: the call's first argument."""
    tree = tree_text(value) if isinstance(value, str) else None
    if tree is not None and isinstance(expected, str) and tree == tree_text(expected):
        return None
    asked, actual, right = (
        cut_middle(v if isinstance(v, str) else repr(v)[:MAX_PROGRAM], MAX_PROGRAM)
        for v in (given[0] if given else "", value, expected)
    )
    kind = "gave" if tree is not None else "gave what is not Python" if isinstance(value, str) else "gave no text"
    message = f"{function} of\n{asked}\n{kind}\n{actual}\nexpected\n{right}"
    wrong = {"status": "wrong_answer", "message": message, "input": asked, "expected": right, "actual": actual}
    return wrong | ({"digest": digest(tree)} if tree is not None else {})
