"""Turns test code into data: calls of the program, and what must hold of their values.

    assert add(1, 2) == 3        one call, add(1, 2), and one check, `§0 == 3`
    def check(candidate): ...    the calls and checks of its asserts, loops over literals unrolled

What has become data is judged without any test code: the calls are sent to the program's process all at once, plain
values come back, and the checks are evaluated in the judge (sandbox/evaluate.py). Code for which this would not mean
the same as running it (state between calls, handling of exceptions, attributes of results, ...) is left to an
examiner (sandbox/examiner.py). The decision depends on the test alone.
"""

from __future__ import annotations

import ast
import builtins
import collections
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeGuard

from sandbox.evaluate import FUNCTIONS, METHODS, MODULES, TYPES, Unsupported, bind, can_evaluate, evaluate
from sandbox.plain import encode

MAX_STATEMENTS = 20_000  # of one test, loops unrolled
_MUTABLE = (list, dict, set, bytearray, collections.deque)
_FLAT = {int, float, str, bool, type(None), bytes, complex}
_IGNORED = ("print",)  # calls whose only effect is to tell somebody something


class Ref:
    """Stands for the value of a call, as an argument of a later one. Nothing else can be done with it."""

    def __init__(self, call: int):
        self.call = call

    def __deepcopy__(self, memo: object) -> Ref:
        return self

    def _unknown(self, *_: object) -> Any:
        raise Unsupported("a value that is known only later")

    __eq__ = __bool__ = __len__ = __iter__ = __str__ = __repr__ = __hash__ = _unknown


class NameRef(Ref):
    """Stands for what a name of the program means: a function or class that is handed to another one."""

    def __init__(self, name: str):
        self.name = name


class Call(NamedTuple):
    """One call of the program, as its process gets it (sandbox/answers.py); arguments are encoded (sandbox/plain.py).

    function: a name of the program, or the number of an earlier call whose value is called.
    args: None to read what the name stands for instead.
    """

    function: str | int
    args: list[Any] | None
    kwargs: dict[str, Any]


class Check(NamedTuple):
    """What must hold once the first `after` calls have their values, which are §0, §1, ... in `condition`.

    values: the numbers of those that it reads; names: the test's own that it reads.
    """

    after: int
    condition: ast.expr
    values: list[int]
    names: dict[str, Any]
    source: ast.expr  # as the test's author wrote it


@dataclass
class Translated:
    """A test as data. Calls and checks alternate as the test has them."""

    calls: list[Call] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    reread: frozenset[str] = frozenset()  # the §i that are read more than once: not to be had of an iterator
    handed_on: frozenset[str] = frozenset()  # arguments of later calls, to which an iterator must come unread


@functools.lru_cache(4096)
def translate(code: str, entry_point: str = "") -> Translated | None:
    """The test as data, or None where only running it will do.

    Args:
        code: the test's statements; with an entry point they define check(candidate).
        entry_point: the name of the program's function that is given to check.
    """
    try:
        tree = ast.parse(code)
        translation = _Translation(tested_builtins(tree))
        if entry_point:
            translation.check_function(tree, entry_point)
        else:
            translation.block(tree.body)
    except (Unsupported, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError):
        return None
    except (AttributeError, AssertionError, MemoryError):  # what evaluating a test's own expressions may raise
        return None
    done = translation.done
    read = [n.id for check in done.checks for n in ast.walk(check.condition) if isinstance(n, ast.Name)]
    done.reread = frozenset(name for name, count in collections.Counter(read).items() if count > 1 and name[0] == "§")
    done.handed_on = frozenset(translation.lent_calls)
    return done


def tested_builtins(tree: ast.AST) -> set[str]:
    """Builtins' names that a test must mean as the program's, as in `assert sum(10, 15) == 6`.

    Only where a builtin is called with literals, and nothing else is called or read at all: were a program's own `abs`
    or `all` taken for a test's, it could decide the test.
    """
    literal = (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.UnaryOp, ast.USub, ast.Load)
    nodes = list(ast.walk(tree))
    called = {n.func.id if isinstance(n.func, ast.Name) else "" for n in nodes if isinstance(n, ast.Call)}
    read = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    if len(called) != 1 or called != read or not hasattr(builtins, next(iter(called))):
        return set()
    arguments = [a for n in nodes if isinstance(n, ast.Call) for a in (*n.args, *(k.value for k in n.keywords))]
    return called if all(isinstance(n, literal) for a in arguments for n in ast.walk(a)) else set()


class _Later(NamedTuple):
    """An expression over values of calls, to which the test has given a name."""

    node: ast.expr


UNKNOWN = object()  # what a name means that no data can stand for: another module, a function of the test's


