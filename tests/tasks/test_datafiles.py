"""Rows by type: each mistyped value is named by file, line and field, whatever data set it is in."""

from __future__ import annotations

import gzip
import json

import pytest
from judging import judge

from jaxrl import ablate
from jaxrl.config import TaskConfig
from jaxrl.evaluation import harnesses
from jaxrl.tasks import load_task, mbpp
from jaxrl.tasks.conversations import read_conversations
from jaxrl.tasks.rows import DataError, Row, read_rows

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def add(a, b):\n    """Adds.\n\n    >>> add(1, 2)\n    3\n    """\n',
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
}
PLUS = {k: v for k, v in HUMANEVAL.items() if k != "test"} | {
    "base_input": [[1, 2]], "plus_input": [[3, 4]], "atol": 0,
}  # fmt: skip
MBPP = {"task_id": 600, "text": "Add.", "code": "def f(a): return a", "test_list": ["assert f(1) == 1"]}
CASES = [{"input": "1\n", "output": "2\n", "type": "stdin_stdout"}]
CONTEST = {
    "problem": "Double.",
    "problem_id": "double",
    "gold_standard_solution": "print(2 * int(input()))",
    "verification_info": {"language": "python", "test_cases": CASES},
}
CALL = {"input": [3], "output": [6], "type": "function_call", "fn_name": "f"}
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def cases(*tests, **info):
    return {"verification_info": {"language": "python", "test_cases": list(tests)} | info}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(name, path):
    if name == "traces":
        return read_conversations(path)
    part = {"held_out_part": "all"} if name == "mbpp" else {}
    return load_task(TaskConfig(name=name, path=path, **part), 0)


@pytest.mark.parametrize(
    ("name", "row", "changes", "words"),
    [
        ("mbpp", MBPP, {"test_list": "assert f(1) == 1"}, "test_list must be a list of texts, is the text 'assert"),
        ("mbpp", MBPP, {"test_list": None}, "test_list must be a list of texts, is null"),
        ("mbpp", MBPP, {"test_list": [None]}, "test_list[0] must be a text, is null"),
        ("mbpp", MBPP, {"test_list": ["assert f(1)", 3]}, "test_list[1] must be a text, is the number 3"),
        ("mbpp", MBPP, {"test_list": []}, "problem 600 has no tests in test_list"),
        ("mbpp", MBPP, {"test_list": [" "]}, "problem 600 has an empty test in test_list"),
        ("mbpp", MBPP, {"code": None}, "code must be a text, is null"),
        ("mbpp", MBPP, {"text": ["Add."]}, "text must be a text, is a list"),
        ("mbpp", MBPP, {"task_id": "six"}, "task_id must be a number or Mbpp/NUMBER, is the text 'six'"),
        ("mbpp", MBPP, {"task_id": None}, "task_id must be a text or a whole number, is null"),
        ("mbpp", MBPP, {"test_setup_code": 3}, "test_setup_code must be a text, is the number 3"),
        ("mbpp", MBPP, {"test_imports": "import math"}, "test_imports must be a list of texts, is the text"),
        ("humaneval", HUMANEVAL, {"test": None}, "test must be a text, is null"),
        ("humaneval", HUMANEVAL, {"prompt": 7}, "prompt must be a text, is the number 7"),
        ("humaneval", HUMANEVAL, {"prompt": "Add two numbers."}, "prompt must be Python that ends with the"),
        ("humaneval", HUMANEVAL, {"entry_point": "sub"}, "prompt must be Python that ends with the header of sub"),
        ("humaneval", HUMANEVAL, {"entry_point": "a b"}, "entry_point must be the name of a function, is the"),
        ("humaneval", HUMANEVAL, {"canonical_solution": None}, "canonical_solution must be a text, is null"),
        ("humaneval", HUMANEVAL, {"task_id": {}}, "task_id must be a text or a whole number, is an object"),
        ("humaneval", HUMANEVAL, {"prompt": 'def add(a):\n    """\n    >>>add(1)\n    """\n'}, "prompt has examples"),
        ("humaneval", PLUS, {"plus_input": "[[1]]"}, "plus_input must be a list, is the text '[[1]]'"),
        ("humaneval", PLUS, {"base_input": [[1], 2]}, "base_input[1] must be a list of arguments, is the number 2"),
        ("humaneval", PLUS, {"atol": "0"}, "atol must be a number, is the text '0'"),
        ("humaneval", PLUS, {"atol": True}, "atol must be a number, is true"),
        ("humaneval", PLUS, {"task_id": "HumanEval"}, "task_id must be HumanEval/NUMBER or Mbpp/NUMBER"),
        ("contest", CONTEST, {"verification_info": "{"}, "verification_info is not JSON: the text '{'"),
        ("contest", CONTEST, {"verification_info": None}, "verification_info must be an object, is null"),
        ("contest", CONTEST, {"problem": None}, "problem must be a text, is null"),
        ("contest", CONTEST, {"gold_standard_solution": 1}, "gold_standard_solution must be a text, is the number 1"),
        ("contest", CONTEST, cases("x"), "verification_info: test_cases[0] must be an object, is the text 'x'"),
        ("contest", CONTEST, cases(None), "verification_info: test_cases[0] must be an object, is null"),
        ("contest", CONTEST, cases(CASES[0] | {"input": None}), "test_cases[0]: input must be a text or a whole"),
        ("contest", CONTEST, cases({"input": "1"}), "test_cases[0]: row has no field 'output'"),
        ("contest", CONTEST, cases(CASES[0] | {"output": ["a", None]}), "test_cases[0]: output[1] must be a text or a"),
        ("contest", CONTEST, cases(CALL | {"input": "[3", "output": "1"}), "test_cases[0]: input '[3' is not JSON"),
        ("contest", CONTEST, cases(CALL | {"fn_name": None}), "test_cases[0]: fn_name must be the name of a function"),
        ("contest", CONTEST, cases(CALL | {"type": "other"}), "test_cases[0]: type 'other' must be stdin_stdout or"),
        ("contest", CONTEST, {"problem_id": 1.5}, "problem_id must be a text or a whole number, is the number 1.5"),
        ("traces", CHAT, {"messages": "hello"}, "messages is not JSON: the text 'hello'"),
        ("traces", CHAT, {"messages": None}, "messages must be a list of objects, is null"),
        ("traces", CHAT, {"messages": [None]}, "messages[0] must be an object, is null"),
        ("traces", CHAT, {"messages": [{"role": "user", "content": None}]}, "messages[0]: content must be a text"),
        ("traces", CHAT, {"messages": [{"role": 1, "content": ""}]}, "messages[0]: role must be a text"),
        ("traces", CHAT, {"prompt": ["a"]}, "prompt must be a text, is a list"),
    ],
)  # fmt: skip
def test_mistyped_values_are_named(name, row, changes, words, tmp_path):
    good = write(tmp_path / "good.jsonl", row)
    read(name, good)  # the row without the change is right
    path = write(tmp_path / "rows.jsonl", row, row | changes)
    with pytest.raises(DataError) as error:
        read(name, path)
    assert str(error.value).startswith(f"{path}:2") and words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mbpp", "humaneval", "contest", "traces"])
