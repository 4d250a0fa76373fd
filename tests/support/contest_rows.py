"""Rows in the schemas of contest data sets, made up for the tests."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

from jaxrl.tasks import Task, contest, load_task
from rollouts.episode import Problem

DOUBLE = "Read a number and print its double."
PROGRAM = "print(2 * int(input()))"
METHOD = "class Solution:\n    def double(self, n: int) -> int:\n        return 2 * n\n"
STARTER = "class Solution:\n    def double(self, n: int) -> int:\n        "


def packed(cases: list[dict[str, Any]]) -> str:
    """Tests as LiveCodeBench packs them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def livecodebench(number: int = 0, **changes: Any) -> dict[str, Any]:
    cases = [{"input": f"{n}\n", "output": f"{2 * n}\n", "testtype": "stdin"} for n in range(5)]
    row = {
        "question_title": "Double",
        "question_content": DOUBLE,
        "platform": "atcoder",
        "question_id": f"abc{number}_a",
        "contest_id": f"abc{number}",
        "contest_date": "2024-03-02T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(cases[:2]),
        "private_test_cases": packed(cases[2:]),
        "metadata": "{}",
    }
    return row | changes


def livecodebench_function(number: int = 0, **changes: Any) -> dict[str, Any]:
    cases = [{"input": f"{n}", "output": f"{2 * n}", "testtype": "functional"} for n in range(5)]
    row = livecodebench(number) | {
        "platform": "leetcode",
        "question_id": f"{3000 + number}",
        "question_content": "Return the double of n.",
        "starter_code": STARTER,
        "public_test_cases": json.dumps(cases[:2]),
        "private_test_cases": json.dumps(cases[2:]),
        "metadata": json.dumps({"func_name": "double"}),
    }
    return row | changes


def codecontests(number: int = 0, **changes: Any) -> dict[str, Any]:
    def tests(*numbers: int) -> dict[str, list[str]]:
        return {"input": [f"{n}\n" for n in numbers], "output": [f"{2 * n}\n" for n in numbers]}

    row = {
        "name": f"{number}_A. Double",
        "description": DOUBLE,
        "public_tests": tests(1),
        "private_tests": tests(2, 3),
        "generated_tests": tests(4, 5, 6),
        "source": 2,
        "difficulty": 7,
        "solutions": {"language": [1, 2, 3], "solution": ["print 2 * input()", "int main() {}", PROGRAM]},
        "incorrect_solutions": {"language": [3], "solution": ["print(2)"]},
        "cf_rating": 800,
        "cf_tags": ["math"],
        "is_description_translated": False,
        "time_limit": {"seconds": 2, "nanos": 500_000_000},
        "memory_limit_bytes": 256_000_000,
        "input_file": "",
        "output_file": "",
    }
    return row | changes


def apps(number: int = 0, **changes: Any) -> dict[str, Any]:
    tests = {"inputs": [f"{n}\n" for n in range(4)], "outputs": [f"{2 * n}\n" for n in range(4)]}
    row = {
        "problem_id": number,
        "question": DOUBLE,
        "solutions": json.dumps(["print 2 * input()", PROGRAM]),
        "input_output": json.dumps(tests),
        "difficulty": "introductory",
        "url": "https://example.com/double",
        "starter_code": "",
    }
    return row | changes


def taco(number: int = 0, **changes: Any) -> dict[str, Any]:
    tests = {"inputs": [[n] for n in range(4)], "outputs": [[2 * n] for n in range(4)], "fn_name": "double"}
    row = {k: v for k, v in apps(number).items() if k != "problem_id"} | {
        "question": "Return the double of n.",
        "starter_code": "def double(n):\n\t",
        "solutions": json.dumps(["def double(n):\n    return 2 * n"]),
        "input_output": json.dumps(tests),
        "difficulty": "EASY",
        "name": None,
        "source": "codewars",
        "time_limit": "1.5 seconds",
        "memory_limit": "2048.0 megabytes",
        "picture_num": "0",
        "date": "2019-04-01",
        "Expected Time Complexity": None,
    }
    return row | changes


def leetcode(number: int = 0, **changes: Any) -> dict[str, Any]:
    row = {
        "task_id": f"double-{number}",
        "question_id": number,
        "difficulty": "Easy",
        "tags": ["Math"],
        "problem_description": "Given n, return its double.",
        "starter_code": STARTER,
        "estimated_date": "2023-05-06",
        "prompt": "from typing import *\nfrom math import *\ninf = float('inf')\n",
        "completion": METHOD,
        "entry_point": "Solution().double",
        "test": "def check(candidate):\n    assert candidate(n = 1) == 2\n    assert candidate(n = -4) == -8\n",
        "input_output": [{"input": "n = 1", "output": "2"}],
        "query": "...",
        "response": "...",
    }
    return row | changes


def deepcoder(number: int = 0, **changes: Any) -> dict[str, Any]:
    cases = [{"input": f"{n}\n", "output": f"{2 * n}\n", "type": "stdin_stdout"} for n in range(4)]
    row = {"problem": DOUBLE, "solutions": [f"```python\n{PROGRAM}\n```"], "tests": json.dumps(cases)}
    return row | changes


def open_r1(number: int = 0, **changes: Any) -> dict[str, Any]:
    cases = [{"input": f"{n}", "output": f"{2 * n}", "type": "stdin_stdout"} for n in range(3)]
    row = {
        "problem": DOUBLE,
        "gold_standard_solution": PROGRAM,
        "problem_id": f"p{number}",
        "verification_info": {"language": "python", "test_cases": cases},
    }
    return row | changes


ROWS = {
    "open_r1": open_r1, "livecodebench": livecodebench, "codecontests": codecontests, "apps": apps, "taco": taco,
    "leetcode": leetcode, "deepcoder": deepcoder,
}  # fmt: skip


def write(path: Path, *rows: dict[str, Any]) -> str:
    """A .jsonl file of rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(folder: Path, source: str, *given: dict[str, Any], **settings: Any) -> Task:
    """The task of these rows."""
    path = write(folder / f"{source}.jsonl", *given)
    return load_task(contest.Settings(path=path, source=source, **settings), 0)  # type: ignore[arg-type]


def only(folder: Path, source: str, row: dict[str, Any], **settings: Any) -> Problem:
    """The problem of this row."""
    (problem,) = load(folder, source, row, **settings).train
    return problem


def statement(problem: Problem) -> str:
    assert not isinstance(problem.messages, str) and problem.messages
    return problem.messages[0]["content"]
