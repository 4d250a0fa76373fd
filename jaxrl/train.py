"""Training, from one command: `python -m jaxrl.train --config configs/grpo.py`.

A run goes through its stages (SFT, then RL) with an evaluation before, between and after. The place in the run is one
number, the step counted over all stages; everything random is a function of (seed, step), so a run that is resumed
from a checkpoint goes on exactly as it would have.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl.config import Config
from jaxrl.config.command_line import read_config
from jaxrl.config.plugins import settle
from jaxrl.config.rules import check_settings
from jaxrl.distributed.processes import Processes, start, stop_on_signals
from jaxrl.errors import TrainingError, UserError, command
from jaxrl.files import write_beside
from jaxrl.reports.run_page import write_report
from jaxrl.runs.engines import make_engine
from jaxrl.runs.environments import has_turns, make_environment, make_services
from jaxrl.runs.folder import open_run
from jaxrl.runs.host import prepare_process
from jaxrl.runs.log import MetricsLog, Progress
from jaxrl.runs.policy import describe_devices, keep_base, make_policy
from jaxrl.runs.prompts import check_problems, tasks_that_fit
from jaxrl.runs.reward_model import reward_model_of
from jaxrl.tasks import Task, load_task
from jaxrl.tasks.conversations import read_conversations
from jaxrl.tasks.curriculum import curriculum
from jaxrl.training.beside import Beside, check_beside
from jaxrl.training.checkpoint import Checkpoints, saved_steps
from jaxrl.training.learner import Learner, TrainState
from jaxrl.training.optimizer import at_update, stage_optimizer
from jaxrl.training.preference import reward_stage
from jaxrl.training.reinforce import grpo_stage
from jaxrl.training.stages import Progressing, Stage
from jaxrl.training.start_stream import check_stream
from jaxrl.training.step_metrics import utilization
from jaxrl.training.supervised import sft_stage
from jaxrl.training.trainer import Trainer, run_evaluation
from jaxrl.training.watch import Watch
from rollouts.services import Services
from rollouts.template_check import differences


def stages_of(config: Config) -> list[Stage]:
    """The stages that have steps, in order."""
    stages: list[Stage] = []
    for make_stage in (sft_stage, reward_stage, grpo_stage):
        stage = make_stage(config, stages[-1].end if stages else 0)
        stages += [stage] if stage.steps else []
    return stages


def train(config: Config, processes: Processes = Processes()) -> Path:
    """Runs, or resumes, the experiment; returns the run's folder.

    Raises UserError, TrainingError, and KeyboardInterrupt after it was stopped and has saved.
    """
    settle(config)
    check_settings(config)
    config.rollout.check_training()
    check_stream(config, processes.count)
    check_beside(config, processes.count)
    if not stages_of(config):
        raise UserError("nothing to train: sft.steps, reward.steps and grpo.steps are all 0")
    with open_run(config, processes) as folder:
        return _train(config, folder, processes)


def _train(config: Config, folder: Path, processes: Processes) -> Path:
    """The run in its folder, which is this run's alone."""
    stages = stages_of(config)
    task = load_task(config.task, config.seed)
    if config.grpo.steps and stages[-1].objective.needs_answers and not task.answers:
        able = "set task.answers = 'behaviour', or " if hasattr(config.task, "answers") else ""
        raise UserError(
            f"task.name = {task.name!r} gives no answers to vote on, which grpo.loss.name = {config.grpo.loss.name!r} "
            f"needs for maj@k; {able}take advantage = 'pass_at_k'"
        )
    if config.sft.path:
        task = dataclasses.replace(task, demonstrations=read_conversations(config.sft.path, config.sft.split))
    policy = make_policy(config, task, folder, processes)
    keep_base(config, policy, folder)
    test = task
    if stages[0].samples:
        task, test = tasks_that_fit(config, task, policy.tokenizer)
        check_problems(config, task, test)
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep, frozenset(s.end for s in stages))
    done = processes.exchange("resume", checkpoints.latest() or 0)[0]
    place: dict[str, Any] = checkpoints.place(done) if done else {"lines": 0}
    params = None if done else policy.initial()
    with (
        make_services(config, task, test) if stages[0].samples else nullcontext(Services()) as services,
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
            environment=make_environment(config, task, policy.tokenizer, services, config.rollout.temperature),
            evaluator=make_environment(config, test, policy.tokenizer, services, config.evaluation.temperature),
            services=services,
            selection=curriculum(config.grpo.curriculum, task, config.seed, config.grpo.loss.draws),
            log=MetricsLog(folder, keep_lines=place["lines"], writes=processes.first, wandb=config.log.wandb),
            checkpoints=checkpoints,
            progress=progress,
            stop=stop,
            processes=processes,
            devices=describe_devices(folder, policy, processes),
            reward=reward_model_of(config, policy, folder, processes),
        )
        if processes.first:
            write_beside(folder / "task.json", json.dumps({"name": task.name, "rejected": task.rejected}) + "\n")
            for note in _notes(config, task, policy.tokenizer):
                progress.print(f"note: {note}")
        if done:
            if "selection" in place:
                trainer.selection.restore(place["selection"])
            progress.print(f"resuming {folder} after step {done}")
        run_stages(trainer, stages, done, params)
    if stop.agreed:
        processes.close()
        raise KeyboardInterrupt
    return folder


