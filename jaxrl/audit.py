"""How good a task's tests are: wrong programs that they let pass, references that fail, duplicates, contradictions.

    python -m jaxrl.audit --task humaneval --path HumanEval.jsonl.gz --stronger HumanEvalPlus.jsonl.gz
    python -m jaxrl.audit --task acecode --path runs/NAME/questions.jsonl --out audit.json
    python -m jaxrl.audit --task mbpp --path mbpp.jsonl --samples runs/NAME/samples/evaluation.jsonl

Wrong programs are mutants of each problem's reference, and the programs of --samples. Those that pass are compared with
the reference: by --stronger tests, and on generated inputs (jaxrl/evaluation/audit.py says how).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxrl.config.command_line import at_least
from jaxrl.config.plugins import PLUGINS, make_settings
from jaxrl.config.task import DataSettings
from jaxrl.errors import UserError, command
from jaxrl.evaluation.audit import LIMITS, audit_problems, contradictions, duplicates, summary
from jaxrl.files import write_beside
from jaxrl.runs.log import Progress
from jaxrl.tasks import Task, load_task
from jaxrl.tasks.rows import DataError, read_rows
from jaxrl.tasks.sampling import evenly
from rollouts.episode import Problem
from sandbox.pool import Pool

EVERY = 1_000_000  # problems to read of a file


def read_task(name: str, path: str, split: str, part: str, count: int) -> tuple[Task, list[Problem]]:
    """The task, and the problems of a part of it, each once: `count`, evenly spaced, or all for 0.

    Raises UserError for a path that the task does not take, and for a task without problems.
    """
    settings = make_settings(PLUGINS["task"], name)
    if isinstance(settings, DataSettings):
        settings.path, settings.split = path, split
        settings.train_problems = settings.held_out_problems = EVERY
    elif path:
        raise UserError(f"--path {path}: task {name} is not read from data")
    elif count:
        settings.held_out_problems = count
    task = load_task(settings, 0)
    parts = {"train": [task.train], "held_out": [task.held_out], "all": [task.held_out, task.train]}[part]
    sizes = [evenly(len(problems), count) for problems in parts]
    problems = {p.id: p for own, places in zip(parts, sizes) for p in (own[i] for i in places)}
    if not problems:
        raise UserError(f"--part {part}: task {name} has no such problems")
    found = list(problems.values())
    return task, [found[i] for i in evenly(len(found), count)]


def read_programs(path: str, task: Task, problems: Sequence[Problem]) -> dict[str, list[str]]:
    """Programs by problem of a samples file: {"problem", "text"}, or {"task_id", "solution" or "completion"}."""
    by_id, programs = {p.id: p for p in problems}, defaultdict(list)
    for row in read_rows(path):
        problem = by_id.get(row.name("problem", "task_id"))
        if problem is not None:
            program = task.submission(problem, row.text("judged", "text", "solution", "completion")).program
            programs[problem.id] += [program] if program else []
    if not programs:
        raise DataError(f"{path}: no sample is of a problem of the task")
    return programs


def table(counts: dict[str, float]) -> Table:
    shown = Table("", "")
    for name, value in counts.items():
        shown.add_row(name, f"{value:g}")
    return shown


@command()
def main(arguments: list[str]) -> int:
    """The command: a table, and a JSON file of all that was found."""
    parser = argparse.ArgumentParser(prog="python -m jaxrl.audit", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--task", required=True, help="name of a task whose problems have a right program")
    parser.add_argument("--path", default="", help="its data")
    parser.add_argument("--split", default="train", help="of a hub data set")
    parser.add_argument("--part", choices=("all", "train", "held_out"), default="all", help="problems (all)")
    parser.add_argument("--problems", type=at_least(0), default=0, help="evenly spaced; 0: all")
    parser.add_argument("--mutants", type=at_least(0), default=20, help="of each reference, at most (20)")
    parser.add_argument("--stronger", default="", help="data of the same task with stronger tests")
    parser.add_argument("--samples", default="", help=".jsonl of a model's programs")
    parser.add_argument("--out", default="audit.json", help="file to write (audit.json)")
    parser.add_argument("--workers", type=at_least(0), default=0, help="programs at a time; 0: one per core")
    options = parser.parse_args(arguments)
    task, problems = read_task(options.task, options.path, options.split, options.part, options.problems)
    stronger = read_task(options.task, options.stronger, options.split, "all", 0)[1] if options.stronger else []
    samples = read_programs(options.samples, task, problems) if options.samples else {}
    with Pool(options.workers, LIMITS) as pool, Progress() as progress:
        stages: list[str] = []

        def show(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages.append(stage)
                progress.stage(stage, total)
            progress.update(done)

        audited = audit_problems(
            problems, pool, count=options.mutants, stronger=stronger, samples=samples, show=show
        )  # fmt: skip
    twice, disagree = duplicates(problems), {p.id: found for p in problems if (found := contradictions(p))}
    counts: dict[str, float] = {"problems": len(problems)} | summary(audited)
    counts |= {f"groups of problems with the {kind}": len(groups) for kind, groups in twice.items()}
    counts["problems whose tests disagree"] = len(disagree)
    found = {"task": options.task, "path": options.path, "counts": counts, "duplicates": twice}
    found |= {"contradictions": disagree, "problems": [a.to_json() for a in audited]}
    write_beside(Path(options.out), json.dumps(found, indent=1) + "\n")
    Console().print(table(counts))
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
