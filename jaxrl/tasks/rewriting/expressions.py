"""Rules that change expressions: what each does, and when it leaves a program alone."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Callable

from jaxrl.tasks.rewriting.trees import bound, edit_expressions, is_call, is_number, on_source

MAX_FOLDED = 1 << 64  # size of a folded number
MAX_TEXT = 80  # characters of a folded text
_NEGATED = {ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.Is: ast.IsNot}


@on_source
def negated_comparison(tree: ast.Module) -> None:
    """`not a == b` is `a != b`; so are !=, in and is. Not for chains and comparisons of comparisons."""

    def edit(node: ast.expr) -> ast.expr | None:
        match node:
            case ast.UnaryOp(ast.Not(), ast.Compare(left, [op], [right])) if type(op) in _NEGATED:
                if not isinstance(left, ast.Compare) and not isinstance(right, ast.Compare):
                    return ast.Compare(left, [_NEGATED[type(op)]()], [right])
        return None

    edit_expressions(tree, edit)


@on_source
def empty_test(tree: ast.Module) -> None:
    """`len(x) == 0` is `not x`, `len(x) > 0` and `len(x) != 0` are `x`: as a test of if or while, or in its and, or."""
    if "len" in bound(tree):
        return

    def truth(node: ast.expr) -> ast.expr:
        match node:
            case ast.BoolOp(op, values):
                return ast.BoolOp(op, [truth(v) for v in values])
            case ast.Compare(ast.Call(args=[value]) as call, [op], [zero]) if is_call(call, "len", 1):
                if is_number(zero, 0) and isinstance(op, ast.Eq):
                    return ast.UnaryOp(ast.Not(), value)
                if is_number(zero, 0) and isinstance(op, (ast.Gt, ast.NotEq)):
                    return value
        return node

    for node in ast.walk(tree):
        if isinstance(node, (ast.If, ast.While)):
            node.test = truth(node.test)


@on_source
def literal(tree: ast.Module) -> None:
    """`dict()`, `list()` and `tuple()` are `{}`, `[]` and `()`. Not with arguments, nor where the name is bound."""
    free = {"dict", "list", "tuple"} - bound(tree)

    def edit(node: ast.expr) -> ast.expr | None:
        for name, made in (("dict", ast.Dict([], [])), ("list", ast.List([], ast.Load()))):
            if name in free and is_call(node, name, 0):
                return made
        return ast.Tuple([], ast.Load()) if "tuple" in free and is_call(node, "tuple", 0) else None

    edit_expressions(tree, edit)


@on_source
def type_check(tree: ast.Module) -> None:
    """`type(x) == T` is `isinstance(x, T)`, != is its `not`. T is a name; is and `type(x) == type(y)` stay."""
    if {"type", "isinstance"} & bound(tree):
        return

    def edit(node: ast.expr) -> ast.expr | None:
        match node:
            case ast.Compare(ast.Call(args=[value]) as call, [ast.Eq() | ast.NotEq() as op], [kind]):
                if is_call(call, "type", 1) and isinstance(kind, (ast.Name, ast.Attribute)):
                    found = ast.Call(ast.Name("isinstance", ast.Load()), [value, kind], [])
                    return found if isinstance(op, ast.Eq) else ast.UnaryOp(ast.Not(), found)
        return None

    edit_expressions(tree, edit)


@on_source
def f_string(tree: ast.Module) -> None:
    """`"%s" % (a,)` and `"{}".format(a)` are `f"{a}"`. Fields are plain (%s, {}, {0}, {name}), values have no text."""

    def edit(node: ast.expr) -> ast.expr | None:
        match node:
            case ast.BinOp(ast.Constant(str(text)), ast.Mod(), ast.Tuple(values)):
                return _percent(text, values)
            case ast.Call(ast.Attribute(ast.Constant(str(text)), "format"), values, keywords):
                return _format(text, values, keywords)
        return None

    edit_expressions(tree, edit)


def _percent(text: str, values: list[ast.expr]) -> ast.expr | None:
    pieces = re.split(r"%(.?)", text, flags=re.DOTALL)
    kinds = [kind for kind in pieces[1::2] if kind != "%"]
    if any(kind != "s" for kind in kinds) or len(kinds) != len(values) or not all(map(_is_simple, values)):
        return None
    parts: list[ast.expr | str] = [pieces[0]]
    left = iter(values)
    for kind, after in zip(pieces[1::2], pieces[2::2]):
        parts += ["%" if kind == "%" else next(left), after]
    return _joined(parts)


def _format(text: str, values: list[ast.expr], keywords: list[ast.keyword]) -> ast.expr | None:
    try:
        fields = [*string.Formatter().parse(text)]
    except ValueError:
        return None
    by_name: dict[str, ast.expr] = {str(i): v for i, v in enumerate(values)}
    by_name |= {k.arg: k.value for k in keywords if k.arg}
    parts: list[ast.expr | str] = []
    used: list[str] = []
    for before, name, spec, conversion in fields:
        parts.append(before)
        if name is None:
            continue
        key = name or str(len(used))
        if spec or conversion or key not in by_name:
            return None
        used.append(key)
        parts.append(by_name[key])
    plain = len(by_name) == len(values) + len(keywords) and sorted(used) == sorted(by_name)
    return _joined(parts) if plain and all(map(_is_simple, by_name.values())) else None


def _is_simple(value: ast.expr) -> bool:
    """Whether every Python reads it inside of an f-string: no quotes, backslashes, brackets of sets or dictionaries."""
    return not isinstance(value, ast.Starred) and not re.search(r"['\"\\{}#:!]", ast.unparse(value))


def _joined(parts: list[ast.expr | str]) -> ast.expr | None:
    """The f-string of these; None where it would have no field."""
    if all(isinstance(part, str) for part in parts):
        return None
    values: list[ast.expr] = []
    for part in parts:
        if not isinstance(part, str):
            values.append(ast.FormattedValue(part, -1))
        elif part and values and isinstance(values[-1], ast.Constant):
            values[-1] = ast.Constant(str(values[-1].value) + part)
        elif part:
            values.append(ast.Constant(part))
    return ast.JoinedStr(values)


@on_source
def folded_constants(tree: ast.Module) -> None:
    """+ - * // % ** of whole numbers, + of texts and text * number, as their value. Not of bools, nor what is large."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # may become docstrings

    def edit(node: ast.expr) -> ast.expr | None:
        if not isinstance(node, ast.BinOp) or id(node) in alone:
            return None
        value = _folded(_constant(node.left), node.op, _constant(node.right))
        if value is None:
            return None
        if isinstance(value, int) and value < 0:
            return ast.UnaryOp(ast.USub(), ast.Constant(-value))
        return ast.Constant(value)

    edit_expressions(tree, edit)


