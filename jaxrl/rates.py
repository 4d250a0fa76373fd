"""Pass rates of a policy: several answers to each problem, and which of its tests each passes.

    python -m jaxrl.rates --config FILE --config.model.path=MODEL_OR_RUN --config.name=NAME

samples config.rates.samples answers to the problems of config.rates.part with the engine and environment of
config.rollout, and writes runs_dir/NAME/rates.jsonl (jaxrl/tasks/rates.py has its form), problem by problem: the same
command carries on. python -m jaxrl.preferences makes pairs of it, and config.task.rates.path chooses training problems.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.config import Config
from jaxrl.config.command_line import read_config
from jaxrl.config.plugins import settle
from jaxrl.config.rules import check_settings
from jaxrl.errors import TrainingError, UserError, command
from jaxrl.evaluation.sampled import Player, open_player, passed
from jaxrl.files import append_line, resume_lines, write_beside
from jaxrl.runs.folder import open_run
from jaxrl.runs.host import prepare_process
from jaxrl.runs.reward_model import prompt_of
from jaxrl.tasks import Task, load_task
from jaxrl.tasks.sampling import evenly
from rollouts.episode import Group

RATES = 6  # stream of random numbers, beside those of training, evaluation and traces


def measure(config: Config) -> tuple[Path, dict[str, float]]:
    """The rates file of config, and a summary of it.

    Raises UserError where there is nothing to sample, TrainingError where the sandbox could judge nothing.
    """
    settle(config)
    check_settings(config)
    with open_run(config) as folder:
        task = load_task(config.task, config.seed)
        part = task.train if config.rates.part == "train" else task.held_out
        if not len(part):
            raise UserError(f"rates.part = {config.rates.part!r}: task {task.name} has no such problems")
        path = folder / "rates.jsonl"
        with open_player(config, task, folder) as player:
            counts = _sample(player, task, evenly(len(part), config.rates.problems), path)
        records = sorted(resume_lines(path), key=lambda record: record["index"])
        if not records:
            raise TrainingError(f"no rates: {counts}")
        write_beside(path, "".join(json.dumps(record) + "\n" for record in records))
        return path, summary(records) | counts


def _sample(player: Player, task: Task, places: Sequence[int], path: Path) -> dict[str, float]:
    """Appends the problems that the file lacks; how many were left out, by reason."""
    config = player.config
    part = task.train if config.rates.part == "train" else task.held_out
    found = [(i, part[i]) for i in places]
    fitting = [(i, problem) for i, problem in found if player.fits(problem)]
    if not fitting:
        raise UserError(f"no problem fits rollout.max_prompt_length = {config.rollout.max_prompt_length}")
    known = {record["index"] for record in resume_lines(path)}
    if known:
        player.progress.print(f"rates: {len(known)} problems are kept from an earlier try")

    def keep(place: int, group: Group) -> None:
        append_line(path, rates_row(fitting[place][0], group, player))

    done = {place for place, (i, _) in enumerate(fitting) if i in known}
    samples, temperature, seed = config.rates.samples, config.rollout.temperature, (config.seed, RATES)
    unjudged = player.play("rates", task, [p for _, p in fitting], samples, temperature, seed, done, keep)
    counts = {"prompt too long": len(found) - len(fitting), "not judged, another try may": unjudged}
    return {reason: count for reason, count in counts.items() if count}


def rates_row(index: int, group: Group, player: Player) -> dict[str, Any]:
    """The line of a problem."""
    problem = group.problem
    samples = []
    for episode in group.episodes:
        sample = {"text": episode.submitted.text or episode.text, "tests": passed(problem, episode.reward)}
        verdict = episode.reward.verdict
        late = sum(result.status == "timeout" for result in verdict.tests) if verdict is not None else 0
        samples.append(sample | {"model": player.model} | ({"timeouts": late} if late else {}))
    messages = [*prompt_of(problem, player.config.rollout)]
    return {"id": problem.id, "index": index, "messages": messages, "samples": samples}


def summary(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What a table of pass rates says: of tests, and of answers that pass all tests."""
    samples = [[sample["tests"] for sample in record["samples"]] for record in records]
    solved = np.array([np.mean([all(tests) for tests in problem]) for problem in samples])
    return {
        "problems": len(records),
        "samples of each": len(samples[0]),
        "tests per problem": float(np.mean([len(problem[0]) for problem in samples])),
        "mean share of tests passed": float(np.mean([np.mean(problem) for problem in samples])),
        "samples that pass all tests": float(solved.mean()),
        "problems that all samples solve": float(np.mean(solved == 1)),
        "problems that no sample solves": float(np.mean(solved == 0)),
        "tests that took too long": sum(s.get("timeouts", 0) for record in records for s in record["samples"]),
    }


@command()
def main(arguments: list[str]) -> int:
    """The command: a table, and the file; 1 with one line on stderr when there is none."""
    config = read_config(arguments)
    prepare_process()
    path, counts = measure(config)
    for name, value in counts.items():
        print(f"{name}  {value:.4g}" if isinstance(value, float) else f"{name}  {value}")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
