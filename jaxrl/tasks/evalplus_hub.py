"""Rows of EvalPlus in the hub's format (evalplus/humanevalplus, evalplus/mbppplus): their test's code becomes data."""

from __future__ import annotations

import ast
import collections
import decimal
import fractions
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxrl.tasks.evalplus import HUMANEVAL_RULES, MBPP_RULES, ONLY_NONE, is_evalplus
from jaxrl.tasks.rows import DataError, Row
from sandbox.verdict import ReferenceTest


@dataclass(frozen=True)
class HubCases:
    """The tests of a hub row (evalplus/humanevalplus, evalplus/mbppplus) as data.

    inputs: the arguments of each call.
    results: the right value of each call; None where the row has a second implementation instead, `reference`.
    reference: code that defines `reference_name`; the row's own solution where it gives results.
    rule: when a value counts, as as `rule` of sandbox.verdict.ReferenceTest; "" for ==.
    """

    entry_point: str
    inputs: list[list[Any]]
    results: list[Any] | None
    reference: str
    reference_name: str
    atol: float
    rule: str


def is_hub(row: Row) -> bool:
    """Whether the row's test goes through a list of inputs, as in the hub's HumanEval+ and MBPP+."""
    return not is_evalplus(row) and bool(re.search(r"^[ \t]*inputs = \[", str(row.fields.get("test")), re.MULTILINE))


def hub_test(row: Row) -> ReferenceTest:
    """A test over all inputs of a hub row, by EvalPlus' rules."""
    cases = hub_cases(row)
    reference, name = cases.reference, cases.entry_point
    if cases.reference_name != name:
        reference += f"\n{name} = {cases.reference_name}\n"
    return ReferenceTest(
        name,
        tuple(map(tuple, cases.inputs)),
        reference="" if cases.results is not None else reference,
        expected=tuple(cases.results or ()),
        atol=cases.atol,
        rule=cases.rule,
        only_rule="entry_point" in row.fields and bool(cases.rule),
    )


def hub_cases(row: Row) -> HubCases:
    """Reads the row's test without running it. Raises DataError, with the row, for a test of another form.

    The tests are those that EvalPlus' tools/*/to_original_fmt.py write: a list `inputs`, a list `results` or a function
    `ref_func`, and a loop that calls the function and an assertion. The rules of single problems are EvalPlus' own
    (`MBPP_RULES`): as written in the rows some assert nothing.
    """
    code = row.get("test")
    tree = _parsed(row, code)
    scope = next((n.body for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "check"), tree.body)
    assigned = {ast.unparse(n.targets[0]): n.value for n in scope if isinstance(n, ast.Assign)}
    loop = next((n for n in scope if isinstance(n, ast.For)), None)
    if "inputs" not in assigned or loop is None:
        raise DataError(f"{row.where}: the test has no list of inputs and a loop over them")
    entry_point, atol = _call_of(row, loop)
    entry_point = row.fields.get("entry_point") or entry_point
    inputs = _literal(row, assigned["inputs"])
    results = _literal(row, assigned["results"]) if "results" in assigned else None
    if results is not None and len(results) != len(inputs):
        raise DataError(f"{row.where}: the test has {len(inputs)} inputs and {len(results)} results")
    reference, reference_name = _solution(row), entry_point
    if results is None:
        defined = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "ref_func"]
        if not defined:
            raise DataError(f"{row.where}: the test has neither results nor a ref_func")
        kept = [n for n in tree.body if not isinstance(n, (ast.For, ast.Assign)) and getattr(n, "name", "") != "check"]
        reference, reference_name = ast.unparse(ast.Module(kept, [])), "ref_func"
    rule = (HUMANEVAL_RULES if "entry_point" in row.fields else MBPP_RULES).get(entry_point, "")
    if rule == ONLY_NONE and results is not None:  # the rows have whether the value is something
        results = [True if result else None for result in results]
    return HubCases(entry_point, inputs, results, reference, reference_name, atol, rule)


def _solution(row: Row) -> str:
    if "entry_point" in row.fields:
        return row.get("prompt") + row.get("canonical_solution")
    return row.get("code")


def _parsed(row: Row, code: str) -> ast.Module:
    """The test's syntax; its numbers may have more digits than Python reads by default."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{row.where}: the test is not Python: {error}") from None
    finally:
        sys.set_int_max_str_digits(limit)


def _call_of(row: Row, loop: ast.For) -> tuple[str, float]:
    """The first function that a loop's assertion calls with *inp, and the tolerance that stands last in it."""
    calls = [n for n in ast.walk(loop) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    called = [
        c.func.id for c in calls if isinstance(c.func, ast.Name) and c.args and isinstance(c.args[-1], ast.Starred)
    ]
    numbers = [n.value for n in ast.walk(loop) if isinstance(n, ast.Constant) and isinstance(n.value, (int, float))]
    if not called or not numbers:
        raise DataError(f"{row.where}: the test's loop is not an assertion about a call with a tolerance")
    return called[0], float(numbers[-1])


_NAMES = {"inf": math.inf, "nan": math.nan, "math.inf": math.inf, "math.nan": math.nan, "np.inf": math.inf,
          "np.nan": math.nan}  # fmt: skip
_MAKERS: dict[str, Callable[..., Any]] = {
    "float": float, "complex": complex, "set": set, "frozenset": frozenset, "dict": dict, "list": list, "tuple": tuple,
    "range": range, "bytes": bytes, "bytearray": bytearray, "Counter": collections.Counter, "deque": collections.deque,
    "OrderedDict": collections.OrderedDict, "Decimal": decimal.Decimal, "Fraction": fractions.Fraction,
}  # fmt: skip


def _literal(row: Row, node: ast.expr) -> Any:
    """The value of an expression of plain values. Raises DataError for any other."""
    inner = partial(_literal, row)
    match node:
        case ast.Constant():
            return node.value
        case ast.List():
            return list(map(inner, node.elts))
        case ast.Tuple():
            return tuple(map(inner, node.elts))
        case ast.Set():
            return set(map(inner, node.elts))
        case ast.Dict() if None not in node.keys:
            return dict(zip(map(inner, filter(None, node.keys)), map(inner, node.values)))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            value = inner(node.operand)
            return -value if isinstance(node.op, ast.USub) else +value
        case ast.BinOp(op=ast.Add() | ast.Sub()):
            left, right = inner(node.left), inner(node.right)
            return left + right if isinstance(node.op, ast.Add) else left - right
        case ast.Name() | ast.Attribute() if ast.unparse(node) in _NAMES:
            return _NAMES[ast.unparse(node)]
        case ast.Call() if (name := ast.unparse(node.func).rsplit(".", 1)[-1]) in _MAKERS:
            with_names = {k.arg: inner(k.value) for k in node.keywords if k.arg}
            return _MAKERS[name](*map(inner, node.args), **with_names)
    raise DataError(f"{row.where}: line {node.lineno} of the test: {ast.unparse(node)[:60]} is not a plain value")
