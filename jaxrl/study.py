"""The study: how much is tool use worth, and at what cost? All its runs, one after another, and their report.

    python -m jaxrl.study                                    the small model, one seed; make study
    python -m jaxrl.study --runs objectives                  what to learn from feedback with: GRPO, PPO or SPO
    python -m jaxrl.study --seeds 3                          with intervals over seeds
    python -m jaxrl.study --model /models/Qwen2.5-Coder-1.5B --folder runs/qwen

Overrides (--config.rollout.engine=vllm) go to every run. A run that is complete is not done again, one that was stopped
goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from jaxrl.config.command_line import at_least, read_config
from jaxrl.errors import command
from jaxrl.files import read_metrics
from jaxrl.reports.run_folder import EVALUATION, stage_settings
from rollouts.supervisor import die_with_parent


class Run(NamedTuple):
    """A run of the study: its command (train or evaluate), its config in configs/study, its name and overrides.

    "{seed}" in an override is the folder of the runs of its seed.
    """

    command: str
    config: str
    name: str
    overrides: tuple[str, ...] = ()


SFT = Run("train", "sft", "sft")
SFT_FEEDBACK = Run("evaluate", "feedback", "sft_feedback", ("--config.label=SFT + feedback",))
TEN = ("--config.evaluation.samples=10",)  # for pass@10, and how many different solutions there are
FROM_GROUP = "--config.grpo.replay.folders={seed}/group"
RUNS = {
    "tools": (
        SFT,
        Run(
            "evaluate", "direct", "sft_regenerate",
            ("--config.label=SFT + regenerate", "--config.evaluation.regenerate=3"),
        ),
        Run("evaluate", "tool", "sft_tool", ("--config.label=SFT + tool use",)),
        SFT_FEEDBACK,
        Run("train", "direct", "direct"),
        Run("train", "tool", "tool"),
        Run("train", "feedback", "feedback"),
    ),
    "objectives": (
        SFT,
        SFT_FEEDBACK._replace(overrides=(*SFT_FEEDBACK.overrides, *TEN)),
        Run("train", "group", "group", TEN),
        *(Run("train", name, name, TEN) for name in ("ppo_turn", "ppo_token", "ppo_random")),
        Run("train", "spo", "spo", TEN),
        Run(
            "train", "spo", "spo_replay",
            ("--config.label=SPO, half replayed", "--config.grpo.replay.share=0.5", FROM_GROUP, *TEN),
        ),
        Run(
            "train", "spo", "spo_files",
            ("--config.label=SPO, files alone", "--config.grpo.replay.share=1", FROM_GROUP, *TEN),
        ),
    ),
}  # fmt: skip


def commands(
    folder: Path, seed: int, model: str, overrides: Sequence[str], runs: Sequence[Run] = RUNS["tools"]
) -> list[list[str]]:
    """The command line of each run of one seed, in order: all after the first start from what SFT has made."""
    place = folder / f"seed_{seed}"
    lines = []
    for run in runs:
        config = f"configs/study/{run.config}.py" + (f":{model}" if model else "")
        line = [sys.executable, "-m", f"jaxrl.{run.command}", f"--config={config}", f"--config.name={run.name}"]
        line += [f"--config.runs_dir={place}", f"--config.seed={seed}"]
        line += [] if run.config == "sft" else [f"--config.model.path={place / 'sft'}"]
        lines.append([*line, *(override.format(seed=place) for override in run.overrides), *overrides])
    return lines


def check_settings_of(lines: Sequence[Sequence[str]]) -> None:
    """Raises UserError for a setting that one of the commands would refuse, before the first of them starts.

    In a process that ends at once: reading a config imports packages that start threads, and this one forks later.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        for line in lines:
            process.submit(_check, list(line[3:])).result()


def _check(arguments: list[str]) -> None:
    read_config(arguments)


def complete(folder: Path) -> bool:
    """Whether the folder holds a run that has ended: evaluated after its last step, and reported on."""
    if (folder / "evaluation.json").is_file():
        return True
    if not (folder / "report.html").is_file():  # written at the end, and for who looks at a run on its way
        return False
    config = json.loads((folder / "config.json").read_text())
    last = sum(stage["steps"] for stage in stage_settings(config).values())
    return any(r["stage"] == EVALUATION and r["step"] == last for r in read_metrics(folder / "metrics.jsonl"))


def run_command(line: Sequence[str]) -> int:
    """The exit status of a command; negative stands for a signal.

    When this process gets a signal to stop, or ends, the command gets SIGTERM, on which a run saves and stops.
    """
    study = os.getpid()
    # The kernel sends the signal if this process is killed. Forking is safe: no thread has been started here yet.
    process = subprocess.Popen(line, preexec_fn=lambda: die_with_parent(study, signal.SIGTERM))
    stopping: list[int] = []

    def stop(number: int, _: object) -> None:
        if number != signal.SIGINT:  # Ctrl-C reaches it from the terminal
            process.send_signal(number)
        stopping.append(128 + number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return stopping[0] if stopping else status


@command()
def main(arguments: Sequence[str]) -> int:
    """Runs what is not complete, then writes the report into the folder; the exit status of the first that fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=at_least(1), default=1)
    parser.add_argument("--runs", choices=RUNS, default="tools", help="which comparison")
    parser.add_argument("--model", default="", help="Hugging Face folder; the default is the small model")
    parser.add_argument("--folder", type=Path, help="default: runs/study, or runs/study_RUNS")
    options, overrides = parser.parse_known_args(arguments)
    wrong = [o for o in overrides if not o.startswith("--config.")]
    if wrong:
        parser.error(f"unexpected argument {wrong[0]!r}; overrides look like --config.grpo.steps=50")
    runs, folder = RUNS[options.runs], options.folder
    folder = folder or Path("runs/study" if options.runs == "tools" else f"runs/study_{options.runs}")
    check_settings_of(commands(folder, 0, options.model, overrides, runs))
    began, done, total = time.monotonic(), 0, options.seeds * len(runs)
    for seed in range(options.seeds):
        for i, (run, line) in enumerate(zip(runs, commands(folder, seed, options.model, overrides, runs))):
            place = folder / f"seed_{seed}" / run.name
            if complete(place):
                print(f"{place} is complete")
                continue
            number, minutes = seed * len(runs) + i + 1, (time.monotonic() - began) / 60
            left = f", about {minutes / done * (total - number + 1):.0f} minutes left" if done else ""
            print(f"--- {place} ({number} of {total}{left})", flush=True)
            status = run_command(line)
            if status:
                return status
            done += 1
    folders = [str(folder / f"seed_{seed}" / run.name) for seed in range(options.seeds) for run in runs]
    return subprocess.run([sys.executable, "-m", "jaxrl.report", *folders, "--output", str(folder)]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
