"""Tests of EvalPlus rows (HumanEval+ and MBPP+): inputs, and a reference solution that says what is right.

The rules are those of EvalPlus 0.3 (arXiv 2305.01210), as sandbox.verdict.ReferenceTest has them. A call may take four
seconds, or four times as long as the reference's (the rule after 0.3.1, whose one second a busy machine exceeds). Some
problems have rules of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from jaxrl.tasks.rows import DataError, Row, described
from sandbox.verdict import Limits, ReferenceTest

# EvalPlus' own bounds: 60 seconds for all inputs, of which each has its own limit, 4 GB, any output.
PLUS_LIMITS = Limits(wall_s=60, cpu_s=60, memory_mb=4096, output_kb=1 << 14)

Part = Literal["base", "plus", "all"]

Arguments = tuple[Any, ...]

# JSON has lists only. What the arguments of MBPP problems are, by number.
_CONVERSIONS: dict[Callable[[list[Any]], Iterable[Any]], tuple[int, ...]] = {
    lambda args: map(tuple, args): (
        2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809,
    ),
    lambda args: [[tuple(i) for i in a] for a in args]: (
        63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780,
    ),
    lambda args: [[tuple(i) for i in args[0]], args[1]]: (75, 413, 444, 753),
    lambda args: [args[0], tuple(args[1])]: (106, 750),
    lambda args: [[set(i) if isinstance(i, list) and i else {} for i in args[0]]]: (115,),
    lambda args: [float(args[0]), complex(args[1])]: (124,),
    lambda args: [tuple(args[0]), args[1]]: (250, 405, 446, 617, 720, 763, 808),
    lambda args: [complex(args[0])]: (252,),
    lambda args: [tuple(map(tuple, a)) for a in args]: (259, 401, 445),
    lambda args: [tuple(tuple(i) if isinstance(i, list) else i for i in args[0])]: (278,),
    lambda args: [tuple(args[0]), *args[1:3]]: (307,),
    lambda args: _tupled(args): (580, 615, 791),
    lambda args: [{k: tuple(v) for k, v in args[0].items()}, *args[1:]]: (722,),
}  # fmt: skip
_PYRAMID = "round(args[0] ** 2 + 2 * args[0] * math.sqrt((args[0] / 2) ** 2 + args[1] ** 2))"
_DIGITS = "sum(abs(args[0] // 10 ** i % 10 - args[1] // 10 ** i % 10) for i in range(max(len(str(a)) for a in args)))"
ONLY_NONE = "out == (expected is not None) if isinstance(out, bool) else (out is None) == (expected is None)"
# Problems with a rule of their own, by the function's name; see `rule` of sandbox.verdict.ReferenceTest.
MBPP_RULES = {
    "are_equivalent": "True",  # Mbpp/164: the statement is ambiguous, any answer counts
    "sum_div": "match or out == 0",  # Mbpp/295
    "surface_Area": f"match or abs(out - {_PYRAMID}) <= atol",  # Mbpp/581: the other meaning of height
    "digit_distance_nums": f"match or out == {_DIGITS}",  # Mbpp/558: digits of unequal numbers
    **dict.fromkeys(
        ("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum",
         "intersection_array", "find_dissimilar", "Diff"),
        "set(out) == set(expected)",
    ),  # Mbpp/2, 7, 111, 140, 232, 249, 579, 769
    **dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), ONLY_NONE),  # Mbpp/737, 787, 794
}  # fmt: skip
HUMANEVAL_RULES = {  # HumanEval/32: any x where the polynomial vanishes
    "find_zero": "abs(sum(c * math.pow(out, i) for i, c in enumerate(args[0]))) <= atol",
}


BEGUN = "```python\n"  # what an answer to `messages` begins with before the model's own text
_ASKS = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
_ANSWERS = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:"
)


def messages(prompt: str) -> tuple[dict[str, str], ...]:
    """EvalPlus' own chat (evalplus 0.3.1, codegen): it asks for a script, and begins the answer up to its code."""
    asked = f"{_ASKS}\n```\n{prompt.strip()}\n```\n"
    return {"role": "user", "content": asked}, {"role": "assistant", "content": f"{_ANSWERS}\n{BEGUN}"}


def is_evalplus(row: Row) -> bool:
    """Whether the row has EvalPlus' fields instead of a test."""
    return "plus_input" in row.fields


def _calls(row: Row, field: str) -> list[list[Any]]:
    """The arguments of each call."""
    calls = row.values(field) if row.get(field) != {} else []  # as MBPP+ writes that there are none
    for i, arguments in enumerate(calls):
        if not isinstance(arguments, list):
            raise DataError(f"{row.where}: {field}[{i}] must be a list of arguments, is {described(arguments)}")
    return calls


def evalplus_tests(row: Row, header: str = "", part: Part = "all") -> tuple[ReferenceTest, ...]:
    """Tests over base and plus inputs, or one of them, against the canonical solution (which `header` begins)."""
    task, _, number = row.text("task_id").partition("/")
    if not number.isdecimal():
        raise DataError(f"{row.where}: task_id must be HumanEval/NUMBER or Mbpp/NUMBER, is {row.text('task_id')!r:.60}")
    entry_point, humaneval = row.identifier("entry_point"), task == "HumanEval"
    rule = (HUMANEVAL_RULES if humaneval else MBPP_RULES).get(entry_point, "")
    convert = next((how for how, ids in _CONVERSIONS.items() if not humaneval and int(number) in ids), list)
    return tuple(
        ReferenceTest(
            entry_point,
            tuple(tuple(convert(args)) for args in calls),
            reference=header + row.text("canonical_solution"),
            atol=row.number("atol"),
            rule=rule,
            only_rule=humaneval and bool(rule),
        )
        for name in ("base", "plus")
        if part in (name, "all") and (calls := _calls(row, f"{name}_input"))
    )


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value
