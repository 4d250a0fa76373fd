"""Replay: episodes that this run did not sample, from the samples of earlier runs and from demonstrations."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.algorithms.objective import Objective
from jaxrl.config import row_length
from jaxrl.errors import UserError
from jaxrl.files import write_beside
from jaxrl.runs.prompts import demonstration_tokens, prompt_tokens
from jaxrl.runs.tokenizer import load_tokenizer
from jaxrl.tasks.sampling import shuffled
from jaxrl.training.trainer import Trainer
from rollouts.episode import Episode, Group, Problem, Reward, Turn

DEMONSTRATION = "demonstration"  # Episode.source
REFERENCE = 2  # stream of random numbers, beside those of evaluation and of the stage
AT_ONCE = 64  # problems whose reference samples are collected together
MOST_PROBLEMS = 5000  # of which reference samples are made: more would take longer than most stages


@dataclass
class Replay:
    """Old episodes by problem, and what was not taken, by reason."""

    groups: list[Group] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of each file that was read

    def draw(self, stage_step: int, problems: int, group_size: int, seed: int) -> list[Group]:
        """Groups of at most group_size episodes for a step: a function of these numbers and the episodes alone.

        Every problem comes once in each pass; which of its episodes come is drawn anew each time.
        """
        if not problems:
            return []
        drawn = []
        for place, group in enumerate(shuffled(self.groups, seed, (stage_step - 1) * problems, problems)):
            rng = np.random.default_rng([seed, REFERENCE, stage_step, place])
            chosen = sorted(rng.permutation(len(group.episodes))[:group_size])
            drawn.append(Group(group.problem, [group.episodes[i] for i in chosen]))
        return drawn


def open_replay(t: Trainer) -> Replay:
    """All that config.grpo.replay names; empty if it is off.

    FOLDER/replay.json says what was read: a run that is resumed must find the same. Raises UserError for a run whose
    tokenizer or chat template is another one, files that have changed, and where nothing is left.
    """
    settings, found = t.config.grpo.replay, Replay()
    if not settings.share:
        return found
    records: list[tuple[str, dict[str, Any]]] = []
    own = fingerprint(t.policy.tokenizer)
    for folder in map(Path, settings.folders):
        _check_tokenizer(folder, own)
        records += _records(folder, found.files)
    episodes = [*_episodes(t, records, found.rejected), *_demonstrations(t, found.rejected)]
    groups: dict[str, Group] = {}
    for e in episodes:
        groups.setdefault(e.problem.id, Group(e.problem, [])).episodes.append(e)
    found.groups = list(groups.values())
    _keep_account(t, found)
    if not found.groups:
        raise UserError(f"grpo.replay: no episode can be used: {dict(found.rejected) or 'there are none'}")
    rejected = f"; not used: {dict(found.rejected)}" if found.rejected else ""
    t.progress.print(f"replay: {len(episodes)} episodes of {len(groups)} problems{rejected}")
    return found


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 of all that makes tokens of a chat: the tokens with their numbers and the chat template."""
    parts = [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _check_tokenizer(folder: Path, own: str) -> None:
    kept = folder / "model" / "tokenizer"
    if not kept.is_dir():
        raise UserError(f"grpo.replay.folders: {folder} must be the folder of a run; it has no model/tokenizer")
    if fingerprint(load_tokenizer(str(kept))) != own:
        raise UserError(
            f"grpo.replay.folders: {folder} has another tokenizer or chat template; its tokens mean other texts "
            f"(config.model.tokenizer={kept} takes that one)"
        )


def _records(folder: Path, files: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(FILE:LINE, record) of the episodes that were sampled for training; those of evaluations are held out."""
    paths = sorted((folder / "samples").glob("[0-9]*.jsonl"))
    if not paths:
        raise UserError(f"grpo.replay.folders: {folder}/samples has no episodes (log_samples_every = 0?)")
    for path in paths:
        content = path.read_bytes()
        files[str(path)] = hashlib.sha256(content).hexdigest()
        for number, line in enumerate(content.splitlines(), 1):
            try:
                yield f"{path}:{number}", json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: not JSON: {error}") from None


def _episodes(t: Trainer, records: Sequence[tuple[str, Mapping[str, Any]]], rejected: Counter[str]) -> list[Episode]:
    """The episodes whose problem, with the same text, is one of the run's training problems."""
    problems = _find(t.task.train, {record["problem"] for _, record in records})
    found, longest = [], row_length(t.config)
    for source, record in records:
        problem = problems.get(record["problem"])
        if problem is None:
            rejected["not a training problem"] += 1
        elif record["prompt"] != (problem.prompt if problem.prompt is not None else problem.messages[-1]["content"]):
            rejected["another problem of the same name"] += 1
        elif record["status"] == "sandbox_error" or not any(
            turn["sampled"] and turn["tokens"] for turn in record["turns"]
        ):
            rejected["not judged, or nothing sampled"] += 1
        else:
            episode = _episode(t, problem, record, source)
            if len(episode.prompt) + episode.length > longest:
                rejected["longer than batch.row_length"] += 1
            else:
                found.append(episode)
    return found


def _find(problems: Iterable[Problem], wanted: set[str]) -> dict[str, Problem]:
    """The wanted problems by id; looks no further than it has to."""
    found: dict[str, Problem] = {}
    for problem in problems:
        if len(found) == len(wanted):
            break
        if problem.id in wanted:
            found[problem.id] = problem
    return found


def _episode(t: Trainer, problem: Problem, record: Mapping[str, Any], source: str) -> Episode:
    """An episode from its line in a samples file. Earlier versions did not write the prompt's tokens."""
    prompt = record.get("prompt_tokens")
    if prompt is None:
        prompt = prompt_tokens(t.policy.tokenizer, problem, t.config.rollout)
    turns = [
        Turn(
            turn["role"],
            np.asarray(turn["tokens"], np.int32),
            turn["sampled"],
            # Rounded, and of another policy: there so that the episode is whole, never read by the loss.
            np.asarray(turn.get("logprobs", np.zeros(len(turn["tokens"]))), np.float32) if turn["sampled"] else None,
            turn["learned"],
            turn["text"],
            turn.get("status", ""),
            kind=turn.get("kind", ""),
            plain=turn.get("plain"),
        )
        for turn in record["turns"]
    ]
    return Episode(
        problem,
        np.asarray(prompt, np.int32),
        turns,
        Reward(float(record["reward"]), record["solved"], record["parts"]),
        record["status"],
        record["text"],
        tuple(record["weight_versions"]),
        source=source,
    )


def _demonstrations(t: Trainer, rejected: Counter[str]) -> list[Episode]:
    """The first demonstrations of the task as episodes. Nobody sampled them: their logprobs are 0 and never read."""
    settings, found = t.config.grpo.replay, []
    shown = t.task.demonstrations
    if settings.demonstrations > len(shown):
        raise UserError(
            f"grpo.replay.demonstrations = {settings.demonstrations} must be at most {len(shown)}, what the task has"
        )
    for problem in (shown[i] for i in range(settings.demonstrations)):
        tokens, learned = demonstration_tokens(t.policy.tokenizer, problem, t.config.rollout)
        if len(tokens) > row_length(t.config):
            rejected["demonstration longer than batch.row_length"] += 1
            continue
        cuts = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(tokens)]
        parts = [(tokens[a:b], bool(learned[a])) for a, b in pairwise(cuts)]
        turns = [
            Turn("assistant" if own else "user", part, own, np.zeros(len(part), np.float32) if own else None)
            for part, own in parts[1:]
        ]
        reward = Reward(settings.demonstration_reward, True)
        found.append(Episode(problem, parts[0][0], turns, reward, "finished", "", source=DEMONSTRATION))
    return found


def _keep_account(t: Trainer, found: Replay) -> None:
    """Writes FOLDER/replay.json, or compares the files with it."""
    path = t.folder / "replay.json"
    before = json.loads(path.read_text())["files"] if path.is_file() else found.files
    for name in before.keys() | found.files.keys():
        if before.get(name) != found.files.get(name):
            raise UserError(
                f"{name} is not what this run began with ({path}); a resumed run must replay the same files"
            )
    if t.processes.first:
        count = sum(len(g.episodes) for g in found.groups)
        account = {"episodes": count, "problems": len(found.groups), "rejected": found.rejected, "files": found.files}
        write_beside(path, json.dumps(account, indent=2) + "\n")


def write_sources(path: Path, groups: Sequence[Group]) -> None:
    """Where each replayed episode of a step comes from, by problem; no file if there is none."""
    found = [{"problem": g.problem.id, "sources": [e.source for e in g.episodes]} for g in groups]
    found = [group for group in found if any(group["sources"])]
    if found:
        path.parent.mkdir(exist_ok=True)
        write_beside(path, json.dumps(found, indent=1) + "\n")


def replay_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Shares of what is trained on that is replayed, of episodes and tokens, and the rewards of the replayed ones."""
    episodes = [e for g in groups for e in g.episodes]
    old = [e for e in episodes if e.source]
    if not old:
        return {}
    tokens = sum(e.sampled_length for e in old) / max(sum(e.sampled_length for e in episodes), 1)
    return {
        "replay/episodes": len(old) / len(episodes),
        "replay/tokens": tokens,
        "replay/demonstrations": sum(e.source == DEMONSTRATION for e in old) / len(episodes),
        "replay/reward": float(np.mean([e.reward.value for e in old])),
        "replay/solved": float(np.mean([e.reward.solved for e in old])),
    }


def fill_reference_rewards(t: Trainer, objective: Objective, state: Any, done: int, start: int, replay: Replay) -> None:
    """Rewards of the policy at the start of the stage, for the objective: from FOLDER/q0.jsonl, or sampled and kept."""
    if not objective.reference_samples:
        return
    path = t.folder / "q0.jsonl"
    missing = t.processes.exchange("q0", path.is_file()).count(False)
    if missing and done > start:
        raise UserError(f"{path} is missing: rewards of the policy at step {start}; restore it, or start a new run")
    if missing:
        groups = _reference_groups(t, objective.reference_samples, state, done, replay)
        if t.processes.first:
            write_beside(path, "".join(json.dumps(_reference_record(g)) + "\n" for g in groups))
        t.processes.exchange("q0 written", True)
    for record in map(json.loads, path.read_text().splitlines()):
        objective.reference_rewards[record["problem"]] = record["rewards"]


def _reference_groups(t: Trainer, count: int, state: Any, done: int, replay: Replay) -> list[Group]:
    wanted = {g.problem.id: g.problem for g in replay.groups}
    sampled = t.task.train if t.config.grpo.replay.share < 1 else ()
    if len(sampled) + len(wanted) > MOST_PROBLEMS:
        raise UserError(
            f"grpo.loss.q0 = 'reference' samples each of {len(sampled) + len(wanted)} problems, must be at most "
            f"{MOST_PROBLEMS}: set task.train_problems, or grpo.loss.q0 = 'group'"
        )
    problems = list(({p.id: p for p in sampled} | wanted).values())
    t.progress.print(f"{count} samples of the reference policy for each of {len(problems)} problems")
    t.engine.load_weights(t.processes.local(state.params, t.policy.mesh), done)
    groups: list[Group] = []
    for i in range(0, len(problems), AT_ONCE):
        seed = (t.config.seed, REFERENCE, i)
        groups += t.processes.collect("q0", t.engine, t.environment, problems[i : i + AT_ONCE], count, seed)
    t.engine.unload()
    return groups


def _reference_record(group: Group) -> dict[str, Any]:
    """Only the episodes that could be judged."""
    judged = [e for e in group.episodes if e.status != "sandbox_error"]
    rewards = [float(e.reward.value) for e in judged]
    solved = sum(e.reward.solved for e in judged)
    mean = sum(rewards) / len(rewards) if rewards else None
    return {"problem": group.problem.id, "samples": len(rewards), "solved": solved, "mean": mean, "rewards": rewards}
