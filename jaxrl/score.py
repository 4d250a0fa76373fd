"""Scores finished programs as OpenAI's human-eval and EvalPlus do, without a model and without extraction.

    python -m jaxrl.score SAMPLES --task humaneval --path HumanEval.jsonl.gz
    python -m jaxrl.score SAMPLES --task mbpp --path MbppPlus.jsonl.gz --results results.jsonl

    python -m jaxrl.score runs/NAME/scores.jsonl --best-of 1,4,8

The third form reads what an evaluation with evaluation.best_of kept, and prints how many problems best-of-n solves by
each scorer, beside a random choice and an oracle.

SAMPLES is a .jsonl(.gz) file of {"task_id", "completion"} (the program is the problem's prompt and the completion) or
{"task_id", "solution"} (the program as it stands), or EvalPlus' folder TASK_ID/0.py of solutions. The data says which
tests: HumanEval's and MBPP's own, or EvalPlus' base and plus inputs, judged separately.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from jaxrl.config.command_line import at_least
from jaxrl.errors import UserError, command
from jaxrl.evaluation.harnesses import TASKS, read_examples, read_samples, score_samples, summary
from jaxrl.evaluation.selection import best_of_table, read_judged, table_text
from jaxrl.files import write_beside
from jaxrl.runs.log import Progress
from jaxrl.tasks.rows import DataError
from sandbox.pool import Pool


def best_of_text(scores: str, sizes: str) -> str:
    """The table of an evaluation's scores.jsonl for these sizes. Raises UserError for what is not a list of sizes."""
    numbers = [int(n) if n.strip().isdigit() else 0 for n in sizes.split(",")]
    if min(numbers) < 1:
        raise UserError(f"--best-of {sizes} must be whole numbers from 1, such as 1,4,8")
    return table_text(best_of_table(read_judged(scores), numbers))


@command()
def main(arguments: list[str]) -> int:
    """The command: pass@k, and the problems that fail; 1 with one line on stderr for data that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m jaxrl.score", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("samples", help=".jsonl(.gz) of {task_id, completion | solution}, or a folder TASK_ID/0.py")
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--path", default="", help="problem data, as task.path")
    parser.add_argument("--split", default="test", help="of a hub data set")
    parser.add_argument("--results", default="", help="write each sample's outcome to this .jsonl")
    parser.add_argument("--workers", type=at_least(0), default=0, help="programs at a time; 0: one per core")
    parser.add_argument("--best-of", default="", help="sizes, such as 1,4,8; SAMPLES is then a scores.jsonl")
    options = parser.parse_args(arguments)
    if options.best_of:
        print(best_of_text(options.samples, options.best_of))
        return 0
    if not options.task or not options.path:
        parser.error("the following arguments are required: --task, --path")
    examples, samples = read_examples(options.task, options.path, options.split), read_samples(options.samples)
    with Pool(options.workers) as pool, Progress() as progress:
        scored = score_samples(examples, samples, pool, progress)
    if not scored:
        raise DataError(f"{options.samples}: no sample is of a problem of {options.path}")
    if options.results:
        write_beside(Path(options.results), "".join(json.dumps(s.to_json()) + "\n" for s in scored))
    print(f"samples of other problems, not scored: {len(samples) - len(scored)}")
    print(f"problems without a sample, not counted: {len(examples.keys() - {s.task_id for s in scored})}")
    for name, value in summary(scored).items():
        print(f"{name}  {value:.4g}")
    for s in scored:
        if not s.solved:
            suites = ", ".join(name for name, ok in s.passed.items() if not ok)
            print(f"failed  {s.task_id}  sample {s.sample}  {suites}  {s.status}  {s.message.splitlines()[:1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
