"""Whole runs with several turns: tools are called, masks hold, costs are counted, and a resumed run is the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from jaxrl.evaluate import main as evaluate
from jaxrl.report import main as report
from jaxrl.runs.log import read_metrics
from jaxrl.train import main as train

TINY = [
    "--config.model.shape.hidden_size=64", "--config.model.shape.intermediate_size=128", "--config.model.path=",
    "--config.model.shape.num_hidden_layers=2", "--config.task.held_out_problems=8", "--config.sft.steps=150",
    "--config.sft.batch_size=16", "--config.sft.optimizer.learning_rate=5e-3", "--config.batch.row_length=272",
    "--config.grpo.steps=4", "--config.grpo.problems_per_step=3", "--config.grpo.group_size=4",
    "--config.rollout.slots=8", "--config.batch.microbatch_rows=4", "--config.checkpoint.every=152",
    "--config.evaluation.samples=2", "--config.name=run",
]  # fmt: skip


def records_without_times(folder: Path) -> list[dict]:
    records = read_metrics(folder / "run" / "metrics.jsonl")
    return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in records]


def samples(folder: Path, step: int) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "samples" / f"{step:08d}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=["tool", pytest.param("feedback", marks=pytest.mark.slow)])
def run(request, tmp_path_factory):
    """A run of either environment, and its arguments."""
    folder = tmp_path_factory.mktemp(request.param)
    kind = "program" if request.param == "feedback" else "tool"
    arguments = [f"--config={ROOT}/configs/study/{request.param}.py", f"--config.runs_dir={folder}", *TINY]
    arguments += [f"--config.task.demonstration_kinds=('{kind}',)"]
    assert train(arguments) == 0
    return request.param, folder, arguments


def test_turns_and_masks(run):
    kind, folder, _ = run
    episodes = [e for step in (151, 152, 153, 154) for e in samples(folder, step)]
    assert len(episodes) == 48 and max(len(e["turns"]) for e in episodes) >= 3
    for turn in (t for e in episodes for t in e["turns"]):
        assert turn["learned"] == turn["sampled"] == (turn["role"] == "assistant")
        assert ("logprobs" in turn) == turn["sampled"]
    later = [t for e in episodes for t in e["turns"][1:] if t["sampled"]]
    assert all(t["cached"] > 0 for t in later)
    if kind == "tool":
        assert {t["role"] for e in episodes for t in e["turns"]} == {"assistant", "output"}
        assert any(t.get("status") for e in episodes for t in e["turns"])
    else:
        whole = [e for e in episodes if e["status"] != "truncated"]
        assert whole and all(len(e["attempts"]) == sum(t["sampled"] for t in e["turns"]) for e in whole)


def test_sampler_and_trainer_agree_on_what_was_sampled(run):
    _, folder, _ = run
    assert max(r["mismatch/max"] for r in records_without_times(folder) if r["stage"] == "grpo") < 1e-4


def test_costs(run):
    kind, folder, _ = run
    records = records_without_times(folder)
    for r in (r for r in records if r["stage"] == "grpo"):
        assert r["flops"] == r["flops/sampling"] + r["flops/old"] + r["flops/reference"] + r["flops/update"]
        assert r["turns/mean"] >= 1 and (kind == "feedback" or r["calls/mean"] > 0)
    last = records[-1]
    assert last["held_out/cost/turns"] > 1 and last["held_out/cost/flops"] > 1e6


def test_a_resumed_run_is_the_same(run):
    _, folder, arguments = run
    before = records_without_times(folder)
    shutil.rmtree(folder / "run" / "checkpoints" / "154")  # as if it had been stopped after step 152
    assert train(arguments) == 0
    assert records_without_times(folder) == before


def test_evaluation_and_comparison(run, tmp_path):
    kind, folder, arguments = run
    more = [f"--config.model.path={folder / 'run'}", "--config.name=again", f"--config.runs_dir={folder}"]
    assert evaluate([*arguments, *more]) == 0
    again = json.loads((folder / "again" / "evaluation.json").read_text())
    last = records_without_times(folder)[-1]
    assert again["held_out/pass@1"] == last["held_out/pass@1"]
    assert again["held_out/cost/flops"] == pytest.approx(last["held_out/cost/flops"])
    assert report([str(folder / "run"), str(folder / "again"), "--output", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "```" in page and ("output" in page if kind == "tool" else "Your program is wrong" in page)
    assert np.isfinite(again["held_out/cost/turns"])
