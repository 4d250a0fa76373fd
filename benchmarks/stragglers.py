"""What one slow episode costs: whole batches against a stream of episodes, with log-normal lengths and tool times.

    python -m benchmarks.stragglers --seeds 3 --steps 40 --folder runs/stragglers
    python -m benchmarks.stragglers --workload interpreter --seeds 3 --steps 40

The model and the problems are those of configs/grpo.py, after its SFT. Each episode also samples tokens that are
thrown away (real ones, of the engine: what long reasoning costs) and waits for a simulated tool; both are log-normal,
the 99th percentile 10 times the median. Neither changes what is learned. With `--workload interpreter` they are those
of configs/study/tool.py, whose tool is the real one. Arms: whole batches at staleness 0 and 1, and a stream at
staleness 0, 1, 2 and 4, with old tokens' ratios corrected or not. A run that is complete is not done again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np

from configs.grpo import get_config as grpo_config
from configs.study.sft import get_config as study_sft
from configs.study.tool import get_config as study_tool
from jaxrl.algorithms import policy_gradient
from jaxrl.config import Config
from jaxrl.config.plugins import PLUGINS, make_settings
from jaxrl.files import read_metrics

ARMS = (
    "batch_0", "batch_1", "stream_0", "stream_1", "stream_2", "stream_4", "stream_1_uncorrected",
    "stream_4_uncorrected",
)  # fmt: skip
PARTS = 8  # of a run, in its curve
FILE = "benchmarks/stragglers.py"


def get_config(run: str = "tails:batch_1") -> Config:
    """The config of WORKLOAD:ARM; the arm "sft" makes the model that the others start from."""
    workload, arm = run.split(":")
    if workload == "tails":
        config = grpo_config() if arm == "sft" else with_tails()
        config.task.held_out_problems, config.sft.steps = 200, 600
    else:
        config = study_sft() if arm == "sft" else study_tool()
    config.name = arm
    if arm == "sft":
        config.grpo.steps = 0
        return config
    kind, staleness, *uncorrected = arm.split("_")
    config.sft.steps = 0
    config.rollout.max_staleness = int(staleness)
    config.grpo.loss = policy_gradient.Settings(sampler_correction="none" if uncorrected else "truncate")
    config.checkpoint.every = 0
    if kind == "stream":
        config.rollout.stream.episodes = 128
    return config


def with_tails() -> Config:
    config = grpo_config()
    config.rollout.environment = make_settings(PLUGINS["environment"], "benchmarks/tails.py")
    config.rollout.max_new_tokens = 256
    config.rollout.max_turn_tokens = 56
    config.rollout.slots = 64
    return config


def train(folder: Path, workload: str, arm: str, seed: int, steps: int) -> list[dict]:
    """The run's records; it is done if it is not there."""
    name = f"{arm}_{seed}" if arm != "sft" else arm
    overrides = [f"--config.runs_dir={folder}", f"--config.name={name}", f"--config.seed={seed}"]
    if arm != "sft":
        overrides += [f"--config.model.path={folder}/sft", f"--config.grpo.steps={steps}"]
    command = [sys.executable, "-m", "jaxrl.train", "--config", f"{FILE}:{workload}:{arm}", *overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_metrics(folder / name / "metrics.jsonl")


def said(arm: str) -> str:
    kind, staleness, *uncorrected = arm.split("_")
    return ", ".join([kind, f"staleness {staleness}", *uncorrected])


def curve(arm: str, runs: list[list[dict]]) -> str:
    """Solved in each part of the steps, and the minutes of all of them: means over the seeds."""
    solved = np.mean([[r["solved"] for r in run if r["stage"] == "grpo"] for run in runs], axis=0)
    cells = [f"{part.mean():.0%}" for part in np.array_split(solved, PARTS)]
    minutes = np.mean([sum(r["time/step_s"] for r in run if r["stage"] == "grpo") for run in runs]) / 60
    return f"| {said(arm)} | {' | '.join(cells)} | {minutes:.1f} |"


def row(arm: str, runs: list[list[dict]]) -> str:
    """The arm's line of the table: medians of the steps after the first five, means over the seeds."""
    steps = [[r for r in run if r["stage"] == "grpo"][5:] for run in runs]
    seconds = [float(np.median([r["time/step_s"] for r in run])) for run in steps]
    tokens = [sum(r["batch/sampled_tokens"] for r in run) / sum(r["time/step_s"] for r in run) for run in steps]
    scores = [run[-1]["held_out/pass@1"] for run in runs]
    masked = [np.mean([r.get("staleness/masked", 0.0) for r in run]) for run in steps]
    dropped = [np.mean([r.get("stream/dropped", 0.0) for r in run]) for run in steps]
    spread = f" ± {np.std(scores, ddof=1):.1%}" if len(scores) > 1 else ""
    return (
        f"| {said(arm)} | {np.mean(seconds):.2f} | {3600 / np.mean(seconds):,.0f} | "
        f"{np.mean(tokens):,.0f} | {np.mean(masked):.1%} | {np.mean(dropped):.1%} | "
        f"{np.mean(scores):.1%}{spread} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=("tails", "interpreter"), default="tails")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--folder", type=Path, default=Path("runs/stragglers"))
    options = parser.parse_args()
    run = partial(train, options.folder / options.workload, options.workload)
    run("sft", 0, 0)
    print("| | s a step | steps/hour | learned tokens/s | tokens masked | groups dropped | pass@1 after |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    found = {}
    for arm in options.arms:
        found[arm] = [run(arm, seed, options.steps) for seed in range(options.seeds)]
        print(row(arm, found[arm]), flush=True)
    print(f"\n| solved in each {PARTS}th of the steps |" + " |" * PARTS + " minutes |")
    print("| --- |" + " ---: |" * (PARTS + 1))
    for arm, runs in found.items():
        print(curve(arm, runs))


if __name__ == "__main__":
    main()
