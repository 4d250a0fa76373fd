"""Evaluation of a policy on held-out problems.

    python -m jaxrl.evaluate --config FILE --config.model.path=MODEL_OR_RUN     with the JAX engine or vLLM
    python -m jaxrl.evaluate --config FILE --config.rollout.engine=openai \\
        --config.rollout.sidecar.addresses="('http://host:port',)" --config.rollout.sidecar.model=NAME
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from jaxrl.channel import ChannelError
from jaxrl.command_line import UserError, read_config
from jaxrl.config import Config, EvaluationConfig
from jaxrl.cost import question_cost
from jaxrl.estimators import best_of_n, bootstrap_interval, maj_at_k, n_at_k_of_episodes, pass_at_k
from jaxrl.files import write_beside
from jaxrl.metrics import write_samples
from jaxrl.processes import Processes, start
from jaxrl.run import (
    evaluation_task,
    make_engine,
    make_environment,
    make_openai_engine,
    make_policy,
    make_pool,
    make_sessions,
    make_tokenizer,
    open_run,
    prepare_process,
    without_long_prompts,
)
from jaxrl.score import write_harness_files
from jaxrl.tasks import Task, load_task
from models.config import ModelConfig
from rollouts.collect import Environment
from rollouts.engine import Engine
from rollouts.episode import Attempt, Episode, Group
from rollouts.sidecar import SidecarError
from sandbox.pool import Pool
from sandbox.verdict import Limits, Program

EVALUATION = 2  # stream of random numbers, beside the run's seed


def evaluate(
    engine: Engine,
    environment: Environment,
    task: Task,
    settings: EvaluationConfig,
    seed: Sequence[int],
    pool: Pool | None = None,
    model: ModelConfig | None = None,
    processes: Processes = Processes(),
    programs: int | None = None,
) -> tuple[dict[str, float], list[Group]]:
    """Scores on the task's held-out problems (see `scores`, `summary`), what an answer cost, and the episodes.

    Every evaluation draws with the same seeds, so two policies differ by their weights only. Episodes in which the
    sandbox failed count as not solved, and are reported as held_out/sandbox_errors.

    Args:
        pool: the sandbox; needed for best_of = "public".
        model: whose operations are counted; None: they are not.
        processes: that share the episodes; each returns the same.
        programs: that an episode may submit, in an environment that scores each turn's; None: its end is scored.
    """
    groups, drawn = collect_well_formed(engine, environment, task, settings, seed, processes)
    metrics = summary(scores(groups, task, settings, pool, processes, programs), settings.bootstrap)
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
) -> tuple[list[Group], list[Episode]]:
    """`samples` episodes of each held-out problem, and all that were drawn for them.

    Those whose text is not well formed are drawn anew, with other seeds, at most `regenerate` times; the last is kept.
    """
    collect = partial(processes.collect, "evaluate", engine, environment)
    groups = collect(task.held_out, settings.samples, seed)
    drawn = [e for g in groups for e in g.episodes]
    for again in range(1, settings.regenerate + 1):
        places = [
            (group, i)
            for group in groups
            for i, episode in enumerate(group.episodes)
            if not task.is_well_formed(group.problem, episode.text)
        ]
        if not places:
            break
        fresh = collect([group.problem for group, _ in places], 1, (*seed, again))
        for (group, i), new in zip(places, fresh):
            group.episodes[i] = new.episodes[0]
            drawn += new.episodes
    return groups, drawn


def scores(
    groups: Sequence[Group],
    task: Task,
    settings: EvaluationConfig,
    pool: Pool | None = None,
    processes: Processes = Processes(),
    programs: int | None = None,
) -> dict[str, list[float]]:
    """What each problem contributes to each metric.

    held_out/pass@k                 for k = 1, `samples` and those of settings.k
    held_out/maj@k                  the same k above 1, where the task has answers in a normal form
    held_out/maj@k/standard_error   of the problem's value, where subsets were drawn for it
    held_out/n@k                    at most n = submissions out of k programs that pass the public tests, where turns,
                                    n > 1 or best_of = "public" make it another number than pass@1; of episodes of up to
                                    T `programs`, k counts T an episode
    held_out/best_of_k/logprob      of the sample with the best mean logprob of its tokens; best_of_k/public: with the
                                    largest share of the public tests passed
    held_out/pass@1/difficulty_D    where problems have one
    """
    table: dict[str, list[float]] = defaultdict(list)
    turns = programs or 1
    ranking = sample_scores(groups, task, settings.best_of, pool, processes)
    for group, ranks in zip(groups, ranking):
        solved = [e.reward.solved for e in group.episodes]
        public = [rank == 1.0 for rank in ranks] if settings.best_of == "public" else [True] * len(solved)
        ends = [[Attempt(passed, e.reward.solved)] for e, passed in zip(group.episodes, public)]
        episodes = ends if programs is None else [e.attempts for e in group.episodes]
        answers = [task.answer(e.problem, e.text) for e in group.episodes] if task.answer else []
        for k in sorted({1, settings.samples, *settings.k}):
            table[f"held_out/pass@{k}"].append(pass_at_k(len(solved), sum(solved), k))
            if answers and k > 1:
                vote = maj_at_k(answers, solved, k)
                table[f"held_out/maj@{k}"].append(vote.value)
                table[f"held_out/maj@{k}/standard_error"].append(vote.standard_error)
            if turns > 1 or settings.submissions > 1 or settings.best_of == "public":
                name = f"held_out/{settings.submissions}@{k * turns}"
                table[name].append(n_at_k_of_episodes(episodes, settings.submissions, k))
            if ranks and k > 1:
                table[f"held_out/best_of_{k}/{settings.best_of}"].append(best_of_n(ranks, solved, k))
        if "difficulty" in group.problem.meta:
            name = f"held_out/pass@1/difficulty_{group.problem.meta['difficulty']}"
            table[name].append(float(np.mean(solved)))
    return dict(table)


def summary(table: dict[str, list[float]], bootstrap: int) -> dict[str, float]:
    """The mean of each metric over the problems; NAME/low and NAME/high bound its 95% bootstrap interval.

    Standard errors are those of the mean of independent values, and not reported where all are 0.
    """
    metrics: dict[str, float] = {}
    for name, values in sorted(table.items()):
        if name.endswith("/standard_error"):
            if any(values):
                metrics[name] = float(np.linalg.norm(values) / len(values))
            continue
        metrics[name] = float(np.mean(values))
        if bootstrap and "/difficulty_" not in name:
            metrics[f"{name}/low"], metrics[f"{name}/high"] = bootstrap_interval(values, 0.95, bootstrap)
    return metrics


def sample_scores(
    groups: Sequence[Group], task: Task, best_of: str, pool: Pool | None, processes: Processes = Processes()
) -> list[list[float]]:
    """A score for each episode of each group, by which best-of-n chooses; empty lists where nothing is chosen.

    Raises ValueError for an engine that gives no logprobs, and for problems without public tests.
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
        raise ValueError("evaluation.best_of = 'logprob' needs an engine that gives logprobs: jax or vllm")
    return float(values.mean()) if len(values) else -np.inf


