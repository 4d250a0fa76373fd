"""Scores by which best-of-n chooses one of a problem's samples, and what each scorer's choices are worth."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrl.distributed.processes import Processes
from jaxrl.errors import UserError
from jaxrl.evaluation.estimators import best_of_n, bootstrap_interval, pass_at_k
from jaxrl.files import write_beside
from jaxrl.tasks import Task
from jaxrl.tasks.rows import DataError, read_rows
from rollouts.episode import Episode, Group
from rollouts.services import JudgePool
from sandbox.verdict import Limits, Program

Scores = list[list[float]]  # of each episode, by group
Scorer = Callable[[Sequence[Group]], Scores]

RANDOM, ORACLE = "random", "oracle"  # any sample; a right one if there is one


class Judged(NamedTuple):
    """What is known about the samples of a problem: whether each is right, and its scores by scorer."""

    id: str
    solved: list[bool]
    scores: dict[str, list[float]]


def sample_scores(
    groups: Sequence[Group],
    task: Task,
    best_of: str,
    pool: JudgePool | None,
    processes: Processes = Processes(),
    reward: Scorer | None = None,
) -> list[dict[str, list[float]]]:
    """For each group, the scores of its episodes by scorer: those of `best_of`, a name or "all"; {} for "".

    logprob and logprob_sum are the mean and the sum over the episode's tokens, public is the share of the public tests
    passed, reward the reward model's. With "all", those that this run can give.

    Raises UserError for a scorer that was asked for and that the run cannot give: an engine without logprobs, problems
    without public tests, no reward model.
    """
    wanted = ("reward", "logprob", "logprob_sum", "public") if best_of == "all" else (best_of,) if best_of else ()
    found: dict[str, Scores] = {}
    for name in wanted:
        if best_of != "all" or _can(name, groups, task, pool, reward):
            found[name] = _scores(name, groups, task, pool, processes, reward)
    return [{name: scores[i] for name, scores in found.items()} for i in range(len(groups))]


def _can(name: str, groups: Sequence[Group], task: Task, pool: JudgePool | None, reward: Scorer | None) -> bool:
    """Whether this run can give these scores."""
    if name == "reward":
        return reward is not None
    if name == "public":
        return task.extract is not None and pool is not None and all(g.problem.public_tests for g in groups)
    return not any(np.isnan(_logprobs(e)).any() for g in groups for e in g.episodes)


def _scores(
    name: str,
    groups: Sequence[Group],
    task: Task,
    pool: JudgePool | None,
    processes: Processes,
    reward: Scorer | None,
) -> Scores:
    if name == "public":
        return _public_scores(groups, task, pool, processes)
    if name == "reward":
        if reward is None:
            raise UserError("evaluation.best_of = 'reward' needs reward.model: a run that trained a reward model")
        return reward(groups)
    return [[_logprob(e, name) for e in group.episodes] for group in groups]


def _logprobs(episode: Episode) -> np.ndarray:
    given = [t.logprobs for t in episode.turns if t.sampled and t.logprobs is not None]
    return np.concatenate([np.zeros(0), *given])


def _logprob(episode: Episode, name: str) -> float:
    values = _logprobs(episode)
    if np.isnan(values).any():
        raise UserError(f"evaluation.best_of = {name!r} needs an engine that gives logprobs: jax or vllm")
    if not len(values):
        return -np.inf
    return float(values.sum() if name == "logprob_sum" else values.mean())


def _public_scores(groups: Sequence[Group], task: Task, pool: JudgePool | None, processes: Processes) -> Scores:
    programs = []
    for group in groups:
        tests = group.problem.public_tests
        if task.extract is None:
            raise UserError(f"evaluation.best_of = 'public': task {task.name} does not ask for programs")
        if not tests or pool is None:
            raise UserError(
                f"evaluation.best_of = 'public': problem {group.problem.id} of task {task.name} has no public tests"
            )
        limits = group.problem.meta.get("limits", Limits())
        programs += [Program(e.submitted.program or "", tuple(tests), limits) for e in group.episodes]
    verdicts = iter(processes.shared("public tests", programs, pool.run) if pool else ())
    return [[next(verdicts).pass_fraction for _ in group.episodes] for group in groups]


def best_of_values(problem: Judged, n: int) -> dict[str, float]:
    """Chance that the sample which each scorer chooses of n is right, beside those of a random one and of an oracle.

    Over all subsets of n of the problem's samples. Raises ValueError if n > samples.
    """
    total, right = len(problem.solved), sum(problem.solved)
    chosen = {name: best_of_n(scores, problem.solved, n) for name, scores in problem.scores.items()}
    return {RANDOM: right / total, **chosen, ORACLE: pass_at_k(total, right, n)}


def best_of_table(
    problems: Sequence[Judged], sizes: Sequence[int], bootstrap: int = 1000
) -> dict[str, dict[int, tuple[float, float, float]]]:
    """Scorer -> n -> (the share of problems that best-of-n solves, low, high), with random and oracle beside them.

    low and high bound the 95% interval over problems, nan with bootstrap 0. Raises DataError for problems with
    different scorers, and for an n that a problem has not as many samples as.
    """
    for problem in problems:
        if problem.scores.keys() != problems[0].scores.keys():
            raise DataError(
                f"problem {problem.id} has the scores {[*problem.scores]}, the first {[*problems[0].scores]}"
            )
        if max(sizes) > len(problem.solved):
            raise DataError(f"problem {problem.id} has {len(problem.solved)} samples, best-of-{max(sizes)} needs more")
    table: dict[str, dict[int, tuple[float, float, float]]] = {}
    for n in sizes:
        values = [best_of_values(problem, n) for problem in problems]
        for name in values[0]:
            of_scorer = [v[name] for v in values]
            low, high = bootstrap_interval(of_scorer, 0.95, bootstrap) if bootstrap else (np.nan, np.nan)
            table.setdefault(name, {})[n] = float(np.mean(of_scorer)), low, high
    return table


def table_text(table: Mapping[str, Mapping[int, tuple[float, float, float]]]) -> str:
    """The table for people, in percent with the interval."""
    sizes = [*next(iter(table.values()))]
    lines = [f"{'scorer':<12}" + "".join(f"{f'best of {n}':>24}" for n in sizes)]
    for name, row in table.items():
        cells = (f"{value:.1%} [{low:.1%}, {high:.1%}]" for value, low, high in row.values())
        lines.append(f"{name:<12}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def judged(groups: Sequence[Group], ranking: Sequence[Mapping[str, Sequence[float]]]) -> list[Judged]:
    """The groups' verdicts and their `sample_scores`."""
    return [
        Judged(g.problem.id, [e.reward.solved for e in g.episodes], {name: [*s] for name, s in scores.items()})
        for g, scores in zip(groups, ranking, strict=True)
    ]


