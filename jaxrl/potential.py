"""How much there is to learn from each training problem: 4 p (1 - p) of its pass rate under several agents.

    python -m jaxrl.potential --config FILE --agents text,code,free --config.model.path=MODEL

FILE:text, FILE:code and FILE:free are configs of the same task and model, which differ in environment and instruction.
Each plays config.traces.samples episodes of the first config.traces.problems training problems; the answers of all
count as one pass rate (R1-Code-Interpreter, arXiv 2505.21668). Writes runs_dir/NAME/potential.jsonl, which
grpo.curriculum.path reads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from jaxrl.config import Config
from jaxrl.config.command_line import read_config
from jaxrl.config.plugins import settle
from jaxrl.config.rules import check_settings
from jaxrl.errors import TrainingError, UserError, command
from jaxrl.files import write_beside
from jaxrl.runs.engines import make_engine
from jaxrl.runs.environments import make_environment, make_services
from jaxrl.runs.folder import open_run
from jaxrl.runs.host import prepare_process
from jaxrl.runs.journal import Journal
from jaxrl.runs.log import Progress, write_samples
from jaxrl.runs.policy import make_policy
from jaxrl.runs.prompts import prompt_tokens, without_long_prompts
from jaxrl.tasks import load_task
from jaxrl.tasks.curriculum import potential
from jaxrl.training.watch import why_unjudged
from models.stored import fingerprint
from rollouts.collect import collect
from rollouts.episode import Group

POTENTIAL = 5  # stream of random numbers, beside those of training, evaluation and traces
OWN = {"name", "label", "rollout.environment", "rollout.instruction"}  # what agents may differ in


def measure(agents: Mapping[str, Config]) -> tuple[Path, dict[str, list[Group]]]:
    """The file of potentials, and every agent's groups, the same problems in the same order.

    Raises UserError where the configs differ in more than environment and instruction, or there is nothing to try.
    """
    for config in agents.values():
        settle(config)
        check_settings(config)
    first = next(iter(agents.values()))
    check_agents(agents)
    with open_run(first) as folder:
        groups = _play(agents, first, folder)
        path = folder / "potential.jsonl"
        write_beside(path, "".join(json.dumps(row) + "\n" for row in rows(groups)))
        for journal in folder.glob("potential-*.journal"):
            journal.unlink()
        return path, groups


def check_agents(agents: Mapping[str, Config]) -> None:
    """Raises UserError naming a setting in which the agents differ and must not."""
    (name, first), *others = agents.items()
    for other, config in others:
        different = {key for key, _ in flat(first).items() ^ flat(config).items()}
        wrong = sorted(key for key in different if not any(key == own or key.startswith(f"{own}.") for own in OWN))
        if wrong:
            raise UserError(f"agents {name} and {other} differ in {wrong[0]}; only {', '.join(sorted(OWN))} may differ")


def flat(config: Config) -> dict[str, str]:
    """Every setting by its path, as text."""

    def walk(value: object, path: str) -> dict[str, str]:
        if dataclasses.is_dataclass(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return {k: v for n, field in fields.items() for k, v in walk(field, f"{path}.{n}".lstrip(".")).items()}
        return {path: repr(value)}

    return walk(config, "")


def _play(agents: Mapping[str, Config], first: Config, folder: Path) -> dict[str, list[Group]]:
    task = load_task(first.task, first.seed)
    policy = make_policy(first, task, folder, sampling=True)
    if first.rollout.reject_long_prompts:
        for config in agents.values():
            task = without_long_prompts(task, policy.tokenizer, config.rollout)
    size = min(first.traces.problems, len(task.train))
    if not size:
        raise UserError(f"task {task.name} has no training problems to try")
    problems, groups = [task.train[i] for i in range(size)], {}
    for config in agents.values():  # before the first agent's hours, not after
        for problem in problems:
            prompt_tokens(policy.tokenizer, problem, config.rollout)
    samples, temperature = first.traces.samples, first.rollout.temperature
    with closing(make_engine(first, policy, folder)) as engine, Progress() as progress:
        params = policy.initial()
        weights = fingerprint(params)
        engine.load_weights(params, 0)
        del params  # the engine has its own
        for name, config in agents.items():
            with ExitStack() as open_now:
                services = open_now.enter_context(make_services(config, task))
                environment = make_environment(config, task, policy.tokenizer, services, temperature)
                journal = Journal(folder, f"potential-{name}", weights, size * samples, progress)
                open_now.enter_context(journal)
                groups[name] = collect(engine, environment, problems, samples, (first.seed, POTENTIAL), journal)
            if reason := why_unjudged(groups[name]):
                raise TrainingError(f"agent {name} has no scores: {reason}")
            write_samples(folder / "samples" / f"{name}.jsonl", groups[name], 0, "potential")
    return groups


def rows(groups: Mapping[str, Sequence[Group]]) -> list[dict[str, object]]:
    """A line of the file for each problem: how many of all answers are right, and of each agent's, [solved, n]."""
    lines = []
    for index, same in enumerate(zip(*groups.values(), strict=True)):
        counts = {}
        for name, group in zip(groups, same):
            judged = [e.reward.solved for e in group.episodes if e.status != "sandbox_error"]
            counts[name] = [sum(judged), len(judged)]
        solved, n = (sum(column) for column in zip(*counts.values()))
        if n:
            line = {"index": index, "id": same[0].problem.id, "n": n, "solved": solved}
            lines.append(line | {"potential": potential(solved / n), "agents": counts})
    return lines


def summary(groups: Mapping[str, Sequence[Group]]) -> list[str]:
    """A line for each agent, and one for the potentials."""
    lines = []
    for name, of_agent in groups.items():
        episodes = [e for g in of_agent for e in g.episodes]
        calls = np.mean([len(e.calls) for e in episodes])
        solved = np.mean([e.reward.solved for e in episodes])
        tokens = np.mean([e.sampled_length for e in episodes])
        lines.append(f"{name}  {solved:.1%} of {len(episodes)} solved, {tokens:.0f} tokens and {calls:.2f} calls each")
    values = np.array([row["potential"] for row in rows(groups)], float)
    stages = ", ".join(f"{np.mean(values >= least):.0%} at least {least}" for least in (0.64, 0.48, 0.32))
    return [*lines, f"potential of {len(values)} problems: mean {values.mean():.2f}; {stages}"]


@command()
def main(arguments: list[str]) -> int:
    """The command: what each agent solves, and the file; 1 with one line on stderr where there is nothing to try."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrl.potential", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="a config file that takes the agent's name")
    parser.add_argument("--agents", required=True, help="names, with commas between them")
    options, others = parser.parse_known_args(arguments)
    names = [name.strip() for name in options.agents.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise UserError(f"--agents {options.agents}: must be different names with commas between them")
    agents = {name: read_config(["--config", f"{options.config}:{name}", *others]) for name in names}
    prepare_process()
    path, groups = measure(agents)
    print("\n".join([*summary(groups), str(path)]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