@pytest.mark.parametrize("row", [None, 3, "text", [1], True])
def test_rows_that_are_not_objects_are_named(name, row, tmp_path):
    path = write(tmp_path / "rows.jsonl", row)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: a row must be a JSON object, is "):
        read(name, path)
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps([row]))
    with pytest.raises(DataError, match=r"rows\.json\[0\]: a row must be a JSON object, is "):
        read(name, str(listed))


@pytest.mark.parametrize("name", ["mbpp", "humaneval", "contest", "traces"])
@pytest.mark.parametrize("file", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_files_are_named(name, file, text, tmp_path):
    path = tmp_path / file
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if file.endswith(".gz") else text.encode())
    with pytest.raises(DataError, match=f"{file}: holds no rows"):
        read(name, str(path))


def damaged_gzip():
    data = bytearray(gzip.compress(json.dumps([MBPP] * 50).encode()))
    data[20] ^= 255
    return bytes(data)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("rows.jsonl.gz", damaged_gzip(), "cannot be read"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0)[:-4], "cannot be read: damaged gzip"),
        ("rows.jsonl.gz", b"PK\x03\x04 no gzip", "cannot be read: damaged gzip"),
        ("rows.jsonl", b'{"a": "\xff"}\n', "cannot be read: byte 7 is not UTF-8"),
        ("rows.jsonl", '{"a": 1}'.encode("utf-16"), "cannot be read: byte 0 is not UTF-8"),
        ("rows.jsonl", b'{"a": ' + b"9" * 5000 + b"}", ":1: cannot be read"),
        ("rows.jsonl", b"[" * 200_000, ":1: cannot be read"),
        ("rows.json", b"[" * 200_000, ": cannot be read"),
        ("rows.json", b'{"a": 1', ":1: not JSON"),
        ("rows.json", b'[{"a": 1},\n{"a": }]', ":2: not JSON"),
        ("rows.json", b'{"a": 1}\n{"a": \n', ":2: not JSON"),
        ("rows.parquet", b"PAR1 and no more", ": cannot be read"),
    ],
)
def test_damaged_files_are_named(file, content, words, tmp_path):
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_rows(str(path))
    assert str(error.value).startswith(f"{path}") and words in str(error.value) and "\n" not in str(error.value)


