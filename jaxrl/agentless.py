"""Chooses one patch of each problem's samples, by votes, for the grader of a benchmark (Agentless mini).

    python -m jaxrl.agentless RUN/samples/evaluation.jsonl ROWS.jsonl predictions.jsonl --name MODEL

The samples are those of jaxrl.evaluate with task swe_rl, task.path = ROWS.jsonl and several evaluation.samples. A
prediction is {"instance_id", "model_name_or_path", "model_patch"}, with "" for a problem of which no sample applies.
Tests that choose among patches are up to a caller of jaxrl/tasks/swe/agentless.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from jaxrl.errors import command
from jaxrl.files import write_beside
from jaxrl.tasks.rows import DataError, Row, read_rows
from jaxrl.tasks.swe.agentless import choose, contents_of
from rollouts.unified import write_patch


def predictions(samples: Sequence[Row], rows: Sequence[Row], name: str) -> list[dict[str, str]]:
    """A prediction for each problem that has samples, in the order of the rows.

    Raises DataError for a sample of another problem.
    """
    answers = defaultdict(list)
    for sample in samples:
        answers[sample.name("problem")].append(sample.text("judged", "text"))
    files = {row.name("instance_id", "id"): row.part("files").fields for row in rows}
    if unknown := sorted(answers.keys() - files.keys()):
        raise DataError(f"the samples have problem {unknown[0]!r}, which is not an instance_id of the rows")
    made = []
    for problem in [problem for problem in files if problem in answers]:
        old = files[problem]
        shown = {path: text.replace("\r\n", "\n") for path, text in old.items()}  # as the model saw them
        chosen = choose(shown, answers[problem])
        new = contents_of(shown, answers[problem][chosen]) if chosen is not None else None
        ends = {path: "\r\n" if "\r\n" in text else "\n" for path, text in old.items()}
        patch = write_patch(old, {p: text.replace("\n", ends.get(p, "\n")) for p, text in (new or {}).items()})
        made.append({"instance_id": problem, "model_name_or_path": name, "model_patch": patch})
    return made


@command()
def main(arguments: list[str]) -> int:
    """The command: writes the predictions, and prints how many have a patch."""
    parser = argparse.ArgumentParser(prog="python -m jaxrl.agentless", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("samples", help="samples file of an evaluation of task swe_rl")
    parser.add_argument("rows", help="its task.path")
    parser.add_argument("predictions", type=Path, help="the .jsonl to write")
    parser.add_argument("--name", default="jaxrl", help="the model's name in the predictions (%(default)s)")
    options = parser.parse_args(arguments)
    made = predictions(read_rows(options.samples), read_rows(options.rows), options.name)
    write_beside(options.predictions, "".join(json.dumps(prediction) + "\n" for prediction in made))
    print(f"{sum(bool(p['model_patch']) for p in made)} of {len(made)} problems have a patch")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
