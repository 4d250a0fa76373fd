"""Conversations to learn from, made by rejection sampling; jaxrl/tasks/conversations.py reads them.

    python -m jaxrl.traces --config FILE --config.model.path=MODEL_OR_RUN --config.name=NAME

samples config.traces.samples episodes of config.traces.problems training problems with the environment and engine of
config.rollout, keeps those that solve their problem, and writes runs_dir/NAME/traces.jsonl.

With config.traces.strip_prompts the conversations are without the prompts of a strategy (rollouts/strategies.py), so
that a model that learns from them needs none (rejection sampling fine-tuning, arXiv 2410.08105).
"""

from __future__ import annotations

import json
import math
import random
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
from jaxrl.runs.prompts import instructed, instruction, shown, without_long_prompts
from jaxrl.tasks import load_task
from jaxrl.tasks.minhash import Index
from jaxrl.tasks.rows import read_rows
from jaxrl.training.watch import why_unjudged
from models.stored import fingerprint
from rollouts.chat import Message
from rollouts.collect import collect
from rollouts.episode import Episode, Group, Problem

TRACES = 3  # stream of random numbers, beside those of training and evaluation


def episode_messages(episode: Episode, shown: Problem, strip: bool = False, learn: str = "all") -> list[Message]:
    """The conversation of an episode of the problem as the model saw it, as text.

    Turns of the model with nothing between them are one message. With `strip` the prompts of a strategy are left out:
    where nothing else stood between two turns, what the model thought begins the message with its program. `shown` must
    then be without them, too. `learn` = "last": earlier messages of the model have the weight 0.
    """
    turns: list[Message] = []
    joint = ""  # between the model's last turn and the next one, where that continues the message
    for turn in episode.turns:
        text = turn.plain if strip and turn.plain is not None else turn.text
        if strip and turn.plain == "":
            joint = "\n"
        elif turns and turn.role == turns[-1]["role"] == "assistant":
            turns[-1]["content"] += joint + text
        else:
            turns.append({"role": turn.role, "content": text})
        joint = joint if turn.plain == "" else ""
    for earlier in [m for m in turns if m["role"] == "assistant"][:-1] if learn == "last" else ():
        earlier["weight"] = 0
    return [*shown.messages, *turns]


def select(
    groups: Iterable[Group],
    keep: int,
    max_solutions: int = 0,
    similarity: float = 0.0,
    keep_share: float = 1.0,
    seed: int = 0,
) -> tuple[list[Episode], dict[str, int]]:
    """The finished episodes to learn from, which solve their problem and say different things; and counts by reason.

    Of each problem at most `keep`, the shortest; or `max_solutions` where that is not 0, the first that were sampled.
    Blanks and empty lines make no difference; with `similarity` programs that are so alike are the same. Of all that
    are left a share `keep_share` is drawn.
    """
    chosen: list[Episode] = []
    counts = {"sampled": 0, "not solved": 0, "not finished": 0, "duplicate": 0, "more than wanted": 0}
    for group in groups:
        seen, index, kept = set(), Index(), 0
        for episode in group.episodes if max_solutions else sorted(group.episodes, key=lambda e: e.sampled_length):
            counts["sampled"] += 1
            words, program = " ".join(episode.text.split()), episode.submitted.program or episode.submitted.text
            reason = (
                "not solved" if not episode.reward.solved
                else "not finished" if episode.status != "finished"
                else "duplicate" if words in seen or (similarity and index.most_alike(program) >= similarity)
                else "more than wanted" if kept == (max_solutions or keep)
                else None
            )  # fmt: skip
            if reason:
                counts[reason] += 1
                continue
            seen.add(words)
            index.add(program)
            kept += 1
            chosen.append(episode)
    if keep_share < 1:
        drawn = set(random.Random(seed).sample(range(len(chosen)), math.ceil(keep_share * len(chosen))))
        counts["not drawn"] = len(chosen) - len(drawn)
        chosen = [episode for i, episode in enumerate(chosen) if i in drawn]
    return chosen, counts


def uncontaminated(problems: Sequence[Problem], path: str, similarity: float) -> list[Problem]:
    """The problems whose text is not like one of the file: less than `similarity` (jaxrl/tasks/minhash.py).

    Raises DataError for a row without a text.
    """
    known = Index()
    for row in read_rows(path, "test"):
        texts = (
            [m.text("content") for m in row.parts("messages") if m.text("role") == "user"]
            if "messages" in row.fields
            else []
        )
        known.add("\n".join(texts) or row.text("prompt", "problem", "problem_statement", "question", "text"))
    return [p for p in problems if known.most_alike(text_of(p)) < similarity]


def text_of(problem: Problem) -> str:
    """What a problem asks, without system messages."""
    return problem.prompt or "\n".join(m["content"] for m in problem.messages if m["role"] == "user")


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
    settings = config.traces
    size = min(settings.problems, len(task.train))
    chosen = task.select(config.seed).next(0, size) if task.selection else [task.train[i] for i in range(size)]
    if settings.decontaminate:
        chosen = uncontaminated(chosen, settings.decontaminate, settings.decontaminate_similarity)
        if not chosen:
            raise UserError(
                f"traces.decontaminate = {settings.decontaminate!r}: every training problem is like one of it"
            )
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
        samples, seed = settings.samples, (config.seed, TRACES)
        with Progress() as progress, Journal(folder, "traces", weights, len(chosen) * samples, progress) as journal:
            groups = collect(engine, environment, chosen, samples, seed, journal)
    if reason := why_unjudged(groups):
        raise TrainingError(f"no traces: {reason}")
    episodes, counts = select(
        groups, settings.keep, settings.max_solutions, settings.similarity, settings.keep_share, config.seed
    )
    counts |= {"like the benchmark": size - len(chosen)} if settings.decontaminate else {}
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
    strip, learn = config.traces.strip_prompts, config.traces.learn
    for episode in episodes:
        problem, rollout = episode.problem, config.rollout
        asked = instructed(problem, instruction(rollout, problem)) if strip else shown(rollout, problem)
        record: dict[str, Any] = {"messages": episode_messages(episode, asked, strip, learn)}
        record |= {"prompt": asked.prompt} if asked.prompt else {}
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
