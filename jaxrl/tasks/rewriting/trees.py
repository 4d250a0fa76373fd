"""What the rules are written with: walks over syntax trees, names, and expressions without effects."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence

Transform = Callable[[str], str]
Block = list[ast.stmt]
Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def on_source(edit: Callable[[ast.Module], None]) -> Transform:
    """The transform of an edit of trees. A program that does not change keeps its text, comments and all."""

    def transform(source: str) -> str:
        tree = ast.parse(source)
        before = ast.dump(tree)
        edit(tree)
        return source if ast.dump(tree) == before else ast.unparse(ast.fix_missing_locations(tree))

    transform.__doc__ = edit.__doc__
    return transform


def edit_expressions(tree: ast.AST, edit: Callable[[ast.expr], ast.expr | None]) -> None:
    """Puts what `edit` gives in the place of each expression, inner ones first; None leaves it."""

    class Rewriter(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            self.generic_visit(node)
            return (edit(node) if isinstance(node, ast.expr) else None) or node

    Rewriter().visit(tree)


def edit_blocks(tree: ast.AST, edit: Callable[[Block], Block]) -> None:
    """Puts what `edit` gives in the place of each list of statements, inner ones first."""
    for node in [*ast.walk(tree)][::-1]:
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list) and block:
                setattr(node, field, edit(block))


def edit_scopes(tree: ast.Module, edit: Callable[[Scope, Block], Block]) -> None:
    """As edit_blocks, for the lists of statements of the module and of each function, without those of classes."""
    for scope in [n for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef))]:
        for node in [*_within(scope)][::-1]:
            for field in ("body", "orelse", "finalbody"):
                block = getattr(node, field, None)
                if isinstance(block, list) and block:
                    setattr(node, field, edit(scope, block))


def _within(node: ast.AST) -> Iterator[ast.AST]:
    """The node and what is in it, but not in functions and classes in it."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, SCOPES):
            yield from _within(child)


def same(a: ast.expr, b: ast.expr) -> bool:
    return ast.unparse(a) == ast.unparse(b)


def is_number(node: ast.AST, value: int) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value == value


def is_call(node: ast.AST, name: str, arguments: int) -> bool:
    """A call of the function with that many plain arguments."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == name
        and len(node.args) == arguments
        and not node.keywords
        and not any(isinstance(a, ast.Starred) for a in node.args)
    )


def names(node: ast.AST | Sequence[ast.AST], *contexts: type) -> list[str]:
    """The names in it, each as often as it stands there, read or bound (ast.Load, ast.Store, ast.Del; all of them)."""
    nodes = [node] if isinstance(node, ast.AST) else node
    found = (n for top in nodes for n in ast.walk(top) if isinstance(n, ast.Name))
    return [n.id for n in found if not contexts or isinstance(n.ctx, contexts)]


def bound(tree: ast.AST) -> set[str]:
    """All names that it binds anywhere: by assignments, functions, classes, arguments, imports, handlers."""
    found = set(names(tree, ast.Store, ast.Del))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add(alias_name(node))
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found


def alias_name(alias: ast.alias) -> str:
    """The name that an import binds."""
    return alias.asname or alias.name.split(".")[0]


def shared(scope: ast.AST) -> set[str]:
    """Names that are declared global or nonlocal in it."""
    return {n for node in ast.walk(scope) if isinstance(node, (ast.Global, ast.Nonlocal)) for n in node.names}


_ARITHMETIC = (
    ast.Name, ast.Constant, ast.Load, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.UnaryOp, ast.USub, ast.Not,
)  # fmt: skip


def is_arithmetic(node: ast.expr) -> bool:
    """Names and constants with + - * and not: no effects, and no errors on numbers."""
    return all(isinstance(n, _ARITHMETIC) for n in ast.walk(node))
