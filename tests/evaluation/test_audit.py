"""The audit of tests: which mutants pass, how wrong ones are known, duplicates and contradictions."""

from __future__ import annotations

import ast
import json
from itertools import product

import pytest

from jaxrl.audit import main
from jaxrl.evaluation.audit import audit_problems, contradictions, duplicates, generated_inputs, shape_of, summary
from jaxrl.tasks.mutants import every_mutant
from rollouts.episode import Problem
from sandbox.verdict import AssertTest, CallTest, CheckTest

CODE = "def f(x, y):\n    if x > 2:\n        return x + y\n    return x * y"


def problem(name: str, *asserts: str, code: str = CODE) -> Problem:
    return Problem(name, ({"role": "user", "content": name},), tests=tuple(map(AssertTest, asserts)),
                   demonstration=f"```python\n{code}\n```")  # fmt: skip


def behaviour(code: str) -> list:
    """What a program gives for all small arguments."""
    names: dict = {}
    exec(code, names)
    return [names["f"](x, y) for x, y in product(range(-6, 13), repeat=2)]


def test_survivors_are_told_from_the_reference(pool):
    """Against all mutants and an exhaustive search: one weak test, and all tests of the stronger problem."""
    weak = problem("p", "assert f(3, 2) == 5")
    strong = problem("p", *(f"assert f({x}, {y}) == {x + y if x > 2 else x * y}" for x in (2, 3, 4) for y in (-1, 3)))
    (plain,) = audit_problems([weak], pool, count=100)
    (found,) = audit_problems([weak], pool, count=100, stronger=[strong])
    every = set(every_mutant(ast.parse(CODE)))
    assert found.tried == {"mutant": len(every)}
    passing = {text for text in every if behaves(text, 3, 2) == 5}
    assert {s.program for s in found.survivors} == {s.program for s in plain.survivors} == passing != set()
    for s in found.survivors:
        rejected = any(behaves(s.program, x, y) != behaves(CODE, x, y) for x in (2, 3, 4) for y in (-1, 3))
        assert s.rejected == rejected
    for s in plain.survivors:
        alike = behaviour(s.program) == behaviour(CODE)
        assert s.kind == ("not told apart" if alike else "different"), s.program
        if s.input:
            x, y = ast.literal_eval(s.input.removeprefix("f"))
            assert (repr(behaves(CODE, x, y)), repr(behaves(s.program, x, y))) == s.gives
    counts = summary([found])
    assert counts["mutants that pass"] == len(passing)
    assert counts["problems that let a certainly wrong program pass"] == 1


def behaves(code: str, x: int, y: int):
    names: dict = {}
    exec(code, names)
    return names["f"](x, y)


def test_a_models_programs_are_tried_too(pool):
    same = "def f(a, b): return a + b if a > 2 else a * b"
    samples = {"p": [same, "def f(x, y): return 5", "def f(x, y): return 0", same]}
    (found,) = audit_problems([problem("p", "assert f(3, 2) == 5")], pool, count=0, samples=samples)
    assert found.tried == {"sample": 3}
    kinds = {s.program: s.kind for s in found.survivors}
    assert kinds == {same: "not told apart", "def f(x, y): return 5": "different"}
    assert summary([found])["samples that pass: different"] == 1


def test_references_that_fail_are_not_audited(pool):
    wrong, none = problem("w", "assert f(3, 2) == 6"), Problem("n", tests=(AssertTest("assert f(1, 1)"),))
    weak = problem("p", "assert f(3, 2) == 5")
    found = audit_problems([wrong, weak, none], pool, count=3, stronger=[problem("p", "assert f(1, 1) == 9")])
    assert [a.problem.id for a in found] == ["w", "p"]
    assert found[0].failure.startswith("wrong_answer") and not found[0].tried
    assert found[1].stronger is None and not found[1].failure  # its reference fails the stronger tests
    assert summary(found)["references that fail"] == 1


