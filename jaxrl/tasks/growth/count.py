"""What a program executes, counted: the same number each time, on any machine.

`instrumented` rewrites a program so that it counts: one for each pass of a loop or of a comprehension and each call of
one of its functions, and for what Python does in C the size of what it goes through. Straight lines cost nothing, since
they never decide how a cost grows. The table, with n the length of the object:

    sorted, list.sort                               3 n log2 n, what a merge sort in Python would count
    in (list, tuple, str), ==, <                    n, of the shorter one for comparisons
    list(), set(), sum(), min(), any(), ...         n of the argument
    list.pop(i), insert                             what is moved
    list methods, str methods                       n, except append and pop at the end: 1
    slices, +, *                                    the length of the result
    split, strip, join, int(text), float(text)      the parts, or the characters / 16 where that is more: a number in a
                                                    text is one thing, however many digits it has
    heapq.heappush, heappop, bisect                 log2 n; others of heapq and functools as sorted
    map, filter, zip, itertools                     1 for each item that is taken
    Counter, deque and others of collections        n; most_common n log2 n
    dict and set methods, in (dict, set)            1; union and the like: n of both

The rewritten program needs the names that PRELUDE defines. Both are text, so that they can be run elsewhere.
"""

from __future__ import annotations

import ast

METHOD, CONTAINS, COMPARE, SLICE, ADD, MULTIPLY, CALL, TICK = (
    "_method", "_contains", "_compare", "_slice", "_add", "_multiply", "_call", "_tick",
)  # fmt: skip

