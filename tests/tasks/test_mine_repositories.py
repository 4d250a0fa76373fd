"""Rows of a history: commits whose tests fail before and pass after, found by running them."""

from __future__ import annotations

import asyncio
import json

import pytest
from small_repository import AFTER, BEFORE, RIGHT, SECRET, Git

from jaxrl import swe_data
from jaxrl.tasks import load_task, repository
from jaxrl.tasks.repositories.mine import Runs
from jaxrl.tasks.swe.mining import Rules
from rollouts.episode import Submission
from rollouts.services import Services


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """The rows, the counts of other commits, the id of the one that is kept, and the folder."""
    folder = tmp_path_factory.mktemp("mine")
    git = Git(folder / "clones" / "shapes")
    pi = RIGHT + "\n\nPI = 3"
    again = AFTER["tests/test_area.py"] + "\n\ndef test_again():\n    assert square(2) == 4\n"
    git.commit("Areas of some shapes", BEFORE)
    mended = {path: text for path, text in AFTER.items() if path != "checks.py"}
    fixed = git.commit("A triangle is half of it\n\nSigned-off-by: A <a@b>", mended)
    git.commit("Code without a test of it", {"shapes/area.py": pi + "\n"})
    git.commit("Tests that passed before as well", {"shapes/area.py": pi + ".1\n", "tests/test_area.py": again})
    git.commit("Only the documents change here", {"README": "Areas.\n"})
    out = folder / "rows.jsonl"
    count, rejected = swe_data.write_rows([git.folder], "HEAD", Rules(), out, Runs(folder / "files", 60.0))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert count == len(rows)
    return rows, rejected, fixed, folder


def test_commits_whose_tests_tell(mined):
    (row,), rejected, fixed, _ = mined
    assert rejected == {"only new files": 1, "no tests of pytest change": 1, "no test tells before from after": 1,
                        "no code changes": 1}  # fmt: skip
    assert row["instance_id"] == f"shapes__{fixed[:12]}" and row["repo"] == "local/shapes"
    assert row["FAIL_TO_PASS"] == ["tests/test_area.py::test_triangle"]
    assert row["PASS_TO_PASS"] == ["tests/test_area.py::test_square"]
    assert row["problem_statement"] == "A triangle is half of it"
    assert SECRET not in row["patch"] and SECRET in row["test_patch"]


def test_they_are_problems_of_the_task(mined):
    (row,), *_, folder = mined
    path = str(folder / "rows.jsonl")
    settings = repository.Settings(
        name="repository", path=path, held_out_path=path, repositories=str(folder / "clones"),
        cache=str(folder / "files"),
    )  # fmt: skip
    task = load_task(settings, 0)
    (problem,) = task.train
    tree = problem.meta["tree"]
    assert tree.tests == ("python -m pytest -rA -q -p no:cacheprovider tests/test_area.py",)
    rewards = [asyncio.run(task.judge(problem, Submission("", state=p), Services())) for p in (row["patch"], "")]
    assert [r.value for r in rewards] == [1.0, 0.0]


def test_the_command_says_what_it_cannot_use(mined, tmp_path, capsys):
    *_, folder = mined
    clone = str(folder / "clones" / "shapes")
    assert swe_data.main(["--repository", clone, "--run", "--limit", "1", str(tmp_path / "r.jsonl")]) == 1
    seen = capsys.readouterr()
    assert "no code changes" in seen.out and "no commit is a problem" in seen.err
    assert swe_data.main(["--repository", clone, "--test-s", "9", str(tmp_path / "r.jsonl")]) == 1
    assert "--test-s has no effect without --run" in capsys.readouterr().err
