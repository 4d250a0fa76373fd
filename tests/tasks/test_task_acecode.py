"""Task acecode: AceCode-87K's schema, what is rejected, tests as the sandbox runs them, rewards."""

from __future__ import annotations

import json

import pytest
from judging import judge

from jaxrl.tasks import load_task
from jaxrl.tasks.acecode import Settings, as_call, entry_point, is_held_out, make_test, parsed
from jaxrl.tasks.rows import DataError
from sandbox.verdict import AssertTest, CallTest, Program

ROW = {
    "id": "oss_1",
    "source": "oss",
    "question": "Write a function that adds two numbers.",
    "test_cases": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(-1, 1) == 0", "assert add(1, 1) == 2"],
    "inferences": [
        {"completion": "def add(a, b): return a", "completion_id": 0, "model_name": "m", "pass_rate": 0.5},
        {"completion": "So:\n```python\ndef add(a, b): return a + b\n```", "completion_id": 1, "model_name": "m",
         "pass_rate": 1.0},
    ],
    "context_messages": [],
}  # fmt: skip


def task_of(tmp_path, *rows, **settings):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task(Settings(path=str(path), **settings), 0)


def rows(count):
    return [ROW | {"id": f"oss_{i}"} for i in range(count)]


def test_a_row_becomes_a_problem(tmp_path):
    task = task_of(tmp_path, *rows(40), public_tests=2)
    problem = task.train[0]
    assert problem.messages[0]["content"] == (
        "Write a function that adds two numbers.\n\nAnswer with one fenced Python code block. The function's name must "
        "be `add`.\nIt must pass these tests:\nassert add(1, 2) == 3\nassert add(0, 0) == 0"
    )
    assert problem.public_tests == problem.tests[:2] and len(problem.tests) == 4
    assert problem.demonstration == "So:\n```python\ndef add(a, b): return a + b\n```"
    assert task.slices(problem) == {"source": "oss"}
    hidden = task_of(tmp_path, *rows(40), public_tests=0).train[0]
    alone = task_of(tmp_path, *rows(40), prompt_style="question").train[0]
    assert alone.messages[0]["content"] == ROW["question"] and len(alone.public_tests) == 3
    assert "assert" not in hidden.messages[0]["content"] and not hidden.public_tests


def test_held_out_questions_are_split_by_their_id(tmp_path):
    task = task_of(tmp_path, *rows(400))
    assert {p.id for p in task.held_out} == {f"oss_{i}" for i in range(400) if is_held_out(f"oss_{i}")}
    assert not {p.id for p in task.held_out} & {p.id for p in task.train} and 5 < len(task.held_out) < 40
    fewer = task_of(tmp_path, *rows(400)[::2])
    assert {p.id for p in fewer.held_out} <= {p.id for p in task.held_out}  # whatever else the file has


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"test_cases": ["assert add(1, 2) == 3"]}, "too few tests"),
        ({"test_cases": ["assert 1 == 1", "assert add(1, 1) == 2"]}, "the first test calls no function"),
        ({"test_cases": ["assert add(1, 2) == 3", "x = add(1, 1)"]}, "a test is not an assert"),
        ({"test_cases": ["assert add(1, 2) == 3", "assert add(1, "]}, "a test is not an assert"),
    ],
)
def test_rows_that_do_not_fit_are_counted(tmp_path, change, reason):
    task = task_of(tmp_path, *rows(30), ROW | {"id": "bad"} | change, min_tests=2)
    assert task.rejected == {reason: 1}
    with pytest.raises(DataError, match=f"no problem is left .{reason}: 1"):
        task_of(tmp_path, ROW | change, min_tests=2)


def test_rows_of_another_schema_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"questions.jsonl:1: row has no field 'test_cases'"):
        task_of(tmp_path, {"id": "a", "question": "?"})
    with pytest.raises(DataError, match="id 'oss_1' comes twice"):
        task_of(tmp_path, ROW, ROW)


@pytest.mark.parametrize("reward", ["binary", "fraction"])
def test_rewards(tmp_path, pool, reward):
    task = task_of(tmp_path, *rows(40), reward=reward)
    for body, share in (("a + b", 1.0), ("0", 0.5), ("a", 0.25), ("", 0.0)):
        found = judge(task, task.train[0], f"```python\ndef add(a, b):\n    return {body}\n```", pool)
        assert found.solved == (share == 1) and found.value == (share if reward == "fraction" else float(share == 1))


@pytest.mark.parametrize(
    ("test", "name"),
    [
        ("assert add(1, 2) == 3", "add"),
        ("assert sorted(find([1])) == [1]", "find"),
        ("assert not is_odd(2)", "is_odd"),
        ("import math\nassert math.isclose(area(2), 4.0)", "area"),
        ("assert outer(inner(1)) == 2", "outer"),
        ("assert len([1]) == 1", None),
        ("assert Stack().push(1) == 1", "Stack"),
        ("print(add(1))", None),
        ("assert add(1", None),
    ],
)
def test_the_entry_point_is_what_the_test_calls(test, name):
    assert entry_point(test) == name


@pytest.mark.parametrize(
    ("test", "call"),
    [
        ("assert f(1, [2.5], k='a') == (1, None)", CallTest("f", (1, [2.5]), (1, None), {"k": "a"})),
        ("assert f(-1) == -2.5", CallTest("f", (-1,), -2.5)),
        ("assert f(x) == 1", None),
        ("assert f(1) != 1", None),
        ("assert f(1) == g(1)", None),
        ("assert f(*[1]) == 1", None),
        ("assert f(1)", None),
    ],
)
def test_tests_as_data(test, call):
    statement = parsed(test)
    assert statement is not None and as_call(statement) == call


def test_a_tolerance_is_for_floats_only(pool):
    code = "def f(x): return 0.1 + x"
    wide = make_test("assert f(0.2) == 0.3", 1e-6)
    assert isinstance(wide, CallTest) and isinstance(make_test("assert f(2) == 2", 1e-6), AssertTest)
    exact = make_test("assert f(0.2) == 0.3")
    right = [v.passed for v in pool.run([Program(code, (wide,)), Program(code, (exact,))])]
    assert right == [True, 0.1 + 0.2 == 0.3]
    assert not pool.run([Program(code, (make_test("assert f(0.2) == 0.31", 1e-6),))])[0].passed


def test_modules_that_tests_name_are_there(pool):
    test = make_test("assert math.isclose(f(1), 0.1)")
    assert pool.run([Program("def f(x): return x / 10", (test,))])[0].passed
