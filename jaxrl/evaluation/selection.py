"""Scores by which best-of-n chooses one of a problem's samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrl.distributed.processes import Processes
from jaxrl.errors import UserError
from jaxrl.tasks import Task
from rollouts.episode import Episode, Group
from rollouts.services import JudgePool
from sandbox.verdict import Limits, Program


def sample_scores(
    groups: Sequence[Group], task: Task, best_of: str, pool: JudgePool | None, processes: Processes = Processes()
) -> list[list[float]]:
    """A score for each episode of each group, by which best-of-n chooses; empty lists where nothing is chosen.

    Raises UserError for an engine that gives no logprobs, and for problems without public tests.
    """
    if best_of == "logprob":
        return [[_mean_logprob(e) for e in group.episodes] for group in groups]
    if best_of == "public":
        return _public_scores(groups, task, pool, processes)
    return [[] for _ in groups]


def _mean_logprob(episode: Episode) -> float:
    logprobs = [t.logprobs for t in episode.turns if t.sampled and t.logprobs is not None]
    values = np.concatenate([np.zeros(0), *logprobs])
    if np.isnan(values).any():
        raise UserError("evaluation.best_of = 'logprob' needs an engine that gives logprobs: jax or vllm")
    return float(values.mean()) if len(values) else -np.inf


def _public_scores(
    groups: Sequence[Group], task: Task, pool: JudgePool | None, processes: Processes
) -> list[list[float]]:
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
