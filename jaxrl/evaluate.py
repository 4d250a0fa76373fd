"""Evaluation of a policy on held-out problems.

    python -m jaxrl.evaluate --config FILE --config.model.path=MODEL_OR_RUN     with the JAX engine or vLLM
    python -m jaxrl.evaluate --config FILE --config.rollout.engine=openai \\
        --config.rollout.sidecar.addresses="('http://host:port',)" --config.rollout.sidecar.model=NAME
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

from jaxrl.config import Config
from jaxrl.config.command_line import read_config
from jaxrl.config.plugins import settle
from jaxrl.config.rules import check_settings
from jaxrl.distributed.processes import Processes, start
from jaxrl.errors import TrainingError, command
from jaxrl.evaluation.harnesses import write_harness_files
from jaxrl.evaluation.run import EVALUATION, evaluate
from jaxrl.files import write_beside
from jaxrl.runs.engines import make_engine, make_openai_engine
from jaxrl.runs.environments import make_environment, make_services
from jaxrl.runs.folder import open_run
from jaxrl.runs.host import prepare_process
from jaxrl.runs.journal import Journal
from jaxrl.runs.log import Progress, write_samples
from jaxrl.runs.policy import make_policy, make_tokenizer
from jaxrl.runs.prompts import check_problems, evaluation_task, without_long_prompts
from jaxrl.runs.reward_model import reward_model_of
from jaxrl.tasks import load_task
from jaxrl.training.watch import why_unjudged
from models.stored import fingerprint


def evaluate_config(config: Config, processes: Processes = Processes()) -> dict[str, float]:
    """Scores config.model on the held-out problems of config.task, into runs_dir/name/evaluation.json and samples/."""
    settle(config)
    check_settings(config)
    with open_run(config, processes) as folder:
        return _evaluate_in(folder, config, processes)


def _evaluate_in(folder: Path, config: Config, processes: Processes) -> dict[str, float]:
    task = load_task(config.task, config.seed)
    test = evaluation_task(config, task)
    if config.rollout.engine == "openai":
        policy = None
        with processes.after_first("tokenizer"):
            tokenizer = make_tokenizer(config.model, task, folder)
    else:
        policy = make_policy(config, task, folder, processes, sampling=True)
        tokenizer = policy.tokenizer
    if config.rollout.reject_long_prompts:
        test = without_long_prompts(test, tokenizer, config.rollout)
    check_problems(config, None, test)
    params = policy.initial() if policy is not None else None
    weights = fingerprint(params) if policy is not None else ""
    make = make_openai_engine(config, tokenizer) if policy is None else make_engine(config, policy, folder, processes)
    judge = reward_model_of(config, policy, folder, processes)
    reward = None if judge is None else partial(judge.score_groups, rollout=config.rollout)
    with make_services(config, test) as services, closing(make) as engine:
        if policy is not None:
            engine.load_weights(processes.local(params, policy.mesh), 0)
            del params  # the engine has its own
        environment = make_environment(config, test, tokenizer, services, config.evaluation.temperature)
        seed = (config.seed, EVALUATION)
        model, programs = policy.config if policy else None, config.rollout.programs
        total = len(test.held_out) * config.evaluation.samples // processes.count
        with (
            Progress(quiet=not processes.first) as progress,
            Journal(folder, "evaluation", weights, total, progress, processes.index) as journal,
        ):
            try:
                metrics, groups = evaluate(
                    engine, environment, test, config.evaluation, seed, services.pool, model, processes, programs,
                    journal, reward, folder / "scores.jsonl",
                )  # fmt: skip
            except KeyboardInterrupt:
                progress.print(f"{journal.so_far()}; the same command carries on from here")
                raise
    if processes.first:
        write_samples(folder / "samples" / "evaluation.jsonl", groups, 0, "evaluate")
    if reason := why_unjudged(groups):
        raise TrainingError(f"no scores: {reason}; the samples are in {folder / 'samples'}")
    if processes.first:
        write_harness_files(folder / "samples", test, groups)
        write_beside(folder / "evaluation.json", json.dumps({"headline": test.headline} | metrics, indent=2) + "\n")
        journal.remove()
    return metrics


@command()
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
    except BaseException as error:
        processes.failed(error)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
