"""Whole runs whose episodes come from servers (tests/support/fake_vllm.py), and runs that sample ahead."""

from __future__ import annotations

import json
import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from fake_vllm import fake_environment
from test_train import final_params, run, without_times

from jaxrl.training.draws import SamplingAhead

SHORT = ["--config.grpo.steps=6", "--config.grpo.loss.minibatches=1", "--config.grpo.loss.kl_coefficient=0"]


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Arguments for a run with fake servers, and the file of their faults."""
    faults = tmp_path / "faults"
    monkeypatch.setenv("FAKE_FAULTS", str(faults))
    monkeypatch.setattr("rollouts.vllm.server.PROBE_S", 0.5)
    monkeypatch.setattr("rollouts.vllm.server.PROBE_TIMEOUT_S", 1.0)
    monkeypatch.setattr("rollouts.vllm.pulse.HANG_S", 5.0)
    arguments = [
        "--config.rollout.engine=vllm",
        f"--config.rollout.sidecar.environment={fake_environment(tmp_path / 'env')}",
    ]
    return arguments, faults


def episodes(folder: Path) -> list[tuple]:
    """What was sampled in every GRPO step."""
    lines = []
    for path in sorted((folder / "scramble" / "samples").glob("[0-9]*.jsonl")):
        lines += [json.loads(line) for line in path.read_text().splitlines()]
    return [(e["step"], e["problem"], e["text"], e["reward"], e["weight_versions"]) for e in lines]


def test_a_run_with_servers_agrees_with_them(tmp_path, served):
    arguments, _ = served
    result = run(tmp_path, *SHORT, *arguments, "--config.rollout.mismatch_limit=1e-3")
    assert result.returncode == 0, result.stderr
    steps = [r for r in without_times(tmp_path) if r["stage"] == "grpo"]
    assert len(steps) == 6
    assert all(0 < r["mismatch/max"] < 1e-4 for r in steps)
    assert len(episodes(tmp_path)) == 6 * 2 * 4
    assert all(versions == [step - 1] for step, *_, versions in episodes(tmp_path))


def test_a_sampler_that_disagrees_stops_the_run(tmp_path, served):
    """The limit is what stands between a sampler's silent fault and the training on its numbers."""
    arguments, faults = served
    faults.write_text("\n" * 20 + "wrong\n" * 1000)  # the first evaluation has 16 requests
    result = run(tmp_path, *SHORT, *arguments, "--config.rollout.mismatch_limit=1e-2")
    assert result.returncode == 1
    assert "sampler and trainer differ by 0.5 nats on a token, rollout.mismatch_limit is 0.01" in result.stderr
    (batch,) = (tmp_path / "scramble").glob("bad_batch_*.npz")
    saved = np.load(batch)
    assert saved["behaviour_logprobs"].shape == saved["tokens"].shape
    steps = [r for r in without_times(tmp_path) if r["stage"] == "grpo"]
    assert len(steps) < 6


def test_a_key_and_settings_are_checked_before_the_run(tmp_path):
    vllm = "--config.rollout.engine=vllm"
    result = run(tmp_path, vllm, "--config.rollout.sidecar.environment=/nowhere")
    assert result.returncode == 1
    assert "error: vLLM's environment has no /nowhere/bin/python; run `make sidecar`" in result.stderr
    result = run(tmp_path, "--config.rollout.max_staleness=-1")
    assert "error: rollout.max_staleness = -1 must be >= 0" in result.stderr
    result = run(tmp_path, vllm, "--config.rollout.top_k=5", "--config.name=other")
    assert "rollout.top_p, top_k and min_p cannot be used to train with rollout.engine = 'vllm'" in result.stderr


@pytest.mark.slow
def test_soak_a_hundred_steps_of_faults(tmp_path, served):
    """Every kind of fault, some at once, in 100 steps: each episode once, and all numbers those of a run without."""
    arguments, faults = served
    arguments += [
        "--config.grpo.steps=100",
        "--config.grpo.loss.minibatches=1",
        "--config.checkpoint.every=50",
        "--config.rollout.sidecar.replicas=2",
        "--config.rollout.mismatch_limit=1e-3",
    ]
    undisturbed = run(tmp_path / "undisturbed", *arguments)
    assert undisturbed.returncode == 0, undisturbed.stderr

    rng = random.Random(0)
    gentle = ["500", "garbage", "drop", "nan", "long", "vocabulary", "stale", "old", "abort", "slow 0.2"]
    lines = [rng.choice(gentle) if rng.random() < 0.08 else "" for _ in range(900)]
    for place, fault in ((100, "die"), (250, "hang"), (400, "oom"), (550, "die"), (700, "hang")):
        lines[place - 1] = "500"  # it may meet its fault while it is looked at for this one
        lines[place : place + 3] = [fault, "garbage", "500"]  # the other replica meets these meanwhile
    lines[620:622] = ["die", "die"]  # both at once
    faults.write_text("".join(f"{line}\n" for line in lines))
    disturbed = run(tmp_path / "disturbed", *arguments)
    assert disturbed.returncode == 0, disturbed.stderr
    assert not faults.read_text().strip(), "not all faults were met"
    assert disturbed.stdout.count("sampler: http://127.0.0.1") > 50

    assert len(episodes(tmp_path / "disturbed")) == 100 * 2 * 4
    assert episodes(tmp_path / "disturbed") == episodes(tmp_path / "undisturbed")
    assert without_times(tmp_path / "disturbed") == without_times(tmp_path / "undisturbed")


