"""Tests as data sets of contest problems store them, as tests of the sandbox.

Function calls come in three forms: a list of arguments (APPS), a text with the JSON of one argument a line
(LiveCodeBench), and asserts about `candidate` (LeetCodeDataset). All become calls with plain values, whose results are
compared outside of the program's process.
"""

from __future__ import annotations

import ast
import base64
import binascii
import json
import math
import pickletools
import re
import zlib
from collections.abc import Sequence
from typing import Any, Literal

from jaxrl.tasks.rows import DataError, Row, described
from sandbox.verdict import CallTest, StdioTest, Test

TOLERANCE = 1e-5
MAX_UNPACKED = 1 << 30  # bytes of a problem's private tests
STDIN, CALL = "stdin_stdout", "function_call"


class Rejected(Exception):
    """A problem that does not fit; the message is the reason under which it is counted."""


def tests_of(
    cases: Sequence[Row],
    compare: Literal["stripped", "words"] = "stripped",
    tolerance: float = TOLERANCE,
    wrapped: bool | None = None,
) -> tuple[Test, ...]:
    """The tests of {"input", "output", "type", "fn_name"}, all of one type.

    compare, tolerance: as in StdioTest; the tolerance of calls is CallTest's where this is not 0.
    wrapped: whether outputs of calls are lists that hold the value; None: where all of the problem's have one item.
    """
    kinds = {kind_of(case) for case in cases}
    if len(kinds) > 1:
        raise Rejected("mixed kinds of tests")
    if kinds <= {STDIN}:  # or none
        return tuple(StdioTest(_joined(c, "input"), _joined(c, "output"), compare, tolerance) for c in cases)
    if kinds == {CALL}:
        return _call_tests(cases, CallTest.tolerance if tolerance else 0.0, wrapped)
    raise DataError(f"{cases[0].where}: type {kinds.pop()!r} must be {STDIN} or {CALL}")


def kind_of(case: Row) -> str:
    return case.optional_text("type") or STDIN


def cases_of(part: Row, function: str = "") -> list[Row]:
    """The cases of {"inputs", "outputs", "fn_name"}, the form of APPS and TACO."""
    inputs, outputs = part.values("inputs"), part.values("outputs")
    if len(inputs) != len(outputs):
        raise Rejected("not as many outputs as inputs")
    name = part.optional_text("fn_name") or function
    kind = {"type": CALL, "fn_name": name} if name else {"type": STDIN}
    return [
        Row(f"{part.where}[{i}]", {"input": given, "output": right, **kind})
        for i, (given, right) in enumerate(zip(inputs, outputs))
    ]


def _call_tests(cases: Sequence[Row], tolerance: float, wrapped: bool | None) -> tuple[CallTest, ...]:
    outputs = []
    for case in cases:
        as_text = isinstance(case.get("input"), str) and isinstance(case.get("output"), str)
        outputs.append(_json(case, "output", case.text("output")) if as_text else case.get("output"))
    if wrapped is None:
        wrapped = all(isinstance(output, list) and len(output) == 1 for output in outputs)
    return tuple(
        CallTest(
            case.identifier("fn_name"),
            tuple(map(_with_int_keys, _arguments(case))),
            _with_int_keys(output[0] if wrapped else output),
            tolerance=tolerance,
        )
        for case, output in zip(cases, outputs)
    )


def _arguments(case: Row) -> list[Any]:
    """The arguments of a call: a list of them, or a text with the JSON of one a line."""
    if not isinstance(case.get("input"), str):
        return case.values("input")
    return [_json(case, "input", line) for line in case.text("input").split("\n") if line.strip()]


