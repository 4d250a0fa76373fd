"""Tests of EvalPlus rows (HumanEval+ and MBPP+): inputs, and a reference solution that says what is right.

Equality is EvalPlus': ==, else floats within atol (1e-6 where the data says 0 and the answer is made of floats) with
a relative tolerance of 1e-7.
"""

from __future__ import annotations

import json

from jaxrl.datafiles import Row
from sandbox.verdict import CheckTest

# MBPP: problems whose answer is a set in any order, whose answer counts as true or false, whose inputs are complex
# numbers written as strings.
_AS_SETS = frozenset(f"Mbpp/{n}" for n in (2, 7, 111, 140, 232, 249, 579, 769))
_AS_TRUTH = frozenset(f"Mbpp/{n}" for n in (737, 787, 794))
_COMPLEX = frozenset(f"Mbpp/{n}" for n in (124, 252))

_CHECK = """
def check(candidate, reference=None):
    import copy, json, math
    def plain(v):
        return [plain(i) for i in v] if isinstance(v, (list, tuple)) else v
    def tupled(v):
        return tuple(tupled(i) for i in v) if isinstance(v, list) else v
    def same(out, expected, atol):
        if AS_TRUTH:
            return (out is not None) == (expected is not None) if not isinstance(out, bool) else out == bool(expected)
        if AS_SETS and isinstance(expected, (list, tuple)):
            return set(map(str, plain(out))) == set(map(str, plain(expected)))
        if out == expected:
            return True
        floats = isinstance(expected, float) or (
            isinstance(expected, (list, tuple)) and expected and all(isinstance(e, float) for e in expected))
        atol = atol or (1e-6 if floats else 0)
        if not atol:
            lists = (list, tuple)
            return isinstance(expected, lists) and isinstance(out, lists) and plain(out) == plain(expected)
        if isinstance(expected, (list, tuple)):
            return type(out) is type(expected) and len(out) == len(expected) and all(
                same(o, e, atol) for o, e in zip(out, expected))
        return isinstance(out, (int, float)) and abs(out - expected) <= atol + 1e-7 * abs(expected)
    namespace = {}
    exec(REFERENCE, namespace)
    reference = namespace[ENTRY_POINT]
    for args in json.loads(INPUTS):
        args = [complex(a) for a in args] if COMPLEX else args
        try:
            expected = reference(*copy.deepcopy(args))
        except TypeError:
            args = [tupled(a) for a in args]
            expected = reference(*copy.deepcopy(args))
        out = candidate(*copy.deepcopy(args))
        assert CHECK_POLYNOMIAL(args, out) if CHECK_POLYNOMIAL else same(out, expected, ATOL), (args, out, expected)
"""


def is_evalplus(row: Row) -> bool:
    """Whether the row has EvalPlus' fields instead of a test."""
    return "plus_input" in row.fields


def evalplus_test(row: Row, header: str = "") -> CheckTest:
    """A test over base and plus inputs against the canonical solution (of which `header` is the beginning).

    The reference runs beside the candidate; its answers are not part of the data.
    """
    name = row.get("task_id")
    # find_zero has many right answers: any x where the polynomial vanishes.
    polynomial = (
        "lambda a, x: abs(sum(c * x**i for i, c in enumerate(a[0]))) <= 1e-4" if name == "HumanEval/32" else "None"
    )
    constants = {
        "AS_SETS": name in _AS_SETS,
        "AS_TRUTH": name in _AS_TRUTH,
        "COMPLEX": name in _COMPLEX,
        "ATOL": row.get("atol"),
        "ENTRY_POINT": row.get("entry_point"),
        "REFERENCE": header + row.get("canonical_solution"),
        "INPUTS": json.dumps([*row.get("base_input"), *row.get("plus_input")]),
    }
    lines = [f"{constant} = {value!r}" for constant, value in constants.items()]
    return CheckTest("\n".join([*lines, f"CHECK_POLYNOMIAL = {polynomial}", _CHECK]), row.get("entry_point"))
