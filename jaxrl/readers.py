"""What a task found in its data: problems, rejected rows and why, and whether the reference solutions pass.

    python -m jaxrl.readers --config configs/grpo.py --config.task=contest --config.task.source=taco \\
        --config.task.path=taco.parquet --references 200

--references N judges the solutions of the first N problems that have one as a model's answers are judged; those that do
not pass are listed. Exit status 1 if any does not: a model cannot be asked for more than the data's own authors give.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from statistics import median

from jaxrl.config.command_line import at_least, read_config
from jaxrl.errors import UserError, command
from jaxrl.runs.environments import make_pool
from jaxrl.runs.log import Progress
from jaxrl.tasks import Task, load_task
from rollouts.episode import Problem, Reward
from rollouts.services import Services
from sandbox.pool import Pool

LISTED = 20  # references that fail


def problems_of(task: Task) -> list[Problem]:
    """The training problems and the held-out ones, each once."""
    return list({p.id: p for problems in (task.train, task.held_out) for p in problems}.values())


def report(task: Task) -> list[str]:
    """Lines: how many problems, what was rejected, how many tests and characters, how many in each slice."""
    problems = problems_of(task)
    rejected = Counter({reason: count for reason, count in task.rejected.items() if count})
    lines = [
        f"{task.name}: {len(task.train)} training and {len(task.held_out)} held-out problems; "
        f"{len(task.demonstrations)} demonstrations"
    ]
    lines.append(f"rejected: {rejected.total()}")
    lines += [f"  {reason}: {count}" for reason, count in rejected.most_common()]
    for name, values in {
        "tests": [len(p.tests) for p in problems],
        "public tests": [len(p.public_tests) for p in problems],
        "characters of a statement": [len(_statement(p)) for p in problems],
    }.items():
        lines.append(f"{name}: median {median(values):g}, at most {max(values)}")
    slices = Counter(f"{name} {value}" for p in problems for name, value in task.slices(p).items())
    return [*lines, *(f"  {name}: {count}" for name, count in sorted(slices.items()))]


def _statement(problem: Problem) -> str:
    return problem.prompt or "".join(message["content"] for message in problem.messages or ())


def judge_references(task: Task, problems: Sequence[Problem], pool: Pool, progress: Progress) -> list[Reward]:
    """The rewards of the problems' demonstrations."""
    done = 0

    async def judged(problem: Problem) -> Reward:
        nonlocal done
        submission = task.submission(problem, str(problem.demonstration))
        reward = await task.judge(problem, submission, Services(pool))
        done += 1
        progress.update(done)
        return reward

    async def all_judged() -> list[Reward]:
        return list(await asyncio.gather(*map(judged, problems)))

    progress.stage("references", len(problems))
    return asyncio.run(all_judged())


def failures(problems: Sequence[Problem], rewards: Sequence[Reward]) -> list[str]:
    """A line with all counts, and one for each of the first LISTED that does not pass."""
    failed = [(p, r) for p, r in zip(problems, rewards) if not r.solved]
    counts = Counter(r.verdict.status if r.verdict else "wrong" for _, r in failed)
    why = ", ".join(f"{status}: {count}" for status, count in counts.most_common())
    lines = [f"references: {len(problems) - len(failed)} of {len(problems)} pass" + (f" ({why})" if why else "")]
    for problem, reward in failed[:LISTED]:
        first = reward.verdict.first_failure if reward.verdict else None
        lines.append(" ".join(f"  {problem.id}: {first.status}: {first.message}".split()) if first else problem.id)
    return lines + ([f"  and {len(failed) - LISTED} more"] if len(failed) > LISTED else [])


@command()
def main(arguments: list[str]) -> int:
    """The command: prints the report; 1 where references fail, or with one line on stderr where no problem is left."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrl.readers", description=(__doc__ or "").split("\n")[0], allow_abbrev=False, add_help=False
    )
    parser.add_argument("--references", type=at_least(0), default=0, help="how many solutions to judge")
    options, others = parser.parse_known_args(arguments)
    config = read_config(others)
    with Progress() as progress:
        progress.print(f"reading {getattr(config.task, 'path', '') or config.task.name}")
        task = load_task(config.task, config.seed)
        print("\n".join(report(task)))
        shown = [p for p in problems_of(task) if isinstance(p.demonstration, str)][: options.references]
        if not options.references:
            return 0
        if not shown:
            raise UserError(f"--references {options.references}: no problem of task {task.name} has a solution")
        with make_pool(config) as pool:
            rewards = judge_references(task, shown, pool, progress)
    print("\n".join(failures(shown, rewards)))
    return 0 if all(r.solved for r in rewards) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
