"""The stream of a run's RL stage, from its settings."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxrl.algorithms.objective import Objective
from jaxrl.config import Config
from jaxrl.errors import UserError
from jaxrl.training.stages import Stage
from jaxrl.training.streaming import Plan, Streaming
from jaxrl.training.trainer import Trainer
from models.lora import copy_trained
from rollouts.episode import Group
from rollouts.free_running import FreeRunning
from rollouts.jax.engine import JaxEngine
from rollouts.schedule import Live, Replayed, Schedule, Steps

RECORD = "schedule.jsonl"  # in the run's folder
STREAM = 3  # stream of random numbers, beside those of training and evaluation


def check_stream(config: Config, processes: int = 1) -> None:
    """Raises UserError for what cannot be streamed."""
    stream, exact = config.rollout.stream, config.rollout.stream.schedule != "live"
    if not stream.episodes:
        return
    rules = (
        (
            config.rollout.engine == "jax" or not exact,
            f"schedule = {stream.schedule!r} needs rollout.engine = 'jax', which runs only when called; a server "
            "decides itself when tokens are sampled",
        ),
        (
            not (exact and config.rollout.wall_s),
            f"schedule = {stream.schedule!r} needs rollout.wall_s = 0: a limit in seconds cannot be repeated",
        ),
        (
            not (exact and config.rollout.environment.name == "agent"),
            f"schedule = {stream.schedule!r} cannot be used with environment 'agent': its limits are in seconds",
        ),
        (
            config.rollout.engine == "jax" or stream.cache == "kept",
            "cache = 'recomputed' needs rollout.engine = 'jax'; for vLLM set rollout.sidecar.in_flight = 'recompute'",
        ),
        (not config.grpo.replay.share, "episodes cannot be used with grpo.replay.share, which fills whole batches"),
        (config.grpo.reward == "task", f"episodes cannot be used with grpo.reward = {config.grpo.reward!r}"),
        (
            config.grpo.problems_per_step % processes == 0,
            f"episodes needs grpo.problems_per_step = {config.grpo.problems_per_step} to be a multiple of the "
            f"{processes} processes",
        ),
        (
            processes == 1 or config.grpo.curriculum.order == "uniform",
            "episodes in several processes needs grpo.curriculum.order = 'uniform': each process sees its own episodes",
        ),
    )
    for ok, rule in rules:
        if not ok:
            raise UserError(f"rollout.stream.{rule}")


def check_masking(config: Config, objective: Objective) -> None:
    """Raises UserError for an objective that adds up over whole episodes, where parts of them are masked."""
    stream, whole = config.rollout.stream, objective.off_policy or getattr(config.grpo.loss, "kl_in_reward", 0.0) > 0
    if stream.episodes and stream.stale == "mask" and whole:
        raise UserError(
            f"rollout.stream.stale = 'mask' must be 'drop' with objective {objective.name!r} or kl_in_reward, which "
            "add up over all tokens of an episode"
        )


def make_schedule(config: Config, folder: Path, process: int = 0) -> Schedule:
    """The order of events of config.rollout.stream. Raises UserError where a record is missing."""
    stream, record = config.rollout.stream, RECORD if not process else f"schedule_{process}.jsonl"
    settings = _deciding(config)
    if stream.schedule == "steps":
        return Steps()
    if stream.schedule == "replay":
        path = Path(stream.replay_of) / record
        if not path.exists():
            raise UserError(
                f"rollout.stream.replay_of = {stream.replay_of!r} has no {record}; it must be a run with "
                "rollout.stream.schedule = 'record'"
            )
        return Replayed(path, settings)
    return Live(folder / record if stream.schedule == "record" else None, settings)


def _deciding(config: Config) -> dict[str, Any]:
    """The settings that decide the order of events beside the record."""
    rollout, grpo = config.rollout, config.grpo
    return {
        "seed": config.seed,
        "grpo.steps": grpo.steps,
        "grpo.problems_per_step": grpo.problems_per_step,
        "grpo.group_size": grpo.group_size,
        "grpo.loss.dynamic_sampling": grpo.loss.dynamic_sampling,
        "rollout.max_staleness": rollout.max_staleness,
        "rollout.stream.episodes": rollout.stream.episodes,
        "rollout.stream.stale": rollout.stream.stale,
        "evaluation.every": config.evaluation.every,
        "evaluation.beside": config.evaluation.beside,
        "checkpoint.every": config.checkpoint.every,
    }


def make_streaming(t: Trainer, stage: Stage) -> Streaming:
    """The stream that gives the batches of a stage."""
    config, settings = t.config, t.config.rollout.stream
    by_turns = t.engine if isinstance(t.engine, JaxEngine) else FreeRunning(t.engine)
    change = t.engine.load_weights
    if isinstance(t.engine, JaxEngine):
        change = partial(t.engine.change_weights, recompute=settings.cache == "recomputed")
    objective, start = stage.objective, stage.start

    def due(version: int) -> bool:
        def every(n: int, of: int) -> bool:
            return bool(n) and of % n == 0

        evaluated = not config.evaluation.beside and every(config.evaluation.every, version - start)
        return version > start and (evaluated or every(config.checkpoint.every, version))

    def signal(group: Group, step: int) -> bool:
        return objective.at(step - start).signal(group)

    def copy(params: Any) -> Any:
        if t.processes.count > 1:
            return params  # a copy already
        with t.policy.turns:
            return jax.block_until_ready(copy_trained(params))

    plan = Plan(
        start=start,
        last=stage.end,
        size=config.grpo.problems_per_step // t.processes.count,
        group_size=config.grpo.group_size,
        max_staleness=config.rollout.max_staleness,
        due=due,
        stale=settings.stale,
        signal=signal if config.grpo.loss.dynamic_sampling else None,
        draws=config.grpo.loss.draws,
        seed=(config.seed, STREAM),
        process=t.processes.index,
        processes=t.processes.count,
    )
    return Streaming(
        plan,
        by_turns,
        t.environment,
        t.selection,
        make_schedule(config, t.folder, t.processes.index),
        lanes=settings.episodes,
        delay=settings.delay,
        change_weights=change,
        load_weights=t.engine.load_weights,
        copy=copy,
        folder=t.folder / "pending",
        keep=config.checkpoint.keep + 1,
    )