def _notes(config: Config, task: Task, tokenizer: Any) -> list[str]:
    """What a user should know before it starts: problems left out, and what the chat template does to turns."""
    counts = ", ".join(f"{reason}: {count}" for reason, count in task.rejected.items())
    left_out = [f"problems left out: {counts}"] if counts else []
    return [*left_out, *(differences(tokenizer) if has_turns(config, task) else ())]


def run_stages(t: Trainer, stages: list[Stage], done: int, params: Any) -> None:
    """The evaluation at the start and every stage, from step done + 1.

    `params` are those after step `done`, or None where they are in its checkpoint. A stage donates them.
    """
    try:
        if not done and stages[0].samples and t.config.evaluation.at_start:
            if reason := run_evaluation(t, params, 0, "start"):
                raise TrainingError(reason)
            t.engine.unload()
        t.stop.agree(t.processes)
        for stage in stages:
            if done < stage.end and not t.stop.agreed:
                params = run_stage(t, stage, max(done, stage.start), params)
        t.checkpoints.close()
        t.log.close()
    except OSError as error:  # a full disk, most likely
        good = t.checkpoints.latest() or "none"
        raise TrainingError(
            f"{t.folder} cannot be written: {error}; the last good checkpoint is of step {good}"
        ) from error


def run_stage(t: Trainer, stage: Stage, done: int, params: Any) -> Any:
    """Steps done + 1 .. stage.end, or fewer if a stop is requested; the parameters after them.

    `params` are those after step `done`, which the first update donates; None: its checkpoint has them.
    """
    config, policy = t.config, t.policy
    optimizer, schedule = stage_optimizer(stage.optimizer, stage.objective, stage.steps, config.seed, stage.updates)
    schedule = jax.jit(schedule)  # one program, not one for each of its operations
    learner = Learner(
        policy.graphdef,
        stage.objective,
        optimizer,
        compute=policy.compute,
        temperature=stage.temperature,
        microbatch_rows=config.batch.microbatch_rows,
        offload=stage.optimizer.offload,
        turns=policy.turns,
    )
    state = _first_state(t, learner, stage, done, params)
    t.progress.stage(stage.name, total=stage.steps, done=done - stage.start)
    watch, reason, saved = Watch(config.grpo, stage.end - done, whole=done <= stage.start), "", done
    beside = Beside(t)
    with stage.begin(t, stage, learner, state, done) as stage_run:
        for step in range(done + 1, stage.end + 1):
            start = time.perf_counter()
            stage_step = step - stage.start
            state = state._replace(opt_state=at_update(state.opt_state, (stage_step - 1) * stage.updates))
            state, metrics = stage_run.step(state, step, stage_step)
            metrics["learning_rate"] = float(np.asarray(schedule(stage_step - 1)))
            metrics["time/step_s"] = time.perf_counter() - start
            metrics |= utilization(metrics, t.devices["count"] * t.devices["peak_flops"])
            t.log.write({"step": step, "stage": stage.name, "stage_step": stage_step, **metrics})
            reason = watch.look(metrics)
            _show(t, stage, stage_step, metrics)
            if step == stage.end or (config.evaluation.every and stage_step % config.evaluation.every == 0):
                reason = _evaluate(t, stage, stage_run, state, step, beside) or reason
            t.stop.agree(t.processes)
            due = step == stage.end or (config.checkpoint.every and step % config.checkpoint.every == 0)
            if due or ((t.stop.agreed or reason) and stage_run.can_save(step)):
                reason = beside.finish() or reason
                saved = step
                t.log.sync()
                place = {"stage": stage.name, "stage_step": stage_step, **stage_run.save(step)}
                t.checkpoints.save(step, state, {"lines": t.log.lines, **place})
            if t.stop.agreed:
                t.progress.print(f"stopped after step {step}; the same command continues after step {saved}")
            if reason or t.stop.agreed:
                break
    t.checkpoints.wait()
    if reason:
        raise TrainingError(f"step {step}: {reason}. The same command continues after step {saved}")
    return state.params


def _evaluate(t: Trainer, stage: Stage, stage_run: Progressing, state: TrainState, step: int, beside: Beside) -> str:
    """The evaluation after a step, or its beginning; why the run should stop, "" if it should not."""
    reason = beside.finish()
    if not stage.samples:
        reason = stage_run.evaluate(state, step, stage.name) or reason
    elif t.config.evaluation.beside and step < stage.end:
        beside.start(state.params, step, stage.name)
        return reason
    else:
        stage_run.wait()
        reason = run_evaluation(t, state.params, step, stage.name) or reason
    stage_run.evaluated(state, step)
    return reason


def _first_state(t: Trainer, learner: Learner, stage: Stage, done: int, params: Any) -> TrainState:
    """The state after step `done`. What a checkpoint has is read straight into its place: nothing is made before."""
    if done > stage.start:
        learner.check(t.policy.abstract())
        return t.checkpoints.restore(done, learner.abstract(t.policy.abstract()))
    params = t.checkpoints.restore_params(done, t.policy.abstract()) if params is None else params
    return learner.init(params, seed=t.config.seed)


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


@command()
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
    except BaseException as error:
        processes.failed(error)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
