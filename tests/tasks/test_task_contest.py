"""Which contest problems are taken: what rejects a row, and what the settings choose."""

from __future__ import annotations

import asyncio
import json

import contest_rows as rows
import pytest
from contest_rows import load, only
from judging import judge_all
from played import Script

from jaxrl.config import Config
from jaxrl.errors import UserError
from jaxrl.runs.environments import make_environment
from jaxrl.runs.tokenizer import train_tokenizer
from jaxrl.tasks import contest, load_task
from jaxrl.tasks.contest_sets import MARKS, marks_of, memory_of
from jaxrl.tasks.rows import DataError, Row, stream_rows
from rollouts.environments import feedback
from rollouts.services import Services


@pytest.mark.parametrize(
    ("source", "changes", "reason"),
    [
        ("livecodebench", {"public_test_cases": "[]", "private_test_cases": "[]"}, "no tests"),
        ("livecodebench", {"private_test_cases": "%%"}, "malformed row"),
        ("codecontests", dict.fromkeys(("public_tests", "private_tests", "generated_tests")), "no tests"),
        ("codecontests", {"input_file": "in.txt"}, "reads or writes a file"),
        ("codecontests", {"description": "See:\n\n<image>\n\nwhere n is"}, "image"),
        ("codecontests", {"description": "This is an interactive problem."}, "interactive"),
        ("codecontests", {"description": None}, "malformed row"),
        ("codecontests", {"public_tests": {"input": ["1"], "output": []}}, "not as many outputs as inputs"),
        ("apps", {"input_output": ""}, "no tests"),
        ("apps", {"input_output": '{"inputs": [], "outputs": []}'}, "no tests"),
        ("apps", {"input_output": '{"inputs": ["1"], "outputs": []}'}, "not as many outputs as inputs"),
        ("apps", {"input_output": "{"}, "malformed row"),
        ("apps", {"input_output": '{"inputs": [[1' + "0" * 5000 + ']], "outputs": [1]}'}, "malformed row"),
        ("apps", {"question": "[Image] is the graph"}, "image"),
        ("taco", {"picture_num": "2"}, "image"),
        ("taco", {"time_limit": "soon"}, "malformed row"),
        ("deepcoder", {"tests": "[]"}, "no tests"),
        ("deepcoder", {"tests": [{"input": "", "output": ""}, {"input": [1], "output": 1, "type": "function_call",
                                                               "fn_name": "f"}]}, "mixed kinds of tests"),
        ("leetcode", {"test": "def check(candidate):\n assert candidate(1) > 2\n"}, "tests that are not plain calls"),
        ("leetcode", {"test": "def check(candidate):\n    x = 1\n"}, "tests that are not plain calls"),
        ("leetcode", {"test": "x ="}, "tests that are not plain calls"),
        ("leetcode", {"test": "x = 1"}, "no tests"),
        ("leetcode", {"entry_point": "a b"}, "malformed row"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_counted(tmp_path, source, changes, reason):
    good, bad = rows.ROWS[source](1), rows.ROWS[source](2, **changes)
    assert load(tmp_path, source, good, bad).rejected == {reason: 1}
    with pytest.raises(DataError, match=rf"no problem is left \({reason}: 1\)"):
        load(tmp_path, source, bad)


def test_what_statements_say_rejects_or_is_kept(tmp_path):
    row = rows.codecontests(description="If there are multiple answers, print any of them. <image>")
    assert marks_of(row["description"]) == ("image", "several answers")
    assert load(tmp_path, "codecontests", rows.codecontests(1), row).rejected == {"image": 1}
    everything = load(tmp_path, "codecontests", row, keep=("image", "several answers"))
    assert len(everything.train) == 1 and not everything.rejected
    nothing = load(tmp_path, "codecontests", rows.codecontests(1), row | {"description": "Print any of them."}, keep=())
    assert nothing.rejected == {"several answers": 1}


@pytest.mark.parametrize(
    ("mark", "text", "said"),
    [
        ("several answers", "If there are several solutions, you can print any.", True),
        ("several answers", "If there are multiple possible answers, output any one of them.", True),
        ("several answers", "Print the number of any of its friends.", False),
        ("several answers", "If there are many rows, print the sum.", False),
        ("interactive", "After printing a query do not forget to flush the output.", True),
        ("interactive", "The toilet cannot flush.", False),
        ("image", "![](https://example.com/a.png)", True),
        ("image", "an image of size n", False),
    ],
)
def test_marks(mark, text, said):
    assert bool(MARKS[mark].search(text)) == said


def test_solutions_are_tried_and_python2_is_counted(tmp_path):
    wrong_first = rows.apps(1, solutions=json.dumps(["print(0)", rows.PROGRAM]))
    given_rows = [
        wrong_first,
        rows.apps(2, solutions=json.dumps(["print 1"])),
        rows.apps(3, solutions=""),
        rows.apps(4, solutions=json.dumps(["print(0)"])),
        rows.apps(5, solutions=json.dumps(["print(0)"] * 3 + [rows.PROGRAM])),  # three are tried
    ]
    task = load(tmp_path, "apps", *given_rows, require_solution=True)
    assert [p.id for p in task.train] == ["apps/1"] and rows.PROGRAM in str(task.train[0].demonstration)
    assert task.rejected == {"only Python 2 solutions": 1, "no solution": 1, "its solution does not pass": 2}


def test_tests_are_cut_evenly_or_the_longest_stay(tmp_path):
    sizes = [3, 9, 1, 8, 2, 7]
    private = {"input": ["x" * n for n in sizes], "output": ["" for _ in sizes]}
    row = rows.codecontests(private_tests=private, generated_tests=None)

    def kept(**settings):
        return [len(t.stdin) for t in only(tmp_path, "codecontests", row, **settings).tests]

    assert kept() == [2, *sizes]  # the public one is "1\n"
    assert kept(max_tests=4) == [2, 3, 1, 2] and kept(max_tests=4, cut="longest") == [2, 9, 8, 7]
    assert kept(max_tests=1) == [2]


def test_partial_credit_is_a_setting(tmp_path, pool):
    for share in (0.0, 0.5):
        task = load(tmp_path, "apps", rows.apps(), partial_credit=share)
        reward = judge_all(task, task.train, ["print(input() and 2)"], pool)[0]
        assert not reward.solved and reward.value == share / 4


def test_train_on_one_set_and_evaluate_on_another(tmp_path):
    new = rows.livecodebench(2, contest_date="2025-01-01")
    held_out = rows.write(tmp_path / "lcb.jsonl", rows.livecodebench(1), new)
    chosen = {"held_out_path": held_out, "held_out_source": "livecodebench", "start_date": "2024-12-01"}
    task = load(tmp_path, "deepcoder", rows.deepcoder(), **chosen)
    assert [p.id for p in task.train] == ["deepcoder/deepcoder.jsonl:1"]  # has no date
    assert [p.id for p in task.held_out] == ["livecodebench/abc2_a"] and task.rejected == {"outside of the dates": 1}
    dates = ("2023-01-01", "2025-06-01", None)
    given_rows = [rows.leetcode(i, estimated_date=date) for i, date in enumerate(dates)]
    assert len(load(tmp_path, "leetcode", *given_rows, **chosen).train) == 3
    task = load(tmp_path, "leetcode", *given_rows, **chosen, train_until="2024-11-30")
    assert [p.id for p in task.train] == ["leetcode/double-0"]
    assert task.rejected == {"outside of the dates": 2, "no date": 1}


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"source": "leetcode", "start_date": "2024-13-01"}, "task.start_date = '2024-13-01' must be YYYY-MM-DD"),
        ({"source": "leetcode", "start_date": "2024-02-01", "end_date": "2024-01-01"}, "must not be before start_date"),
        ({"end_date": "2024-01-01"}, r"needs a source with dates \(livecodebench, leetcode, taco\), not open_r1"),
        ({"source": "leetcode", "train_until": "2024-01-01"}, "'2024-01-01' does nothing without a held_out_path"),
        ({"held_out_path": "y", "held_out_source": "leetcode", "train_until": "2024-01-01"}, "a source with dates"),
        ({"source": "livecodebench", "release": "5"}, "task.release = '5' must be like release_v5, v5 or v4_v6"),
        ({"source": "apps", "release": "v5"}, "task.release = 'v5' does nothing without source livecodebench"),
        ({"source": "apps", "language": "rust"}, "task.language = 'rust' does nothing without source open_r1"),
        ({"keep": ("image",)}, "does nothing without another source"),
        ({"held_out_source": "apps"}, "does nothing without a held_out_path"),
    ],
)
def test_settings_that_do_nothing_are_refused(chosen, words):
    with pytest.raises(UserError, match=words):
        load_task(contest.Settings(path="x.jsonl", **chosen), 0)


