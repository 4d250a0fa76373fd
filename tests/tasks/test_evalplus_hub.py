"""HumanEval+ and MBPP+ as the hub has them: rows whose `test` holds the inputs, built here in that format."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter

import pytest
from judging import judge_all

from jaxrl.config import TaskConfig
from jaxrl.tasks import load_task
from jaxrl.tasks.evalplus import _CONVERSIONS
from jaxrl.tasks.evalplus_hub import hub_cases, is_hub
from jaxrl.tasks.rows import DataError, Row

ASSERTION = """import numpy as np
from math import inf

def is_floats(x) -> bool:
    return isinstance(x, float) or isinstance(x, (list, tuple)) and all(isinstance(i, float) for i in x)

def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp, f"out: {out}, exp: {exp}"
"""


def read(path):
    return {row["task_id"]: row for row in map(json.loads, gzip.open(path, "rt", encoding="utf-8"))}


def results_of(row, code, inputs):
    names: dict = {}
    exec(code, names)
    return [names[row["entry_point"]](*json.loads(json.dumps(i)) if isinstance(i, list) else i) for i in inputs]


def humaneval_row(row, by_reference=False):
    """As the hub's evalplus/humanevalplus."""
    inputs = [*row["base_input"], *row["plus_input"]][:60]
    code = row["prompt"] + row["canonical_solution"]
    if by_reference:
        name = row["entry_point"]
        test = (
            f"{ASSERTION}\n{code.replace(f' {name}(', ' ref_func(')}\n\ndef check(candidate):\n    inputs = {inputs}\n"
        )
        test += "    for i, inp in enumerate(inputs):\n"
        test += f"        assertion(candidate(*inp), ref_func(*inp), {row['atol']})\n"
    else:
        results = results_of(row, code, inputs)
        test = f"{ASSERTION}\ndef check(candidate):\n    inputs = {inputs}\n    results = {results}\n"
        test += "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
        zero = row["entry_point"] == "find_zero"
        test += f"        {'assert _poly(*candidate(*inp), inp) <= ' if zero else 'assertion(candidate(*inp), exp, '}"
        test += f"{row['atol']}{'' if zero else ')'}\n"
    fields = ("task_id", "prompt", "canonical_solution", "entry_point")
    return {name: row[name] for name in fields} | {"test": test}


def mbpp_row(row):
    """As the hub's evalplus/mbppplus."""
    number = int(row["task_id"].split("/")[1])
    convert = next((how for how, ids in _CONVERSIONS.items() if number in ids), list)
    given = [*row["base_input"], *row["plus_input"]][:60]
    inputs = [list(convert(args)) for args in given]
    name = row["entry_point"]
    names: dict = {}
    exec(row["canonical_solution"], names)
    results = [names[name](*eval(repr(args), {"inf": math.inf, "nan": math.nan})) for args in inputs]
    if name in ("check_str", "text_match_three", "text_starta_endb"):
        results = [result is not None for result in results]
    call = f"assertion({name}(*inp), exp, {row['atol']})"
    if name in ("surface_Area", "digit_distance_nums"):
        call = f"assertion({name}(*inp), exp, _{name}(*inp), {row['atol']})"
    test = f"{ASSERTION}\n\ninputs = {inputs}\nresults = {results}\n"
    test += f"for i, (inp, exp) in enumerate(zip(inputs, results)):\n    {call}\n"
    asserts = ["assert" + part.rstrip(' \n"') for part in row["prompt"].split("\nassert")[1:]]
    prompt = row["prompt"].strip('" \n').split("\nassert")[0]
    return {
        "task_id": number, "code": row["canonical_solution"], "prompt": prompt, "source_file": "", "test_imports": [],
        "test_list": asserts, "test": test,
    }  # fmt: skip


def judged(name, path, rows, texts, pool):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    part = {"held_out_part": "all"} if name == "mbpp" else {}
    task = load_task(TaskConfig(name=name, path=str(path), held_out_problems=1000, **part), 0)
    assert len(task.held_out) == len(rows)

    return [r.solved for r in judge_all(task, task.held_out, texts, pool)]


