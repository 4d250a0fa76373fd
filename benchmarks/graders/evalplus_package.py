"""Grades by the package evalplus as it is: `pip install evalplus` into the Python that runs this file.

It judges calls whose arguments and results are data: call tests, and asserts and checks that are such comparisons.
"""

import ast
import sys

from grader_protocol import Unsupported, serve

try:
    from evalplus.eval import untrusted_check
except ImportError as error:
    sys.exit(f"evalplus is missing ({error}): pip install evalplus")


def grade(request: dict) -> bool:
    inputs, expected = [], []
    for test in request["tests"]:
        if test["type"] == "call" and test.get("order", "same") == "same":
            inputs.append(test["args"])
            expected.append(test["expected"])
        elif test["type"] in ("assert", "check"):
            for arguments, value in comparisons(test["code"], {request["entry_point"], "candidate"}):
                inputs.append(arguments)
                expected.append(value)
        else:
            raise Unsupported("tests other than calls with data")
    entry_point, times = request["entry_point"], [0.1] * len(inputs)
    status, _ = untrusted_check("humaneval", request["program"], inputs, entry_point, expected, 0, times)
    return status == "pass"


def comparisons(code: str, names: set[str]) -> list[tuple[list, object]]:
    """(arguments, expected) of `assert f(1, 2) == 3`, alone or as the body of check()."""
    body = ast.parse(code).body
    if len(body) == 1 and isinstance(body[0], ast.FunctionDef):
        body = body[0].body
    found = []
    for statement in body:
        match statement:
            case ast.Assert(ast.Compare(ast.Call(ast.Name(name), arguments, []), [ast.Eq()], [value])) if name in names:
                try:
                    found.append(([ast.literal_eval(a) for a in arguments], ast.literal_eval(value)))
                except ValueError:
                    raise Unsupported("asserts whose values are not literals") from None
            case _:
                raise Unsupported("tests other than a sequence of simple asserts")
    return found


if __name__ == "__main__":
    sys.exit(serve(grade))
