"""Several tasks in one run, and selections that remember: what a checkpoint has of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_train import run, same_run

from jaxrl.runs.log import read_metrics

# Two tasks, one of them in an environment of its own, and a selection that goes by what it has seen: the next problem
# is the one whose number is the number of episodes so far.
TASK = '''
from dataclasses import dataclass, replace
from jaxrl.config import TaskSettings
from jaxrl.tasks import load_task, mixture, scramble
from jaxrl.tasks.sampling import Uniform
from rollouts.environments import interpreter


class Counting(Uniform):
    def __init__(self, problems, seed):
        super().__init__(problems, seed)
        object.__setattr__(self, "seen", 0)

    def next(self, draw, size):
        return [self.problems[(7 * self.seen + i) % len(self.problems)] for i in range(size)]

    def observe(self, groups):
        object.__setattr__(self, "seen", self.seen + sum(len(g.episodes) for g in groups))

    def state(self):
        return {"seen": self.seen}

    def restore(self, state):
        object.__setattr__(self, "seen", state.get("seen", 0))


@dataclass
class Settings(TaskSettings):
    """Two mixed tasks."""


def make_task(settings, seed):
    small = {"held_out_problems": 8, "train_problems": 50, "demonstrations": 20}
    tool = interpreter.Settings(name="interpreter", max_calls=1)
    parts = (
        mixture.Part(scramble.Settings(name="scramble", **small), weight=3),
        mixture.Part(scramble.Settings(name="scramble", **small), environment=tool, instruction="use a tool"),
    )
    made = mixture.make_task(mixture.Settings(parts=parts), seed)
    inner = made.selection

    def selection(problems, seed):
        selected = inner(problems, seed)
        for name, part in selected.parts.items():
            selected.parts[name] = Counting(part.problems, seed)
        return selected

    return replace(made, selection=selection)
'''


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> list[str]:
    path = tmp_path_factory.mktemp("task") / "two_tasks.py"
    path.write_text(TASK)
    return [f"--config.task={path}", "--config.sft.steps=0", "--config.grpo.steps=4", "--config.checkpoint.every=2",
            "--config.grpo.problems_per_step=4", "--config.rollout.max_prompt_length=64"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 1])
def test_what_a_selection_remembers_is_in_the_checkpoint(settings, tmp_path, staleness):
    state = remembered(tmp_path, [*settings, f"--config.rollout.max_staleness={staleness}"])
    assert {part["seen"] > 0 for part in state.values()} == {True}


@pytest.mark.slow
def test_running_pass_rates_are_in_the_checkpoint(tmp_path):
    more = ["--config.grpo.curriculum.order=pass_rate", "--config.sft.steps=0", "--config.grpo.steps=4",
            "--config.checkpoint.every=2", "--config.grpo.problems_per_step=4"]  # fmt: skip
    assert len(remembered(tmp_path, more)["rates"]) == 8  # two steps of four problems


def remembered(tmp_path: Path, more: list[str]) -> dict:
    """What step 2's checkpoint has of the selection, from which the run goes on as it would have."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    result = run(resumed, *more)
    assert result.returncode == 0, result.stderr
    shutil.copytree(resumed, whole)
    shutil.rmtree(resumed / "scramble" / "checkpoints" / "4")
    result = run(resumed, *more)
    assert result.returncode == 0 and "resuming" in result.stdout, result.stderr
    same_run(whole, resumed)
    same_samples(whole, resumed)
    place = json.loads(next((whole / "scramble/checkpoints/2/place").glob("**/metadata")).read_text())
    return place["selection"]


def same_samples(one: Path, other: Path) -> None:
    files = sorted((one / "scramble" / "samples").glob("0*.jsonl"))
    assert len(files) == 4
    for file in files:
        problems = [json.loads(line)["problem"] for line in file.read_text().splitlines()]
        again = [
            json.loads(line)["problem"] for line in (other / "scramble/samples" / file.name).read_text().splitlines()
        ]
        assert problems == again


def test_each_part_keeps_its_environment_and_its_row(settings, tmp_path):
    result = run(tmp_path, *settings)
    assert result.returncode == 0, result.stderr
    last = read_metrics(tmp_path / "scramble" / "metrics.jsonl")[-1]
    assert {"held_out/pass@1/part_scramble", "held_out/pass@1/part_scramble_2"} <= last.keys()
    page = (tmp_path / "scramble" / "report.html").read_text()
    assert "scramble_2" in page
    samples = [
        json.loads(line)
        for file in (tmp_path / "scramble" / "samples").glob("0*.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert len(samples) == 4 * 4 * 4
