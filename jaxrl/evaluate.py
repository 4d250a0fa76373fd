"""Evaluation of a policy on held-out problems.

    python -m jaxrl.evaluate --config FILE --config.model.path=MODEL_OR_RUN     with the JAX engine or vLLM
    python -m jaxrl.evaluate --config FILE --config.rollout.engine=openai \\
        --config.rollout.sidecar.addresses="('http://host:port',)" --config.rollout.sidecar.model=NAME
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing

import numpy as np

from jaxrl.command_line import UserError, read_config
from jaxrl.config import Config
from jaxrl.estimators import pass_at_k
from jaxrl.files import write_beside
from jaxrl.metrics import write_samples
from jaxrl.run import (
    make_engine,
    make_environment,
    make_openai_engine,
    make_policy,
    make_pool,
    make_tokenizer,
    open_run,
    prepare_process,
    without_long_prompts,
)
from jaxrl.tasks import load_task
from rollouts.collect import Environment, collect
from rollouts.engine import Engine
from rollouts.episode import Group, Problem
from rollouts.sidecar import SidecarError

EVALUATION = 2  # stream of random numbers, beside the run's seed


def evaluate(
    engine: Engine, environment: Environment, problems: Sequence[Problem], samples: int, seed: Sequence[int]
) -> tuple[dict[str, float], list[Group]]:
    """held_out/pass@1 (and pass@k for k = samples), also by difficulty where problems have one; and the episodes.

    Every evaluation draws with the same seeds, so two policies differ by their weights only. Episodes in which the
    sandbox failed count as not solved, and are reported as held_out/sandbox_errors.
    """
    groups = collect(engine, environment, problems, samples, seed)
    scores: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        correct = sum(e.reward.solved for e in group.episodes)
        for k in {1, samples}:
            scores[f"held_out/pass@{k}"].append(pass_at_k(samples, correct, k))
        if "difficulty" in group.problem.meta:
            name = f"held_out/pass@1/difficulty_{group.problem.meta['difficulty']}"
            scores[name].append(correct / samples)
    metrics = {name: float(np.mean(values)) for name, values in sorted(scores.items())}
    episodes = [e for g in groups for e in g.episodes]
    metrics["held_out/n"] = len(problems)
    metrics["held_out/length"] = float(np.mean([e.sampled_length for e in episodes]))
    metrics["held_out/sandbox_errors"] = sum(e.status == "sandbox_error" for e in episodes)
    return metrics, groups


def evaluate_config(config: Config) -> dict[str, float]:
    """Scores config.model on the held-out problems of config.task, into runs_dir/name/evaluation.json and samples/."""
    folder = open_run(config)
    task = load_task(config.task, config.seed)
    if config.rollout.engine == "openai":
        policy, tokenizer = None, make_tokenizer(config.model, task, folder)
    else:
        policy = make_policy(config, task, folder)
        tokenizer = policy.tokenizer
    if config.rollout.reject_long_prompts:
        task = without_long_prompts(task, tokenizer, config.rollout)
    make = make_openai_engine(config, tokenizer) if policy is None else make_engine(config, policy, folder)
    with make_pool(config) as pool, closing(make) as engine:
        if policy is not None:
            engine.load_weights(policy.params, 0)
        environment = make_environment(config, task, tokenizer, pool, config.evaluation.temperature)
        seed = (config.seed, EVALUATION)
        metrics, groups = evaluate(engine, environment, task.held_out, config.evaluation.samples, seed)
    write_samples(folder / "samples" / "evaluation.jsonl", groups, 0, "evaluate")
    write_beside(folder / "evaluation.json", json.dumps(metrics, indent=2) + "\n")
    return metrics


def main(arguments: list[str]) -> int:
    """The command: the scores, one a line; 1 with one line on stderr when there are none."""
    try:
        prepare_process()
        for name, value in evaluate_config(read_config(arguments)).items():
            print(f"{name}  {value:.4g}")
    except (OSError, UserError, SidecarError, ValueError) as error:
        if os.environ.get("JAXRL_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
