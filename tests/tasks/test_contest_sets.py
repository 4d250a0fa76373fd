"""Readers of seven data sets of contest problems: made-up rows in each schema, against what the sets' judges say."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from decimal import Decimal, InvalidOperation

import contest_rows as rows
import pyarrow
import pyarrow.parquet
import pytest
from contest_rows import load, only, statement
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import judge_all

from jaxrl.errors import UserError
from jaxrl.tasks import contest, load_task
from jaxrl.tasks.contest_sets import ANY_ORDER, IMPORTS
from jaxrl.tasks.contest_tests import pickled_text, unpacked
from jaxrl.tasks.rows import DataError, Row, stream_rows
from sandbox.compare import same_output
from sandbox.verdict import CallTest, StdioTest

CALLED = {"taco", "leetcode"}


@pytest.mark.parametrize("source", rows.ROWS)
def test_right_programs_pass_and_those_that_stop_early_do_not(tmp_path, pool, source):
    task = load(tmp_path, source, rows.ROWS[source]())
    (problem,) = task.train
    if source == "leetcode":
        right, wrong = rows.METHOD, rows.METHOD.replace("2 * n", "n + 1 if n > 0 else n")
    elif source == "taco":
        right, wrong = "def double(n):\n    return n + n", "def double(n):\n    return n"
    else:
        right, wrong = rows.PROGRAM, "n = int(input())\nprint(2 * n if n != 2 else '')"
    texts = [f"```python\n{code}\n```" for code in (right, wrong, "pass")] + ["", problem.demonstration or right]
    results = judge_all(task, [problem] * 5, texts, pool)
    assert [r.solved for r in results] == [True, False, False, False, True]
    assert 0 < results[1].value < 1 == results[0].value and results[3].value == 0


def test_an_output_that_is_a_beginning_of_the_right_one_is_wrong(tmp_path, pool):
    """open-r1's own reward zips the lines of both outputs, so one line of three would be enough."""
    for source, make in rows.ROWS.items():
        if source in CALLED:
            continue
        cases = json.dumps([{"input": "", "output": "1\n2\n3\n", "type": "stdin_stdout", "testtype": "stdin"}])
        columns = {"inputs": [""], "outputs": ["1\n2\n3\n"]}
        row = make() | {
            "open_r1": {"verification_info": {"language": "python", "test_cases": json.loads(cases)}},
            "livecodebench": {"public_test_cases": cases, "private_test_cases": "[]"},
            "codecontests": {"public_tests": {"input": [""], "output": ["1\n2\n3\n"]}, "private_tests": None,
                             "generated_tests": None},
            "apps": {"input_output": json.dumps(columns)},
            "deepcoder": {"tests": json.dumps(columns)},
        }[source]  # fmt: skip
        task = load(tmp_path, source, row)
        texts = [f"print({text!r})" for text in ("1\n2\n3", "1\n2", "1", "", "1\n2\n3\n4")]
        solved = [r.solved for r in judge_all(task, task.train * 5, texts, pool)]
        assert solved == [True, False, False, False, False], source


# LiveCodeBench


def test_livecodebench_has_public_and_packed_private_tests(tmp_path):
    problem = only(tmp_path, "livecodebench", rows.livecodebench(7))
    assert problem.id == "livecodebench/abc7_a" and problem.meta["difficulty"] == "easy"
    assert problem.tests == tuple(StdioTest(f"{n}\n", f"{2 * n}\n", "stripped", 0.0) for n in range(5))
    assert problem.public_tests == problem.tests[:2] and problem.meta["date"] == "2024-03-02"
    assert problem.meta["limits"].cpu_s == 30 and problem.demonstration is None
    plain = rows.livecodebench(private_test_cases=json.dumps([{"input": "9", "output": "18", "testtype": "stdin"}]))
    assert only(tmp_path, "livecodebench", plain).tests[-1] == StdioTest("9", "18", "stripped", 0.0)


def test_livecodebench_calls_a_method_with_an_argument_a_line(tmp_path, pool):
    case = {"input": '[1, 2]\n"x"', "output": "[7]", "testtype": "functional"}
    row = rows.livecodebench_function(public_test_cases=json.dumps([case]), private_test_cases=json.dumps([case]))
    task = load(tmp_path, "livecodebench", row)
    (problem,) = task.train
    assert problem.tests == (CallTest("double", ([1, 2], "x"), [7], tolerance=0.0),) * 2  # [7] is no wrapped 7
    assert rows.STARTER.strip() in statement(problem)
    # The judge's imports stand before the program: solutions of LeetCode have none.
    text = "class Solution:\n    def double(self, a: List[int], b: str) -> List[int]:\n        return [gcd(14, 21)]"
    assert judge_all(task, [problem], [text], pool)[0].solved
    assert task.submission(problem, text).program == IMPORTS + text
    assert task.submission(problem, "no program").program is not None


