"""The report of what a task found in its data, and of reference solutions."""

from __future__ import annotations

import json

import contest_rows as rows

from jaxrl.readers import main

CONFIG = """
from jaxrl.config import Config
from jaxrl.tasks import contest


def get_config():
    return Config(task=contest.Settings(source="apps"))
"""


def run(tmp_path, *given_rows, references=0):
    (tmp_path / "config.py").write_text(CONFIG)
    path = rows.write(tmp_path / "apps.jsonl", *given_rows)
    arguments = ["--config", str(tmp_path / "config.py"), f"--config.task.path={path}"]
    return main([*arguments, *(["--references", str(references)] if references else [])])


def test_accepted_and_rejected_rows_are_reported(tmp_path, capsys):
    hard = rows.apps(2, difficulty="interview", input_output=json.dumps({"inputs": ["1"], "outputs": ["2"]}))
    assert run(tmp_path, rows.apps(1), hard, rows.apps(3, input_output=""), rows.apps(4, question="<image>")) == 0
    out = capsys.readouterr().out
    for line in (
        "contest: 2 training and 2 held-out problems; 2 demonstrations",
        "rejected: 2", "  no tests: 1", "  image: 1", "tests: median 2.5, at most 4",
        "public tests: median 1.5, at most 2",
        "  difficulty interview: 1", "  difficulty introductory: 1",
    ):  # fmt: skip
        assert line in out.splitlines(), out


def test_references_are_judged(tmp_path, capsys):
    wrong = rows.apps(2, solutions=json.dumps(["print(0)"]))
    assert run(tmp_path, rows.apps(1), wrong, rows.apps(3, solutions=""), references=5) == 1
    out = capsys.readouterr().out
    assert "references 2/2" in out and "references: 1 of 2 pass (wrong_answer: 1)" in out
    assert "apps/2: wrong_answer: printed '0\\n', expected '2\\n'" in out
    assert run(tmp_path, rows.apps(1), references=5) == 0
    assert "references: 1 of 1 pass\n" in capsys.readouterr().out


def test_no_reference_at_all_is_an_error(tmp_path, capsys):
    assert run(tmp_path, rows.apps(1, solutions=""), references=1) == 1
    assert "--references 1: no problem of task contest has a solution" in capsys.readouterr().err
    assert run(tmp_path, rows.apps(1, input_output="")) == 1
    assert "no problem is left (no tests: 1)" in capsys.readouterr().err
