"""Transforms in a line: swap(before, after), patterns of Python text with $a for any expression.

    swap("not $a == $b", "$a != $b")
    swap("$a ** 2", "$a * $a", name("a"))        only where $a is a name

A program of such lines is a transform. This file goes into the sandbox with it, so that it stands on its own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["name", "no_call", "no_constant", "swap", "transform"]
HOLE = "hole_"
Holes = dict[str, ast.expr]
Guard = Callable[[Holes], bool]


class Swap(NamedTuple):
    """A rule: where `before` matches and all guards hold, `after` stands."""

    before: ast.AST
    after: ast.AST
    guards: tuple[Guard, ...] = ()


SWAPS: list[Swap] = []  # of the program that runs


def name(hole: str) -> Guard:
    """$hole is a name."""
    return lambda holes: isinstance(holes[hole], ast.Name)


def no_call(hole: str) -> Guard:
    """There is no call in $hole."""
    return lambda holes: not any(isinstance(n, ast.Call) for n in ast.walk(holes[hole]))


def no_constant(hole: str) -> Guard:
    """$hole is not a number or a text."""
    return lambda holes: not isinstance(holes[hole], ast.Constant)


def make(before: str, after: str, *guards: Guard) -> Swap:
    """The rule of two patterns, expressions or statements. Raises SyntaxError, ValueError for what is neither."""
    first, second = _pattern(before), _pattern(after)
    if isinstance(first, ast.expr) != isinstance(second, ast.expr):
        raise ValueError("both must be expressions, or both statements")
    return Swap(first, second, guards)


def swap(before: str, after: str, *guards: Guard) -> None:
    """Adds a rule to the program that runs."""
    SWAPS.append(make(before, after, *guards))


def transform(source: str) -> str:
    """The transform of the program that runs."""
    return apply(source, SWAPS)


def apply(source: str, swaps: Sequence[Swap]) -> str:
    """The program after the rules, each at every place, inner ones first. What does not change keeps its text."""
    tree = ast.parse(source)
    before = ast.dump(tree)
    for rule in swaps:
        tree = _Rewriter(rule).visit(tree)
    return source if ast.dump(tree) == before else ast.unparse(ast.fix_missing_locations(tree))


def _pattern(text: str) -> ast.AST:
    (statement,) = ast.parse(re.sub(r"\$(\w+)", rf"{HOLE}\1", text)).body
    return statement.value if isinstance(statement, ast.Expr) else statement


class _Rewriter(ast.NodeTransformer):
    def __init__(self, rule: Swap):
        self.rule = rule

    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        holes: Holes = {}
        if type(node) is not type(self.rule.before) or not _matches(self.rule.before, node, holes):
            return node
        return _filled(self.rule.after, holes) if all(guard(holes) for guard in self.rule.guards) else node


def _hole(pattern: object) -> str:
    if isinstance(pattern, ast.Name) and pattern.id.startswith(HOLE):
        return pattern.id.removeprefix(HOLE)
    return ""


def _matches(pattern: object, node: object, holes: Holes) -> bool:
    """Whether the node is the pattern; fills the holes. A hole that stands twice is the same expression twice."""
    if hole := _hole(pattern):
        return isinstance(node, ast.expr) and _text(node) == _text(holes.setdefault(hole, node))
    if isinstance(pattern, ast.expr_context):
        return True
    if isinstance(pattern, ast.AST):
        fields = pattern._fields
        return type(pattern) is type(node) and all(
            _matches(getattr(pattern, f, None), getattr(node, f, None), holes) for f in fields
        )
    if isinstance(pattern, list):
        if not isinstance(node, list) or len(node) != len(pattern):
            return False
        return all(_matches(p, n, holes) for p, n in zip(pattern, node))
    return type(pattern) is type(node) and pattern == node


def _text(node: ast.expr) -> str:
    return ast.unparse(node)


def _filled(pattern: ast.AST, holes: Holes) -> ast.AST:
    """A copy of the pattern with the expressions in its holes; one that nothing fills is an error, KeyError."""
    if hole := _hole(pattern):
        return holes[hole]
    fields = {f: getattr(pattern, f, None) for f in pattern._fields}
    for field, value in fields.items():
        if isinstance(value, ast.AST):
            fields[field] = _filled(value, holes)
        elif isinstance(value, list):
            fields[field] = [_filled(v, holes) if isinstance(v, ast.AST) else v for v in value]
    return type(pattern)(**fields)
