"""The RL stage: sample groups of episodes, give credit, update, hand the new weights to the sampler."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxrl.algorithms.batch import Batch, token_counts
from jaxrl.algorithms.credit import minibatches
from jaxrl.algorithms.objective import OLD, Objective
from jaxrl.config import Config, row_length
from jaxrl.config.plugins import PLUGINS, load_plugin
from jaxrl.costs.flops import step_flops
from jaxrl.errors import UserError
from jaxrl.files import read_metrics
from jaxrl.runs.log import write_samples
from jaxrl.runs.teacher import load_teacher
from jaxrl.training.draws import Draw, SamplingAhead
from jaxrl.training.learner import Learner, TrainState
from jaxrl.training.model_reward import HackingWatch, judge_groups, model_metrics
from jaxrl.training.optimizer import to_host
from jaxrl.training.packing import make_batch
from jaxrl.training.replay import Replay, fill_reference_rewards, open_replay, replay_metrics, write_sources
from jaxrl.training.stages import Progressing, Stage
from jaxrl.training.start_stream import check_masking, make_streaming
from jaxrl.training.step_metrics import episode_metrics, sandbox_seconds, staleness
from jaxrl.training.streaming import Streaming
from jaxrl.training.trainer import Trainer, check_update
from models.config import ModelConfig
from models.lora import copy_trained, join_params, split_params
from rollouts.episode import Group

ROLLOUTS = 1  # stream of random numbers, beside EVALUATION


def grpo_stage(config: Config, start: int) -> Stage:
    """The stage after step `start`."""
    return Stage(
        name="grpo",
        start=start,
        end=start + config.grpo.steps,
        optimizer=config.optimizer,
        objective=objective_of(config),
        begin=Reinforce,
        updates=config.grpo.loss.updates,
        temperature=config.rollout.temperature or 1.0,
    )


def objective_of(config: Config) -> Objective:
    """The objective of config.grpo.loss."""
    settings = config.grpo.loss
    module = load_plugin(PLUGINS["objective"], settings.name)
    objective = module.make_objective(settings, max_new_tokens=config.rollout.max_new_tokens)
    if ("reference_logprobs" in objective.needs) != settings.needs_reference:  # memory is planned by the settings
        raise UserError(
            f"objective {settings.name!r}: Settings.needs_reference is {settings.needs_reference}, but it must say "
            "whether the objective needs 'reference_logprobs'"
        )
    if ("teacher_logprobs" in objective.needs) != bool(settings.teacher_path):
        raise UserError(
            f"objective {settings.name!r}: grpo.loss.teacher = {settings.teacher_path!r} must be a model (folder, hub "
            "name, GGUF file or run) where the objective needs 'teacher_logprobs', and '' elsewhere"
        )
    own = 1 + sum(head.own for head in objective.heads)
    if own != settings.decoders:
        raise UserError(
            f"objective {settings.name!r}: Settings.decoders is {settings.decoders}, but {own} are trained: the "
            "policy's and those of the heads"
        )
    if config.grpo.replay.share and not objective.off_policy:
        raise UserError(
            f"grpo.replay.share = {config.grpo.replay.share:g} must be 0 with objective {settings.name!r}, which "
            "learns from its own episodes only; grpo.loss.name = 'spo' learns from others' too"
        )
    check_masking(config, objective)
    if objective.smallest_group > config.grpo.group_size:
        raise UserError(
            f"grpo.group_size = {config.grpo.group_size} must be at least {objective.smallest_group}: grpo.loss judges "
            "that many episodes together"
        )
    return objective


class Reinforce(Progressing):
    """Each step is a draw of groups, sampled up to max_staleness versions ago, and an update on them."""

    def __init__(self, t: Trainer, stage: Stage, learner: Learner, state: TrainState, done: int):
        self.t, self.stage, self.learner = t, stage, learner
        self.reference = _reference_params(t, stage, state, done)
        self.teacher, self.taught = _teacher(t, learner)
        self.replay = open_replay(t)
        self.hacking = HackingWatch()
        for record in read_metrics(t.log.path) if done > stage.start else ():  # as it was before the run was resumed
            if record["stage"] == stage.name:
                self.hacking.look(record)
                self.hacking.warned |= bool(record.get("reward_model/alarm"))
        fill_reference_rewards(t, stage.objective, state, done, stage.start, self.replay)
        self.sampling = make_streaming(t, stage) if t.config.rollout.stream.episodes else self._ahead()
        self.publish(state, done)
        self.sampling.restore(done)

    def _ahead(self) -> SamplingAhead[Draw]:
        t, stage = self.t, self.stage
        return SamplingAhead(
            lambda step: draw(t, stage.objective.at(step - stage.start), step - stage.start, self.replay),
            t.engine.load_weights,
            copy=partial(_copy_for_sampler, t),
            staleness=t.config.rollout.max_staleness,
            last=stage.end,
            folder=t.folder / "pending",
            keep=t.config.checkpoint.keep + 1,
            writes=t.processes.first,
        )

    def publish(self, state: TrainState, step: int) -> None:
        """Hands the parameters after `step` to the sampler."""
        if self.t.config.grpo.replay.share == 1:  # nothing is sampled
            return
        with self.t.policy.turns:
            params = jax.block_until_ready(self.t.processes.local(state.params, self.t.policy.mesh))
        self.sampling.publish(params, step)

    def step(self, state: TrainState, step: int, stage_step: int) -> tuple[TrainState, dict[str, float]]:
        """Problems, groups, batch, update, weights: one round of the loop."""
        t, times = self.t, {}
        clock = time.perf_counter()
        groups, drawn, sampled, judged_flops, stats = self._take(step)
        waited = time.perf_counter() - clock
        times["time/sample_s"] = min(sampled, waited)
        times["time/score_s"] = waited - times["time/sample_s"]

        clock = time.perf_counter()
        metrics = replay_metrics(groups)
        if drawn:
            has_signal = self.stage.objective.at(stage_step).signal
            metrics |= episode_metrics(drawn, has_signal)
            streamed = isinstance(self.sampling, Streaming)
            metrics |= staleness(groups, step, t.config.rollout.max_staleness, streamed) | stats
        else:
            metrics["tokens"] = float(sum(e.sampled_length for g in groups for e in g.episodes))
        metrics |= model_metrics(drawn)
        metrics |= self.hacking.look(metrics)
        if warning := self.hacking.warning(metrics):
            t.progress.print(f"step {step}: {warning}")
        state, measured = self.update(state, groups, drawn, step)
        metrics |= measured
        if t.config.grpo.reward != "task":
            metrics |= {"flops/reward_model": judged_flops, "flops": metrics["flops"] + judged_flops}
        times["time/train_s"] = time.perf_counter() - clock

        clock = time.perf_counter()
        self.publish(state, step)
        times["time/sync_s"] = time.perf_counter() - clock
        clock = time.perf_counter()
        every = t.config.log_samples_every
        if t.processes.first and every and stage_step % every == 0:
            if drawn:
                write_samples(t.folder / "samples" / f"{step:08d}.jsonl", drawn, step, self.stage.name)
            write_sources(t.folder / "replay" / f"{step:08d}.json", groups)
        times["time/write_s"] = time.perf_counter() - clock
        workers = (t.services.pool.workers if t.services.pool else 1) * t.processes.count
        busy = {"sampler": sampled, "sandbox": sandbox_seconds(drawn) / workers, "trainer": times["time/train_s"]}
        return state, metrics | times | {f"time/busy_{part}_s": seconds for part, seconds in busy.items()}

    def _take(self, step: int) -> Draw:
        """The draw of a step; of a stream every process has a part."""
        taken = self.sampling.take(step)
        if not isinstance(self.sampling, Streaming):
            return taken
        parts: list[Draw] = self.t.processes.exchange("stream", taken)
        groups, drawn = ([g for part in parts for g in getattr(part, name)] for name in ("groups", "drawn"))
        return taken._replace(groups=groups, drawn=drawn)

    def update(
        self, state: TrainState, groups: list[Group], drawn: list[Group], step: int
    ) -> tuple[TrainState, dict[str, float]]:
        """The updates on the groups, in each pass one for each minibatch; what they measured, and the step's FLOPs.

        What objective and learner need to know beforehand is computed once: old is the policy before the first update
        of the first pass.
        """
        t, learner, config, metrics = self.t, self.learner, self.t.config, {}
        objective = learner.objective.at(step - self.stage.start)
        parts = [groups] if groups else []
        if groups and config.grpo.loss.minibatches > 1:
            parts = minibatches(groups, min(config.grpo.loss.minibatches, len(groups)), config.seed, step)
        shape = {"row_length": row_length(config), "microbatch_rows": config.batch.microbatch_rows}
        batches = [make_batch(part, objective, **shape) for part in parts]
        ready = [learner.prepare(state, batch, self.reference, self.taught) for batch, _ in batches]
        ready = objective.across(ready, groups) if ready else ready
        updates = []
        for batch in [*ready] * config.grpo.loss.epochs:
            state, measured = learner.update(state, batch)
            if config.rollout.mismatch_limit and "mismatch/max" not in measured:
                raise UserError(f"rollout.mismatch_limit: objective {objective.name!r} measures no mismatch/max")
            check_update(t, measured, batch, step)
            updates.append(measured | objective.measure(batch))
        if updates:
            names = dict.fromkeys(name for u in updates for name in u if name != "tokens")
            metrics |= {name: float(np.mean([u[name] for u in updates if name in u])) for name in names}
            metrics |= {name: max(u[name] for u in updates) for name in updates[0] if name.endswith("/max")}
            metrics |= {f"batch/{name}": float(np.mean([log[name] for _, log in batches])) for name in batches[0][1]}
        old = not objective.needs.isdisjoint(OLD)
        counts = [token_counts(batch) for batch in ready]
        return state, metrics | step_flops(
            t.policy.config,
            drawn,
            counts,
            old=old,
            reference=self.reference is not None,
            critics=sum(head.own for head in objective.heads),
            teacher=self.teacher,
            epochs=config.grpo.loss.epochs,
        )

    def wait(self) -> None:
        self.sampling.wait()

    def can_save(self, step: int) -> bool:
        return not isinstance(self.sampling, Streaming) or self.sampling.can_save(step)

    def evaluated(self, state: TrainState, step: int) -> None:
        if self.t.config.rollout.ahead:  # without it, `step` publishes before anything is sampled
            self.publish(state, step)

    def save(self, step: int) -> dict[str, Any]:
        seen = self.sampling.save(step)  # waits for what is on its way, which the selection has seen then
        return {"selection": seen or self.t.selection.state()}

    def close(self, wait: bool = True) -> None:
        self.sampling.close(wait)


def draw(t: Trainer, objective: Objective, stage_step: int, replay: Replay) -> Draw:
    """What the engine samples for a step, with its current weights, and what is replayed.

    Dynamic sampling (DAPO) keeps the first groups that have a signal, in the order drawn. If there are too few, the
    batch is not filled up with others, which would only shrink the step in the average.
    """
    config = t.config
    replayed = round(config.grpo.replay.share * config.grpo.problems_per_step)
    old = replay.draw(stage_step, replayed, config.grpo.group_size, config.seed)
    size = config.grpo.problems_per_step - replayed
    dynamic = config.grpo.loss.dynamic_sampling
    draws = config.grpo.loss.draws
    drawn, kept = [], []
    seconds = flops = 0.0
    judge = t.reward if config.grpo.reward != "task" else None
    for attempt in range(draws if size else 0):
        problems = t.selection.next((stage_step - 1) * draws + attempt, size)
        seed = (config.seed, ROLLOUTS, stage_step, attempt)
        groups = t.processes.collect("draw", t.engine, t.environment, problems, config.grpo.group_size, seed)
        seconds += max(e.timings["sample"] for g in groups for e in g.episodes)
        if judge is not None:
            flops += judge_groups(judge, groups, config)
        t.selection.observe(groups)
        drawn += groups
        kept += [g for g in groups if objective.signal(g)] if dynamic else groups
        if len(kept) >= size:
            break
    return Draw([*kept[:size], *old], drawn, seconds, flops)


def _teacher(t: Trainer, learner: Learner) -> tuple[ModelConfig | None, Callable[[Batch], np.ndarray] | None]:
    """The teacher's architecture and the logprobs f32[B, T] that it gives a batch, where the objective has one."""
    path = t.config.grpo.loss.teacher_path
    if not path:
        return None, None
    config, graphdef, params = load_teacher(path, t.policy.compute, t.folder, t.processes)
    params = to_host(params, "model.offload_reference") if t.config.model.offload_reference else params
    return config, learner.logprobs_by(graphdef, params)


def _copy_for_sampler(t: Trainer, params: Any) -> Any:
    if t.processes.count > 1:
        return params  # a copy already
    with t.policy.turns:
        return jax.block_until_ready(copy_trained(params))


def _reference_params(t: Trainer, stage: Stage, state: TrainState, done: int) -> Any:
    """The policy at the start of the stage, where the objective needs it."""
    if "reference_logprobs" not in stage.objective.needs:
        return None
    if done == stage.start:
        reference = copy_trained(state.params)
    elif stage.start:
        reference = t.checkpoints.restore_params(stage.start, state.params)
    else:
        reference = join_params(t.policy.start(), split_params(state.params)[1])  # of the start of the run
    if not t.config.model.offload_reference:
        return reference
    trained, frozen = split_params(reference)  # the frozen parameters are the policy's own
    return join_params(to_host(trained, "model.offload_reference"), frozen)
