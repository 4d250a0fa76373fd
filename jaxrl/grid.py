"""Prompting strategies side by side, over a grid of prompts, feedback and turns (arXiv 2410.08105).

    python -m jaxrl.grid --config FILE --config.model.path=MODEL --reasoning all --instruction none,double_check \\
        --feedback binary,failed --turns 1,3

plays every combination with one loaded model on the held-out problems, evaluation.samples episodes each, and writes
grid.md into runs_dir/NAME. Finished cells are kept in grid.jsonl and their episodes in samples/: the same command goes
on where it was stopped, and one with other options adds their cells.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxrl.config import Config
from jaxrl.config.command_line import at_least, read_config
from jaxrl.config.rules import check_settings
from jaxrl.errors import TrainingError, UserError, command
from jaxrl.evaluation import grid
from jaxrl.evaluation.grid import Cell
from jaxrl.evaluation.run import EVALUATION
from jaxrl.files import write_beside
from jaxrl.runs.engines import make_engine, make_openai_engine
from jaxrl.runs.environments import make_environment, make_services
from jaxrl.runs.folder import open_run
from jaxrl.runs.host import prepare_process
from jaxrl.runs.journal import Journal
from jaxrl.runs.log import Progress, write_samples
from jaxrl.runs.policy import make_policy, make_tokenizer
from jaxrl.runs.prompts import check_problems, evaluation_task, without_long_prompts
from jaxrl.tasks import load_task
from jaxrl.training.watch import why_unjudged
from models.stored import fingerprint
from rollouts.collect import collect
from rollouts.strategies import INSTRUCTION, REASONING, STRATEGIES

WIDTH = 200  # characters of the table, where it is not in a terminal
Results = dict[Cell, dict[str, list[dict[str, Any]]]]


def evaluate_grid(config: Config, cells: Sequence[Cell]) -> tuple[Path, Results]:
    """The run's folder and the outcomes of these cells, played where the folder does not have them yet."""
    config = grid.prepare(config)
    for cell in cells:
        check_settings(grid.config_of(config, cell))
    with open_run(config) as folder:
        return folder, _play(folder, config, cells)


def _play(folder: Path, config: Config, cells: Sequence[Cell]) -> Results:
    task = load_task(config.task, config.seed)
    test = evaluation_task(config, task)
    if test.environments:
        raise UserError(
            f"task {test.name} has environments of its own for its parts; a grid needs one for all problems"
        )
    policy = None if config.rollout.engine == "openai" else make_policy(config, task, folder, sampling=True)
    tokenizer = policy.tokenizer if policy else make_tokenizer(config.model, task, folder)
    for cell in cells if config.rollout.reject_long_prompts else ():  # all cells have the same problems
        test = without_long_prompts(test, tokenizer, grid.config_of(config, cell).rollout)
    check_problems(config, None, test)
    params = policy.initial() if policy else None
    weights = fingerprint(params) if policy else ""
    results = read_results(folder / "grid.jsonl", weights, [p.id for p in test.held_out])
    engine = make_engine(config, policy, folder) if policy else make_openai_engine(config, tokenizer)
    total = len(test.held_out) * config.evaluation.samples
    with make_services(config, test) as services, closing(engine), Progress() as progress:
        if policy:
            engine.load_weights(params, 0)
        del params  # the engine has its own
        for number, cell in enumerate(cells, 1):
            progress.print(f"{cell.name} ({number} of {len(cells)}){' is complete' if cell in results else ''}")
            if cell in results:
                continue
            own = grid.config_of(config, cell)
            environment = make_environment(own, test, tokenizer, services, config.evaluation.temperature)
            with Journal(folder, f"grid-{cell.name}", weights, total, progress) as journal:
                seed = (config.seed, EVALUATION)  # the same for all cells
                groups = collect(engine, environment, test.held_out, config.evaluation.samples, seed, journal)
            if reason := why_unjudged(groups):
                raise TrainingError(f"cell {cell.name}: no scores: {reason}")
            write_samples(folder / "samples" / f"grid-{cell.name}.jsonl", groups, 0, "grid")
            results[cell] = grid.outcomes(groups)
            write_results(folder / "grid.jsonl", weights, results)
            journal.remove()
    return {cell: results[cell] for cell in cells}


