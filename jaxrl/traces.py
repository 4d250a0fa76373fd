"""Conversations to learn from, made by rejection sampling; jaxrl/tasks/conversations.py reads them.

    python -m jaxrl.traces --config FILE --config.model.path=MODEL_OR_RUN --config.name=NAME

samples config.traces.samples episodes of config.traces.problems training problems with the environment and engine of
config.rollout, keeps those that solve their problem, and writes runs_dir/NAME/traces.jsonl.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from jaxrl.config import Config
from jaxrl.config.command_line import read_config
from jaxrl.config.plugins import settle
from jaxrl.config.rules import check_settings
from jaxrl.errors import TrainingError, UserError, command
from jaxrl.files import write_beside
from jaxrl.runs.engines import make_engine
from jaxrl.runs.environments import make_environment, make_services
from jaxrl.runs.folder import open_run
from jaxrl.runs.host import prepare_process
from jaxrl.runs.journal import Journal
from jaxrl.runs.log import Progress
from jaxrl.runs.policy import make_policy
from jaxrl.runs.prompts import instructed, instruction, without_long_prompts
from jaxrl.tasks import load_task
from jaxrl.training.watch import why_unjudged
from models.stored import fingerprint
from rollouts.chat import Message
from rollouts.collect import collect
from rollouts.episode import Episode, Group, Problem

TRACES = 3  # stream of random numbers, beside those of training and evaluation


def episode_messages(episode: Episode, shown: Problem) -> list[Message]:
    """The conversation of an episode of the problem as the model saw it, as text.

    Turns of the model with nothing between them are one message.
    """
    turns: list[Message] = []
    for turn in episode.turns:
        if turns and turn.role == turns[-1]["role"] == "assistant":
            turns[-1]["content"] += turn.text
        else:
            turns.append({"role": turn.role, "content": turn.text})
    return [*shown.messages, *turns]


def select(groups: Iterable[Group], keep: int) -> tuple[list[Episode], dict[str, int]]:
    """At most `keep` finished episodes of each problem that solve it and say different things; and counts by reason.

    Blanks and empty lines make no difference. The shortest are kept.
    """
    chosen: list[Episode] = []
    counts = {"sampled": 0, "not solved": 0, "not finished": 0, "duplicate": 0, "more than wanted": 0}
    for group in groups:
        seen: set[str] = set()
        kept = 0
        for episode in sorted(group.episodes, key=lambda e: e.sampled_length):
            counts["sampled"] += 1
            words = " ".join(episode.text.split())
            reason = (
                "not solved" if not episode.reward.solved
                else "not finished" if episode.status != "finished"
                else "duplicate" if words in seen
                else "more than wanted" if kept == keep
                else None
            )  # fmt: skip
            if reason:
                counts[reason] += 1
                continue
            seen.add(words)
            kept += 1
            chosen.append(episode)
    return chosen, counts


def build(config: Config) -> tuple[Path, dict[str, int]]:
    """The data set of config, and how many episodes were sampled, dropped (by reason) and written.

    Raises UserError when no episode is worth keeping.
    """
    settle(config)
    check_settings(config)
    with open_run(config) as folder:
        return _build_in(folder, config)


def _build_in(folder: Path, config: Config) -> tuple[Path, dict[str, int]]:
    task = load_task(config.task, config.seed)
    policy = make_policy(config, task, folder, sampling=True)
    if config.rollout.reject_long_prompts:
        task = without_long_prompts(task, policy.tokenizer, config.rollout)
    if not len(task.train):
        raise UserError(f"task {task.name} has no training problems to sample from")
    size = min(config.traces.problems, len(task.train))
    chosen = task.select(config.seed).next(0, size) if task.selection else [task.train[i] for i in range(size)]
    with (
        make_services(config, task) as services,
        closing(make_engine(config, policy, folder)) as engine,
    ):
        params = policy.initial()
        weights = fingerprint(params)
        engine.load_weights(params, 0)
        del params  # the engine has its own
        temperature = config.rollout.temperature
        environment = make_environment(config, task, policy.tokenizer, services, temperature)
        samples, seed = config.traces.samples, (config.seed, TRACES)
        with Progress() as progress, Journal(folder, "traces", weights, size * samples, progress) as journal:
            groups = collect(engine, environment, chosen, samples, seed, journal)
    if reason := why_unjudged(groups):
        raise TrainingError(f"no traces: {reason}")
    episodes, counts = select(groups, config.traces.keep)
    if not episodes:
        raise UserError(f"none of {counts['sampled']} episodes solved its problem: there is nothing to learn from")
    origin = {"model": config.model.path or "random weights", "run": str(folder), "task": task.name}
    origin |= {"environment": config.rollout.environment.name, "temperature": temperature, "seed": config.seed}
    path = folder / "traces.jsonl"
    write_traces(path, episodes, config, origin)
    counts["written"] = len(episodes)
    write_beside(folder / "traces.json", json.dumps(origin | {"counts": counts}, indent=2) + "\n")
    journal.remove()
    return path, counts


def write_traces(path: Path, episodes: Sequence[Episode], config: Config, origin: dict[str, Any]) -> None:
    """One conversation a line, with where it comes from."""
    lines = []
    for episode in episodes:
        shown = instructed(episode.problem, instruction(config.rollout, episode.problem))
        record: dict[str, Any] = {"messages": episode_messages(episode, shown)}
        record |= {"prompt": shown.prompt} if shown.prompt else {}
        record |= {"problem": episode.problem.id, "reward": episode.reward.value, "calls": episode.calls}
        record |= {"tokens": episode.sampled_length, "origin": origin}
        lines.append(json.dumps(record))
    write_beside(path, "\n".join(lines) + "\n")


@command()
def main(arguments: list[str]) -> int:
    """The command: counts, and the file; 1 with one line on stderr when there is none."""
    config = read_config(arguments)
    prepare_process()
    path, counts = build(config)
    print(f"{path}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