ROWS = [{"a": 1}, {"a": "ü"}]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("rows.json", "\n".join(map(json.dumps, ROWS)).encode()),  # JSON lines, whatever the name says
        ("rows.json", "\n".join(map(json.dumps, ROWS)).encode("utf-8-sig") + b"\n\n"),
        ("rows.json", json.dumps(ROWS).encode("utf-8-sig")),
        ("rows.json", json.dumps({"x": ROWS[0], "y": ROWS[1]}).encode()),
        ("rows.jsonl", "\r\n".join(map(json.dumps, ROWS)).encode("utf-8-sig")),
        ("rows.jsonl.gz", gzip.compress("\n".join(map(json.dumps, ROWS)).encode("utf-8-sig"), mtime=0)),
        ("rows.jsonl", gzip.compress("\n".join(map(json.dumps, ROWS)).encode(), mtime=0)),
        ("rows.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
    ],
)
def test_files_as_people_have_them_are_read(file, content, tmp_path):
    path = tmp_path / file
    path.write_bytes(content)
    assert [row.fields for row in read_rows(str(path))] == ROWS


def test_one_json_line_in_a_json_file_is_a_row(tmp_path):
    path = write(tmp_path / "rows.json", {"a": 1, "b": None})
    assert [row.fields for row in read_rows(path)] == [{"a": 1, "b": None}]


def test_nulls_of_parquet_are_fields_that_are_not_there(tmp_path):
    """A column that one row has, all rows have: as null."""
    import pyarrow
    import pyarrow.parquet

    rows = [MBPP, {k: v for k, v in MBPP.items() if k != "text"} | {"prompt": "Take.", "test_imports": ["import math"]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=pyarrow.schema([
        ("task_id", pyarrow.int64()), ("text", pyarrow.string()), ("prompt", pyarrow.string()),
        ("code", pyarrow.string()), ("test_list", pyarrow.list_(pyarrow.string())),
        ("test_imports", pyarrow.list_(pyarrow.string())),
    ])), tmp_path / "rows.parquet")  # fmt: skip
    first, second = map(mbpp.make_problem, read_rows(str(tmp_path / "rows.parquet")))
    assert first.messages[0]["content"].startswith("Add. ") and second.messages[0]["content"].startswith("Take. ")
    assert first.tests[0].code == "assert f(1) == 1" and second.tests[0].code == "import math\nassert f(1) == 1"


@pytest.mark.parametrize(
    "header", ["def add(a, b):\n", "import math\n\ndef add(a, b):", "def add(a,\n        b):  # sum\n"]
)
def test_a_header_without_docstring_is_a_problem(header, tmp_path, pool):
    path = write(tmp_path / "rows.jsonl", HUMANEVAL | {"prompt": header, "canonical_solution": "\n    return a + b\n"})
    task = read("humaneval", path)
    (problem,) = task.held_out
    assert problem.public_tests[0].code == "assert callable(add)"

    assert judge(task, problem, problem.demonstration, pool).solved
    assert not judge(task, problem, "    return a - b\n", pool).solved


def test_samples_are_read_by_type_too(tmp_path):
    data = write(tmp_path / "data.jsonl", HUMANEVAL)
    wrong = write(tmp_path / "samples.jsonl", {"task_id": "HumanEval/0", "completion": None})
    with pytest.raises(DataError, match=r"samples\.jsonl:1: completion must be a text, is null"):
        harnesses.read_samples(wrong)
    with pytest.raises(DataError, match=r"samples\.jsonl:1: row has no field 'text' \(it has"):
        ablate.read_texts(write(tmp_path / "samples.jsonl", {"task_id": "HumanEval/0"}), ablate.read_problems(
            "humaneval", data, ""
        ))  # fmt: skip
    (tmp_path / "folder" / "HumanEval_0").mkdir(parents=True)
    (tmp_path / "folder" / "HumanEval_0" / "0.py").write_bytes(b"x = '\xff'")
    with pytest.raises(DataError, match=r"0\.py: cannot be read: byte 5 is not UTF-8"):
        harnesses.read_samples(str(tmp_path / "folder"))


def test_a_folder_is_not_a_data_file(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        read_rows(str(tmp_path))


def test_without_a_home_folder_the_path_is_named(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as it is for a user that the system does not know
    with pytest.raises(DataError, match=r"'~/rows\.jsonl': the user's folder is not known; set HOME"):
        read_rows("~/rows.jsonl")


def test_parts_know_their_place():
    row = Row("rows.jsonl:3", {"outer": [{"inner": {"x": 1}}, {"inner": '{"x": "text"}'}]})
    first, second = row.parts("outer")
    assert second.part("inner").text("x") == "text"
    with pytest.raises(DataError, match=r"^rows\.jsonl:3: outer\[0\]: inner: x must be a text, is the number 1$"):
        first.part("inner").text("x")
