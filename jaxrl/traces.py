"""Conversations to learn from: read for SFT, and made by rejection sampling.

A data set has one JSON object a line with "messages", a list of {"role", "content"}: system, user and tool messages are
read, the assistant's are learned. A message of role "output" is what a tool put into the assistant's own message, which
goes on in the next one. More fields are kept as they are.

    python -m jaxrl.traces --config FILE --config.model.path=MODEL_OR_RUN --config.name=NAME

samples config.traces.samples episodes of config.traces.problems training problems with the environment and engine of
config.rollout, keeps those that solve their problem, and writes runs_dir/NAME/traces.jsonl.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

from jaxrl.command_line import UserError, read_config
from jaxrl.config import Config
from jaxrl.datafiles import DataError, Row, read_rows
from jaxrl.files import write_beside
from jaxrl.run import (
    instructed,
    instruction,
    make_engine,
    make_environment,
    make_policy,
    make_pool,
    make_sessions,
    open_run,
    prepare_process,
    without_long_prompts,
)
from jaxrl.tasks import load_task
from rollouts.chat import OUTPUT, Message
from rollouts.collect import collect
from rollouts.episode import Episode, Group, Problem
from rollouts.sidecar import SidecarError

TRACES = 3  # stream of random numbers, beside those of training and evaluation
ROLES = ("system", "user", "assistant", "tool", OUTPUT)


def read_traces(source: str, split: str = "train") -> list[Problem]:
    """The conversations of a file (.jsonl, .json, .parquet, .gz) or of a data set of the hub, as demonstrations.

    Raises DataError, with file and line, for a row that is no conversation to learn from.
    """
    return [_demonstration(row) for row in read_rows(source, split)]


def _demonstration(row: Row) -> Problem:
    messages = row.get("messages")
    messages = json.loads(messages) if isinstance(messages, str) else messages
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{row.where}: messages must be a list of messages")
    plain = []
    for i, m in enumerate(messages):
        if not isinstance(m, dict) or not isinstance(m.get("content"), str) or m.get("role") not in ROLES:
            wanted = f"a role of {', '.join(ROLES)}, and a content that is a string"
            raise DataError(f"{row.where}: messages[{i}]: must have {wanted}")
        plain.append({"role": m["role"], "content": m["content"]})
    for i, (one, other) in enumerate(pairwise(plain)):
        if one["role"] == other["role"] == "assistant":
            raise DataError(f"{row.where}: messages[{i}] and [{i + 1}] are both the assistant's; make them one message")
    first = next((i for i, m in enumerate(plain) if m["role"] == "assistant"), 0)
    prompt = row.fields.get("prompt")
    if plain[-1]["role"] != "assistant" or not (first or prompt):
        raise DataError(f"{row.where}: the conversation must begin with another message and end with the assistant's")
    return Problem(row.where, tuple(plain[:first]), prompt, demonstration=tuple(plain[first:]))


def episode_messages(episode: Episode, asked: Problem) -> list[Message]:
    """The conversation of an episode of the problem that the model was asked, as text.

    Turns of the model with nothing between them are one message.
    """
    turns: list[Message] = []
    for turn in episode.turns:
        if turns and turn.role == turns[-1]["role"] == "assistant":
            turns[-1]["content"] += turn.text
        else:
            turns.append({"role": turn.role, "content": turn.text})
    return [*asked.messages, *turns]


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
            said = " ".join(episode.text.split())
            reason = (
                "not solved" if not episode.reward.solved
                else "not finished" if episode.status != "finished"
                else "duplicate" if said in seen
                else "more than wanted" if kept == keep
                else None
            )  # fmt: skip
            if reason:
                counts[reason] += 1
                continue
            seen.add(said)
            kept += 1
            chosen.append(episode)
    return chosen, counts


def build(config: Config) -> tuple[Path, dict[str, int]]:
    """The data set of config, and how many episodes were sampled, dropped (by reason) and written.

    Raises UserError when no episode is worth keeping.
    """
    folder = open_run(config)
    task = load_task(config.task, config.seed)
    policy = make_policy(config, task, folder)
    if config.rollout.reject_long_prompts:
        task = without_long_prompts(task, policy.tokenizer, config.rollout)
    problems = [task.train[i] for i in range(min(config.traces.problems, len(task.train)))]
    with (
        make_pool(config) as pool,
        make_sessions(config) as sessions,
        closing(make_engine(config, policy, folder)) as engine,
    ):
        engine.load_weights(policy.params, 0)
        temperature = config.rollout.temperature
        environment = make_environment(config, task, policy.tokenizer, pool, temperature, sessions)
        groups = collect(engine, environment, problems, config.traces.samples, (config.seed, TRACES))
    episodes, counts = select(groups, config.traces.keep)
    if not episodes:
        raise UserError(f"none of {counts['sampled']} episodes solved its problem: there is nothing to learn from")
    origin = {"model": config.model.path or "random weights", "run": str(folder), "task": task.name}
    origin |= {"environment": config.rollout.environment, "temperature": temperature, "seed": config.seed}
    path = folder / "traces.jsonl"
    write_traces(path, episodes, config, origin)
    counts["written"] = len(episodes)
    write_beside(folder / "traces.json", json.dumps(origin | {"counts": counts}, indent=2) + "\n")
    return path, counts


def write_traces(path: Path, episodes: Sequence[Episode], config: Config, origin: dict[str, Any]) -> None:
    """One conversation a line, with where it comes from."""
    lines = []
    for episode in episodes:
        asked = instructed(episode.problem, instruction(config.rollout))
        record: dict[str, Any] = {"messages": episode_messages(episode, asked)}
        record |= {"prompt": asked.prompt} if asked.prompt else {}
        record |= {"problem": episode.problem.id, "reward": episode.reward.value, "calls": episode.calls}
        record |= {"tokens": episode.sampled_length, "origin": origin}
        lines.append(json.dumps(record))
    write_beside(path, "\n".join(lines) + "\n")


def main(arguments: list[str]) -> int:
    """The command: counts, and the file; 1 with one line on stderr when there is none."""
    try:
        prepare_process()
        path, counts = build(read_config(arguments))
    except (OSError, UserError, SidecarError, ValueError) as error:
        if os.environ.get("JAXRL_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{path}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
