"""Rules that change statements: what each does, and when it leaves a program alone."""

from __future__ import annotations

import ast
import re

from jaxrl.tasks.rewriting.trees import (
    SCOPES,
    Block,
    Scope,
    alias_name,
    bound,
    edit_blocks,
    edit_scopes,
    is_arithmetic,
    is_call,
    names,
    on_source,
    same,
    shared,
)

ITEM = "item"  # the name that a loop over a list gives its items


@on_source
def needless_pass(tree: ast.Module) -> None:
    """`pass` beside another statement goes."""
    edit_blocks(tree, lambda block: [s for s in block if not isinstance(s, ast.Pass)] or block[:1])


@on_source
def augmented(tree: ast.Module) -> None:
    """`x = x + y` is `x += y`, for every operator. Not where the target has a call, which would be made once less."""

    def edit(statement: ast.stmt) -> ast.stmt:
        match statement:
            case ast.Assign([target], ast.BinOp(left, op, right)) if same(target, left):
                if isinstance(target, (ast.Name, ast.Attribute, ast.Subscript)) and not _calls(target):
                    return ast.AugAssign(target, op, right)
        return statement

    edit_blocks(tree, lambda block: [edit(s) for s in block])


def _calls(node: ast.expr) -> bool:
    return any(isinstance(n, (ast.Call, ast.Await, ast.NamedExpr)) for n in ast.walk(node))


@on_source
def nested_if(tree: ast.Module) -> None:
    """An if that holds nothing but another if is one with `and`. Not where one of them has an else."""

    def edit(statement: ast.stmt) -> ast.stmt:
        match statement:
            case ast.If(outer, [ast.If(inner, body, [])], []):
                values = [v for test in (outer, inner) for v in _conditions(test)]
                return ast.If(ast.BoolOp(ast.And(), values), body, [])
        return statement

    edit_blocks(tree, lambda block: [edit(s) for s in block])


def _conditions(test: ast.expr) -> list[ast.expr]:
    """What `and` joins."""
    return test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]


@on_source
def returned_condition(tree: ast.Module) -> None:
    """`if c: return True` and then, or else, `return False` is `return c`; `bool(c)` where c may be no bool."""
    free = "bool" not in bound(tree)

    def edit(block: Block) -> Block:
        done: Block = []
        left = list(block)
        while left:
            statement = left.pop(0)
            if isinstance(statement, ast.If) and len(statement.body) == 1:
                implicit = not statement.orelse and bool(left)
                other = left[0] if implicit else statement.orelse[0] if len(statement.orelse) == 1 else None
                value = _condition(statement.test, _returned(statement.body[0]), _returned(other), free)
                if value is not None:
                    statement = ast.Return(value)
                    left = left[1:] if implicit else left
            done.append(statement)
        return done

    edit_blocks(tree, edit)


def _returned(statement: ast.stmt | None) -> bool | None:
    match statement:
        case ast.Return(ast.Constant(bool(value))):
            return value
    return None


def _condition(test: ast.expr, then: bool | None, otherwise: bool | None, free: bool) -> ast.expr | None:
    """What is returned instead; None where it is not true and false, or needs a bool() that is not Python's."""
    if then is None or otherwise is None or then == otherwise:
        return None
    if not then:
        return ast.UnaryOp(ast.Not(), test)
    if _is_bool(test):
        return test
    return ast.Call(ast.Name("bool", ast.Load()), [test], []) if free else None


def _is_bool(test: ast.expr) -> bool:
    match test:
        case ast.BoolOp(values=values):
            return all(map(_is_bool, values))
        case ast.Compare() | ast.UnaryOp(ast.Not()) | ast.Constant(bool()):
            return True
        case ast.Call(ast.Name("isinstance" | "bool" | "callable" | "any" | "all")):
            return True
    return False


@on_source
def unreachable(tree: ast.Module) -> None:
    """What stands after return, raise, break or continue goes. Not where a `yield` in it makes a generator."""

    def edit(block: Block) -> Block:
        ends = (i for i, s in enumerate(block, 1) if isinstance(s, (ast.Return, ast.Raise, ast.Break, ast.Continue)))
        end = next(ends, len(block))
        return block if any(map(_yields, block[end:])) else block[:end]

    edit_blocks(tree, edit)


