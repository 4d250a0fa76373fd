"""The four files of docs/extending.md, in a folder of their own, trained and measured together."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from jaxrl.config import Config
from jaxrl.config.command_line import describe, read_config
from jaxrl.errors import UserError

TINY = [
    "--config.model.shape.hidden_size=32", "--config.model.shape.intermediate_size=64", "--config.rollout.slots=16",
    "--config.sft.steps=2", "--config.grpo.steps=2", "--config.grpo.problems_per_step=2", "--config.grpo.group_size=4",
    "--config.task.held_out_problems=8", "--config.rollout.max_new_tokens=24", "--config.checkpoint.every=1",
]  # fmt: skip
CHOSEN = [
    "--config.task=backwards.py", "--config.rollout.environment=second_thoughts.py", "--config.grpo.loss=baseline.py",
    "--config.task.digits=2", "--config.grpo.loss.value_weight=0.25", "--config.rollout.environment.question=Really?",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    page = (ROOT / "docs" / "extending.md").read_text()
    files = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert [name for name, _ in files] == ["backwards.py", "second_thoughts.py", "baseline.py", "longer.py"]
    for name, text in files:
        (folder / name).write_text(text)
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_the_files_of_the_page_train_and_measure(folder):
    config = ["--config", str(ROOT / "configs" / "scramble.py"), *TINY]
    trained = python(folder, "-m", "jaxrl.train", *config, *CHOSEN)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "held-out digits_right after grpo" in trained.stdout
    run = folder / "runs" / "scramble"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    assert (
        last["headline"] == "digits_right"
        and {"held_out/digits_right", "held_out/digits_right/length_2"} <= last.keys()
    )
    assert [r["stage"] for r in records if "value_error" in r] == ["grpo", "grpo"]  # the head has learned
    samples = [json.loads(line) for line in next(run.glob("samples/0*.jsonl")).read_text().splitlines()]
    assert any("Really?" in turn["text"] for sample in samples for turn in sample["turns"])
    settings = json.loads((run / "config.json").read_text())
    assert settings["task"]["name"] == "backwards.py" and settings["task"]["digits"] == 2

    measured = python(folder, "longer.py", *config, f"--config.model.path={run}", "--config.name=longer")
    assert measured.returncode == 0, measured.stdout + measured.stderr
    assert len(re.findall(r"^\d digits: [\d.]+% right$", measured.stdout, re.MULTILINE)) == 3


def test_a_task_by_its_import_path(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder.parent))
    config = read_config(
        [
            "--config",
            str(ROOT / "configs" / "scramble.py"),
            f"--config.task={folder.name}.backwards",
            "--config.task.digits=4",
        ]
    )
    assert config.task.digits == 4 and config.task.name == f"{folder.name}.backwards"  # pyright: ignore


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("task.digits=1", r"task\.digits = 1 must be in \[2, 9\]"),
        ("task.digitss=3", r"config\.task has no field 'digitss'; did you mean config\.task\.digits\?"),
    ],
)
def test_settings_from_outside_are_checked(folder, argument, message):
    with pytest.raises(UserError, match=f"^{message}"):
        read_config(
            [
                "--config",
                str(ROOT / "configs/scramble.py"),
                f"--config.task={folder}/backwards.py",
                f"--config.{argument}",
            ]
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "has no Settings; see docs/extending.md"),
        ("class Settings: ...\n", "has no make_task; see docs/extending.md"),
    ],
)
def test_a_file_that_is_not_a_task_says_what_is_missing(tmp_path, text, message):
    (tmp_path / "not_a_task.py").write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(["--config", str(ROOT / "configs/scramble.py"), f"--config.task={tmp_path}/not_a_task.py"])


def test_help_lists_the_settings_with_their_values_and_comments(capsys):
    with pytest.raises(SystemExit) as ended:
        read_config(["--help", "--config", str(ROOT / "configs/grpo.py")])
    page = capsys.readouterr().out
    assert not ended.value.code and page.startswith("config: ")
    assert re.search(r"--config\.task\.max_difficulty=3 +steps of the longest problem", page)
    assert re.search(r"--config\.grpo\.loss\.clip_high=0\.2 +DAPO: 0\.28", page)
    assert len(describe(Config()).splitlines()) > 150
