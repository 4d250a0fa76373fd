"""What each extraction switch is worth: the same samples, scored under each setting of task.extraction.

    python -m jaxrl.ablate runs/score/samples/evaluation.jsonl --task humaneval --path HumanEval.jsonl.gz
    python -m jaxrl.ablate SAMPLES.jsonl --task mbpp --path MbppPlus.jsonl.gz --output ablation.md

SAMPLES holds what the model wrote, before any extraction: {"problem", "text"} as jaxrl.evaluate keeps it (or its
"judged", the part that was), or {"task_id", "completion"}. The table (Markdown) has pass@1 for the raw text, each
switch alone, all of them, and all but one.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl.config.command_line import at_least
from jaxrl.errors import command
from jaxrl.evaluation.estimators import Interval, bootstrap_interval
from jaxrl.evaluation.harnesses import TASKS, harness_id
from jaxrl.files import write_beside
from jaxrl.tasks import Task, humaneval, mbpp
from jaxrl.tasks.extract import BASE_STOPS, ExtractionConfig
from jaxrl.tasks.rows import DataError, read_rows
from rollouts.episode import Problem
from sandbox.pool import Pool
from sandbox.verdict import Program

RAW = ExtractionConfig(block="none", import_helper=False, prepend_header=False)
SWITCHES: dict[str, dict[str, Any]] = {
    "fenced block": {"block": "last"},
    "import helper": {"import_helper": True},
    "header": {"prepend_header": True},
    "stop strings": {"stop_strings": BASE_STOPS},
}


class Line(NamedTuple):
    """One setting's pass@1 with its 95% interval, and how many samples it solves."""

    name: str
    value: float
    interval: Interval
    solved: int


def settings(task: str) -> dict[str, ExtractionConfig]:
    """The rows of the table. MBPP gives no function header."""
    switches = {name: change for name, change in SWITCHES.items() if task != "mbpp" or name != "header"}

    def with_all(*without: str) -> ExtractionConfig:
        changes = [change for name, change in switches.items() if name not in without]
        return dataclasses.replace(RAW, **{field: value for change in changes for field, value in change.items()})

    alone = {f"+ {name}": dataclasses.replace(RAW, **change) for name, change in switches.items()}
    return {"raw": RAW, **alone, "all": with_all(), **{f"all but {name}": with_all(name) for name in switches}}


def read_texts(source: str, problems: dict[str, Problem]) -> tuple[list[tuple[Problem, str]], int]:
    """The texts with their problems, and how many texts are of problems that are not among these."""
    rows, texts = read_rows(source), []
    for row in rows:
        problem = problems.get(harness_id(row.name("problem", "task_id")))
        if problem is not None:
            judged = row.optional_text("judged")  # where only a part of the text was
            texts.append((problem, judged if "judged" in row.fields else row.text("text", "completion")))
    if not texts:
        raise DataError(f"{source}: none of its {len(rows)} samples is of a problem of the data")
    return texts, len(rows) - len(texts)


def ablate(texts: Sequence[tuple[Problem, str]], task: str, pool: Pool, bootstrap: int = 1000) -> list[Line]:
    """pass@1 of the texts under each of `settings`. A program that several settings find is judged once."""
    make_program = {"humaneval": humaneval.extract, "mbpp": mbpp.extract}[task]
    rows = settings(task)
    codes = {name: [make_program(p, text, switches) for p, text in texts] for name, switches in rows.items()}
    problems = [problem for problem, _ in texts]
    different = {(p.id, code): p for column in codes.values() for p, code in zip(problems, column)}
    passed = asyncio.run(_judge(different, pool))
    lines = []
    for name, column in codes.items():
        by_problem: dict[str, list[bool]] = defaultdict(list)
        for problem, code in zip(problems, column):
            by_problem[problem.id].append(passed[problem.id, code])
        values = [sum(v) / len(v) for v in by_problem.values()]
        interval = bootstrap_interval(values, 0.95, bootstrap)
        lines.append(Line(name, sum(values) / len(values), interval, sum(map(sum, by_problem.values()))))
    return lines


async def _judge(programs: dict[tuple[str, str], Problem], pool: Pool) -> dict[tuple[str, str], bool]:
    verdicts = await asyncio.gather(
        *(pool.run_async(Program(code, p.tests, p.meta["limits"])) for (_, code), p in programs.items())
    )
    return {key: verdict.passed for key, verdict in zip(programs, verdicts)}


def table(lines: Sequence[Line]) -> str:
    """Markdown."""
    rows = [f"| {l.name} | {l.value:.1%} | {l.interval.low:.1%} to {l.interval.high:.1%} | {l.solved} |" for l in lines]
    return "\n".join(
        [f"| extraction | {Task.headline} | 95% interval | samples solved |", "| --- | ---: | --- | ---: |", *rows]
    )


def read_problems(task: str, path: str, split: str) -> dict[str, Problem]:
    """All problems of the data, by the id that harnesses use."""
    make = {"humaneval": lambda row: humaneval.make_problem(row, "completion"), "mbpp": mbpp.make_problem}[task]
    problems = [make(row) for row in read_rows(path, split)]
    return {harness_id(p.id): p for p in problems}


@command()
def main(arguments: list[str]) -> int:
    """The command: prints the table; 1 with one line on stderr for data that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m jaxrl.ablate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("samples", help=".jsonl of {problem, text} or {task_id, completion}: texts before extraction")
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--path", required=True, help="problem data, as task.path")
    parser.add_argument("--split", default="test", help="of a hub data set")
    parser.add_argument("--output", default="", help="also write the table to this file")
    parser.add_argument("--workers", type=at_least(0), default=0, help="programs at a time; 0: one per core")
    options = parser.parse_args(arguments)
    texts, others = read_texts(options.samples, read_problems(options.task, options.path, options.split))
    with Pool(options.workers) as pool:
        text = table(ablate(texts, options.task, pool))
    print(f"{text}\n\n{len(texts)} samples; of other problems, not scored: {others}")
    if options.output:
        write_beside(Path(options.output), text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