def write_judged(path: Path, problems: Sequence[Judged]) -> None:
    """One JSON object a line; a score that is not finite is null."""
    lines = []
    for p in problems:
        scores = {name: [s if np.isfinite(s) else None for s in values] for name, values in p.scores.items()}
        lines.append(json.dumps({"id": p.id, "solved": p.solved, "scores": scores}) + "\n")
    write_beside(path, "".join(lines))


def read_judged(path: str) -> list[Judged]:
    """What `write_judged` wrote. Raises DataError, with file and line, for a line of another form."""
    problems = []
    for row in read_rows(path, "test"):
        solved, scores = row.values("solved"), row.part("scores").fields
        if not solved or not all(isinstance(s, bool) for s in solved):
            raise DataError(f"{row.where}: solved must be a list of true and false, one for each sample")
        for name, values in scores.items():
            if not isinstance(values, list) or len(values) != len(solved):
                raise DataError(f"{row.where}: scores.{name} must be a list of {len(solved)} numbers, one a sample")
            if not all(v is None or type(v) in (int, float) for v in values):
                raise DataError(f"{row.where}: scores.{name} must hold numbers, or null for the worst")
        known = {name: [-np.inf if v is None else float(v) for v in values] for name, values in scores.items()}
        problems.append(Judged(row.name("id"), solved, known))
    if not problems:
        raise DataError(f"{path} has no problems")
    return problems
