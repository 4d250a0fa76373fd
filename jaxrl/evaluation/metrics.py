"""What each held-out problem contributes to each metric, and the means with their intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxrl.config import EvaluationConfig
from jaxrl.errors import UserError
from jaxrl.evaluation.estimators import bootstrap_interval, maj_at_k, n_at_k_of_episodes, pass_at_k
from jaxrl.evaluation.selection import Judged, best_of_values
from jaxrl.tasks import Task
from jaxrl.tasks.extract import normal_form
from rollouts.episode import Attempt, Group, Problem


def scores(
    groups: Sequence[Group],
    task: Task,
    settings: EvaluationConfig,
    ranking: Sequence[Mapping[str, Sequence[float]]],
    programs: int | None = None,
) -> dict[str, list[float]]:
    """The value of each problem in each metric, by the metric's name. `ranking` are the groups' `sample_scores`.

    held_out/pass@k                 for k = 1, `samples` and those of settings.k
    held_out/maj@k                  the same k above 1, where the task's rewards have answers in a normal form
    held_out/maj@k/standard_error   of the problem's value, where subsets were drawn for it
    held_out/n@k                    at most n = submissions out of k programs that pass the public tests, where turns,
                                    n > 1 or best_of = "public" make it another number than pass@1; of episodes of up to
                                    T `programs`, k counts T an episode
    held_out/best_of_k/logprob      of the sample with the best mean logprob of its tokens; best_of_k/public: with the
                                    largest share of the public tests passed; /logprob_sum, /reward (a reward model's);
                                    best_of = "all" also /random, any one, and /oracle, a right one if there is
    held_out/distinct_solutions     right programs of the `samples` that differ in more than layout and comments
    held_out/NAME                   for each of task.metrics
    held_out/macro@1, best@1, all@1 of questions in several variants (task.strata): the mean of the variants' pass@1,
                                    that of the variant of the lowest rank, and how often sample i solves all of them
    held_out/HEADLINE/SLICE_VALUE   the task's headline for each of its slices, such as pass@1/difficulty_3
    """
    table: dict[str, list[float]] = defaultdict(list)
    for group, ranks in zip(groups, ranking):
        values = _sampled(group, task, settings, ranks, programs) | (task.metrics(group) if task.metrics else {})
        if task.headline not in values:
            raise UserError(f"task {task.name}: its headline {task.headline!r} must be one of: {', '.join(values)}")
        slices = task.slices(group.problem).items()
        values |= {f"{task.headline}/{name}_{part}": values[task.headline] for name, part in slices}
        for name, value in values.items():
            table[f"held_out/{name}"].append(value)
    return dict(table) | (_of_variants(groups, task.strata) if task.strata else {})


def _of_variants(groups: Sequence[Group], strata: Callable[[Problem], tuple[str, float]]) -> dict[str, list[float]]:
    """macro@1, best@1 and all@1 of each question (BigO(Bench), arXiv 2503.15242)."""
    questions: dict[str, list[tuple[float, list[bool]]]] = defaultdict(list)
    for group in groups:
        question, rank = strata(group.problem)
        questions[question].append((rank, [e.reward.solved for e in group.episodes]))
    table: dict[str, list[float]] = defaultdict(list)
    for variants in questions.values():
        best = min(variants, key=lambda v: v[0])[1]
        table["held_out/macro@1"].append(float(np.mean([np.mean(solved) for _, solved in variants])))
        table["held_out/best@1"].append(float(np.mean(best)))
        table["held_out/all@1"].append(float(np.mean([all(sample) for sample in zip(*(s for _, s in variants))])))
    return dict(table)


def _sampled(
    group: Group, task: Task, settings: EvaluationConfig, ranks: Mapping[str, Sequence[float]], programs: int | None
) -> dict[str, float]:
    """The metrics of one problem that every task has."""
    values: dict[str, float] = {}
    turns = programs or 1
    solved = [e.reward.solved for e in group.episodes]
    answers = [e.reward.answer for e in group.episodes] if task.answers else []
    public = [rank == 1.0 for rank in ranks["public"]] if "public" in ranks else [True] * len(solved)
    ends = [[Attempt(passed, e.reward.solved)] for e, passed in zip(group.episodes, public)]
    tried = programs is not None and any(e.attempts for e in group.episodes)  # a part of a mixture may have one turn
    episodes = [e.attempts for e in group.episodes] if tried else ends
    for k in sorted({1, settings.samples, *settings.k}):
        values[f"pass@{k}"] = pass_at_k(len(solved), sum(solved), k)
        if answers and k > 1:
            vote = maj_at_k(answers, solved, k)
            values[f"maj@{k}"], values[f"maj@{k}/standard_error"] = vote.value, vote.standard_error
        if turns > 1 or settings.submissions > 1 or "public" in ranks:
            attempts = n_at_k_of_episodes(episodes, settings.submissions, k)
            values[f"{settings.submissions}@{k * turns}"] = attempts
        if ranks and k > 1:
            chosen = best_of_values(Judged(group.problem.id, solved, {n: [*s] for n, s in ranks.items()}), k)
            shown = chosen if settings.best_of == "all" else {settings.best_of: chosen[settings.best_of]}
            values |= {f"best_of_{k}/{name}": value for name, value in shown.items()}
    programs_of = [e.submitted.program for e in group.episodes]
    if settings.samples > 1 and any(programs_of):
        right = {normal_form(program) for program, passed in zip(programs_of, solved) if program and passed}
        values["distinct_solutions"] = float(len(right))
    return values


def summary(table: dict[str, list[float]], bootstrap: int, slices: str = "pass@1/") -> dict[str, float]:
    """The mean of each metric over the problems; NAME/low and NAME/high bound its 95% bootstrap interval.

    Metrics whose name begins with held_out/ and `slices` have no interval. Standard errors are those of the mean of
    independent values, and not reported where all are 0.
    """
    metrics: dict[str, float] = {}
    for name, values in sorted(table.items()):
        if name.endswith("/standard_error"):
            if any(values):
                metrics[name] = float(np.linalg.norm(values) / len(values))
            continue
        metrics[name] = float(np.mean(values))
        if bootstrap and not name.startswith(f"held_out/{slices}"):
            metrics[f"{name}/low"], metrics[f"{name}/high"] = bootstrap_interval(values, 0.95, bootstrap)
    return metrics
