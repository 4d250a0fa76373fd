"""Training, from one command: `python -m jaxrl.train --config configs/grpo.py`.

A run goes through its stages (SFT, GRPO) with an evaluation before, between and after. The place in the run is one
number, the step counted over all stages; everything random is a function of (seed, step), so a run that is resumed
from a checkpoint goes on exactly as it would have.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import traceback
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl.ahead import Draw, SamplingAhead
from jaxrl.algorithms.advantages import has_signal, minibatches, select_groups
from jaxrl.algorithms.grpo import policy_gradient_loss
from jaxrl.algorithms.sft import sft_loss
from jaxrl.batch import Batch, fill, fill_behaviour, make_batch, sft_batch, token_counts
from jaxrl.channel import ChannelError
from jaxrl.checkpoint import CheckpointError, Checkpoints, saved_steps
from jaxrl.command_line import TrainingError, UserError, read_config
from jaxrl.config import Config, OptimizerConfig, row_length
from jaxrl.cost import device_peak, step_flops, update_flops
from jaxrl.evaluate import EVALUATION, evaluate
from jaxrl.files import write_beside
from jaxrl.learner import Learner, TrainState
from jaxrl.metrics import MetricsLog, Progress, write_samples
from jaxrl.optimizer import at_update, make_optimizer, to_host
from jaxrl.processes import Processes, Stop, start, stop_on_signals
from jaxrl.report import write_report
from jaxrl.run import (
    Policy,
    demonstration_tokens,
    evaluation_task,
    keep_base,
    make_engine,
    make_environment,
    make_policy,
    make_pool,
    make_sessions,
    open_run,
    prepare_process,
    without_long_demonstrations,
    without_long_prompts,
)
from jaxrl.step_metrics import episode_metrics, sandbox_seconds, staleness, utilization
from jaxrl.tasks import Task, load_task, shuffled
from jaxrl.traces import read_traces
from models.lora import copy_trained, join_params, split_params
from rollouts.collect import Environment
from rollouts.engine import Engine
from rollouts.episode import Group
from rollouts.sidecar import SidecarError
from sandbox.pool import Pool

ROLLOUTS = 1  # stream of random numbers, beside EVALUATION


@dataclass(frozen=True)
class Stage:
    """Steps start + 1 .. end of the run."""

    name: str  # sft | grpo
    start: int
    end: int
    optimizer: OptimizerConfig


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
    pool: Pool
    log: MetricsLog
    checkpoints: Checkpoints
    progress: Progress
    stop: Stop
    processes: Processes
    peak_flops: float = 1.0  # of all devices, a second


def stages_of(config: Config) -> list[Stage]:
    """The stages that have steps, in order. Raises ValueError for a wrong setting of an optimizer."""
    stages, start = [], 0
    for name, steps, optimizer in (
        ("sft", config.sft.steps, config.sft.optimizer),
        ("grpo", config.grpo.steps, config.optimizer),
    ):
        if steps:
            optimizer.check(config.model.param_dtype)
            stages.append(Stage(name, start, start + steps, optimizer))
            start += steps
    return stages


def train(config: Config, processes: Processes = Processes()) -> Path:
    """Runs, or resumes, the experiment; returns the run's folder.

    Raises UserError, TrainingError, and KeyboardInterrupt after it was stopped and has saved.
    """
    for settings in (
        config.model, config.mesh, config.rollout, config.batch, config.grpo.loss, config.evaluation,
        config.task.extraction,
    ):  # fmt: skip
        settings.check()
    stages, folder = stages_of(config), open_run(config, processes)
    if not stages:
        raise UserError("nothing to train: sft.steps and grpo.steps are both 0")
    task = load_task(config.task, config.seed)
    if config.sft.path:
        task = dataclasses.replace(task, demonstrations=read_traces(config.sft.path, config.sft.split))
    policy = make_policy(config, task, folder, processes)
    keep_base(config, policy, folder)
    task, test = tasks_that_fit(config, task, policy.tokenizer)
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep, frozenset(s.end for s in stages))
    done = processes.exchange("resume", checkpoints.latest() or 0)[0]
    place = checkpoints.place(done) if done else {"lines": 0}
    with (
        make_pool(config) as pool,
        make_sessions(config) as sessions,
        Progress(quiet=not processes.first) as progress,
        closing(make_engine(config, policy, folder, processes, progress.print)) as engine,
        stop_on_signals(progress.print) as stop,
    ):
        trainer = Trainer(
            config=config,
            folder=folder,
            task=task,
            test=test,
            policy=policy,
            engine=engine,
            environment=make_environment(config, task, policy.tokenizer, pool, config.rollout.temperature, sessions),
            evaluator=make_environment(config, test, policy.tokenizer, pool, config.evaluation.temperature, sessions),
            pool=pool,
            log=MetricsLog(folder, keep_lines=place["lines"], writes=processes.first),
            checkpoints=checkpoints,
            progress=progress,
            stop=stop,
            processes=processes,
            peak_flops=_device_peak(policy)["peak_flops"] * policy.mesh.size,
        )
        if processes.first:
            describe_run(trainer)
        if done:
            progress.print(f"resuming {folder} after step {done}")
        run_stages(trainer, stages, done)
    if stop.agreed:
        processes.close()
        raise KeyboardInterrupt
    return folder


def run_stages(t: Trainer, stages: list[Stage], done: int) -> None:
    """The evaluation at the start and every stage, from step done + 1."""
    try:
        if not done:
            run_evaluation(t, t.policy.params, 0, "start")
        t.stop.agree(t.processes)
        for stage in stages:
            if done < stage.end and not t.stop.agreed:
                t.policy.params = run_stage(t, stage, max(done, stage.start))
        t.checkpoints.close()
        t.log.close()
    except OSError as error:  # a full disk, most likely
        good = t.checkpoints.latest() or "none"
        raise TrainingError(
            f"{t.folder} cannot be written: {error}; the last good checkpoint is of step {good}"
        ) from error


def tasks_that_fit(config: Config, task: Task, tokenizer: Any) -> tuple[Task, Task]:
    """The task to train on and the one to evaluate on, without what is too long where that is to be rejected."""
    test = evaluation_task(config, task)
    if config.rollout.reject_long_prompts:
        task, test = (without_long_prompts(t, tokenizer, config.rollout) for t in (task, test))
    if config.sft.steps:
        task = without_long_demonstrations(task, tokenizer, config)
    return task, test


def describe_run(t: Trainer) -> None:
    """Writes FOLDER/task.json and FOLDER/devices.json, for the report."""
    write_beside(t.folder / "task.json", json.dumps({"name": t.task.name, "rejected": t.task.rejected}) + "\n")
    write_beside(t.folder / "devices.json", json.dumps(_device_peak(t.policy)) + "\n")


def _device_peak(policy: Policy) -> dict[str, Any]:
    """Kind and number of the devices, and the operations a second that one of them could do at best."""
    devices = list(policy.mesh.devices.flat)
    peak, source = device_peak(devices[0], policy.compute.dtype)
    return {"kind": devices[0].device_kind, "count": len(devices), "peak_flops": peak, "peak": source}


def run_stage(t: Trainer, stage: Stage, done: int) -> Any:
    """Steps done + 1 .. stage.end, or fewer if a stop is requested; the parameters after them."""
    config, policy = t.config, t.policy
    updates = config.grpo.loss.minibatches if stage.name == "grpo" else 1
    optimizer, schedule = make_optimizer(stage.optimizer, stage.end - stage.start, config.seed, updates)
    schedule = jax.jit(schedule)  # one program, not one for each of its operations
    learner = Learner(
        policy.graphdef,
        sft_loss if stage.name == "sft" else partial(policy_gradient_loss, config=config.grpo.loss),
        optimizer,
        compute=policy.compute,
        temperature=1.0 if stage.name == "sft" else config.rollout.temperature or 1.0,
        microbatch_rows=config.batch.microbatch_rows,
        offload=stage.optimizer.offload,
    )
    state = learner.init(policy.params)
    if done > stage.start:
        state = t.checkpoints.restore(done, state)
    elif done:
        state = learner.init(t.checkpoints.restore_params(done, policy.params))
    reference = _reference_params(t, stage, state, done)
    if config.model.offload_reference and reference is not None:
        trained, frozen = split_params(reference)  # the frozen parameters are the policy's own
        reference = join_params(to_host(trained, "model.offload_reference"), frozen)
    t.progress.stage(stage.name, total=stage.end - stage.start, done=done - stage.start)
    with closing(_sampling(t, stage, state, done)) as sampling:
        for step in range(done + 1, stage.end + 1):
            start = time.perf_counter()
            stage_step = step - stage.start
            state = state._replace(opt_state=at_update(state.opt_state, (stage_step - 1) * updates))
            if stage.name == "sft":
                state, metrics = sft_step(t, learner, state, stage_step, step)
            else:
                state, metrics = grpo_step(t, learner, state, sampling, step, stage_step, reference)
            metrics["learning_rate"] = float(np.asarray(schedule(stage_step - 1)))
            metrics["time/step_s"] = time.perf_counter() - start
            metrics |= utilization(metrics, t.peak_flops)
            t.log.write({"step": step, "stage": stage.name, "stage_step": stage_step, **metrics})
            _show(t, stage, stage_step, metrics)
            if step == stage.end or (config.evaluation.every and stage_step % config.evaluation.every == 0):
                sampling.wait()
                run_evaluation(t, state.params, step, stage.name)
            t.stop.agree(t.processes)
            due = config.checkpoint.every and step % config.checkpoint.every == 0
            if step == stage.end or due or t.stop.agreed:
                t.log.sync()
                sampling.save(step)
                t.checkpoints.save(step, state, {"lines": t.log.lines, "stage": stage.name, "stage_step": stage_step})
            if t.stop.agreed:
                t.progress.print(f"stopped after step {step}; the same command goes on from there")
                break
    t.checkpoints.wait()
    return state.params


def _sampling(t: Trainer, stage: Stage, state: TrainState, done: int) -> SamplingAhead[Draw]:
    """Where the stage's batches come from, with what was drawn before the run was stopped."""
    sampling = SamplingAhead(
        lambda step: draw(t, step - stage.start),
        t.engine.load_weights,
        copy=copy_trained if t.processes.count == 1 else lambda params: params,  # it gets one of its own already
        staleness=t.config.rollout.max_staleness,
        last=stage.end,
        folder=t.folder / "pending",
        keep=t.config.checkpoint.keep + 1,
        writes=t.processes.first,
    )
    if stage.name == "grpo":
        sampling.publish(t.processes.local(state.params, t.policy.mesh), done)
        sampling.restore(done)
    return sampling


