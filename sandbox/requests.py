"""Requests and answers as JSON lines: what `python -m sandbox score` reads and writes.

    {"id": ..., "program": "...", "tests": [{"type": "assert", "code": "..."}, ...],
     "limits": {"wall_s": 5, "cpu_s": 2, "memory_mb": 512, "output_kb": 64, "processes": 16},
     "stop_at_first_failure": false, "files": {"name": "text"}, "command": ["node", "{filename}"], "filename": "a.js"}

Only "program" and "tests" are required. The tests' fields are those of the classes in sandbox/verdict.py.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any, get_args, get_origin

from sandbox.plain import parse
from sandbox.pool import check_program
from sandbox.verdict import AssertTest, CallTest, CheckTest, Limits, Program, ReferenceTest, StdioTest, Test, Verdict

MAX_LINE = 64 << 20  # bytes
TEST_TYPES: dict[str, type] = {
    "assert": AssertTest,
    "check": CheckTest,
    "call": CallTest,
    "stdio": StdioTest,
    "reference": ReferenceTest,
}
MAXIMA = {"wall_s": 3600, "cpu_s": 3600, "memory_mb": 1 << 20, "output_kb": 1 << 17, "processes": 4096}
_FIELDS = ("id", "program", "tests", "limits", "stop_at_first_failure", "files", "command", "filename")
_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    dict: "an object",
    tuple: "a list",
}


class RequestError(ValueError):
    """A request is wrong; the message names the field."""


def read_request(line: bytes, limits: Limits = Limits()) -> tuple[Any, Program]:
    """The id (None if there is none) and the program of one line. Raises RequestError.

    Args:
        limits: defaults for "limits" in the line.
    """
    if len(line) > MAX_LINE:
        raise RequestError(f"the line has {len(line)} bytes; the limit is {MAX_LINE}")
    try:
        data = parse(line)
    except (ValueError, UnicodeDecodeError) as error:
        raise RequestError(f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise RequestError("a request must be a JSON object")
    try:
        return data.get("id"), _program(data, limits)
    except RequestError as error:
        error.request_id = data.get("id")  # type: ignore[attr-defined]
        raise


def _program(data: dict[str, Any], limits: Limits) -> Program:
    _known(data, _FIELDS, "")
    if not isinstance(data.get("program"), str):
        raise RequestError(f"program: must be a string, not {_quoted(data.get('program'))}")
    tests = data.get("tests")
    if not isinstance(tests, list) or not tests:
        raise RequestError(f"tests: must be a list with at least one test, not {_quoted(tests)}")
    files = _checked(data.get("files", {}), dict, "files")
    for name, text in files.items():
        _checked(text, str, f"files.{_key(name)}")
    command = _checked(data.get("command", []), tuple, "command")
    for i, part in enumerate(command):
        _checked(part, str, f"command[{i}]")
    program = Program(
        data["program"],
        tuple(_test(t, f"tests[{i}]") for i, t in enumerate(tests)),
        _limits(data.get("limits", {}), limits),
        _checked(data.get("stop_at_first_failure", False), bool, "stop_at_first_failure"),
        files,
        tuple(command),
        _checked(data.get("filename", "program"), str, "filename"),
    )
    try:
        check_program(program)
    except ValueError as error:
        raise RequestError(str(error)) from None
    return program


def _test(data: Any, where: str) -> Test:
    if not isinstance(data, dict):
        raise RequestError(f"{where}: must be an object, not {_quoted(data)}")
    kind = data.get("type")
    if not isinstance(kind, str) or kind not in TEST_TYPES:
        raise RequestError(f"{where}.type: must be one of {', '.join(TEST_TYPES)}, not {_quoted(kind)}")
    test = TEST_TYPES[kind]
    hints = typing.get_type_hints(test)
    fields = {f.name: f for f in dataclasses.fields(test)}
    _known(data, ("type", *fields), f"{where}.")
    required = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    required += ["expected"] if test is CallTest else []
    for name in required:
        if name not in data:
            raise RequestError(f"{where}.{name}: missing; a {kind} test needs it")
    values = {n: _checked(v, hints[n], f"{where}.{n}") for n, v in data.items() if n != "type"}
    return test(**values)


def _limits(data: Any, default: Limits) -> Limits:
    _checked(data, dict, "limits")
    hints = typing.get_type_hints(Limits)
    _known(data, tuple(hints), "limits.")
    for name, value in data.items():
        _checked(value, hints[name], f"limits.{name}")
        if not 0 < value <= MAXIMA[name]:
            raise RequestError(f"limits.{name}: must be above 0 and at most {MAXIMA[name]}, not {value!r}")
    return dataclasses.replace(default, **data)


def _checked(value: Any, kind: Any, where: str) -> Any:
    """The value as that kind; JSON lists become tuples where the field is one."""
    if kind is Any:
        return value
    if get_origin(kind) is typing.Literal:
        if value not in get_args(kind):
            raise RequestError(f"{where}: must be one of {', '.join(get_args(kind))}, not {_quoted(value)}")
        return value
    plain = get_origin(kind) or kind
    if plain is tuple and isinstance(value, list):
        return tuple(value)
    accepted = (int, float) if plain is float else plain
    if not isinstance(value, accepted) or (isinstance(value, bool) and plain is not bool) or value != value:
        raise RequestError(f"{where}: must be {_NAMES[plain]}, not {_quoted(value)}")
    return value


def _known(data: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in data:
        if name not in names:
            raise RequestError(f"{where}{_key(name)}: unknown; must be one of {', '.join(names)}")


def _key(name: str) -> str:
    """A field's name for an error of one line: quoted if it is long or not printable."""
    return name if name.isprintable() and len(name) <= 60 else _quoted(name)


def _quoted(value: Any) -> str:
    text = json.dumps(value, default=str)
    return "nothing" if value is None else text if len(text) <= 60 else text[:57] + "..."


def answer(request_id: Any, verdict: Verdict) -> str:
    """The answer line, without its line end."""
    data = verdict.to_json()
    first = {"id": request_id, "status": data.pop("status"), "passed": data.pop("passed")}
    failure = verdict.first_failure
    first_failure = None if failure is None else {"index": verdict.tests.index(failure), **dataclasses.asdict(failure)}
    return json.dumps({**first, **data, "first_failure": first_failure})


def refusal(number: int, error: RequestError) -> str:
    """The answer to a line that is not a request."""
    request_id = getattr(error, "request_id", None)
    return json.dumps({"id": request_id, "status": "bad_request", "passed": False, "tests": [],
                       "error": f"line {number}: {error}"})  # fmt: skip