PRELUDE = """
import operator as _operator, types as _types
from functools import partial as _partial
from math import log2 as _log2
class _TooMuch(BaseException): pass
class _Counter:
    __slots__ = ("total", "limit")
_Count = _Counter()  # not a class: setting what belongs to one is slow
_Count.total, _Count.limit = 0, float("inf")
def _tick(n=1):
    _Count.total += n
    if _Count.total > _Count.limit:
        raise _TooMuch
    return True
def _size(x):
    try: return _operator.length_hint(x, 1)
    except TypeError: return 1
_SPLIT = {"split", "rsplit", "splitlines", "strip", "rstrip", "lstrip"}
def _log(n): return _log2(n) if n > 1 else 1
_LINEAR = {list, set, tuple, dict, frozenset, str, int, bytes, sum, min, max, any, all}
_ONCE = {"append", "appendleft", "popleft", "get", "add", "discard", "keys", "values", "items", "setdefault", "isdigit"}
_BOTH = {"union", "intersection", "difference", "update", "symmetric_difference", "issubset", "issuperset", "extend"}
_LOG = {"heappush", "heappop", "heapreplace", "heappushpop", "bisect", "bisect_left", "bisect_right"}
def _is_linear(f):
    try: return f in _LINEAR
    except TypeError: return False
def _through(items):
    for item in items:
        _tick()
        yield item
def _star(x):
    _tick(_size(x) or 1)
    return x
def _call(f, *args, **kwargs):
    owner = getattr(f, "__self__", None)
    if isinstance(owner, type): _tick(sum(map(_size, args)) or 1)
    elif type(f).__name__ == "builtin_function_or_method" and not isinstance(owner, (_types.ModuleType, type(None))):
        return _method(owner, f.__name__, *args, **kwargs)
    if type(f).__name__ == "method_descriptor" and args: return _method(args[0], f.__name__, *args[1:], **kwargs)
    if callable(kwargs.get("key")): kwargs["key"] = _partial(_call, kwargs["key"])
    if (f is map or f is filter) and args and callable(args[0]): args = (_partial(_call, args[0]), *args[1:])
    lazy = f is map or f is filter or f is zip or getattr(f, "__module__", "") == "itertools"
    if lazy: return _through(f(*args, **kwargs))
    if f is sorted: _tick(3 * _size(args[0]) * _log(_size(args[0])))
    elif f is int or f is float: _tick(max(sum(map(_size, args)) / 16, 1))
    elif _is_linear(f) or getattr(f, "__module__", "") == "collections": _tick(sum(map(_size, args)) or 1)
    elif getattr(f, "__name__", "") in _LOG: _tick(_log(_size(args[0])))
    elif getattr(f, "__module__", "") in ("heapq", "functools", "bisect", "_functools", "_heapq"):
        n = sum(map(_size, args)) or 1
        _tick(3 * n * _log(n))
    return f(*args, **kwargs)
def _method(x, name, *args, **kwargs):
    if isinstance(x, _types.ModuleType) or isinstance(x, type) and args:
        return _call(getattr(x, name), *args, **kwargs)
    n = _size(x)
    if callable(kwargs.get("key")): kwargs["key"] = _partial(_call, kwargs["key"])
    if name in ("sort", "most_common"): _tick(3 * n * _log(n))
    elif name in _LOG: _tick(_log(_size(args[0])))
    elif name == "pop" and isinstance(x, list): _tick(n - args[0] % n if args and n else 1)
    elif name == "insert" and isinstance(x, list): _tick(max(n - args[0], 1))
    elif name == "join":
        args = ([*args[0]],)
        _tick(max(len(args[0]), sum(map(len, args[0])) / 16, 1))
    elif name in _SPLIT and isinstance(x, str):
        y = getattr(x, name)(*args, **kwargs)
        _tick(max(len(y) if isinstance(y, list) else 1, n / 16))
        return y
    elif name in _BOTH: _tick(sum(map(_size, args)) + (0 if name in ("extend", "update") else n))
    elif isinstance(x, (list, str, tuple, bytes)) and name not in _ONCE: _tick(n or 1)
    elif name == "copy": _tick(n or 1)
    else: _tick()
    return getattr(x, name)(*args, **kwargs)
def _contains(x, y):
    _tick(_size(y) if isinstance(y, (list, tuple, str)) or type(y).__name__ == "deque" else 1)
    return x in y
_SEQUENCES = {list, tuple, str}
def _compare(f, x, y):
    if x.__class__ in _SEQUENCES and y.__class__ in _SEQUENCES: _tick(min(len(x), len(y)) or 1)
    return f(x, y)
def _slice(x, s):
    y = x[s]
    _tick(_size(y) or 1)
    return y
def _add(x, y):
    if x.__class__ in _SEQUENCES: _tick(len(x) + _size(y) or 1)
    return x + y
def _more(x, y):
    if isinstance(x, (str, tuple, bytes)): _tick(len(x) + _size(y) or 1)
    elif isinstance(x, list): _tick(_size(y) or 1)
    return y
def _multiply(x, y):
    z = x * y
    if isinstance(z, (list, tuple, str)): _tick(len(z) or 1)
    return z
"""
_ALLOWED = {"__name__", "__init__", "__main__", "__post_init__", "_"}  # beginning with an underscore
_HIDING = {
    "exec", "eval", "compile", "globals", "locals", "vars", "getattr", "setattr", "delattr", "breakpoint", "open",
    "inspect", "gc", "ctypes", "builtins", "importlib", "os", "subprocess", "threading", "multiprocessing", "numpy",
    "operator", "tracemalloc", "settrace", "setprofile", "modules", "signal", "re", "array",
}  # fmt: skip
_MODULES = {
    "sys", "math", "collections", "itertools", "functools", "heapq", "bisect", "string", "typing", "dataclasses",
    "random",
}  # fmt: skip
_COMPARISONS = {ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge"}


def instrumented(source: str) -> str:
    """The program, counting; PRELUDE must come before it. Raises SyntaxError for what is not Python."""
    tree = _Counting().visit(ast.parse(source))
    return ast.unparse(ast.fix_missing_locations(tree))


def hides_work(source: str) -> str:
    """The name by which a program could work without being counted, or change the count; "" if there is none.

    Rewards need it: the program runs in the process that counts. Raises SyntaxError for what is not Python.
    """
    for node in ast.walk(ast.parse(source)):
        if found := _uncounted(node):
            return found
        named = [getattr(node, field, None) for field in ("id", "attr", "name", "module", "asname", "arg")]
        for name in ".".join(text for text in named if isinstance(text, str)).split("."):
            if name in _HIDING or (name.startswith("_") and name not in _ALLOWED):
                return name
    return ""


def _uncounted(node: ast.AST) -> str:
    """What no count is put on: modules that are not in the table, and some forms of Python; "" for others."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        return next((name for name in names if name.split(".")[0] not in _MODULES), "")
    if isinstance(node, ast.Compare) and len(node.ops) > 1:
        return "a chained in" if any(isinstance(op, (ast.In, ast.NotIn)) for op in node.ops) else ""
    if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
        whole = isinstance(node.slice, ast.Slice) or isinstance(node.ctx, ast.Del)
        return "a slice that is assigned or deleted" if whole else ""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr} =" if node.value.id in _MODULES else ""
    return ""


def _name(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())


def _called(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(_name(name), list(arguments), [])


class _Counting(ast.NodeTransformer):
    """Puts counts where work is done."""

    def _looped(self, node: ast.For | ast.While | ast.AsyncFor) -> ast.AST:
        self.generic_visit(node)
        node.body.insert(0, ast.Expr(_called(TICK)))
        return node

    visit_For = visit_While = visit_AsyncFor = _looped

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self.generic_visit(node)
        begin = 1 if ast.get_docstring(node) is not None else 0
        node.body.insert(begin, ast.Expr(_called(TICK)))
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = _function

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self.generic_visit(node)
        node.body = ast.BoolOp(ast.And(), [_called(TICK), node.body])
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        self.generic_visit(node)
        node.ifs.insert(0, _called(TICK))
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute):
            given = [node.func.value, ast.Constant(node.func.attr), *node.args]
            return ast.Call(_name(METHOD), given, node.keywords)
        if isinstance(node.func, ast.Name) and node.func.id != "super":
            return ast.Call(_name(CALL), [node.func, *node.args], node.keywords)
        return node

    def visit_Starred(self, node: ast.Starred) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            node.value = _called("_star", node.value)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) > 1:
            return node
        (operator,), (right,) = node.ops, node.comparators
        if isinstance(operator, (ast.In, ast.NotIn)):
            found = _called(CONTAINS, node.left, right)
            return ast.UnaryOp(ast.Not(), found) if isinstance(operator, ast.NotIn) else found
        if type(operator) in _COMPARISONS:
            how = ast.Attribute(_name("_operator"), _COMPARISONS[type(operator)], ast.Load())
            return _called(COMPARE, how, node.left, right)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load) and isinstance(node.slice, ast.Slice):
            parts = [part or ast.Constant(None) for part in (node.slice.lower, node.slice.upper, node.slice.step)]
            return _called(SLICE, node.value, _called("slice", *parts))
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        how = {ast.Add: ADD, ast.Mult: MULTIPLY}.get(type(node.op))
        return _called(how, node.left, node.right) if how else node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Add) and isinstance(node.target, ast.Name):
            node.value = _called("_more", _name(node.target.id), node.value)
        return node