@pytest.mark.parametrize(
    ("stated", "megabytes"),
    [("256 megabytes", 256), ("1.5 GB", 1536), (268435456, 256), ("512.0 MB", 512), (None, 0), ("65536 kB", 64)],
)
def test_memory_limits(stated, megabytes):
    assert memory_of(Row("f:1", {}), stated) == megabytes


def test_complete_problems_of_codecontests(data, tmp_path, pool):
    """Problems of BigO(Bench), which are CodeContests' with several right solutions each."""
    stored = json.loads((data / "bigobench" / "tiny_time_test_set_with_notes.json").read_text())
    given_rows = []
    for name, by_class in stored.items():
        shown = list(by_class.values())
        tests = shown[0]["tests"]
        solutions = [{"language": "PYTHON3", "solution": s["solution_code"]} for s in shown]
        given_rows.append({"name": name, "description": shown[0]["description"], "solutions": solutions, **tests})
    task = load(tmp_path, "codecontests", *given_rows, keep=("image", "interactive", "several answers"), max_tests=12)
    problems = list({p.id: p for p in (*task.train, *task.held_out)}.values())
    assert len(problems) == len(stored) >= 5
    results = judge_all(task, problems, [str(p.demonstration) for p in problems], pool)
    assert all(r.solved for r in results), [r.verdict.first_failure for r in results]
    begun = [f"{p.meta['solutions'][0]}\nraise SystemExit" for p in problems]
    assert all(r.solved for r in judge_all(task, problems, begun, pool))
    silent = judge_all(task, problems, ["pass"] * len(problems), pool)
    assert not any(r.solved for r in silent)