def as_livecodebench_judges(output: str, expected: str) -> bool:
    """lcb_runner/evaluation/testing_util.py: lines without blanks around them; else both as Decimals."""
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (expected, output))

    def decimals(line):
        try:
            return [Decimal(word) for word in line.split()]
        except InvalidOperation:
            return None

    def same(t, o):
        return t == o or (decimals(t) is not None and decimals(t) == decimals(o))

    return len(ours) == len(theirs) and all(map(same, theirs, ours))


WORDS = st.sampled_from(["1", "1.0", "01", "2", "-0", "0.1", "0.10", "0.100001", "1e1", "10", "yes", "Yes", "no"])
OUTPUTS = st.lists(st.lists(WORDS, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=3)
BLANKS = st.sampled_from(["\n", " \n", "\n  "])


@settings(max_examples=60)
@given(OUTPUTS, OUTPUTS, BLANKS)
def test_outputs_compare_as_livecodebench_does(output, expected, blank):
    """Where lines mix words and numbers, LiveCodeBench wants the same texts of the numbers, and we the same values."""
    for a, b in ((output, expected), (expected, expected)):
        given_output, right = blank.join(a) + blank, "\n".join(b)
        ours, theirs = same_output(given_output, right, "stripped", 0.0), as_livecodebench_judges(given_output, right)
        mixed = any(c.isalpha() and c != "e" for line in (*a, *b) for c in line)
        assert ours == theirs or (mixed and ours)


def test_pickles_are_read_without_running_them():
    for text in ("", "[]", "é\n" * 70_000, "a" * 300, json.dumps([{"input": "1"}])):
        for protocol in range(6):
            data = pickle.dumps(text, protocol)
            assert pickled_text(data) == pickle.loads(data)

    class Evil:
        def __reduce__(self):
            return exec, ("raise SystemExit('ran')",)

    for value in (Evil(), ["a"], {"a": "b"}, b"bytes", 3, None, ("a", "b")):
        with pytest.raises(ValueError, match="must hold one text"):
            pickled_text(pickle.dumps(value))
    row = Row("f:1", {"tests": base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()})
    with pytest.raises(DataError, match="f:1: tests cannot be unpacked: the pickle must hold one text"):
        unpacked(row, "tests")


@pytest.mark.parametrize("text", ["%%%", "AAAA", base64.b64encode(zlib.compress(b"junk")).decode(),
                                  rows.packed([{}])[:-8]])  # fmt: skip
def test_damaged_private_tests_are_named(text):
    with pytest.raises(DataError, match="f:1: tests cannot be unpacked"):
        unpacked(Row("f:1", {"tests": text}), "tests")


def test_releases_and_dates_choose_problems(tmp_path, monkeypatch):
    for file in range(1, 7):
        dated = rows.livecodebench(file, contest_date=f"2024-0{file}-15T00:00:00")
        rows.write(tmp_path / f"test{file if file > 1 else ''}.jsonl", dated)

    def read(path=str(tmp_path), **settings):
        task = load_task(contest.Settings(path=path, source="livecodebench", **settings), 0)
        assert task.train == task.held_out
        return [p.id.removeprefix("livecodebench/abc")[0] for p in task.train], task.rejected

    assert read(release="release_v3")[0] == ["1", "2", "3"]
    assert read(release="v3")[0] == ["3"] and read(release="v4_v6")[0] == ["4", "5", "6"]
    found, rejected = read(release="release_v6", start_date="2024-02-15", end_date="2024-05-14")
    assert found == ["2", "3", "4"] and rejected == {"outside of the dates": 3}
    asked = []

    def download(name, file, repo_type):
        asked.append((name, file, repo_type))
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert read("livecodebench/code_generation_lite", release="v2")[0] == ["2"]
    assert read("hf://datasets/livecodebench/code_generation_lite/test.jsonl")[0] == ["1"]
    assert asked == [("livecodebench/code_generation_lite", f, "dataset") for f in ("test2.jsonl", "test.jsonl")]
    with pytest.raises(UserError, match=r"task.release = 'v2' needs a folder or a hub name; .*test.jsonl is one file"):
        read(str(tmp_path / "test.jsonl"), release="v2")
    with pytest.raises(DataError, match="must be hf://datasets/OWNER/NAME/FILE"):
        list(stream_rows("hf://datasets/livecodebench"))


# CodeContests


def test_codecontests_keeps_python3_solutions_and_the_limits(tmp_path):
    problem = only(tmp_path, "codecontests", rows.codecontests(3))
    assert problem.id == "codecontests/3_A. Double" and problem.meta["solutions"] == (rows.PROGRAM,)
    assert problem.tests == tuple(StdioTest(f"{n}\n", f"{2 * n}\n", "words", 1e-5) for n in range(1, 7))
    assert problem.public_tests == problem.tests[:1]  # the set says which
    assert problem.meta["limits"].cpu_s == 15 and problem.meta["limits"].memory_mb == 1024
    assert problem.meta["cf_rating"] == 800
    listed = rows.codecontests(
        public_tests=[{"input": "1", "output": "2"}], private_tests=[], generated_tests=None,
        solutions=[{"language": "PYTHON3", "solution": rows.PROGRAM}, {"language": "CPP", "solution": ";"}],
    )  # fmt: skip
    assert only(tmp_path, "codecontests", listed).tests == (StdioTest("1", "2", "words", 1e-5),)


def test_codecontests_of_parquet_is_the_same(tmp_path):
    given_rows = [rows.codecontests(i) for i in range(130)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(given_rows), tmp_path / "c.parquet")
    stored = load_task(contest.Settings(path=str(tmp_path / "c.parquet"), source="codecontests"), 0)
    plain = load(tmp_path, "codecontests", *given_rows)
    assert stored.train == plain.train and stored.held_out == plain.held_out and plain.held_out


def as_alphacode_judges(output: str, expected: str) -> bool:
    """execution/tester_sandboxer.cc of google-deepmind/code_contests: OutputsMatch and ValuesMatch."""
    ours, theirs = expected.lower().split(), output.lower().split()

    def number(word):
        try:
            return float(word)
        except ValueError:
            return None

    def same(a, b):
        return a == b if number(a) is None or number(b) is None else abs(number(a) - number(b)) < 1e-5

    return ours == theirs or (len(ours) == len(theirs) and all(map(same, theirs, ours)))


@settings(max_examples=60)
@given(OUTPUTS, OUTPUTS, BLANKS)
def test_outputs_compare_as_alphacode_does(output, expected, blank):
    """Where an integer is expected we want it exactly; these words differ by 1e-6 or by more than 1e-5."""
    assert same_output(blank.join(output), "\n".join(expected), "words", 1e-5) == as_alphacode_judges(
        blank.join(output), "\n".join(expected)
    )


# APPS, TACO, DeepCoder


def test_apps_and_taco_say_their_tests_in_columns(tmp_path):
    problem = only(tmp_path, "apps", rows.apps(5))
    assert problem.id == "apps/5" and problem.tests[1] == StdioTest("1\n", "2\n", "stripped", 1e-5)
    assert problem.meta["solutions"] == (rows.PROGRAM,)  # the first is Python 2
    lines = rows.apps(input_output={"inputs": [["1", "2"]], "outputs": [["3"]]})
    assert only(tmp_path, "apps", lines).tests == (StdioTest("1\n2", "3", "stripped", 1e-5),)
    problem = only(tmp_path, "taco", rows.taco())
    assert problem.tests == tuple(CallTest("double", (n,), 2 * n) for n in range(4))
    assert problem.id == "taco/taco.jsonl:1" and "def double(n):" in statement(problem)
    assert problem.meta["limits"].memory_mb == 2048 and problem.meta["date"] == "2019-04-01"
    named = rows.taco(starter_code="")
    assert "Write the function double." in statement(only(tmp_path, "taco", named))


def test_deepcoder_stores_tests_as_its_sources_do(tmp_path):
    calls = [{"input": [[1, 2]], "output": [3], "type": "function_call", "fn_name": "f"}]
    of_livecodebench = [{"input": "1\n2", "output": "[3]", "testtype": "functional", "metadata": {"func_name": "f"}}]
    tests = {
        "taco": json.dumps({"inputs": ["1"], "outputs": ["2"]}),
        "taco calls": json.dumps({"inputs": [[1]], "outputs": [[2]], "fn_name": "f"}),
        "primeintellect": json.dumps(calls),
        "lcbv5": json.dumps(of_livecodebench),
        "codeforces": [{"input": "1", "output": "2"}],
    }
    found = {name: only(tmp_path, "deepcoder", rows.deepcoder(tests=value)).tests for name, value in tests.items()}
    stdin = (StdioTest("1", "2", "stripped", 1e-5),)
    assert found == {
        "taco": stdin, "taco calls": (CallTest("f", (1,), 2),), "primeintellect": (CallTest("f", ([1, 2],), 3),),
        "lcbv5": (CallTest("f", (1, 2), [3], tolerance=0.0),), "codeforces": stdin,
    }  # fmt: skip
    of_problem = json.dumps([{"input": "1", "output": "2", "testtype": "functional"}])
    row = rows.deepcoder(tests=of_problem, metadata={"func_name": "g"}, starter_code="def g(x):")
    assert only(tmp_path, "deepcoder", row).tests == (CallTest("g", (1,), 2, tolerance=0.0),)


# LeetCodeDataset

PROMPT = """from typing import *
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next
class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right
def list_node(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head
def tree_node(values):
    nodes = [None if v is None else TreeNode(v) for v in values]
    children = iter(nodes[1:])
    for node in nodes:
        if node:
            node.left, node.right = next(children, None), next(children, None)
    return nodes[0] if nodes else None
"""


def test_linked_lists_and_trees_are_given_and_taken_as_values(tmp_path, pool):
    def task_of(test, solution):
        name = solution.split("def ")[1].split("(")[0]
        code = f"class Solution:\n    {solution}"
        row = rows.leetcode(prompt=PROMPT, test=test, entry_point=f"Solution().{name}", completion=code)
        return load(tmp_path, "leetcode", row), code

    def solved(task, *texts):
        return [r.solved for r in judge_all(task, task.train * len(texts), texts, pool)]

    test = "def check(candidate):\n" + "".join(
        f"    assert is_same_list(candidate(head = list_node({given})), list_node({right}))\n"
        for given, right in (([1, 2, 3], [2, 3]), ([1], []), ([-5, 1], [1]))
    )
    task, tail = task_of(test, "def tail(self, head: Optional[ListNode]):\n        return head.next")
    assert task.train[0].tests[1] == CallTest("with_nodes", (), None, {"head": {"list_node": [1]}})
    assert solved(task, tail, tail.replace("head.next", "head")) == [True, False]
    tree = "[3, 9, 20, None, None, 15, 7, None]"
    test = f"""def check(candidate):
    assert is_same_tree(candidate(root = tree_node({tree})), tree_node([3, 20, 9, 7, 15]))
    assert is_same_tree(candidate(tree_node([])), tree_node([]))
"""
    flip = "def flip(self, root):\n        if root:\n            "
    flip += "root.left, root.right = self.flip(root.right), self.flip(root.left)\n        return root"
    task, right = task_of(test, flip)
    assert solved(task, right, right.replace("return root", "return None")) == [True, False]
    test = "def check(candidate):\n    assert candidate(lists = [list_node([1, 4]), list_node([])]) == [5, 0]\n"
    task, sums = task_of(test, "def sums(self, lists):\n        return [self.sum(x) for x in lists]\n    "
                         "def sum(self, x):\n        return x.val + self.sum(x.next) if x else 0")  # fmt: skip
    assert solved(task, sums) == [True]


def test_leetcode_answers_come_in_any_order_where_the_statement_says_so(tmp_path, pool):
    test = "def check(candidate):\n    assert candidate(n = 2) == [1, 2]\n"
    for said, allowed in (("You may return the answer in **any order**.", True), ("The input is in any order.", False)):
        row = rows.leetcode(problem_description=f"List them. {said}", test=test)
        task = load(tmp_path, "leetcode", row)
        reverse = rows.METHOD.replace("2 * n", "[2, 1]")
        assert judge_all(task, task.train, [reverse], pool)[0].solved == allowed
    assert ANY_ORDER.search("Return all pairs in any order.") and not ANY_ORDER.search(
        "Return it. Tasks run in any order."
    )


def test_leetcode_values_and_older_rows(tmp_path):
    test = "def check(candidate):\n    assert candidate([-1, 'a'], k = -inf) == {1: (2, None)}\n"
    test += "    assert candidate(1) is True\n"
    problem = only(tmp_path, "leetcode", rows.leetcode(test=test))
    assert problem.tests == (
        CallTest("double", ([-1, "a"],), {1: (2, None)}, {"k": float("-inf")}), CallTest("double", (1,), True),
    )  # fmt: skip
    older = rows.leetcode()
    meta = {"question_id": 1, "difficulty": "Hard", "lang_code": older.pop("starter_code"), "query": "Double n. Please",
            "question_title": older.pop("problem_description")}  # fmt: skip
    problem = only(tmp_path, "leetcode", {k: v for k, v in older.items() if k != "difficulty"} | {"meta": meta})
    assert problem.meta["difficulty"] == "Hard" and "def double(self, n: int)" in statement(problem)
