"""Programs that differ from a right one in one place of its syntax tree: what tests must tell from it.

The operators are those of mutation testing (DeMillo, Lipton and Sayward, 1978): another comparison, arithmetic or
logical operator, a constant off by one, a condition negated, a statement deleted, arguments swapped. A mutant may do
the same as the program; whether it does is for the caller to find out.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

Change = Callable[[], Any]  # changes a node in place

_OTHER: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.And: (ast.Or,), ast.Or: (ast.And,),
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Add,), ast.Div: (ast.FloorDiv, ast.Mult),
    ast.FloorDiv: (ast.Div, ast.Mult), ast.Mod: (ast.FloorDiv,), ast.Pow: (ast.Mult,), ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,), ast.BitXor: (ast.BitOr,), ast.LShift: (ast.RShift,), ast.RShift: (ast.LShift,),
}  # fmt: skip
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sum": "len", "lower": "upper", "upper": "lower"}
_CALLS |= {"startswith": "endswith", "endswith": "startswith", "lstrip": "rstrip", "rstrip": "lstrip"}


def mutants(code: str, rng: random.Random, count: int) -> list[str]:
    """At most `count` different mutants of a program, drawn without replacement; [] where it is not Python."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = dict.fromkeys(every_mutant(without_docstrings(tree)))
    return rng.sample(list(found), min(count, len(found)))


def without_docstrings(tree: ast.Module) -> ast.Module:
    """The same tree, in which nothing is text for people only."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def every_mutant(tree: ast.Module) -> Iterator[str]:
    """All of a program, texts of the whole program; some come several times."""
    for place, node in enumerate(ast.walk(tree)):
        for number in range(len(_changes(node))):
            mutant = copy.deepcopy(tree)
            node_there = next(n for i, n in enumerate(ast.walk(mutant)) if i == place)
            _changes(node_there)[number]()
            try:
                text = ast.unparse(ast.fix_missing_locations(mutant))
                ast.parse(text)
            except (SyntaxError, ValueError):
                continue
            yield text


def _changes(node: ast.AST) -> list[Change]:
    """Functions each of which changes the node in place in one way."""
    return [*_operators(node), *_values(node), *_structure(node)]


def _operators(node: ast.AST) -> list[Change]:
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)):
        return [lambda o=o: setattr(node, "op", o()) for o in _OTHER.get(type(node.op), ())]
    if isinstance(node, ast.Compare):
        ops = node.ops
        return [lambda i=i, o=o: ops.__setitem__(i, o()) for i, op in enumerate(ops) for o in _OTHER.get(type(op), ())]
    if isinstance(node, ast.Name) and node.id in _CALLS:
        return [lambda: setattr(node, "id", _CALLS[node.id])]
    if isinstance(node, ast.Attribute) and node.attr in _CALLS:
        return [lambda: setattr(node, "attr", _CALLS[node.attr])]
    return []


def _values(node: ast.AST) -> list[Change]:
    if not isinstance(node, ast.Constant):
        return []
    value = node.value
    if isinstance(value, bool):
        others: list[Any] = [not value]
    elif isinstance(value, (int, float)):
        others = [value + 1, value - 1]
    elif isinstance(value, str):
        others = [value + " ", value[1:]] if value else [" "]
    else:
        others = []
    return [lambda o=o: setattr(node, "value", o) for o in others]


def _structure(node: ast.AST) -> list[Change]:
    found: list[Change] = []
    for name in ("body", "orelse"):
        block = getattr(node, name, None)
        if isinstance(block, list) and not isinstance(node, ast.ClassDef):
            for i, statement in enumerate(block):
                if isinstance(statement, (ast.Assign, ast.AugAssign, ast.Expr, ast.If, ast.For, ast.While, ast.Break)):
                    found.append(lambda b=block, i=i: b.__setitem__(i, ast.Pass()))
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        found.append(lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test)))
    if isinstance(node, ast.comprehension) and node.ifs:
        found.append(lambda: setattr(node, "ifs", []))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        found.append(lambda: setattr(node, "operand", ast.UnaryOp(node.op, node.operand)))  # undone
    if isinstance(node, ast.Slice):
        found += [
            lambda n=n: setattr(node, n, None) for n in ("lower", "upper", "step") if getattr(node, n) is not None
        ]
    if isinstance(node, ast.Call) and len(node.args) >= 2 and not any(isinstance(a, ast.Starred) for a in node.args):
        found.append(lambda: node.args.reverse())
    return found