def _yields(node: ast.AST) -> bool:
    if isinstance(node, SCOPES):
        return False
    return isinstance(node, (ast.Yield, ast.YieldFrom)) or any(map(_yields, ast.iter_child_nodes(node)))


@on_source
def comprehension(tree: ast.Module) -> None:
    """`r = []` and a loop that appends to it, with or without an if, is a list comprehension.

    Not where anything else is in the loop, where r is used in it, or where the loop's variables are used elsewhere.
    """

    def edit(scope: Scope, block: Block) -> Block:
        done: Block = []
        for statement in block:
            made = _comprehension(scope, done[-1], statement) if done else None
            if made:
                done[-1] = made
            else:
                done.append(statement)
        return done

    edit_scopes(tree, edit)


def _comprehension(scope: Scope, start: ast.stmt, loop: ast.stmt) -> ast.stmt | None:
    match start, loop:
        case ast.Assign([ast.Name(result)], ast.List([])), ast.For(target, source, [step], []):
            test = None
            if isinstance(step, ast.If) and len(step.body) == 1 and not step.orelse:
                test, step = step.test, step.body[0]
            match step:
                case ast.Expr(ast.Call(ast.Attribute(ast.Name(r), "append"), [value], [])) if r == result:
                    parts = [target, source, value, *([test] if test else [])]
                    variables = set(names(target))
                    outside = [n for n in names(scope) if n in variables]
                    inside = [n for n in names(loop) if n in variables]
                    if (
                        isinstance(target, (ast.Name, ast.Tuple))
                        and not _suspends(parts)
                        and result not in names(parts)
                        and len(outside) == len(inside)
                        and not variables & shared(scope)
                    ):
                        generator = ast.comprehension(target, source, [test] if test else [], 0)
                        return ast.Assign([ast.Name(result, ast.Store())], ast.ListComp(value, [generator]))
    return None


def _suspends(parts: list[ast.expr]) -> bool:
    wrong = (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)
    return any(isinstance(n, wrong) for part in parts for n in ast.walk(part)) or isinstance(parts[2], ast.Starred)


@on_source
def direct_iteration(tree: ast.Module) -> None:
    """`for i in range(len(x))` that reads `x[i]` is `for item in x`, or `for i, item in enumerate(x)` if it needs i.

    Not where x is used in any other way in the loop, where i is bound in it or used elsewhere, or `item` is used.
    """
    taken = bound(tree)
    if {"range", "len", "enumerate"} & taken:
        return

    def edit(scope: Scope, block: Block) -> Block:
        return [_direct(scope, s) or s for s in block]

    edit_scopes(tree, edit)


def _direct(scope: Scope, loop: ast.stmt) -> ast.stmt | None:
    match loop:
        case ast.For(ast.Name(i), ast.Call(args=[ast.Call(args=[ast.Name(x)]) as inner]) as outer, body, []):
            if not is_call(outer, "range", 1) or not is_call(inner, "len", 1) or i == x:
                return None
        case _:
            return None
    reads = [n for s in body for n in ast.walk(s) if _is_item(n, x, i)]
    everywhere, here = names(scope), names(body)
    plain = (
        reads
        and here.count(x) == len(reads)
        and everywhere.count(i) == here.count(i) + 1
        and i not in names(body, ast.Store, ast.Del)
        and ITEM not in {*everywhere, *bound(scope)}
        and not {i, x} & shared(scope)
        and not any(isinstance(n, SCOPES) for s in body for n in ast.walk(s))
    )
    if not plain:
        return None

    class Items(ast.NodeTransformer):
        def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
            return ast.Name(ITEM, ast.Load()) if _is_item(node, x, i) else self.generic_visit(node)

    new, item, source = [Items().visit(s) for s in body], ast.Name(ITEM, ast.Store()), ast.Name(x, ast.Load())
    if here.count(i) == len(reads):
        return ast.For(item, source, new, [])
    pair = ast.Tuple([ast.Name(i, ast.Store()), item], ast.Store())
    return ast.For(pair, ast.Call(ast.Name("enumerate", ast.Load()), [source], []), new, [])