def read_results(path: Path, weights: str, problems: Sequence[str]) -> Results:
    """The cells of an earlier try with these weights and problems."""
    lines = path.read_text().splitlines() if path.is_file() else []
    records = [json.loads(line) for line in lines]
    return {
        Cell(**record["cell"]): record["problems"]
        for record in records
        if record["weights"] == weights and [*record["problems"]] == [*problems]
    }


def write_results(path: Path, weights: str, results: Results) -> None:
    """A cell a line."""
    records = [{"cell": cell._asdict(), "weights": weights, "problems": found} for cell, found in results.items()]
    write_beside(path, "".join(json.dumps(record) + "\n" for record in records))


def report(folder: Path, config: Config, results: Results, programs: int, tokens: int) -> list[list[str]]:
    """Writes grid.md, and returns its table."""
    settings = config.evaluation
    budget = grid.budgets(results, programs, tokens)
    rows = [grid.row(cell, found, budget, settings.submissions, settings.bootstrap) for cell, found in results.items()]
    about = (
        f"Model `{config.model.path or 'random weights'}`, task `{config.task.name}`, "
        f"{len(next(iter(results.values())))} problems with {settings.samples} samples each, temperature "
        f"{settings.temperature:g}, seed {config.seed}."
    )
    write_beside(folder / "grid.md", grid.markdown(rows, budget, settings.submissions, about))
    return grid.columns(rows, budget, settings.submissions)


def options_of(arguments: list[str]) -> tuple[argparse.Namespace, list[Cell], list[str]]:
    """The options, the cells that they name, and the arguments that are the config's. Raises UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrl.grid", description=(__doc__ or "").split("\n")[0], allow_abbrev=False,
        epilog="--config FILE and overrides --config.a.b=value as in jaxrl.evaluate",
    )  # fmt: skip
    names = "names with commas between them, all, or none"
    own = f"{names}; or a text of your own, one for each time that the option is given"
    parser.add_argument("--reasoning", action="append", help=f"before the program: {own}")
    parser.add_argument("--instruction", action="append", help=f"beside the request for it: {own}")
    parser.add_argument("--feedback", default="failed", help=f"{', '.join(grid.FEEDBACK)}: {names}")
    parser.add_argument("--turns", default="1,3", help="programs of an episode at most, with commas between them")
    parser.add_argument("--schedule", default="first", help=f"turns with prompts: {', '.join(grid.SCHEDULES)}")
    parser.add_argument("--strategy", default="none", help=f"named ones beside the grid: {', '.join(STRATEGIES)}")
    parser.add_argument(
        "--programs", type=at_least(1), default=0, help="at which cells are compared; default: most turns"
    )
    parser.add_argument("--tokens", type=at_least(1), default=0, help="the same; default: what these programs cost")
    options, rest = parser.parse_known_args(arguments)
    turns = [part.strip() for part in options.turns.split(",")]
    if not all(part.isdigit() and int(part) for part in turns):
        raise UserError(f"--turns {options.turns!r} must be whole numbers from 1 with commas between them, such as 1,3")
    cells = grid.make_cells(
        grid.choices(options.reasoning or ["none"], ["none", *REASONING], "--reasoning", own_texts=True),
        grid.choices(options.instruction or ["none"], ["none", *INSTRUCTION], "--instruction", own_texts=True),
        grid.choices([options.feedback], grid.FEEDBACK, "--feedback"),
        [int(part) for part in turns],
        grid.choices([options.schedule], grid.SCHEDULES, "--schedule"),
        [name for name in grid.choices([options.strategy], ["none", *STRATEGIES], "--strategy") if name],
    )
    return options, cells, rest


@command()
def main(arguments: list[str]) -> int:
    """The command: a row for each cell."""
    options, cells, rest = options_of(arguments)
    config = read_config(rest)
    prepare_process()
    folder, results = evaluate_grid(config, cells)
    header, *lines = report(folder, config, results, options.programs, options.tokens)
    table = Table(*header)
    for line in lines:
        table.add_row(*line)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(table)
    console.print(f"{folder / 'grid.md'}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