def test_humaneval_rows_are_judged_by_all_inputs(data, tmp_path, pool):
    source = read(data / "evalplus" / "v0.1.10-HumanEvalPlus-Mini.jsonl.gz")
    rows = [
        humaneval_row(source[f"HumanEval/{i}"], by_reference=i in (100, 106)) for i in (0, 2, 32, 47, 100, 106, 122)
    ]
    cases = [hub_cases(Row("here:1", row)) for row in rows]
    assert all(is_hub(Row("", row)) and len(c.inputs) > 5 for row, c in zip(rows, cases))
    assert [c.results is None for c in cases] == [False, False, False, False, True, True, False]
    assert cases[2].rule and not cases[0].rule and cases[2].atol == source["HumanEval/32"]["atol"]
    right = [f"```python\n{row['prompt']}{row['canonical_solution']}\n```" for row in rows]
    assert judged("humaneval", tmp_path / "h.jsonl", rows, right, pool) == [True] * len(rows)
    wrong = [f"```python\n{row['prompt']}    return None\n```" for row in rows]
    assert judged("humaneval", tmp_path / "h.jsonl", rows, wrong, pool) == [False] * len(rows)


def test_mbpp_rows_are_judged_by_all_inputs(data, tmp_path, pool):
    """Sets for outputs, None or not, two right values, complex numbers, tuples and sets for inputs; and the usual."""
    source = read(data / "evalplus" / "MbppPlus-v0.1.0.jsonl.gz")
    numbers = [n for n in (2, 7, 11, 115, 124, 252, 558, 581, 737, 787, 629, 798, 3) if f"Mbpp/{n}" in source]
    rows = [mbpp_row(source[f"Mbpp/{n}"]) for n in numbers]
    assert all(is_hub(Row("", row)) for row in rows) and len(rows) >= 9
    right = [f"```python\n{row['code']}\n```" for row in rows]
    assert judged("mbpp", tmp_path / "m.jsonl", rows, right, pool) == [True] * len(rows)
    wrong = []
    for row in rows:  # right for the inputs of test_list alone
        name = hub_cases(Row("here:1", row)).entry_point
        known = [a for a in row["test_list"] if "==" in a and "set(" not in a]
        body = f"_known = {known!r}\n{row['code']}\n_right = {name}\ndef {name}(*a):\n"
        body += "    return _right(*a) if any(repr(a)[1:-1].rstrip(',') in k for k in _known) else 'no'\n"
        wrong.append(f"```python\n{body}```")
    assert judged("mbpp", tmp_path / "m.jsonl", rows, wrong, pool) == [False] * len(rows)


def test_values_are_read_and_nothing_is_run():
    inputs = (
        "[[float('inf'), -1e-9, inf, -inf, set(), {1, 2}, frozenset({3})], [(1+2j), 3-1j, complex(1, 2), None, True],"
        " [dict(a=1), {(1, 2): [b'x']}, Counter({'a': 2}), Counter('aab')], [range(3), float('nan'), np.inf, 'a' 'b']]"
    )
    test = (
        f"inputs = {inputs}\nresults = [1, 2, 3, {'9' * 5000}]\nfor i, (inp, exp) in enumerate(zip(inputs, results)):\n"
    )
    test += "    assertion(f(*inp), exp, 1e-05)\n"
    cases = hub_cases(Row("here:1", {"code": "def f(*_): pass", "test": test}))
    nan = cases.inputs[3].pop(1)
    assert math.isnan(nan) and cases.atol == 1e-5 and cases.entry_point == "f" and cases.reference_name == "f"
    assert cases.inputs == [
        [math.inf, -1e-9, math.inf, -math.inf, set(), {1, 2}, frozenset({3})], [1 + 2j, 3 - 1j, 1 + 2j, None, True],
        [{"a": 1}, {(1, 2): [b"x"]}, Counter("aa"), Counter("aab")], [range(3), math.inf, "ab"],
    ]  # fmt: skip
    assert cases.results and cases.results[3] == 10**5000 - 1


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("inputs = [[open('x')]]\nresults = [1]\n", "is not a plain value"),
        ("inputs = [[x for x in y]]\nresults = [1]\n", "is not a plain value"),
        ("inputs = [[1], [2]]\nresults = [1]\n", "has 2 inputs and 1 results"),
        ("inputs = [[1]]\n", "neither results nor a ref_func"),
        ("inputs = [[1]\n", "is not Python"),
    ],
)
def test_tests_of_another_form_are_named(test, message):
    loop = "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(f(*inp), exp, 0)\n"
    with pytest.raises(DataError, match=f"here:1: .*{message}"):
        hub_cases(Row("here:1", {"code": "def f(): pass", "test": test + loop}))
    with pytest.raises(DataError, match="no list of inputs and a loop"):
        hub_cases(Row("here:1", {"code": "", "test": "inputs = [[1]]\nresults = [1]\n"}))


def test_rows_of_other_formats_are_not_taken_for_these():
    assert not is_hub(Row("", {"test": "def check(candidate):\n    assert candidate(1) == 2\n"}))
    assert not is_hub(Row("", {"plus_input": [], "test": "inputs = [[1]]\n"})) and not is_hub(
        Row("", {"test_list": []})
    )
