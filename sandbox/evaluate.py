"""Evaluates the expressions of tests on plain values: the part of Python that compares and measures, nothing else.

A test that has become data (sandbox/translate.py) ends in expressions such as `abs(f(2) - 1.41) < 1e-2`, in which the
program's values stand for its calls. They are walked here as syntax trees: no code is compiled, no attribute of a value
is read except for methods of texts and dictionaries, and operations whose result can be far larger than their operands
are bounded.
"""

from __future__ import annotations

import ast
import builtins
import collections
import copy
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sandbox.plain import NeedsObject, Unplain

MAX_ITEMS, MAX_BITS = 1 << 20, 1 << 17  # of what repetition, ranges and powers may give
MAX_STEPS = 1 << 20  # nodes visited for one expression


class Unsupported(Exception):
    """The expression lies outside of the subset."""


_BUILTINS = (
    "abs", "all", "any", "bool", "callable", "complex", "dict", "divmod", "enumerate", "float", "frozenset", "int",
    "isinstance", "len", "list", "max", "min", "ord", "chr", "range", "repr", "reversed", "round", "set", "sorted",
    "str", "sum", "tuple", "type", "zip", "bytes",
)  # fmt: skip
FUNCTIONS: dict[str, Any] = {
    **{name: getattr(builtins, name) for name in _BUILTINS},
    **{f"math.{name}": value for name, value in vars(math).items()
       if name[0] != "_" and name not in ("factorial", "comb", "perm", "prod", "gcd", "lcm")},
    "copy.copy": copy.copy, "copy.deepcopy": copy.deepcopy, "collections.Counter": collections.Counter,
    "collections.OrderedDict": collections.OrderedDict, "collections.deque": collections.deque,
}  # fmt: skip
MODULES = ("math", "copy", "collections")
TYPES = (bool, bytes, complex, dict, float, frozenset, int, list, range, set, str, tuple, type(None), type)
METHODS = frozenset((
    "lower", "upper", "strip", "lstrip", "rstrip", "split", "splitlines", "startswith", "endswith", "count", "find",
    "index", "isdigit", "isalpha", "isalnum", "islower", "isupper", "isspace", "title", "join", "get", "items", "keys",
    "values", "issubset", "issuperset", "isdisjoint", "union", "intersection", "difference",
))  # fmt: skip
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.LShift: operator.lshift,
    ast.RShift: operator.rshift, ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.BitXor: operator.xor,
}  # fmt: skip
_UNARY: dict[type, Callable[[Any], Any]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_, ast.Invert: operator.invert,
}  # fmt: skip
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip


def evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The value of an expression in which `names` stand for plain values.

    Raises Unsupported for what is outside of the subset or grows out of bounds, and whatever the operations of the
    expression raise (TypeError, ZeroDivisionError, ...).
    """
    return _Evaluation().value(node, names)


def can_evaluate(node: ast.AST) -> bool:
    """Whether `evaluate` knows this kind of expression; it also knows the parts that are not expressions."""
    return (
        isinstance(node, ast.Starred)
        or not isinstance(node, ast.expr)
        or hasattr(_Evaluation, f"on_{type(node).__name__.lower()}")
    )


class _Evaluation:
    def __init__(self) -> None:
        self.steps = 0

    def value(self, node: ast.expr, names: Mapping[str, Any]) -> Any:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise Unsupported("the expression takes too many steps")
        method = getattr(self, f"on_{type(node).__name__.lower()}", None)
        if method is None:
            raise Unsupported(type(node).__name__)
        return method(node, names)

    def on_constant(self, node: ast.Constant, names: Mapping[str, Any]) -> Any:
        return node.value

    def on_name(self, node: ast.Name, names: Mapping[str, Any]) -> Any:
        if node.id in names:
            return names[node.id]
        if node.id in FUNCTIONS:
            return FUNCTIONS[node.id]
        raise Unsupported(f"name {node.id}")

    def on_attribute(self, node: ast.Attribute, names: Mapping[str, Any]) -> Any:
        path = f"{node.value.id}.{node.attr}" if isinstance(node.value, ast.Name) else ""
        if path in FUNCTIONS and path.partition(".")[0] not in names:
            return FUNCTIONS[path]
        raise Unsupported(f"attribute {node.attr}")

    def on_list(self, node: ast.List, names: Mapping[str, Any]) -> list[Any]:
        return list(self._items(node.elts, names))

    def on_tuple(self, node: ast.Tuple, names: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(self._items(node.elts, names))

    def on_set(self, node: ast.Set, names: Mapping[str, Any]) -> set[Any]:
        return set(self._items(node.elts, names))

    def on_dict(self, node: ast.Dict, names: Mapping[str, Any]) -> dict[Any, Any]:
        if None in node.keys:
            raise Unsupported("** in a dictionary")
        return {self.value(k, names): self.value(v, names) for k, v in zip(node.keys, node.values) if k}

    def _items(self, nodes: Iterable[ast.expr], names: Mapping[str, Any]) -> Iterator[Any]:
        for node in nodes:
            if isinstance(node, ast.Starred):
                yield from self.value(node.value, names)
            else:
                yield self.value(node, names)

    def on_unaryop(self, node: ast.UnaryOp, names: Mapping[str, Any]) -> Any:
        return _UNARY[type(node.op)](self.value(node.operand, names))

    def on_binop(self, node: ast.BinOp, names: Mapping[str, Any]) -> Any:
        left, right = self.value(node.left, names), self.value(node.right, names)
        _bound(type(node.op), left, right)
        return _BINARY[type(node.op)](left, right) if type(node.op) in _BINARY else _unsupported(node.op)

    def on_boolop(self, node: ast.BoolOp, names: Mapping[str, Any]) -> Any:
        value = None
        for part in node.values:
            value = self.value(part, names)
            if bool(value) == isinstance(node.op, ast.Or):
                return value
        return value

    def on_compare(self, node: ast.Compare, names: Mapping[str, Any]) -> Any:
        left, value = self.value(node.left, names), True
        for op, right_node in zip(node.ops, node.comparators):
            right = self.value(right_node, names)
            value = _COMPARE[type(op)](left, right)
            if not value:
                return value
            left = right
        return value

    def on_ifexp(self, node: ast.IfExp, names: Mapping[str, Any]) -> Any:
        return self.value(node.body if self.value(node.test, names) else node.orelse, names)

    def on_subscript(self, node: ast.Subscript, names: Mapping[str, Any]) -> Any:
        return self.value(node.value, names)[self.value(node.slice, names)]

    def on_slice(self, node: ast.Slice, names: Mapping[str, Any]) -> Any:
        return slice(*(part and self.value(part, names) for part in (node.lower, node.upper, node.step)))

    def on_listcomp(self, node: ast.ListComp, names: Mapping[str, Any]) -> list[Any]:
        return list(self._loops(node.generators, node.elt, names))

    def on_setcomp(self, node: ast.SetComp, names: Mapping[str, Any]) -> set[Any]:
        return set(self._loops(node.generators, node.elt, names))

    def on_generatorexp(self, node: ast.GeneratorExp, names: Mapping[str, Any]) -> Iterator[Any]:
        return self._loops(node.generators, node.elt, names)

    def on_dictcomp(self, node: ast.DictComp, names: Mapping[str, Any]) -> dict[Any, Any]:
        pair = ast.Tuple([node.key, node.value], ast.Load())
        return dict(self._loops(node.generators, pair, names))

    def _loops(self, loops: list[ast.comprehension], item: ast.expr, names: Mapping[str, Any]) -> Iterator[Any]:
        if not loops:
            yield self.value(item, names)
            return
        for element in self.value(loops[0].iter, names):
            inner = {**names, **bind(loops[0].target, element)}
            if all(self.value(condition, inner) for condition in loops[0].ifs):
                yield from self._loops(loops[1:], item, inner)

    def on_call(self, node: ast.Call, names: Mapping[str, Any]) -> Any:
        if any(k.arg is None for k in node.keywords):
            raise Unsupported("** in a call")
        function = self._method(node.func, names) or self.value(node.func, names)
        args = list(self._items(node.args, names))
        kwargs = {str(k.arg): self.value(k.value, names) for k in node.keywords}
        if "key" in kwargs or not callable(function) or (len(args) > 1 and function is type):
            raise Unsupported("a call of this kind")
        if function in (type, repr, str) and any(map(_holds_object, args)):
            raise NeedsObject
        if any(isinstance(a, range) and len(a) > MAX_ITEMS for a in args) or (
            function in (bytes,) and any(isinstance(a, int) and a > MAX_ITEMS for a in args)
        ):
            raise Unsupported("too many items")
        return function(*args, **kwargs)

    def _method(self, node: ast.expr, names: Mapping[str, Any]) -> Callable[..., Any] | None:
        """A method of a text, list or dictionary."""
        if not isinstance(node, ast.Attribute):
            return None
        if isinstance(node.value, ast.Name) and f"{node.value.id}.{node.attr}" in FUNCTIONS:
            return None
        if node.attr not in METHODS:
            raise Unsupported(f"method {node.attr}")
        owner = self.value(node.value, names)
        if isinstance(owner, Unplain):
            raise NeedsObject
        return getattr(owner, node.attr)


def bind(target: ast.expr, value: Any) -> dict[str, Any]:
    """The names that an assignment of `value` to `target` gives. Raises Unsupported for other targets than names."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if isinstance(target, (ast.Tuple, ast.List)) and not any(isinstance(t, ast.Starred) for t in target.elts):
        values = list(value)
        if len(values) != len(target.elts):
            raise ValueError(f"{len(values)} values for {len(target.elts)} names")
        return {name: v for t, item in zip(target.elts, values) for name, v in bind(t, item).items()}
    raise Unsupported("this kind of assignment")


def _holds_object(value: Any) -> bool:
    """Whether a text made of the value would show an object that is not here."""
    if isinstance(value, dict):
        return any(map(_holds_object, (*value, *value.values())))
    if isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        return any(map(_holds_object, value))
    return isinstance(value, Unplain)


def _unsupported(node: ast.AST) -> Any:
    raise Unsupported(type(node).__name__)


def _bound(kind: type, left: Any, right: Any) -> None:
    """Raises Unsupported for results that could be far larger than both operands."""
    if kind is ast.Mod and isinstance(left, (str, bytes)):
        raise Unsupported("% of a text")
    if kind is ast.Mult:
        for items, count in ((left, right), (right, left)):
            if hasattr(items, "__len__") and isinstance(count, int) and len(items) * count > MAX_ITEMS:
                raise Unsupported(f"a repetition that gives more than {MAX_ITEMS} items")
    if not (isinstance(left, int) and isinstance(right, int)):
        return
    bits = {ast.Pow: left.bit_length() * right, ast.LShift: left.bit_length() + right,
            ast.Mult: left.bit_length() + right.bit_length()}  # fmt: skip
    if bits.get(kind, 0) > MAX_BITS:
        raise Unsupported(f"a number of more than {MAX_BITS} bits")
