"""Tasks that read data: HumanEval, MBPP, EvalPlus and contest files; and the errors of bad files."""

from __future__ import annotations

import gzip
import json

import pytest
from judging import judge_all

from jaxrl.config import TaskConfig
from jaxrl.tasks import load_task
from jaxrl.tasks.extract import function_program
from jaxrl.tasks.rows import DataError, read_rows


def load(name, path, **settings):
    return load_task(TaskConfig(name=name, path=str(path), **{"held_out_problems": 1000, **settings}), 0)


def test_humaneval_references_solve_and_others_do_not(data, pool):
    task = load("humaneval", data / "humaneval" / "HumanEval.jsonl.gz")
    assert len(task.held_out) == 164
    rewards = judge_all(task, task.held_out, [p.demonstration for p in task.held_out], pool)
    assert all(r.solved and r.value == 1 for r in rewards)
    bodies = [
        p.demonstration.split("```python\n")[1].removesuffix("```")[len(p.meta["header"]) :] for p in task.held_out
    ]
    assert all(r.solved for r in judge_all(task, task.held_out, bodies, pool))  # a completion of the prompt
    wrong = [f"```python\n{p.meta['header']}    return None\n```" for p in task.held_out]
    assert not any(r.solved for r in judge_all(task, task.held_out, wrong, pool))


def test_humaneval_completion_style(data):
    task = load("humaneval", data / "humaneval" / "HumanEval.jsonl.gz", prompt_style="completion")
    assert task.held_out[0].prompt.startswith("from typing import List") and not task.held_out[0].messages


def test_evalplus_chats_begin_the_answer(data, pool):
    """As evalplus 0.3.1's codegen renders them for a chat model."""
    humaneval = load("humaneval", data / "evalplus" / "v0.1.10-HumanEvalPlus-Mini.jsonl.gz", prompt_style="evalplus")
    mbpp = load("mbpp", data / "evalplus" / "MbppPlus-v0.1.0.jsonl.gz", prompt_style="evalplus")
    for task, first in ((humaneval, "from typing import List\n"), (mbpp, '"""\nWrite a python function to remove')):
        asked, begun = (m["content"] for m in task.held_out[0].messages)
        assert asked.startswith(
            "Please provide a self-contained Python script that solves the following problem in a markdown code "
            f"block:\n```\n{first}"
        )
        assert asked.endswith('"""\n```\n')
        assert begun == (
            "Below is a Python script with a self-contained function that solves the problem and passes corresponding "
            "tests:\n```python\n"
        )
        assert task.held_out[0].demonstration is None
        chat = load(task.name, data / "evalplus" / FILES[task.name])
        problems = chat.held_out[:20]
        answers = [p.demonstration.removeprefix("```python\n") for p in problems]  # what comes after the beginning
        assert all(r.solved for r in judge_all(task, task.held_out[:20], answers, pool))
        tailed = [a.removesuffix("```").rstrip() + "\n```\nIt returns `x = (`.\n```python\n1 +\n```" for a in answers]
        assert all(r.solved for r in judge_all(task, task.held_out[:20], tailed, pool))


FILES = {"humaneval": "v0.1.10-HumanEvalPlus-Mini.jsonl.gz", "mbpp": "MbppPlus-v0.1.0.jsonl.gz"}


def test_mbpp_references_solve(data, pool):
    for name, train, held_out in (("mbpp.jsonl", 464, 500), ("sanitized-mbpp.json", 163, 257)):
        task = load("mbpp", data / "mbpp" / name)
        assert (len(task.train), len(task.held_out)) == (train, held_out)
        problems = [*task.train[:60], *task.held_out[:60]]
        assert all(r.solved for r in judge_all(task, problems, [p.demonstration for p in problems], pool))
    wrong = judge_all(task, problems, ["```python\nx = 1\n```"] * len(problems), pool)
    assert not any(r.solved for r in wrong)


def test_evalplus_references_solve_and_base_passes_are_not_enough(data, pool):
    task = load("humaneval", data / "evalplus" / "v0.1.10-HumanEvalPlus-Mini.jsonl.gz")
    problems = task.held_out[:40]
    assert all(r.solved for r in judge_all(task, problems, [p.demonstration for p in problems], pool))
    assert not any(r.solved for r in judge_all(task, problems, ["    return None\n"] * 40, pool))
    task = load("mbpp", data / "evalplus" / "MbppPlus-v0.1.0.jsonl.gz")
    problems = [*task.train[:20], *task.held_out[:20]]
    assert all(r.solved for r in judge_all(task, problems, [p.demonstration for p in problems], pool))


CONTEST = {
    "problem": "Double the number.",
    "gold_standard_solution": "```python\nprint(2 * int(input()))\n```",
    "problem_id": "double",
    "verification_info": json.dumps(
        {
            "language": "python",
            "test_cases": [{"input": f"{i}\n", "output": f"{2 * i}\n", "type": "stdin_stdout"} for i in range(9)],
        }
    ),
}


