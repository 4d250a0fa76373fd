"""The parts of a run in training, made once, and what its stages do with them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.algorithms.batch import Batch, named_arrays
from jaxrl.config import Config
from jaxrl.distributed.processes import Processes, Stop
from jaxrl.errors import TrainingError
from jaxrl.evaluation.run import EVALUATION, evaluate, headline
from jaxrl.runs.journal import Tally
from jaxrl.runs.log import MetricsLog, Progress, write_samples
from jaxrl.runs.policy import Policy
from jaxrl.runs.reward_model import RewardModel
from jaxrl.tasks import Task
from jaxrl.tasks.sampling import Selection
from jaxrl.training.checkpoint import Checkpoints
from jaxrl.training.watch import why_unjudged
from rollouts.collect import Environment
from rollouts.engine import Engine
from rollouts.episode import Group
from rollouts.services import Services


@dataclass
class Trainer:
    """The parts of a run, made once."""

    config: Config
    folder: Path
    task: Task
    test: Task  # its held-out problems are for evaluation
    policy: Policy
    engine: Engine
    environment: Environment
    evaluator: Environment
    services: Services
    selection: Selection  # of the training problems
    log: MetricsLog
    checkpoints: Checkpoints
    progress: Progress
    stop: Stop
    processes: Processes
    devices: dict[str, Any]  # as in FOLDER/devices.json
    reward: RewardModel | None = None  # of config.reward.model


def run_evaluation(t: Trainer, params: Any, step: int, after: str) -> str:
    """Logs a record of stage "evaluate" and keeps the episodes; why the run should stop, "" if it should not."""
    t.engine.load_weights(t.processes.local(params, t.policy.mesh), step)
    with t.progress.aside():
        measured = measure(t, t.engine, t.progress)
    return log_evaluation(t, *measured, step, after)


def measure(t: Trainer, engine: Engine, progress: Progress) -> tuple[dict[str, float], list[Group]]:
    """What the weights of the engine score on the held-out problems, and the episodes."""
    clock = time.perf_counter()
    seed, settings = (t.config.seed, EVALUATION), t.config.evaluation
    model, programs = t.policy.config, t.config.rollout.programs
    total = len(t.test.held_out) * settings.samples // t.processes.count
    scorer = None if t.reward is None else partial(t.reward.score_groups, rollout=t.config.rollout)
    tally = Tally("evaluation", total, progress)
    metrics, groups = evaluate(
        engine, t.evaluator, t.test, settings, seed, t.services.pool, model, t.processes, programs, tally, scorer
    )
    metrics["time/evaluate_s"] = time.perf_counter() - clock
    return metrics, groups


def log_evaluation(t: Trainer, metrics: dict[str, float], groups: list[Group], step: int, after: str) -> str:
    """Writes what was measured of the weights after `step`; why the run should stop, "" if it should not."""
    t.log.write(
        {"step": step, "stage": "evaluate", "stage_step": step, "after": after, "headline": t.test.headline, **metrics}
    )
    if t.processes.first:
        write_samples(t.folder / "samples" / f"evaluate_{step:08d}.jsonl", groups, step, "evaluate")
    t.progress.print(f"held-out {t.test.headline} after {after} (step {step}): {headline(metrics, t.test.headline)}")
    return why_unjudged(groups)


def check_update(t: Trainer, metrics: dict[str, float], batch: Batch, step: int) -> None:
    """Raises TrainingError, with the batch saved, for an update that says that something is broken.

    That is a loss or gradient that is not finite, or a sampler that disagrees with the trainer about the probability
    of a token by more than rollout.mismatch_limit (in nats; it includes what rollout.max_staleness makes them differ).
    """
    limit = t.config.rollout.mismatch_limit
    if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])):
        reason = f"the loss is {metrics['loss']}, the gradient's norm {metrics['grad_norm']}"
    elif limit and not metrics.get("mismatch/max", 0.0) <= limit:
        reason = (
            f"sampler and trainer differ by {metrics['mismatch/max']:.3g} nats on a token, rollout.mismatch_limit is "
            f"{limit} (python -m jaxrl.crosscheck compares them)"
        )
    else:
        return
    path = t.folder / f"bad_batch_{step:08d}.npz"
    arrays: dict[str, Any] = dict(named_arrays(batch))
    if t.processes.first:
        np.savez(path, **arrays)
    raise TrainingError(
        f"step {step}: {reason}; the batch is in {path}, the last checkpoint is of step "
        f"{t.checkpoints.latest() or 'none'}"
    )
