"""Whole runs with a stream of episodes: repeatable by steps and by a record, also after kill -9."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from test_train import command, environment, read_metrics, run

from models.convert import load_model
from models.sharding import make_mesh

STREAM = [
    "--config.grpo.loss.minibatches=1", "--config.rollout.stream.episodes=12", "--config.rollout.max_staleness=2",
    "--config.checkpoint.every=4", "--config.checkpoint.keep=4", "--config.grpo.steps=10",
    "--config.evaluation.every=5",
]  # fmt: skip


def records(folder: Path) -> list[dict]:
    """What the run measured, without what depends on the clock."""
    kept = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in r.items() if not k.startswith(("time/", "stream/"))} for r in kept]


def parameters(folder: Path) -> dict[str, np.ndarray]:
    import jax

    leaves, _ = jax.tree_util.tree_flatten_with_path(load_model(folder, make_mesh())[2])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same(one: Path, other: Path) -> None:
    assert records(one) == records(other)
    first, second = parameters(one), parameters(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    result = run(folder, *STREAM, "--config.rollout.stream.schedule=record", "--config.name=run")
    assert result.returncode == 0, result.stderr
    return folder / "run"


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def replay(recorded: Path, name: str) -> list[str]:
    stream = "--config.rollout.stream"
    return [*STREAM, f"--config.name={name}", f"{stream}.schedule=replay", f"{stream}.replay_of={recorded}"]


def test_a_replay_is_the_same_run(recorded):
    assert run(recorded.parent, *replay(recorded, "replayed")).returncode == 0
    assert_same(recorded, recorded.parent / "replayed")
    steps = [r for r in records(recorded) if r["stage"] == "grpo"]
    assert len(steps) == 10 and any(r["staleness"] > 0 for r in steps)
    measured = read_metrics(recorded / "metrics.jsonl")[-2]
    assert 0.99 < sum(measured[f"stream/{name}"] for name in ("sampling", "tools", "waiting")) < 1.01


@pytest.mark.slow
def test_a_replay_killed_four_times_is_the_same_run(recorded):
    arguments = command(recorded.parent, *replay(recorded, "killed"))
    folder = recorded.parent / "killed"
    for kill in range(4):
        process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        enough = 8 + 3 * kill  # lines of the record of what was measured
        while process.poll() is None and lines(folder / "metrics.jsonl") < enough:
            time.sleep(0.02)
        process.kill()
        process.wait()
    assert subprocess.run(arguments, env=environment(), capture_output=True).returncode == 0
    assert_same(recorded, folder)


@pytest.mark.slow
def test_by_steps_two_runs_are_the_same(tmp_path):
    for name in ("one", "two"):
        result = run(tmp_path, *STREAM, "--config.rollout.stream.schedule=steps", f"--config.name={name}")
        assert result.returncode == 0, result.stderr
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_an_evaluation_beside_training_scores_the_weights_of_its_step(recorded):
    """The same run, evaluated at the same step without a stop: the same score, a record at its place in the log."""
    arguments = [*STREAM, "--config.rollout.stream.schedule=steps", "--config.evaluation.every=3"]
    for name, beside in (("stopped", False), ("beside", True)):
        result = run(recorded.parent, *arguments, f"--config.name={name}", f"--config.evaluation.beside={beside}")
        assert result.returncode == 0, result.stderr
    stopped, beside = (
        {r["step"]: r for r in records(recorded.parent / name) if r["stage"] == "evaluate"}
        for name in ("stopped", "beside")
    )
    assert stopped.keys() == beside.keys() == {0, 3, 6, 9, 12, 15, 16}
    assert beside[9] == stopped[9]  # the lanes were not emptied after it, so that later weights are others


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--config.rollout.stream.delay=8"], "has no effect without rollout.stream.schedule = 'steps'"),
        (["--config.rollout.stream.episodes=0", "--config.rollout.stream.stale=drop"], "has no effect without"),
        (["--config.evaluation.every=0", "--config.evaluation.beside=True"], "has no effect with"),
        (["--config.rollout.stream.schedule=replay"], "rollout.stream.replay_of = '' must be the folder"),
        (["--config.rollout.stream.schedule=steps", "--config.rollout.wall_s=3"], "rollout.wall_s = 0"),
        (["--config.rollout.engine=vllm", "--config.rollout.stream.schedule=steps"], "needs rollout.engine = 'jax'"),
        (["--config.rollout.engine=vllm", "--config.rollout.stream.cache=recomputed"], "needs rollout.engine = 'jax'"),
    ],
)
def test_what_cannot_be_streamed_is_refused(tmp_path, settings, message):
    result = run(tmp_path, *STREAM, *settings, "--config.name=refused")
    assert result.returncode == 1 and message in result.stderr