def contest_file(tmp_path, *rows):
    path = tmp_path / "contest.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    return path


def with_info(**changes):
    info = json.loads(CONTEST["verification_info"]) | changes
    return CONTEST | {"verification_info": info}  # the hub's rows hold a dict, files often a string


def test_contest_scores_by_all_tests(tmp_path, pool):
    task = load("contest", contest_file(tmp_path, CONTEST))
    (problem,) = task.train
    right, wrong, prefix = judge_all(
        task, [problem] * 3, [CONTEST["gold_standard_solution"], "print(4)", "print(int(input()) * 2, end='')"], pool
    )
    assert right.solved and right.value == 1 and prefix.solved
    assert not wrong.solved and wrong.parts["partial"] == pytest.approx(0.2 / 9)


def test_contest_function_tests(tmp_path, pool):
    cases = [{"input": [[3, 1]], "output": [[1, 3]], "type": "function_call", "fn_name": "f"}]
    task = load("contest", contest_file(tmp_path, with_info(test_cases=cases)))
    assert judge_all(task, task.train, ["def f(x): return sorted(x)"], pool)[0].solved


def test_contest_calls_as_in_the_data(tmp_path):
    """Text inputs hold one JSON value a line; outputs are unwrapped where all of the problem's are wrapped."""

    def tests(*cases):
        cases = [{"type": "function_call", "fn_name": "f", "input": i, "output": o} for i, o in cases]
        return [
            (t.args, t.expected)
            for t in load("contest", contest_file(tmp_path, with_info(test_cases=cases))).train[0].tests
        ]

    assert tests(('[1, 2]\n3\n"a"', "[4]"), ("[]\n0\nnull", "[5, 6]")) == [
        (([1, 2], 3, "a"), [4]),
        (([], 0, None), [5, 6]),
    ]
    assert tests(([[1], 2], [[3]]), ([[], 2], [[]])) == [(([1], 2), [3]), (([], 2), [])]
    assert tests(([1], [1]), ([2], [1, 2]), ([3], [])) == [((1,), [1]), ((2,), [1, 2]), ((3,), [])]
    assert tests((["x"], "[1]"), (["y"], "z")) == [(("x",), "[1]"), (("y",), "z")]  # values, not texts of JSON
    assert tests(([{"1": 2}], [{"3": "4"}]), ([{"a": 1, "2": 2}], [{}])) == [
        (({1: 2},), {3: "4"}), (({"a": 1, "2": 2},), {}),
    ]  # fmt: skip


def test_contest_calls_a_class_of_leetcode_is_found(tmp_path):
    cases = [{"input": [1], "output": 2, "type": "function_call", "fn_name": "inc"}]
    task = load("contest", contest_file(tmp_path, with_info(test_cases=cases)))
    solution = "class Solution:\n    def inc(self, x):\n        return x + 1\n"
    answer = f"```python\n{solution}```\nFor example:\n```python\nprint(Solution().inc(1))\n```"
    assert task.submission(task.train[0], answer).program == solution


def test_contest_outputs_are_compared_as_in_the_data(tmp_path, pool):
    cases = [{"input": "", "output": "1\n0.3333333333 3\n\n  x\n", "type": "stdin_stdout"}]
    task = load("contest", contest_file(tmp_path, with_info(test_cases=cases)))
    right = ["1\n0.333333333 3\nx", "  1\n0.33333 3.0\n\n\nx \n", "1.0\n0.333333 3\n\n  x"]
    wrong = [
        "1\n0.333 3\n\nx",
        "1 0.3333333333 3 x",
        "1\n0.3333333333 3.00001\nx",
        "1\n0.3333333333 3",
        "2\n0.3333333333 3\nx",
    ]
    rewards = judge_all(task, task.train * len(right + wrong), [f"print({text!r})" for text in right + wrong], pool)
    assert [r.solved for r in rewards] == [True] * len(right) + [False] * len(wrong)


def test_contest_limits_fit_the_tests(tmp_path, pool):
    def limits(output="1", count=1, **fields):
        cases = [{"input": "", "output": output, "type": "stdin_stdout"}] * count
        return load("contest", contest_file(tmp_path, with_info(test_cases=cases) | fields)).train[0].meta["limits"]

    assert (limits().cpu_s, limits().wall_s, limits().output_kb) == (10, 20, 64)
    assert limits(count=5).cpu_s == 20 and limits(count=64).cpu_s == 60  # APPS' four seconds each, and a cap
    assert limits(count=20, time_limit=1.5).cpu_s == 30 and limits(count=20, time_limit="1500 ms").wall_s == 60
    assert limits(count=10, metadata={"time_limit": "2.0 seconds"}).cpu_s == 20
    assert limits(count=10, metadata='{"time_limit": "3 s"}').cpu_s == 30
    long = "x" * 100_000
    assert limits(long).output_kb == 196
    cases = [{"input": "", "output": long, "type": "stdin_stdout"}]
    task = load("contest", contest_file(tmp_path, with_info(test_cases=cases)))
    assert judge_all(task, task.train, ["print('x' * 100_000)"], pool)[0].solved
    with pytest.raises(DataError, match=r"contest\.jsonl:1: time_limit 'soon' must be a number above 0"):
        limits(time_limit="soon")