def test_inputs_keep_their_types():
    calls = [CallTest("f", ([1, 2], "ab"), 1), CallTest("f", ([], ""), 0)]
    inputs = generated_inputs(Problem("p", tests=tuple(calls)))
    assert len(inputs) > 20 and len({repr(i.args) for i in inputs}) == len(inputs)
    assert all(isinstance(i.args[0], list) and isinstance(i.args[1], str) for i in inputs)
    check = CheckTest("def check(candidate):\n    assert candidate(1) == 2", "f")
    assert {i.function for i in generated_inputs(Problem("p", tests=(check,)))} == {"f"}
    assert generated_inputs(Problem("p", tests=(AssertTest("assert True"),))) == []


def test_contradictions():
    agree = problem("p", "assert f(1, 2) == 3", "assert f(1, 2) == 3", "assert f(1, 3) == 4", "assert f(1, 2) != 4")
    assert contradictions(agree) == []
    assert contradictions(problem("p", "assert f(1, 2) == 3", "assert f(1, 2) == 4")) == ["f(1, 2) == 3 and 4"]
    assert contradictions(problem("p", "assert f(1, 2) == 3", "assert f(1, 2) == 3.0")) == []
    calls = (CallTest("f", (1,), [1], {"k": 2}), CallTest("f", (1,), [2], {"k": 2}), CallTest("f", (1,), 0))
    assert contradictions(Problem("p", tests=calls)) == ["f(1,){'k': 2} == [1] and [2]"]


def test_duplicates():
    a, b = problem("Add two", code="def f(x):\n    y = x\n    return y"), problem("add  two", code="def g(x): return 2")
    c = problem("other", code="def h(n):\n    '''Doc.'''\n    m = n\n    return m")
    found = duplicates([a, b, c, problem("last")])
    assert found == {"same text": [["Add two", "add  two"]], "same reference program": [["Add two", "other"]]}
    assert shape_of("def f(x): return x + z") != shape_of("def f(z): return z + z") and shape_of("def f(:") == ""


def test_the_command(tmp_path, capsys, data):
    rows = [
        {"task_id": i, "text": "Add one.", "code": "def add(n): return n + 1",
         "test_list": ["assert add(0) == 1"] if i == 11 else ["assert add(0) == 1", "assert add(5) == 6"]}
        for i in (11, 511)
    ]  # fmt: skip
    path, out = tmp_path / "mbpp.jsonl", tmp_path / "audit.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"task_id": "mbpp/11", "solution": "def add(n):\n    return 1"}) + "\n")
    assert main(["--task", "mbpp", "--path", str(path), "--samples", str(samples), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["counts"]["problems"] == 2 and found["counts"]["samples that pass: different"] == 1
    assert found["duplicates"]["same reference program"] == [["mbpp/11", "mbpp/511"]]
    assert "problems that let a wrong or different one pass" in capsys.readouterr().out
    assert main(["--task", "functions", "--path", "x"]) == 1
    assert "task functions is not read from data" in capsys.readouterr().err


def test_evalplus_rejects_what_humaneval_lets_pass(tmp_path, data):
    """Some mutants of HumanEval's first problems pass its tests and fail EvalPlus'."""
    out = tmp_path / "audit.json"
    plus = data / "evalplus/v0.1.10-HumanEvalPlus-Mini.jsonl.gz"
    arguments = ["--task", "humaneval", "--path", str(data / "humaneval/HumanEval.jsonl.gz"), "--stronger", str(plus)]
    assert main([*arguments, "--problems", "4", "--mutants", "6", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["counts"]["problems"] == 4 and found["counts"]["references that fail"] == 0
    assert found["problems"][3]["stronger_failure"].startswith("wrong_answer")  # HumanEval/123
    assert all(1 <= p["tried"]["mutant"] <= 6 for p in found["problems"])


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_a_missing_path_is_an_error(name, capsys):
    assert main(["--task", name]) == 1
    assert "needs task.path" in capsys.readouterr().err