def _is_item(node: ast.AST, x: str, i: str) -> bool:
    match node:
        case ast.Subscript(ast.Name(a), ast.Name(b), ast.Load()):
            return a == x and b == i
    return False


@on_source
def hoisted(tree: ast.Module) -> None:
    """An assignment in a loop whose value never changes there stands before the loop.

    The value is arithmetic of arguments and of names that are assigned before, in the same block. Not where the
    variable is assigned twice, read before, used outside of the loop, or changed by a method or an item.
    """

    def edit(scope: Scope, block: Block) -> Block:
        done: Block = []
        known = (
            set() if isinstance(scope, ast.Module) else {a.arg for a in ast.walk(scope.args) if isinstance(a, ast.arg)}
        )
        for statement in block:
            while isinstance(statement, (ast.For, ast.While)) and (found := _invariant(scope, statement, known)):
                statement.body.remove(found)
                done.append(found)
                known |= set(names(found, ast.Store))
            done.append(statement)
            known |= set(names(statement, ast.Store)) if isinstance(statement, ast.Assign) else set()
        return done

    edit_scopes(tree, edit)


def _invariant(scope: Scope, loop: ast.For | ast.While, known: set[str]) -> ast.Assign | None:
    changing, changed = bound(loop), shared(scope)
    for index, statement in enumerate(loop.body):
        match statement:
            case ast.Assign([ast.Name(name)], value) if is_arithmetic(value) and len(loop.body) > 1:
                later = names(loop.body[index + 1 :])
                if (
                    set(names(value)) <= known - changing
                    and name not in known | changed
                    and names(scope).count(name) == later.count(name) + 1
                    and names(scope, ast.Store).count(name) == 1
                    and not any(_changes(n, name) for s in loop.body for n in ast.walk(s))
                ):
                    return statement
    return None


def _changes(node: ast.AST, name: str) -> bool:
    match node:
        case ast.Attribute(ast.Name(n)) | ast.Subscript(ast.Name(n)):
            return n == name
    return False


@on_source
def unused(tree: ast.Module) -> None:
    """Imports and plain assignments of functions that nothing reads go, until none is left.

    Not a value with a call, a name that stands in a text, one that is global, an import in a try or in a module with
    `__all__` or a star import, nor anything in a function with locals(), vars(), eval() or exec().
    """
    before = ""
    while before != (before := ast.dump(tree)):
        kept = {w for n in ast.walk(tree) if isinstance(n, ast.Constant) for w in re.findall(r"\w+", str(n.value))}
        kept |= {n.target.id for n in ast.walk(tree) if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)}
        kept |= shared(tree)
        _remove_imports(tree, kept | set(names(tree, ast.Load, ast.Del)))
        edit_scopes(tree, lambda scope, block, kept=kept: _without_unused(scope, block, kept))


def _remove_imports(tree: ast.Module, read: set[str]) -> None:
    star = any(isinstance(n, ast.alias) and n.name == "*" for n in ast.walk(tree))
    if star or "__all__" in bound(tree):
        return
    tried = {id(s) for n in ast.walk(tree) if isinstance(n, ast.Try) for s in ast.walk(n)}

    def edit(block: Block) -> Block:
        done: Block = []
        for s in block:
            future = isinstance(s, ast.ImportFrom) and s.module == "__future__"
            if isinstance(s, (ast.Import, ast.ImportFrom)) and id(s) not in tried and not future:
                s.names = [a for a in s.names if alias_name(a) in read]
                if not s.names:
                    continue
            done.append(s)
        return done or [ast.Pass()]

    edit_blocks(tree, edit)


def _without_unused(scope: Scope, block: Block, kept: set[str]) -> Block:
    if isinstance(scope, ast.Module) or {"locals", "vars", "eval", "exec"} & set(names(scope)):
        return block
    read = kept | set(names(scope, ast.Load, ast.Del))
    return [s for s in block if not _is_unused(s, read)] or [ast.Pass()]


def _is_unused(statement: ast.stmt, read: set[str]) -> bool:
    match statement:
        case ast.Assign([ast.Name(name)], value):
            return name not in read and is_arithmetic(value)
    return False