def _constant(node: ast.expr) -> int | str | None:
    match node:
        case ast.Constant(int() | str() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() as value)) if not isinstance(value, bool):
            return -value
    return None


_NUMBERS: dict[type, Callable[[int, int], int]] = {
    ast.Add: int.__add__, ast.Sub: int.__sub__, ast.Mult: int.__mul__, ast.FloorDiv: int.__floordiv__,
    ast.Mod: int.__mod__, ast.Pow: int.__pow__,
}  # fmt: skip


def _folded(a: int | str | None, op: ast.operator, b: int | str | None) -> int | str | None:
    if isinstance(a, int) and isinstance(b, int) and type(op) in _NUMBERS:
        if (isinstance(op, (ast.FloorDiv, ast.Mod)) and b == 0) or (isinstance(op, ast.Pow) and not 0 <= b <= 64):
            return None
        value = _NUMBERS[type(op)](a, b) if max(abs(a), abs(b)) < MAX_FOLDED else MAX_FOLDED
        return value if abs(value) < MAX_FOLDED else None
    if isinstance(a, str) and isinstance(b, str) and isinstance(op, ast.Add):
        return a + b if len(a) + len(b) <= MAX_TEXT else None
    if isinstance(a, str) and isinstance(b, int) and isinstance(op, ast.Mult):
        return a * b if len(a) * b <= MAX_TEXT else None
    return None


@on_source
def strength(tree: ast.Module) -> None:
    """`x ** 2` is `x * x` and `x * 2` is `x + x`, where x is a name: anything else would be computed twice."""

    def edit(node: ast.expr) -> ast.expr | None:
        match node:
            case ast.BinOp(ast.Name(name), ast.Pow() | ast.Mult() as op, right) if is_number(right, 2):
                cheap = ast.Mult() if isinstance(op, ast.Pow) else ast.Add()
                return ast.BinOp(ast.Name(name, ast.Load()), cheap, ast.Name(name, ast.Load()))
        return None

    edit_expressions(tree, edit)