def _json(case: Row, name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{case.where}: {name} {short(text)} is not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; lists in lists
        raise DataError(f"{case.where}: {name} {short(text)} cannot be read: {error}") from None


def _with_int_keys(value: Any) -> Any:
    """A dictionary as it was before JSON made its int keys strings."""
    if isinstance(value, dict) and value and all(re.fullmatch(r"-?\d{1,18}", key) for key in value):
        return {int(key): v for key, v in value.items()}
    return value


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _joined(case: Row, field: str) -> str:
    """The text of a field, or of its lines, as which some sources give it; a line may be a number."""
    value = case.get(field)
    if not isinstance(value, list):
        return case.name(field)
    for i, line in enumerate(value):
        if not isinstance(line, str) and type(line) not in (int, float):
            raise DataError(f"{case.where}: {field}[{i}] must be a text or a number, is {described(line)}")
    return "\n".join(map(str, value))


def unpacked(row: Row, field: str) -> list[Row]:
    """Test cases as JSON, or as LiveCodeBench packs them: base64 of zlib of a pickle of JSON text."""
    text = row.text(field)
    if text.lstrip()[:1] in ("", "["):
        return row.parts(field) if text.strip() else []
    try:
        packed = zlib.decompressobj()
        data = packed.decompress(base64.b64decode(text, validate=True), MAX_UNPACKED)
        if packed.unconsumed_tail or not packed.eof:
            raise ValueError(f"more than {MAX_UNPACKED >> 20} MB, or cut off")
        return Row(row.where, {field: pickled_text(data)}).parts(field)
    except (binascii.Error, zlib.error, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{row.where}: {field} cannot be unpacked: {error}") from None


def pickled_text(data: bytes) -> str:
    """The text that a pickle holds. Nothing is executed: its opcodes are read, and only those of one text may be there.

    Raises ValueError for a pickle of anything else: unpickling it could run a program.
    """
    texts = []
    for code, argument, _ in pickletools.genops(data):
        if code.name in ("BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "UNICODE"):
            texts.append(argument)
        elif code.name not in ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP"):
            raise ValueError(f"the pickle must hold one text, has {code.name}")
    if len(texts) != 1:
        raise ValueError(f"the pickle must hold one text, has {len(texts)}")
    return texts[0]


# Calls the program's method with linked lists and trees made of plain values, and gives plain values back. The classes
# and their makers, list_node and tree_node, are those of the row's own prompt.
WITH_NODES = """

def with_nodes(*args, **kwargs):
    def made(value):
        if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in ("list_node", "tree_node"):
            (kind, values), = value.items()
            return (list_node if kind == "list_node" else tree_node)(values)
        return [made(v) for v in value] if isinstance(value, list) else value

    def plain(value):
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if hasattr(value, "left"):
            values, row = [], [value]
            for node in row:
                values.append(None if node is None else node.val)
                row.extend([] if node is None else (node.left, node.right))
            while values[-1] is None:
                values.pop()
            return {"tree_node": values}
        if hasattr(value, "next"):
            values = []
            while value is not None:
                values.append(value.val)
                value = value.next
            return {"list_node": values}
        return value

    return plain(METHOD(*map(made, args), **{name: made(v) for name, v in kwargs.items()}))
"""


def asserted_calls(code: str, order: Literal["same", "any"], method: str) -> tuple[tuple[CallTest, ...], str]:
    """The calls of LeetCodeDataset's `check(candidate)`, and what the program needs behind it to be called.

    Asserts are `candidate(x=1) == 2`, or is_same_list or is_same_tree of two such values, which are of plain values or
    made by list_node and tree_node: see WITH_NODES. Rejected for any other.
    """
    try:
        functions = [n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef) and n.name == "check"]
        calls = [_asserted(statement, order) for statement in functions[0].body] if functions else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Rejected("tests that are not plain calls") from None
    if not calls:
        raise Rejected("no tests")
    nodes = re.search(r"\b(list_node|tree_node)\(", code)
    named = tuple(CallTest("with_nodes" if nodes else method, a, e, k, order=o) for a, k, e, o in calls)
    return named, WITH_NODES.replace("METHOD", f"Solution().{method}") if nodes else ""


def _asserted(statement: ast.stmt, order: Literal["same", "any"]) -> tuple[tuple[Any, ...], dict[str, Any], Any, Any]:
    """The arguments, the named arguments, the value and its order. Raises ValueError for another statement."""
    test = statement.test if isinstance(statement, ast.Assert) else None
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], (ast.Eq, ast.Is)):
        call, right = test.left, test.comparators[0]
    elif isinstance(test, ast.Call) and _name(test) in ("is_same_list", "is_same_tree") and len(test.args) == 2:
        call, right = test.args
    else:
        raise ValueError("not an assert about a call")
    if not isinstance(call, ast.Call) or _name(call) != "candidate" or any(k.arg is None for k in call.keywords):
        raise ValueError("not a call of candidate")
    expected = _value(right)
    args = tuple(map(_value, call.args))
    kwargs = {str(k.arg): _value(k.value) for k in call.keywords}
    return args, kwargs, expected, order if isinstance(expected, list) else "same"


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _value(node: ast.expr) -> Any:
    """A literal, infinity, or {"list_node": values}; None for an empty list or tree. Raises ValueError for others."""
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        return -_value(node.operand)
    if isinstance(node, ast.Name) and node.id == "inf":
        return math.inf
    if isinstance(node, ast.Call) and _name(node) in ("list_node", "tree_node") and len(node.args) == 1:
        values = _value(node.args[0])
        while values and values[-1] is None:
            values.pop()
        return {_name(node): values} if values else None
    return ast.literal_eval(node)