def sft_step(t: Trainer, learner: Learner, state: TrainState, stage_step: int, step: int) -> tuple[TrainState, dict]:
    """One update on demonstrations."""
    if not t.task.demonstrations:
        raise UserError(f"task {t.task.name} has no demonstrations; set sft.steps to 0")
    config = t.config
    problems = shuffled(t.task.demonstrations, config.seed, stage_step - 1, config.sft.batch_size)
    examples = [demonstration_tokens(t.policy.tokenizer, p, config.rollout) for p in problems]
    batch = sft_batch(examples, row_length=row_length(config), microbatch_rows=config.batch.microbatch_rows)
    state, metrics = learner.update(state, batch)
    check_update(t, metrics, batch, step)
    metrics |= {f"batch/{name}": value for name, value in fill(batch).items()}
    metrics["flops"] = metrics["flops/update"] = update_flops(t.policy.config, *token_counts(batch))
    return state, metrics


def grpo_step(
    t: Trainer,
    learner: Learner,
    state: TrainState,
    sampling: SamplingAhead[Draw],
    step: int,
    stage_step: int,
    reference: Any,
) -> tuple[TrainState, dict]:
    """Problems, groups, batch, update, weights: one round of the loop."""
    config, loss, times = t.config, t.config.grpo.loss, {}
    clock = time.perf_counter()
    groups, drawn, sampled = sampling.take(step)
    waited = time.perf_counter() - clock
    times["time/sample_s"] = min(sampled, waited)
    times["time/score_s"] = waited - times["time/sample_s"]

    clock = time.perf_counter()
    metrics = episode_metrics(drawn) | staleness(drawn, step, config.rollout.max_staleness)
    make = partial(
        make_batch,
        loss=loss,
        max_new_tokens=config.rollout.max_new_tokens,
        row_length=row_length(config),
        microbatch_rows=config.batch.microbatch_rows,
    )
    parts = [groups] if groups else []
    if groups and loss.minibatches > 1:
        parts = minibatches(groups, min(loss.minibatches, len(groups)), config.seed, step)
    batches = [make(part) for part in parts]
    ready = [with_logprobs(learner, state, batch, loss, reference) for batch, _ in batches]
    updates = []
    for batch in ready:
        state, measured = learner.update(state, batch)
        check_update(t, measured, batch, step)
        updates.append(measured)
    if updates:
        metrics |= {name: float(np.mean([u[name] for u in updates])) for name in updates[0] if name != "tokens"}
        metrics["mismatch/max"] = max(u["mismatch/max"] for u in updates)
        metrics |= {f"batch/{name}": float(np.mean([log[name] for _, log in batches])) for name in batches[0][1]}
    old = loss.minibatches > 1 and loss.old_logprobs == "trainer"
    counts = [token_counts(batch) for batch in ready]
    metrics |= step_flops(t.policy.config, drawn, counts, old=old, reference=reference is not None)
    times["time/train_s"] = time.perf_counter() - clock

    clock = time.perf_counter()
    sampling.publish(t.processes.local(state.params, t.policy.mesh), step)
    if t.processes.first and config.log_samples_every and stage_step % config.log_samples_every == 0:
        write_samples(t.folder / "samples" / f"{step:08d}.jsonl", drawn, step, "grpo")
    times["time/sync_s"] = time.perf_counter() - clock
    workers = t.pool.workers * t.processes.count
    busy = {"sampler": sampled, "sandbox": sandbox_seconds(drawn) / workers, "trainer": times["time/train_s"]}
    return state, metrics | times | {f"time/busy_{part}_s": seconds for part, seconds in busy.items()}


