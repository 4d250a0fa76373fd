"""The log at Weights & Biases, by a module that stands in for wandb: what is uploaded, once, also over a resume."""

from __future__ import annotations

import json
import sys
import types

import pytest

from jaxrl.errors import UserError
from jaxrl.runs.log import MetricsLog


class WandbError(Exception):
    pass


class Wandb(types.ModuleType):
    """wandb as documented: a run's step is one past the last one logged, and earlier steps are refused."""

    Error = WandbError

    def __init__(self):
        super().__init__("wandb")
        self.rows: dict[str, dict[int, dict]] = {}  # what the server has: id -> step -> values
        self.started: list[dict] = []
        self.finished = 0
        self.refuses = ""

    def Settings(self, **settings):
        return settings

    def init(self, **arguments):
        if self.refuses:
            raise WandbError(self.refuses)
        assert arguments["resume"] == "allow"
        self.started.append(arguments)
        return Run(self, self.rows.setdefault(arguments["id"], {}))


class Run:
    def __init__(self, wandb: Wandb, rows: dict[int, dict]):
        self.wandb, self.rows = wandb, rows
        self.step = max(rows, default=-1) + 1

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, values, step, commit):
        assert commit and step >= self.step, "wandb drops such a row"
        self.rows[step], self.step = values, step + 1

    def finish(self):
        self.wandb.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    stand_in = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def write(log: MetricsLog, steps) -> None:
    for step in steps:
        log.write({"step": step, "stage": "grpo", "stage_step": step, "loss": step / 4, "time/step_s": float("nan")})


def row(step: int) -> dict:
    return {"step": step, "grpo/loss": step / 4}


def test_each_line_is_uploaded_once_over_a_resume(tmp_path, wandb):
    (tmp_path / "config.json").write_text(json.dumps({"name": "made-up"}))
    killed = MetricsLog(tmp_path, wandb="project")
    write(killed, range(4))
    log = MetricsLog(tmp_path, keep_lines=2, wandb="project")  # the checkpoint was made after two lines
    write(log, range(2, 6))
    log.close()
    ((run, rows),) = wandb.rows.items()
    assert list(rows.items()) == [(line, row(line)) for line in range(6)]
    assert run == (tmp_path / "wandb_id.txt").read_text() and wandb.finished == 1
    for started in wandb.started:
        assert started["id"] == run and started["project"] == "project" and started["config"] == {"name": "made-up"}


def test_lines_that_were_never_uploaded_are_at_the_next_start(tmp_path, wandb):
    """Of a log that was kept without wandb, or whose run was killed before the upload."""
    log = MetricsLog(tmp_path)
    write(log, range(3))
    log.close()
    MetricsLog(tmp_path, keep_lines=3, wandb="project").close()
    (rows,) = wandb.rows.values()
    assert rows == {line: row(line) for line in range(3)}


def test_records_with_one_step_are_rows_of_their_own(tmp_path, wandb):
    log = MetricsLog(tmp_path, wandb="project")
    log.write({"step": 5, "stage": "sft", "stage_step": 5, "loss": 1.0})
    log.write({"step": 5, "stage": "evaluate", "stage_step": 5, "held_out/pass@1": 0.5})
    (rows,) = wandb.rows.values()
    assert rows == {0: {"step": 5, "sft/loss": 1.0}, 1: {"step": 5, "evaluate/held_out/pass@1": 0.5}}


def test_without_a_project_and_in_other_processes_nothing_is_uploaded(tmp_path, wandb):
    write(MetricsLog(tmp_path), range(2))
    write(MetricsLog(tmp_path, writes=False, wandb="project"), range(2))
    assert not wandb.started and not (tmp_path / "wandb_id.txt").exists()


def test_wandb_that_is_missing_or_refuses_is_an_error_in_one_line(tmp_path, wandb, monkeypatch):
    wandb.refuses = "api_key not configured"
    with pytest.raises(UserError, match=r"config\.log\.wandb = 'project': .* api_key not configured; WANDB_MODE=off"):
        MetricsLog(tmp_path, wandb="project")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"config\.log\.wandb = 'project' needs wandb: pip install 'jaxrl\[wandb\]'"):
        MetricsLog(tmp_path, wandb="project")