def test_environments_show_how_public_tests_fail(tmp_path, pool):
    """A wrong method of LiveCodeBench, then the right one, in the environment that gives feedback."""
    tokenizer = train_tokenizer([rows.METHOD, rows.STARTER, "input expected failed"], 400)
    config = Config()
    config.rollout.environment, config.rollout.max_new_tokens = feedback.Settings(), 2000
    for source, row in (("livecodebench", rows.livecodebench_function()), ("leetcode", rows.leetcode())):
        task = load(tmp_path, source, row)
        texts = [f"```python\n{code}\n```" for code in (rows.METHOD.replace("2 * n", "n - 3"), rows.METHOD)]
        environment = make_environment(config, task, tokenizer, Services(pool), 1.0)
        episode = asyncio.run(environment.play(task.train[0], Script(tokenizer, *texts), seed=0))
        shown = [turn.text for turn in episode.turns if not turn.sampled]
        assert episode.reward.solved and len(shown) == 1 and "-2" in shown[0] and "2" in shown[0], shown


def test_a_configuration_of_a_hub_data_set(monkeypatch):
    asked = []

    def load_dataset(*names, split):
        asked.append((*names, split))
        return [rows.deepcoder()]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    hub = "agentica-org/DeepCoder-Preview-Dataset"
    task = load_task(contest.Settings(path=hub, source="deepcoder", subset="taco"), 0)
    assert asked == [(hub, "taco", "train")]
    assert [p.id for p in task.train] == ["deepcoder/DeepCoder-Preview-Dataset[0]"]


def test_rows_are_read_one_at_a_time(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\ufeff{"a": "é"}\n\n{"a": 2}\n{')
    stream = stream_rows(str(path))
    assert [next(stream), next(stream)] == [Row(f"{path}:1", {"a": "é"}), Row(f"{path}:3", {"a": 2})]
    with pytest.raises(DataError, match=r"rows\.jsonl:4: not JSON"):
        next(stream)
