"""Reference solutions of public benchmarks: the right ones pass, the wrong ones do not."""

from __future__ import annotations

import gzip
import json

import pytest

from jaxrl.tasks.evalplus import evalplus_tests
from jaxrl.tasks.humaneval import examples
from jaxrl.tasks.rows import read_rows
from sandbox.verdict import AssertTest, CallTest, CheckTest, Limits, Program

TOO_LARGE = {"Mbpp/255"}  # its answer is a list of 582 MB, more than a program may send


def test_humaneval(pool, data):
    rows = [json.loads(line) for line in gzip.open(data / "humaneval" / "HumanEval.jsonl.gz")]
    programs = [Program(r["prompt"] + r["canonical_solution"], (CheckTest(r["test"], r["entry_point"]),)) for r in rows]
    verdicts = pool.run(programs)
    assert len(rows) == 164 and all(v.passed for v in verdicts)
    assert sum(v.tests[0].form == "values" for v in verdicts) >= 0.95 * len(rows)
    empty = [Program(r["prompt"] + "    pass\n", (CheckTest(r["test"], r["entry_point"]),)) for r in rows]
    assert not any(v.passed for v in pool.run(empty))


def test_mbpp(pool, data):
    rows = [json.loads(line) for line in open(data / "mbpp" / "mbpp.jsonl")]
    # The right program of task 123 needs seconds of CPU time.
    programs = [
        Program(r["code"], tuple(AssertTest(f"{r['test_setup_code']}\n{t}") for t in r["test_list"]), Limits(60, 30))
        for r in rows
    ]
    verdicts = pool.run(programs)
    assert len(rows) == 974 and [r["task_id"] for r, v in zip(rows, verdicts) if not v.passed] == []
    forms = [t.form for v in verdicts for t in v.tests]
    assert forms.count("values") >= 0.95 * len(forms) and set(forms) == {"values", "examined"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v0.1.10-HumanEvalPlus.jsonl.gz", "MbppPlus-v0.1.0.jsonl.gz"])
def test_evalplus(pool, data, name):
    """All base and extra inputs, with EvalPlus' equality."""
    rows = [r for r in read_rows(str(data / "evalplus" / name), "") if r.get("task_id") not in TOO_LARGE]
    headers = [r.get("prompt") if "HumanEval" in name else "" for r in rows]
    programs = [
        Program(header + r.get("canonical_solution"), evalplus_tests(r, header), Limits(120, 60, 4096))
        for r, header in zip(rows, headers)
    ]
    failed = {r.get("task_id") for r, v in zip(rows, pool.run(programs)) if not v.passed}
    assert len(rows) in (164, 398) and failed == set()


def test_an_argument_that_the_program_changes_is_still_what_was_asked(pool, data):
    """HumanEval/32 asks whether a polynomial vanishes where the program says; not one that it has made of it."""
    name = str(data / "evalplus" / "v0.1.10-HumanEvalPlus.jsonl.gz")
    (row,) = (r for r in read_rows(name, "") if r.get("entry_point") == "find_zero")
    tests = evalplus_tests(row, row.get("prompt"), "base")
    cheat = Program("def find_zero(xs):\n    xs[:] = [0]\n    return 0.0", tests, Limits(120, 60, 4096))
    assert not pool.run([cheat])[0].passed


def test_the_examples_of_the_prompts(pool, data):
    """Every right program passes what its prompt shows, but for HumanEval/116, whose prompt is wrong."""
    rows = read_rows(str(data / "humaneval" / "HumanEval.jsonl.gz"), "")
    shown = [examples(r) for r in rows]
    verdicts = pool.run([Program(r.text("prompt") + r.text("canonical_solution"), e) for r, e in zip(rows, shown)])
    assert [r.text("task_id") for r, v in zip(rows, verdicts) if not v.passed] == ["HumanEval/116"]


@pytest.mark.slow
def test_quixbugs(pool, data):
    """Every correct program passes its cases, every buggy one fails them; some by never ending."""
    rows = [json.loads(line) for line in open(data / "quixbugs" / "quixbugs.jsonl")]
    too_slow = {("knapsack", 9), ("levenshtein", 3)}  # minutes or gigabytes for the correct programs as well

    def program(row: dict, which: str) -> Program:
        tolerance = 0.5 if row["name"] == "sqrt" else 1e-6  # sqrt gets the accuracy that it must reach
        cases = [c for i, c in enumerate(row["cases"]) if (row["name"], i) not in too_slow]
        inputs = [c["input"] if isinstance(c["input"], list) else [c["input"]] for c in cases]
        tests = [CallTest(row["name"], tuple(i), c["expected"], tolerance=tolerance) for i, c in zip(inputs, cases)]
        return Program(row[which], tuple(tests), Limits(10, 5), stop_at_first_failure=True)

    assert len(rows) == 31
    correct = pool.run([program(r, "correct") for r in rows])
    assert [r["name"] for r, v in zip(rows, correct) if not v.passed] == []
    buggy = pool.run([program(r, "buggy") for r in rows])
    assert [r["name"] for r, v in zip(rows, buggy) if v.passed] == []
    assert {r["name"] for r, v in zip(rows, buggy) if v.status == "timeout"} >= {"bitcount", "sqrt"}
