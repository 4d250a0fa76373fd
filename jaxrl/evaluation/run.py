"""Evaluation of a policy on held-out problems."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from jaxrl.config import EvaluationConfig
from jaxrl.costs.flops import question_cost
from jaxrl.distributed.processes import Processes
from jaxrl.evaluation.metrics import scores, summary
from jaxrl.evaluation.selection import Scorer, judged, sample_scores, write_judged
from jaxrl.tasks import Task
from models.config import ModelConfig
from rollouts.collect import Environment, Keeper
from rollouts.engine import Engine
from rollouts.episode import Episode, Group
from rollouts.services import JudgePool

EVALUATION = 2  # stream of random numbers, beside the run's seed


def headline(metrics: dict[str, float], name: str) -> str:
    """A metric as text: shares in percent, other numbers as they are."""
    value = metrics[f"held_out/{name}"]
    return f"{value:.1%}" if "@" in name else f"{value:.4g}"


def evaluate(
    engine: Engine,
    environment: Environment,
    task: Task,
    settings: EvaluationConfig,
    seed: Sequence[int],
    pool: JudgePool | None = None,
    model: ModelConfig | None = None,
    processes: Processes = Processes(),
    programs: int | None = None,
    keeper: Keeper | None = None,
    reward: Scorer | None = None,
    scores_file: Path | None = None,
) -> tuple[dict[str, float], list[Group]]:
    """Scores on the task's held-out problems (see `scores`, `summary`), what an answer cost, and the episodes.

    Every evaluation draws with the same seeds, so two policies differ by their weights only. Episodes in which the
    sandbox failed count as not solved, and are reported as held_out/sandbox_errors.

    Args:
        pool: the sandbox; needed for best_of = "public".
        model: whose operations are counted; None: they are not.
        processes: that share the episodes; each returns the same.
        programs: that an episode may submit, in an environment that scores each turn's; None: its end is scored.
        keeper: sees every episode as soon as it is finished, and may know some from an earlier try.
        reward: the reward model, for best_of = "reward" or "all".
        scores_file: where verdicts and scores of all samples are written, for other tables (python -m jaxrl.score).
    """
    groups, drawn = collect_well_formed(engine, environment, task, settings, seed, processes, keeper)
    ranking = sample_scores(groups, task, settings.best_of, pool, processes, reward)
    if scores_file is not None and settings.best_of and processes.first:
        write_judged(scores_file, judged(groups, ranking))
    table = scores(groups, task, settings, ranking, programs)
    metrics = summary(table, settings.bootstrap, slices=f"{task.headline}/")
    episodes = [e for g in groups for e in g.episodes]
    metrics["held_out/n"] = len(groups)
    metrics["held_out/length"] = float(np.mean([e.sampled_length for e in episodes]))
    metrics["held_out/sandbox_errors"] = sum(e.status == "sandbox_error" for e in episodes)
    if settings.regenerate:
        metrics["held_out/attempts"] = len(drawn) / len(episodes)
    cost = question_cost(model, drawn, len(episodes))
    metrics |= {f"held_out/cost/{name}": value for name, value in cost.items()}
    return metrics, groups


def collect_well_formed(
    engine: Engine,
    environment: Environment,
    task: Task,
    settings: EvaluationConfig,
    seed: Sequence[int],
    processes: Processes = Processes(),
    keeper: Keeper | None = None,
) -> tuple[list[Group], list[Episode]]:
    """`samples` episodes of each held-out problem, and all that were drawn for them.

    Those whose submission is not well formed are drawn anew, with other seeds, at most `regenerate` times; the last
    is kept.
    """
    collect = partial(processes.collect, "evaluate", engine, environment, keeper=keeper)
    groups = collect(task.held_out, settings.samples, seed)
    drawn = [e for g in groups for e in g.episodes]
    for again in range(1, settings.regenerate + 1):
        places = [
            (group, i)
            for group in groups
            for i, episode in enumerate(group.episodes)
            if not task.is_well_formed(group.problem, episode.submitted)
        ]
        if not places:
            break
        fresh = collect([group.problem for group, _ in places], 1, (*seed, again))
        for (group, i), new in zip(places, fresh):
            group.episodes[i] = new.episodes[0]
            drawn += new.episodes
    return groups, drawn
