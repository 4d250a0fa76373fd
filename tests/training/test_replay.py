"""Replay: what is taken from the samples of other runs, and whole SPO runs that learn from it, stopped and resumed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_train import TINY, Result, final_params, without_times

from jaxrl.algorithms.spo import Settings, soft_value
from jaxrl.config import Config
from jaxrl.config.rules import check_settings
from jaxrl.config.training import ReplayConfig
from jaxrl.errors import UserError
from jaxrl.train import main
from jaxrl.training.reinforce import objective_of
from jaxrl.training.replay import Replay, write_sources
from rollouts.episode import Episode, Group, Problem, Reward, Turn

SPO = [s for s in TINY if "kl_coefficient" not in s and "minibatches" not in s] + [
    "--config.sft.steps=40", "--config.sft.batch_size=32", "--config.task.train_problems=6", "--config.grpo.steps=4",
    "--config.grpo.loss=spo", "--config.grpo.loss.truncated=keep", "--config.grpo.loss.q0_samples=4",
    "--config.checkpoint.every=42", "--config.log_samples_every=1",
]  # fmt: skip


def run(folder: Path, *extra: str) -> Result:
    """A command line's later settings replace its earlier ones."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*SPO, f"--config.runs_dir={folder}", *extra])
    return Result(code, out.getvalue(), err.getvalue())


def resumed_is_the_same(folder: Path, *extra: str) -> None:
    """Goes back to the checkpoint of step 42 and on from there."""
    before, params = without_times(folder), final_params(folder)
    shutil.rmtree(folder / "scramble" / "checkpoints" / "44")
    result = run(folder, *extra)
    assert result.returncode == 0, result.stderr
    assert "after step 42" in result.stdout
    assert without_times(folder) == before
    for name, value in final_params(folder).items():
        assert value.tobytes() == params[name].tobytes(), name


def steps(folder: Path) -> list[dict]:
    return [r for r in without_times(folder) if r["stage"] == "grpo"]


