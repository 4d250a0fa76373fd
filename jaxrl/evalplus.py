"""Tests of EvalPlus rows (HumanEval+ and MBPP+): inputs, and a reference solution that says what is right.

The rules are those of EvalPlus 0.3 (arXiv 2305.01210): a value is right if it is == to the reference's, or else of the
same type and close to it (numpy.allclose with rtol 1e-7 and the row's atol). An atol of 0 becomes 1e-6 at the first
input whose right value is made of floats, and stays so for the inputs after it. A call may take four seconds, or four
times as long as the reference's (the rule after 0.3.1, whose one second a busy machine exceeds). Some problems have
rules of their own.
"""

from __future__ import annotations

import json
from typing import Literal

from jaxrl.datafiles import Row
from sandbox.verdict import CheckTest, Limits

# EvalPlus' own bounds: 60 seconds for all inputs, of which each has its own limit, 4 GB, any output. The wall time is
# twice as long because the reference runs in it too.
PLUS_LIMITS = Limits(wall_s=140, cpu_s=60, memory_mb=4096, output_kb=1 << 14)

Part = Literal["base", "plus", "all"]

# JSON has lists only. What the arguments of MBPP problems are, by number.
_ARGUMENTS = {
    "[tuple(a) for a in args]": (
        2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809,
    ),
    "[[tuple(i) for i in a] for a in args]": (
        63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780,
    ),
    "[[tuple(i) for i in args[0]], args[1]]": (75, 413, 444, 753),
    "[args[0], tuple(args[1])]": (106, 750),
    "[[set(i) if isinstance(i, list) and i else {} for i in args[0]]]": (115,),
    "[float(args[0]), complex(args[1])]": (124,),
    "[tuple(args[0]), args[1]]": (250, 405, 446, 617, 720, 763, 808),
    "[complex(args[0])]": (252,),
    "[tuple(tuple(i) for i in a) for a in args]": (259, 401, 445),
    "[tuple(tuple(i) if isinstance(i, list) else i for i in args[0])]": (278,),
    "[tuple(args[0]), *args[1:3]]": (307,),
    "tupled(args)": (580, 615, 791),
    "[{k: tuple(v) for k, v in args[0].items()}, *args[1:]]": (722,),
}  # fmt: skip
# Problems with a rule of their own, by the function's name; "match" says whether out == expected.
_MBPP_RULES = {
    "are_equivalent": "True",  # Mbpp/164: the statement is ambiguous, any answer counts
    "sum_div": "match or out == 0",  # Mbpp/295
    "surface_Area": "match or abs(out - pyramid(*args)) <= atol",  # Mbpp/581: the other meaning of height
    "digit_distance_nums": "match or out == digit_distance(*args)",  # Mbpp/558: digits of unequal numbers
    **dict.fromkeys(
        ("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum",
         "intersection_array", "find_dissimilar", "Diff"),
        "set(out) == set(expected)",
    ),  # Mbpp/2, 7, 111, 140, 232, 249, 579, 769
    **dict.fromkeys(
        ("check_str", "text_match_three", "text_starta_endb"),  # Mbpp/737, 787, 794: only None or not None
        "out == (expected is not None) if isinstance(out, bool) else (out is None) == (expected is None)",
    ),
}  # fmt: skip
_HUMANEVAL_RULES = {  # HumanEval/32: any x where the polynomial vanishes
    "find_zero": "abs(sum(c * math.pow(out, i) for i, c in enumerate(args[0]))) <= atol",
}