def draw(t: Trainer, stage_step: int) -> Draw:
    """What the engine samples for a step, with its current weights."""
    config, size = t.config, t.config.grpo.problems_per_step
    dynamic = config.grpo.loss.dynamic_sampling
    draws = config.grpo.loss.dynamic_sampling_max_draws if dynamic else 1
    drawn: list[Group] = []
    seconds = 0.0
    for attempt in range(draws):
        problems = t.task.batch(config.seed, (stage_step - 1) * draws + attempt, size)
        seed = (config.seed, ROLLOUTS, stage_step, attempt)
        groups = t.processes.collect("draw", t.engine, t.environment, problems, config.grpo.group_size, seed)
        seconds += max(e.timings["sample"] for g in groups for e in g.episodes)
        drawn += groups
        if dynamic and sum(map(has_signal, drawn)) >= size:
            break
    return Draw(select_groups(drawn, size) if dynamic else drawn, drawn, seconds)


def with_logprobs(learner: Learner, state: TrainState, batch: Batch, loss: Any, reference: Any) -> Batch:
    """The batch with the logprobs that must be known before the first update."""
    if np.isnan(np.asarray(batch.behaviour_logprobs)).any():
        batch = fill_behaviour(batch, learner.logprobs(state.params, batch))
    if loss.minibatches > 1 and loss.old_logprobs == "trainer":
        batch = dataclasses.replace(batch, old_logprobs=learner.logprobs(state.params, batch))
    if reference is not None:
        batch = dataclasses.replace(batch, reference_logprobs=learner.logprobs(reference, batch))
    return batch