def _public_scores(groups: Sequence[Group], task: Task, pool: Pool | None, processes: Processes) -> list[list[float]]:
    programs = []
    for group in groups:
        tests = group.problem.public_tests
        if task.program is None:
            raise ValueError(f"evaluation.best_of = 'public': task {task.name} does not ask for programs")
        if not tests or pool is None:
            raise ValueError(
                f"evaluation.best_of = 'public': problem {group.problem.id} of task {task.name} has no public tests"
            )
        limits = group.problem.meta.get("limits", Limits())
        programs += [Program(task.program(e.problem, e.text), tuple(tests), limits) for e in group.episodes]
    verdicts = iter(processes.shared("public tests", programs, pool.run) if pool else ())
    return [[next(verdicts).pass_fraction for _ in group.episodes] for group in groups]


def evaluate_config(config: Config, processes: Processes = Processes()) -> dict[str, float]:
    """Scores config.model on the held-out problems of config.task, into runs_dir/name/evaluation.json and samples/."""
    config.evaluation.check()
    config.task.extraction.check()
    config.model.check()
    config.mesh.check()
    config.rollout.check(training=False)
    folder = open_run(config, processes)
    task = load_task(config.task, config.seed)
    test = evaluation_task(config, task)
    if config.rollout.engine == "openai":
        policy = None
        with processes.after_first("tokenizer"):
            tokenizer = make_tokenizer(config.model, task, folder)
    else:
        policy = make_policy(config, task, folder, processes)
        tokenizer = policy.tokenizer
    if config.rollout.reject_long_prompts:
        test = without_long_prompts(test, tokenizer, config.rollout)
    make = make_openai_engine(config, tokenizer) if policy is None else make_engine(config, policy, folder, processes)
    with make_pool(config) as pool, make_sessions(config) as sessions, closing(make) as engine:
        if policy is not None:
            engine.load_weights(processes.local(policy.params, policy.mesh), 0)
        environment = make_environment(config, test, tokenizer, pool, config.evaluation.temperature, sessions)
        seed = (config.seed, EVALUATION)
        model = policy.config if policy else None
        metrics, groups = evaluate(
            engine, environment, test, config.evaluation, seed, pool, model, processes, config.rollout.programs
        )
    if processes.first:
        write_samples(folder / "samples" / "evaluation.jsonl", groups, 0, "evaluate")
        write_harness_files(folder / "samples", test, groups)
        write_beside(folder / "evaluation.json", json.dumps(metrics, indent=2) + "\n")
    return metrics


def main(arguments: list[str]) -> int:
    """The command: the scores, one a line; 1 with one line on stderr when there are none."""
    processes = Processes()
    try:
        config = read_config(arguments)
        processes = start(config.processes, Path(config.runs_dir) / config.name)
        prepare_process()
        for name, value in evaluate_config(config, processes).items():
            if processes.first:
                print(f"{name}  {value:.4g}")
        processes.close()
    except Exception as error:
        known = (OSError, UserError, SidecarError, ChannelError, ValueError)
        surprise = os.environ.get("JAXRL_TRACEBACK") or not isinstance(error, known)
        processes.fail(traceback.format_exc() if surprise else f"error: {error}")
        if surprise:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