@pytest.fixture(scope="module")
def online(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("online")
    result = run(folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_online_and_resumed(online):
    table = [json.loads(line) for line in (online / "scramble" / "q0.jsonl").read_text().splitlines()]
    assert len(table) == 6 and all(len(row["rewards"]) == row["samples"] == 4 for row in table)
    values = {np.float32(soft_value(row["rewards"], Settings.beta)) for row in table}
    found = steps(online)
    assert all(min(values) - 1e-5 <= r["spo/q0"] <= max(values) + 1e-5 for r in found)
    assert found[0]["spo/log_ratio"] == pytest.approx(0, abs=1e-4) and found[-1]["spo/log_ratio"] != 0
    assert all(r["grad_norm"] > 0 and "replay/episodes" not in r for r in found)
    resumed_is_the_same(online)


@pytest.mark.slow
def test_with_replay_and_resumed(online, tmp_path):
    extra = ["--config.grpo.replay.share=0.5", f"--config.grpo.replay.folders={online / 'scramble'}",
             "--config.grpo.replay.demonstrations=3", "--config.rollout.max_staleness=1"]  # fmt: skip
    result = run(tmp_path / "mixed", *extra)
    assert result.returncode == 0, result.stderr
    account = json.loads((tmp_path / "mixed" / "scramble" / "replay.json").read_text())
    assert account["episodes"] == 4 * 8 + 3 and not account["rejected"] and len(account["files"]) == 4
    for r in steps(tmp_path / "mixed"):
        assert 0 < r["replay/episodes"] < 1 and r["grad_norm"] > 0
        (group,) = json.loads((tmp_path / "mixed" / "scramble" / "replay" / f"{r['step']:08d}.json").read_text())
        assert all(s == "demonstration" or s.startswith(str(online)) for s in group["sources"])
    resumed_is_the_same(tmp_path / "mixed", *extra)


def test_from_files_alone_nothing_is_sampled(online, tmp_path):
    extra = ["--config.grpo.replay.share=1", f"--config.grpo.replay.folders={online / 'scramble'}",
             "--config.grpo.loss.q0=group"]  # fmt: skip
    result = run(tmp_path / "files", *extra)
    assert result.returncode == 0, result.stderr
    for r in steps(tmp_path / "files"):
        assert r["replay/episodes"] == 1 and r["flops/sampling"] == 0
    assert any(r["grad_norm"] > 0 for r in steps(tmp_path / "files"))
    folder = tmp_path / "files" / "scramble"
    assert not (folder / "q0.jsonl").exists() and not list((folder / "samples").glob("[0-9]*"))
    resumed_is_the_same(tmp_path / "files", *extra)


def test_what_must_not_be_replayed(online, tmp_path):
    replay = ["--config.grpo.replay.share=1", f"--config.grpo.replay.folders={online / 'scramble'}"]
    config = Config()
    config.grpo.replay.share = 1
    with pytest.raises(UserError, match="must be 0 with objective 'policy_gradient'"):
        objective_of(config)
    result = run(tmp_path, *replay, "--config.sft.steps=0", "--config.model.tokenizer_size=290")
    assert result.returncode == 1 and "another tokenizer or chat template" in result.stderr, result.stderr


def test_a_resumed_run_must_find_the_same_files(online, tmp_path):
    shutil.copytree(online / "scramble", tmp_path / "old", ignore=shutil.ignore_patterns("checkpoints"))
    extra = ["--config.grpo.replay.share=1", f"--config.grpo.replay.folders={tmp_path / 'old'}",
             "--config.grpo.loss.q0=group", "--config.sft.steps=2", "--config.grpo.steps=2"]  # fmt: skip
    extra += ["--config.checkpoint.every=3"]
    result = run(tmp_path, *extra)
    assert result.returncode == 0, result.stderr
    shutil.rmtree(tmp_path / "scramble" / "checkpoints" / "4")
    (first, *_) = files = sorted((tmp_path / "old" / "samples").glob("[0-9]*.jsonl"))
    account, content = tmp_path / "scramble" / "replay.json", first.read_bytes()
    kept = account.read_bytes()
    assert json.loads(kept)["files"] == {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    first.write_bytes(content.replace(b": ", b":  ", 1))  # the same record in another layout
    refused = run(tmp_path, *extra)
    first.write_bytes(content)
    first.rename(first.with_suffix(".away"))
    missing = run(tmp_path, *extra)
    first.with_suffix(".away").rename(first)
    (more := first.with_name("99999999.jsonl")).write_bytes(content)
    added = run(tmp_path, *extra)
    more.unlink()
    for result, name in ((refused, first), (missing, first), (added, more)):
        assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr
        assert f"{name} is not what this run began with ({account})" in result.stderr
        assert "a resumed run must replay the same files" in result.stderr
    assert account.read_bytes() == kept
    result = run(tmp_path, *extra)
    assert result.returncode == 0 and "after step 3" in result.stdout, result.stderr


def episode(problem: str, source: str) -> Episode:
    turn = Turn("assistant", np.ones(2, np.int32), True, np.zeros(2, np.float32))
    return Episode(Problem(problem), np.ones(1, np.int32), [turn], Reward(1.0, True), "finished", "", source=source)


def test_draws_are_a_function_of_seed_and_step_and_every_problem_comes_once_a_pass(tmp_path):
    replay = Replay([Group(Problem(str(p)), [episode(str(p), f"a:{i}") for i in range(p + 1)]) for p in range(6)])
    drawn = [g for step in (1, 2, 3) for g in replay.draw(step, 2, 4, seed=0)]
    assert sorted(g.problem.id for g in drawn) == list("012345")
    assert all(len(g.episodes) == min(int(g.problem.id) + 1, 4) for g in drawn)
    assert all(len({e.source for e in g.episodes}) == len(g.episodes) for g in drawn)
    again = [g for step in (1, 2, 3) for g in replay.draw(step, 2, 4, seed=0)]
    assert [[e.source for e in g.episodes] for g in again] == [[e.source for e in g.episodes] for g in drawn]
    write_sources(tmp_path / "replay" / "1.json", drawn)
    written = json.loads((tmp_path / "replay" / "1.json").read_text())
    assert [w["sources"] for w in written] == [[e.source for e in g.episodes] for g in drawn]


@pytest.mark.parametrize("settings", [{"share": 0.5}, {"folders": ("x",)}, {"share": 2.0, "demonstrations": 1}])
def test_settings(settings):
    with pytest.raises(UserError, match=r"grpo\.replay"):
        check_settings(ReplayConfig(**settings), "grpo.replay")