def _reference_params(t: Trainer, stage: Stage, state: TrainState, done: int) -> Any:
    """The policy at the start of the stage, where a KL term needs it."""
    if stage.name != "grpo" or not t.config.grpo.loss.kl_coefficient:
        return None
    if done == stage.start:
        return copy_trained(state.params)
    if stage.start:
        return t.checkpoints.restore_params(stage.start, state.params)
    return t.policy.params  # of the start of the run: the state was restored


def run_evaluation(t: Trainer, params: Any, step: int, after: str) -> None:
    """Logs a record of stage "evaluate" and keeps the episodes."""
    clock = time.perf_counter()
    t.engine.load_weights(t.processes.local(params, t.policy.mesh), step)
    seed, settings = (t.config.seed, EVALUATION), t.config.evaluation
    model, programs = t.policy.config, t.config.rollout.programs
    metrics, groups = evaluate(t.engine, t.evaluator, t.test, settings, seed, t.pool, model, t.processes, programs)
    metrics["time/evaluate_s"] = time.perf_counter() - clock
    t.log.write({"step": step, "stage": "evaluate", "stage_step": step, "after": after, **metrics})
    if t.processes.first:
        write_samples(t.folder / "samples" / f"evaluate_{step:08d}.jsonl", groups, step, "evaluate")
    t.progress.print(f"held-out pass@1 after {after} (step {step}): {metrics['held_out/pass@1']:.1%}")


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
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    arrays: dict[str, Any] = {name: np.asarray(a) for name, a in fields.items() if a is not None}
    if t.processes.first:
        np.savez(path, **arrays)
    raise TrainingError(
        f"step {step}: {reason}; the batch is in {path}, the last checkpoint is of step "
        f"{t.checkpoints.latest() or 'none'}"
    )


def _show(t: Trainer, stage: Stage, stage_step: int, metrics: dict[str, float]) -> None:
    t.progress.update(
        stage_step,
        reward=metrics.get("reward/mean"),
        pass_rate=metrics.get("solved"),
        loss=metrics.get("loss"),
        tokens_per_s=metrics["tokens"] / metrics["time/step_s"],
    )


def _how_to_go_on(folder: Path) -> str:
    """After the loss of a process."""
    step = saved_steps(folder / "checkpoints")[-1:]
    return f"; the same command resumes from step {step[0]}" if step else "; the same command starts again"


def main(arguments: list[str]) -> int:
    """The command: 0 when the run is complete, 1 with one line on stderr when it cannot be, 130 when stopped."""
    processes = Processes()
    try:
        config = read_config(arguments)
        folder = Path(config.runs_dir) / config.name
        processes = start(config.processes, folder, after=lambda: _how_to_go_on(folder))
        prepare_process()
        train(config, processes)
        if processes.first:
            print(f"report: {write_report(folder)}")
        processes.close()
    except KeyboardInterrupt:
        processes.fail("interrupted", 130)
        return 130
    except Exception as error:
        known = (OSError, UserError, TrainingError, CheckpointError, SidecarError, ChannelError, ValueError)
        surprise = os.environ.get("JAXRL_TRACEBACK") or not isinstance(error, known)
        processes.fail(traceback.format_exc() if surprise else f"error: {error}")
        if surprise:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