class _Translation(ast.NodeTransformer):
    """Walks a test's statements as Python would, and writes down calls and checks instead of making them.

    As a NodeTransformer it replaces, in an expression, each call of the program by the name of its value.
    """

    def __init__(self, programs_builtins: set[str]):
        self.done = Translated()
        self.names: dict[str, Any] = {}  # of the test: plain values, Refs, _Laters
        self.lent: dict[int, Any] = {}  # by id, the test's values that the program may have changed
        self.lent_calls: set[str] = set()  # and those of the program's values, as §i
        self.programs = programs_builtins
        self.statements = 0

    def check_function(self, tree: ast.Module, entry_point: str) -> None:
        functions = [s for s in tree.body if isinstance(s, ast.FunctionDef) and s.name == "check"]
        if len(functions) != 1 or functions[0].decorator_list:
            raise Unsupported("no function check, or several")
        self.names["check"] = UNKNOWN
        called = ast.dump(ast.parse(f"check({entry_point})").body[0])  # by the test itself as well: once is enough
        rest = tree.body[:-1] if ast.dump(tree.body[-1]) == called else tree.body
        self.block([s for s in rest if s is not functions[0]])
        arguments = functions[0].args
        if len(arguments.args) != 1 or arguments.vararg or arguments.kwonlyargs or arguments.kwarg:
            raise Unsupported("parameters of check")
        self.names[arguments.args[0].arg] = NameRef(entry_point)
        self.block(functions[0].body)

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.statements += 1
            if self.statements > MAX_STATEMENTS:
                raise Unsupported("too many statements")
            getattr(self, f"do_{type(statement).__name__.lower()}", self.do_other)(statement)

    def do_other(self, statement: ast.stmt) -> None:
        raise Unsupported(type(statement).__name__)

    def do_pass(self, statement: ast.Pass) -> None:
        pass

    def do_functiondef(self, statement: ast.FunctionDef) -> None:
        self.names[statement.name] = UNKNOWN

    def do_import(self, statement: ast.Import) -> None:
        for alias in statement.names:
            if alias.name in MODULES and not alias.asname:
                self.names.pop(alias.name, None)
            else:
                self.names[alias.asname or alias.name.partition(".")[0]] = UNKNOWN

    def do_importfrom(self, statement: ast.ImportFrom) -> None:
        for alias in statement.names:
            if alias.name == "*":
                raise Unsupported("names that are not known")
            self.names[alias.asname or alias.name] = FUNCTIONS.get(f"{statement.module}.{alias.name}", UNKNOWN)

    def do_assert(self, statement: ast.Assert) -> None:
        condition = self.expression(statement.test)
        if _reads_program(condition):
            self.holds(condition, statement.test)
        elif not evaluate(condition, self.names):
            raise Unsupported("an assertion that fails whatever the program does")

    def holds(self, condition: ast.expr, source: ast.expr) -> None:
        names = {n.id for n in ast.walk(condition) if isinstance(n, ast.Name)}
        known = {name: self.names[name] for name in names if name in self.names}
        values = sorted(int(name[1:]) for name in names if name[0] == "§")
        self.done.checks.append(Check(len(self.done.calls), condition, values, known, source))

    def do_expr(self, statement: ast.Expr) -> None:
        value = statement.value
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in _IGNORED:
            if value.func.id in self.names:
                raise Unsupported("a name of Python's that is the test's")
            for part in (*value.args, *(k.value for k in value.keywords)):
                if any(isinstance(n, ast.Call) for n in ast.walk(part)):
                    self.expression(part)  # it may raise something
            return
        if not isinstance(value, (ast.Constant, ast.Name)):
            result = self.expression(value)
            if not isinstance(result, ast.Name):
                raise Unsupported("an expression without effect, or with one that is not known")

    def do_assign(self, statement: ast.Assign) -> None:
        value = self.expression(statement.value)
        if len(statement.targets) != 1:
            raise Unsupported("several targets")
        self.bind(statement.targets[0], value)

    def do_annassign(self, statement: ast.AnnAssign) -> None:
        if statement.value:
            self.bind(statement.target, self.expression(statement.value))

    def do_augassign(self, statement: ast.AugAssign) -> None:
        may_change = (*_MUTABLE, Ref, _Later)
        if not isinstance(statement.target, ast.Name) or isinstance(self.names.get(statement.target.id), may_change):
            raise Unsupported("a change in place")
        both = ast.BinOp(ast.Name(statement.target.id, ast.Load()), statement.op, statement.value)
        self.bind(statement.target, self.expression(both))

    def do_for(self, statement: ast.For) -> None:
        if statement.orelse:
            raise Unsupported("else of a loop")
        for item in self.constant(self.expression(statement.iter)):
            self.assign(bind(statement.target, item))
            self.block(statement.body)

    def do_if(self, statement: ast.If) -> None:
        holds = self.constant(self.expression(statement.test))
        self.block(statement.body if holds else statement.orelse)

    def bind(self, target: ast.expr, value: ast.expr) -> None:
        """An assignment of an expression in which calls of the program have been replaced."""
        names = {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}
        if not any(name[0] == "§" for name in names):
            if isinstance(value, ast.Name) and isinstance(self.names.get(value.id), _MUTABLE):
                raise Unsupported("two names for one value that can change")
            self.assign(bind(target, evaluate(value, self.names)))
            return
        if not isinstance(target, ast.Name) or any(n[0] != "§" and n in self.names for n in names):
            raise Unsupported("an assignment whose value is known only later")
        call = int(value.id[1:]) if isinstance(value, ast.Name) else None
        if call is None:
            self.holds(ast.Tuple([value], ast.Load()), value)  # true, unless it raises something
        self.assign({target.id: _Later(value) if call is None else Ref(call)})

    def assign(self, values: dict[str, Any]) -> None:
        if any(isinstance(part, Iterator) for value in values.values() for part in _parts(value)):
            raise Unsupported("an iterator, which can be read once")
        self.names.update(values)

    def constant(self, node: ast.expr) -> Any:
        if any(isinstance(n, ast.Name) and n.id[0] == "§" for n in ast.walk(node)):
            raise Unsupported("what happens depends on the program")
        return evaluate(node, self.names)

    def expression(self, node: ast.expr) -> ast.expr:
        """The expression with each call of the program, and each name for one, replaced by a name of its value."""
        return self.visit(node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """As a NodeTransformer's, on a copy: a loop's body is visited once for each round."""
        if not can_evaluate(node):
            raise Unsupported(type(node).__name__)
        fields = {
            name: [self.visit(v) for v in value] if isinstance(value, list) and value and isinstance(value[0], ast.AST)
            else self.visit(value) if isinstance(value, ast.AST) else value
            for name, value in ast.iter_fields(node)
        }  # fmt: skip
        return type(node)(**fields) if any(fields[n] is not v for n, v in ast.iter_fields(node)) else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if not _is_module(node) or node.value.id in self.names:  # type: ignore[attr-defined]
            raise Unsupported(f"attribute {node.attr}")
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        value = self.names.get(node.id)
        if node.id[0] == "§":
            return node
        if value is UNKNOWN or (self.lent and any(id(part) in self.lent for part in _parts(value))):
            raise Unsupported("what only running the test can tell")
        read = (
            value.node
            if isinstance(value, _Later)
            else ast.Name(f"§{value.call}")
            if value is not None and _is_result(value)
            else None
        )
        if read and any(isinstance(n, ast.Name) and n.id in self.lent_calls for n in ast.walk(read)):
            raise Unsupported("what only running the test can tell")
        if isinstance(value, _Later):
            return value.node
        if isinstance(value, NameRef):
            raise Unsupported("a function of the program as a value")
        if isinstance(value, Ref):
            return ast.Name(f"§{value.call}", ast.Load())
        if node.id in self.names or (node.id in FUNCTIONS and node.id not in self.programs):
            return node
        if hasattr(builtins, node.id) and node.id not in self.programs:
            raise Unsupported(f"builtin {node.id}")
        return self.made(Call(node.id, None, {}))

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS and not _is_module(node.func):
            method = ast.Attribute(self.visit(node.func.value), node.func.attr, ast.Load())
            return ast.Call(method, [self.visit(a) for a in node.args], [self.visit(k) for k in node.keywords])
        function = self.programs_function(node.func)
        if function is None:
            made = self.generic_visit(node)
            if isinstance(made, ast.Call) and _is_isinstance(made) and _reads_program(made.args[-1]):
                raise Unsupported("a class of the program's")
            return made  # type: ignore[return-value]
        if any(k.arg is None for k in node.keywords):
            raise Unsupported("** in a call of the program")
        args = [encode(item, _encode_other) for a in node.args for item in self.arguments(a)]
        kwargs = {str(k.arg): encode(self.argument(k.value), _encode_other) for k in node.keywords}
        return self.made(Call(function, args, kwargs))

    def programs_function(self, node: ast.expr) -> str | int | None:
        """What is called, if it is the program's: its name, or the number of the call whose value it is."""
        if isinstance(node, ast.Call):
            inner = self.visit_Call(node)
            if not isinstance(inner, ast.Name):
                raise Unsupported("a call of what the test computes")
            return int(inner.id[1:])
        if not isinstance(node, ast.Name):
            return None
        value = self.names.get(node.id)
        if isinstance(value, NameRef):
            return value.name
        if isinstance(value, Ref):
            return value.call
        known = node.id in self.names or (node.id in FUNCTIONS or hasattr(builtins, node.id))
        return node.id if node.id in self.programs or not known else None

    def arguments(self, node: ast.expr) -> list[Any]:
        return list(self.argument(node.value)) if isinstance(node, ast.Starred) else [self.argument(node)]

    def argument(self, node: ast.expr) -> Any:
        """An argument's value; Refs stand for values of the program."""
        if isinstance(node, ast.Name) and node.id not in self.names and node.id not in FUNCTIONS:
            if node.id not in self.programs and hasattr(builtins, node.id):
                raise Unsupported(f"builtin {node.id}")
            return NameRef(node.id)
        value = evaluate(self.expression(node), _Values(self.names))
        for part in _parts(value):
            if _is_result(part):
                self.lent_calls.add(f"§{part.call}")
            elif isinstance(part, _MUTABLE):
                self.lent[id(part)] = part
        return value

    def made(self, call: Call) -> ast.Name:
        self.done.calls.append(call)
        return ast.Name(f"§{len(self.done.calls) - 1}", ast.Load())

    def visit_Lambda(self, node: ast.Lambda) -> ast.expr:
        raise Unsupported("a function of the test's")

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        """With `or`, later calls are made only if what stands before does not hold; all calls are made ahead."""
        first = self.visit(node.values[0])
        before = len(self.done.calls)
        values = [first, *map(self.visit, node.values[1:])]
        if isinstance(node.op, ast.Or) and len(self.done.calls) > before:
            raise Unsupported("calls that may not be made")
        return ast.BoolOp(node.op, values)

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        before = len(self.done.calls)
        node = self.generic_visit(node)  # type: ignore[assignment]
        if len(self.done.calls) > before:
            raise Unsupported("calls that may not be made")
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        for op, right in zip(node.ops, node.comparators):
            constant = isinstance(right, ast.Constant) and (right.value is None or isinstance(right.value, bool))
            if isinstance(op, (ast.Is, ast.IsNot)) and not constant:
                raise Unsupported("identity")
        return self.generic_visit(node)  # type: ignore[return-value]

    def comprehension(self, node: ast.expr) -> ast.expr:
        """Its loop variables are its own; calls of the program in it would be made once for each item."""
        saved, before = dict(self.names), len(self.done.calls)
        loops = getattr(node, "generators")  # noqa: B009
        first = self.visit(loops[0].iter)
        made = len(self.done.calls)
        for loop in loops:
            own = {n.id: None for n in ast.walk(loop.target) if isinstance(n, ast.Name)}
            self.names.update(own)
        node = self.generic_visit(_with_iterable(node, first))  # type: ignore[assignment]
        self.names = saved
        if len(self.done.calls) > made or made < before:
            raise Unsupported("calls in a loop")
        return node

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = comprehension  # type: ignore[assignment]


class _Values(dict):
    """The test's names for evaluating an argument; §i are Refs."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name[0] == "§" or dict.__contains__(self, name))

    def __missing__(self, name: str) -> Ref:
        return Ref(int(name[1:]))


def _parts(value: Any) -> Iterator[Any]:
    """The value and all that it holds which can change, hold something that can, or be read once."""
    yield value
    if isinstance(value, (list, tuple, collections.deque)):
        for item in value:
            if type(item) not in _FLAT:
                yield from _parts(item)
    elif isinstance(value, dict):
        yield from _parts(list(value.values()))


def _is_result(value: Any) -> TypeGuard[Ref]:
    return isinstance(value, Ref) and not isinstance(value, NameRef)


def _encode_other(value: Any) -> Any:
    """What stands for the program's values and functions in an argument; see `decode` in sandbox/answers.py."""
    if isinstance(value, NameRef):
        return ["name", value.name]
    if isinstance(value, Ref):
        return ["result", value.call]
    if value in TYPES:
        return ["builtin", value.__name__]
    raise Unsupported("an argument that is not a plain value")


def _is_isinstance(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id == "isinstance" and bool(node.args)


def _reads_program(node: ast.expr) -> bool:
    return any(isinstance(n, ast.Name) and n.id[0] == "§" for n in ast.walk(node))


def _is_module(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and f"{node.value.id}.{node.attr}" in FUNCTIONS


def _with_iterable(node: Any, iterable: ast.expr) -> Any:
    node = type(node)(**{name: getattr(node, name) for name in node._fields})
    first = node.generators[0]
    node.generators = [ast.comprehension(first.target, iterable, first.ifs, first.is_async), *node.generators[1:]]
    return node
