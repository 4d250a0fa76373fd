"""Tasks that read data: HumanEval, MBPP, EvalPlus and contest files; and the errors of bad files."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from jaxrl.config import TaskConfig
from jaxrl.datafiles import DataError, read_rows
from jaxrl.extract import function_program
from jaxrl.tasks import load_task


def scores(task, problems, texts, pool):
    async def all_scores():
        return await asyncio.gather(*(task.score(p, t, pool) for p, t in zip(problems, texts)))

    return asyncio.run(all_scores())


def load(name, path, **settings):
    return load_task(TaskConfig(name=name, path=str(path), **{"held_out_problems": 1000, **settings}), 0)


def test_humaneval_references_solve_and_others_do_not(data, pool):
    task = load("humaneval", data / "humaneval" / "HumanEval.jsonl.gz")
    assert len(task.held_out) == 164
    rewards = scores(task, task.held_out, [p.demonstration for p in task.held_out], pool)
    assert all(r.solved and r.value == 1 for r in rewards)
    bodies = [
        p.demonstration.split("```python\n")[1].removesuffix("```")[len(p.meta["header"]) :] for p in task.held_out
    ]
    assert all(r.solved for r in scores(task, task.held_out, bodies, pool))  # a completion of the prompt
    wrong = [f"```python\n{p.meta['header']}    return None\n```" for p in task.held_out]
    assert not any(r.solved for r in scores(task, task.held_out, wrong, pool))


def test_humaneval_completion_style(data):
    task = load("humaneval", data / "humaneval" / "HumanEval.jsonl.gz", prompt_style="completion")
    assert task.held_out[0].prompt.startswith("from typing import List") and not task.held_out[0].messages


def test_mbpp_references_solve(data, pool):
    for name, train, held_out in (("mbpp.jsonl", 464, 500), ("sanitized-mbpp.json", 163, 257)):
        task = load("mbpp", data / "mbpp" / name)
        assert (len(task.train), len(task.held_out)) == (train, held_out)
        problems = [*task.train[:60], *task.held_out[:60]]
        assert all(r.solved for r in scores(task, problems, [p.demonstration for p in problems], pool))
    wrong = scores(task, problems, ["```python\nx = 1\n```"] * len(problems), pool)
    assert not any(r.solved for r in wrong)


def test_evalplus_references_solve_and_base_passes_are_not_enough(data, pool):
    task = load("humaneval", data / "evalplus" / "v0.1.10-HumanEvalPlus-Mini.jsonl.gz")
    problems = task.held_out[:40]
    assert all(r.solved for r in scores(task, problems, [p.demonstration for p in problems], pool))
    assert not any(r.solved for r in scores(task, problems, ["    return None\n"] * 40, pool))
    task = load("mbpp", data / "evalplus" / "MbppPlus-v0.1.0.jsonl.gz")
    problems = [*task.train[:20], *task.held_out[:20]]
    assert all(r.solved for r in scores(task, problems, [p.demonstration for p in problems], pool))


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
    right, wrong, prefix = scores(
        task, [problem] * 3, [CONTEST["gold_standard_solution"], "print(4)", "print(int(input()) * 2, end='')"], pool
    )
    assert right.solved and right.value == 1 and prefix.solved
    assert not wrong.solved and wrong.parts["partial"] == pytest.approx(0.2 / 9)


def test_contest_function_tests(tmp_path, pool):
    cases = [{"input": [[3, 1]], "output": [[1, 3]], "type": "function_call", "fn_name": "f"}]
    task = load("contest", contest_file(tmp_path, with_info(test_cases=cases)))
    assert scores(task, task.train, ["def f(x): return sorted(x)"], pool)[0].solved


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
