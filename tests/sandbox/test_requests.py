"""The request reader: right lines become programs, every other line an error that names line and field."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sandbox import requests
from sandbox.requests import RequestError, read_request
from sandbox.verdict import CallTest, Limits, Program

GOOD = {"id": 1, "program": "x = 1", "tests": [{"type": "assert", "code": "assert x == 1"}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"program": None}, "program: must be a string, not nothing"),
        ({"tests": []}, "tests: must be a list with at least one test"),
        ({"tests": [1]}, "tests[0]: must be an object"),
        ({"tests": [{"type": "cal"}]}, "tests[0].type: must be one of assert, check, call, stdio"),
        ({"tests": [{"type": "check", "code": ""}]}, "tests[0].entry_point: missing"),
        ({"tests": [{"type": "call", "function": "f"}]}, "tests[0].expected: missing"),
        ({"tests": [{"type": "call", "function": "f", "expected": 1, "args": 3}]}, "tests[0].args: must be a list"),
        ({"tests": [{"type": "stdio", "stdin": "", "stdout": "", "compare": "x"}]}, "tests[0].compare: must be one of"),
        ({"tests": [{"type": "assert", "code": "", "cod": ""}]}, "tests[0].cod: unknown"),
        ({"limits": {"wall_s": -1}}, "limits.wall_s: must be above 0"),
        ({"limits": {"wall_s": float("nan")}}, "limits.wall_s: must be a number"),
        ({"limits": {"processes": 1.5}}, "limits.processes: must be an integer"),
        ({"limits": {"memory": 1}}, "limits.memory: unknown"),
        ({"files": {"../x": ""}}, "relative path"),
        ({"command": ["node"]}, "only have stdio tests"),
        ({"progam": ""}, "progam: unknown"),
    ],
)
def test_errors_name_the_field(change, message):
    with pytest.raises(RequestError, match=message.replace("[", r"\[").replace("]", r"\]")):
        read_request(json.dumps(GOOD | change).encode())


def test_a_good_line():
    test = {"type": "call", "function": "f", "args": [1], "kwargs": {"k": [2]}, "expected": {"a": None}}
    line = GOOD | {"tests": [test], "limits": {"wall_s": 2, "processes": 3}}
    request_id, program = read_request(json.dumps(line).encode(), Limits(cpu_s=7.0))
    limits = Limits(wall_s=2, cpu_s=7.0, processes=3)
    assert (request_id, program) == (1, Program("x = 1", (CallTest("f", (1,), {"a": None}, {"k": [2]}),), limits))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["id", "program", "tests", "limits", "files", "command", "filename", "type", "code", "args"])


@settings(max_examples=300)
@given(st.dictionaries(names, json_values, max_size=6) | json_values, st.lists(st.dictionaries(names, json_values)))
@example({"tests": [[]]}, [])
@example({"files": {"\n": None}}, [])
@example({"limits": {"\n": None}}, [])
@example({"x\n" * 100: None}, [])
def test_any_json_is_read_or_refused(data, tests):
    lines = [data, GOOD | {"tests": tests}, GOOD | (data if isinstance(data, dict) else {})]
    for line in lines:
        try:
            _, program = read_request(json.dumps(line).encode())
        except RequestError as error:
            assert "\n" not in str(error)
        else:
            assert isinstance(program.code, str) and program.tests


@given(st.binary(max_size=100))
@example(b"[" * 100_000)
@example(b'{"id": ' + b"9" * 5000 + b"}")
@example(b"\xff\xfe")
def test_any_bytes_are_read_or_refused(line):
    try:
        read_request(line)
    except RequestError as error:
        assert json.loads(requests.refusal(3, error))["error"].startswith("line 3: ")


def test_the_command_answers_line_for_line_in_order():
    lines = []
    for i in range(30):
        lines.append(json.dumps(GOOD | {"id": i, "program": f"x = {i % 2}"}))
        lines += ["no json"] if i % 10 == 3 else ["", json.dumps({"id": f"bad {i}"})] if i % 10 == 7 else []
    out = subprocess.run(
        [sys.executable, "-m", "sandbox", "score"], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    answers = [json.loads(line) for line in out.stdout.splitlines()]
    sent = [line for line in lines if line]
    assert len(answers) == len(sent)
    for line, answer in zip(sent, answers):
        if line == "no json":
            assert answer["status"] == "bad_request" and "line " in answer["error"] and "JSON" in answer["error"]
        elif "bad" in line:
            assert answer["id"] == json.loads(line)["id"] and "program" in answer["error"]
        else:
            assert answer["id"] == json.loads(line)["id"] and answer["passed"] is (answer["id"] % 2 == 1)


def test_the_commands_for_people():
    def run(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "sandbox", *arguments], input=text, capture_output=True, text=True)

    doctor = run("doctor")
    assert all(layer in doctor.stdout for layer in ("user", "seccomp", "landlock", "cgroup", "level 'namespaces'"))
    assert run("repl", text="x = 20\nprint('hi')\nx + 1").stdout == "hi\n21\n"
    wrong = run("doctor", "--least", "nonsense")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: unknown sandbox layer 'nonsense'")
    assert run("score", "--least", "nonsense").stderr.count("\n") == 1