CALL = {"type": "function_call", "fn_name": "f", "input": [1], "output": 1}
MALFORMED = {
    "verification_info is not JSON": {"verification_info": "{"},
    "verification_info must be an object, is the number 3": {"verification_info": 3},
    "verification_info: test_cases must be a list of objects, is an object": {
        "verification_info": {"test_cases": {"input": 1}}
    },
    "verification_info: test_cases\\[0\\] must be an object": {"verification_info": {"test_cases": ["1"]}},
    "verification_info: test_cases\\[0\\]: row has no field 'output'": {
        "verification_info": {"test_cases": [{"input": "1"}]}
    },
    "verification_info: test_cases\\[0\\]: input must be a text or a whole number, is null": {
        "verification_info": {"test_cases": [{"input": None, "output": "1"}]}
    },
    "verification_info: test_cases\\[0\\]: fn_name must be the name of a function": {
        "verification_info": {"test_cases": [CALL | {"fn_name": ""}]}
    },
    "verification_info: test_cases\\[0\\]: input must be a list, is the number 5": {
        "verification_info": {"test_cases": [CALL | {"input": 5}]}
    },
    "verification_info: test_cases\\[0\\]: input '\\[1' is not JSON": {
        "verification_info": {"test_cases": [CALL | {"input": "[1", "output": "1"}]}
    },
    "verification_info: test_cases\\[0\\]: output 'x' is not JSON": {
        "verification_info": {"test_cases": [CALL | {"input": "1", "output": "x"}]}
    },
    "verification_info: test_cases\\[0\\]: type 'other' must be": {
        "verification_info": {"test_cases": [CALL | {"type": "other"}]}
    },
    "problem must be a text, is the number 7": {"problem": 7},
}


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_contest_rows_are_named(tmp_path, message):
    with pytest.raises(DataError, match=r"contest\.jsonl:2: " + message):
        load("contest", contest_file(tmp_path, CONTEST, CONTEST | MALFORMED[message]))


def test_contest_rejections_are_counted(tmp_path):
    rows = [
        CONTEST,
        with_info(language="rust"),
        with_info(test_cases=[]),
        CONTEST | {"problem": "x" * 999},
        CONTEST | {"gold_standard_solution": "print(0)", "problem_id": "wrong"},
    ]
    settings = {"max_prompt_characters": 500, "require_solution": True, "max_tests": 3}
    task = load("contest", contest_file(tmp_path, *rows), **settings)
    assert [p.id for p in task.train] == ["contest/double"] and len(task.train[0].tests) == 3
    assert {k: v for k, v in task.rejected.items() if v} == {
        "language": 1, "no tests": 1, "prompt too long": 1, "its solution does not pass": 1,
    }  # fmt: skip
    with pytest.raises(DataError, match=r"no problem is left \(no tests: 1\)"):
        load("contest", contest_file(tmp_path, with_info(test_cases=[])))


def test_contest_sample_file_and_parquet(data, tmp_path):
    assert len(load("contest", data / "samples" / "openr1_verifiable_coding_sample.json").train) == 1
    import datasets

    datasets.Dataset.from_list([CONTEST]).to_parquet(tmp_path / "c.parquet")
    assert load("contest", tmp_path / "c.parquet").train[0].id == "contest/double"


def test_bad_files_are_named_with_their_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"task_id": 1}\n{"task_id": \n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not JSON"):
        read_rows(str(path))
    with pytest.raises(DataError, match=r"rows\.jsonl' does not exist; did you mean .*rows\.jsonl"):
        read_rows(str(tmp_path / "row.jsonl").replace("row.jsonl", "rowrows.jsonl"))
    path.write_text('{"task_id": 1, "text": "x", "code": "y", "test_list": []}\n'.replace("1", "600"))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: problem 600 has no tests"):
        load("mbpp", path)
    path.write_text('{"task_id": "HumanEval/0", "prompt": "x"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:1: row has no field 'entry_point' \(it has: task_id, prompt\)"):
        load("humaneval", path)
    path.write_text("[1, 2]\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: a row must be a JSON object"):
        read_rows(str(path))
    (tmp_path / "half.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n')[:-4])
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(str(tmp_path / "half.jsonl.gz"))


@pytest.mark.parametrize(
    "text",
    [
        "Sure:\n```python\ndef f(x):\n    return x + 1\n```\nThat is it.",
        "```python\ndef f(x):\n    return x + 1\n```\nand a test\n```python\nprint(f(1))\n```",
        "def f(x):\n    return x + 1",
        "    return x + 1",
    ],
)
def test_the_program_is_found_in_an_answer(text):
    namespace = {}
    exec(function_program(text, "f", "import math\ndef f(x):\n    '''Adds one.'''\n"), namespace)
    assert namespace["f"](1) == 2