# ---------------------------------------------------------------------- sampling ahead


AHEAD = ["--config.rollout.max_staleness=1", "--config.grpo.loss.sampler_correction=truncate"]


@pytest.mark.slow
def test_staleness_one_is_repeatable_and_resumes_exactly(tmp_path):
    result = run(tmp_path / "whole", *AHEAD)
    assert result.returncode == 0, result.stderr
    whole = without_times(tmp_path / "whole")
    steps = [r for r in whole if r["stage"] == "grpo"]
    assert [r["staleness"] for r in steps] == [0.0] + [1.0] * 7

    assert run(tmp_path / "stopped", *AHEAD).returncode == 0
    folder = tmp_path / "stopped" / "scramble"
    shutil.rmtree(folder / "checkpoints" / "14")  # as if it had been stopped after the one before
    assert (folder / "pending" / "00000012.pickle").exists()
    result = run(tmp_path / "stopped", *AHEAD)
    assert result.returncode == 0, result.stderr
    assert "after step 12" in result.stdout
    assert without_times(tmp_path / "stopped") == whole
    first, second = final_params(tmp_path / "whole"), final_params(tmp_path / "stopped")
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


@pytest.mark.slow
def test_staleness_with_servers(tmp_path, served):
    arguments, faults = served
    faults.write_text("\n" * 40 + "500\n\ngarbage\n\n\ndie\n")
    result = run(tmp_path, *arguments, *SHORT, *AHEAD)
    assert result.returncode == 0, result.stderr
    steps = [r for r in without_times(tmp_path) if r["stage"] == "grpo"]
    assert [r["staleness"] for r in steps] == [0.0] + [1.0] * 5
    assert len(episodes(tmp_path)) == 6 * 2 * 4


def ahead(staleness: int, log: list, folder: Path, gate: threading.Event | None = None, last: int = 6):
    loaded = []

    def draw(step: int) -> tuple[int, int]:
        if gate is not None:
            gate.wait(10)
        log.append((step, loaded[-1]))
        return log[-1]

    load = lambda params, version: loaded.append(version)  # noqa: E731
    return SamplingAhead(draw, load, copy=dict, staleness=staleness, last=last, folder=folder)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_versions_stay_within_the_bound(tmp_path, staleness):
    log: list = []
    sampling = ahead(staleness, log, tmp_path)
    sampling.publish({}, 0)
    for step in range(1, 7):
        drawn, version = sampling.take(step)
        assert drawn == step
        assert 0 <= step - 1 - version <= staleness
        if staleness == 1:
            assert version == max(step - 2, 0)
        sampling.publish({}, step)
    sampling.close()
    assert [step for step, _ in log] == [1, 2, 3, 4, 5, 6]  # none beyond the last


def test_the_next_parameters_are_copied_when_the_sampler_has_loaded_the_last(tmp_path):
    """However long that takes, so that one set of them is in memory at a time."""
    loading, go_on, events = threading.Event(), threading.Event(), []

    def load(params: int, version: int) -> None:
        if version == 1:
            loading.set()
            go_on.wait(10)
        events.append(f"loaded {version}")

    def copy(version: int) -> int:
        events.append(f"copied {version}")
        return version

    sampling = SamplingAhead(lambda step: step, load, copy=copy, staleness=1, last=9, folder=tmp_path)
    for step in range(2):
        sampling.publish(step, step)
        sampling.take(step + 1)
    assert loading.wait(10)
    publishing = threading.Thread(target=sampling.publish, args=(2, 2))
    publishing.start()
    publishing.join(0.1)
    go_on.set()
    publishing.join()
    sampling.close()
    assert events == ["copied 0", "loaded 0", "copied 1", "loaded 1", "copied 2"]


def test_sampling_goes_on_while_the_trainer_is_busy(tmp_path):
    log: list = []
    sampling = ahead(2, log, tmp_path)
    sampling.publish({}, 0)
    sampling.take(1)
    sampling.wait()  # the trainer is at step 1; 2 and 3 are drawn meanwhile, 4 is not
    assert [step for step, _ in log] == [1, 2, 3]
    sampling.save(1)
    again = ahead(2, log, tmp_path)
    again.publish({}, 1)
    again.restore(1)
    assert again.take(2) == (2, 0)
    assert again.take(3) == (3, 0)
    assert again.take(4) == (4, 1)
    for later in (8, 9):  # left by a run that was further, and then resumed from an earlier checkpoint
        (tmp_path / f"{later:08d}.pickle").touch()
    for step in (4, 5, 6):
        again.save(step)
    assert sorted(int(path.stem) for path in tmp_path.iterdir()) == [5, 6, 8, 9]
    sampling.close()
    again.close()


def test_what_goes_wrong_while_sampling_is_raised_by_take(tmp_path):
    def draw(step: int) -> int:
        raise ValueError(f"no batch {step}")

    sampling = SamplingAhead(draw, lambda *_: None, copy=dict, staleness=1, last=3, folder=tmp_path)
    sampling.publish({}, 0)
    with pytest.raises(ValueError, match="no batch 1"):
        sampling.take(1)
    sampling.close()