_CHECK = '''
import copy, itertools, json, math, signal, time

def tupled(v):
    return tuple(tupled(i) for i in v) if isinstance(v, list) else v

def pyramid(edge, height):
    return round(edge**2 + 2 * edge * math.sqrt((edge / 2) ** 2 + height**2))

def digit_distance(a, b):
    pairs = itertools.zip_longest(reversed(str(a)), reversed(str(b)), fillvalue="0")
    return sum(abs(int(i) - int(j)) for i, j in pairs)

def shape(v):
    """As numpy has it; nothing but numbers of a fixed size, in rows of one length."""
    if isinstance(v, (list, tuple)):
        inner = {shape(i) for i in v}
        assert len(inner) <= 1, "rows differ in length"
        return (len(v), *(inner.pop() if inner else ()))
    assert isinstance(v, (float, complex)) or isinstance(v, int) and -(2**63) <= v < 2**64, "not a number"
    return ()

def close(out, expected, atol, depth):
    """Element by element of lists `depth` deep; one of length 1 stands for as many as needed, as numpy broadcasts."""
    if not depth:
        return out == expected or abs(out - expected) <= atol + 1e-7 * abs(expected) < math.inf
    count = max(len(out), len(expected)) if out and expected else 0
    assert len(out) in (1, count) and len(expected) in (1, count), "lengths differ"
    out, expected = (v * count if len(v) == 1 else v for v in (out, expected))
    return all([close(o, e, atol, depth - 1) for o, e in zip(out, expected)])

def all_close(out, expected, atol):
    numbers = isinstance(out, int) and isinstance(expected, int)  # alone, they may have any size
    depths = [0, 0] if numbers else [len(shape(v)) for v in (out, expected)]
    for _ in range(depths[0], depths[1]):
        out = [out]
    for _ in range(depths[1], depths[0]):
        expected = [expected]
    return close(out, expected, atol, max(depths))

def is_floats(v):
    return isinstance(v, float) or isinstance(v, (list, tuple)) and v and all(isinstance(i, float) for i in v)

class TookTooLong(Exception):
    pass

def stop(*_):
    raise TookTooLong("a call took more than four seconds and four times the reference's")

def within(seconds, function, args):
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return function(*args)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)

def check(candidate):
    namespace = {}
    exec(REFERENCE, namespace)
    reference = namespace[ENTRY_POINT]
    for inputs in json.loads(INPUTS):
        atol = ATOL
        for args in inputs:
            args = convert(args)
            copied, clock = copy.deepcopy(args), time.monotonic()
            expected = reference(*copied)
            seconds = max(4.0, 4 * (time.monotonic() - clock))
            clock = time.monotonic()
            copy.deepcopy((args, expected))  # about as much work as to send them to the candidate and back
            given = copy.deepcopy(args)  # the rule is about what was asked, whatever the candidate does to its own
            out = within(seconds + 10 * (time.monotonic() - clock), candidate, given)
            match = rule(args, out, expected, out == expected, atol)
            if ONLY_RULE:
                assert match, (args, out)
                continue
            if not atol and is_floats(expected):
                atol = 1e-6
            if not match and atol:
                assert type(out) is type(expected), (args, out, expected)
                assert not isinstance(expected, (list, tuple)) or len(out) == len(expected), (args, out, expected)
                match = all_close(out, expected, atol)
            assert match, (args, out, expected)
'''


def is_evalplus(row: Row) -> bool:
    """Whether the row has EvalPlus' fields instead of a test."""
    return "plus_input" in row.fields


def evalplus_test(row: Row, header: str = "", part: Part = "all") -> CheckTest:
    """A test over base and plus inputs, or one of them, against the canonical solution (which `header` begins).

    The reference runs beside the candidate; its answers are not part of the data.
    """
    task, _, number = row.get("task_id").partition("/")
    entry_point, humaneval = row.get("entry_point"), task == "HumanEval"
    rule = (_HUMANEVAL_RULES if humaneval else _MBPP_RULES).get(entry_point, "match")
    convert = next((how for how, ids in _ARGUMENTS.items() if not humaneval and int(number) in ids), "args")
    inputs = [row.get(f"{name}_input") for name in ("base", "plus") if part in (name, "all")]
    constants = {
        "ATOL": row.get("atol"),
        "ONLY_RULE": humaneval and rule != "match",
        "ENTRY_POINT": entry_point,
        "REFERENCE": header + row.get("canonical_solution"),
        "INPUTS": json.dumps(inputs),
    }
    lines = [f"{constant} = {value!r}" for constant, value in constants.items()]
    functions = [
        f"def convert(args):\n    return {convert}",
        f"def rule(args, out, expected, match, atol):\n    return {rule}",
    ]
    return CheckTest("\n".join([*lines, _CHECK, *functions, ""]), entry_point)
