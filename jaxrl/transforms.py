"""What a transform of Python programs is worth, by whoever it was written (arXiv 2410.08806).

    python -m jaxrl.transforms FILE.py --rule nested_if         on programs drawn for one of the 16 rules
    python -m jaxrl.transforms FILE.py                          for each rule in turn
    python -m jaxrl.transforms FILE.py --pairs PAIRS.jsonl      on pairs of programs of your own

FILE.py defines transform(source: str) -> str. It runs in the sandbox. A line of PAIRS is {"before": program, "after":
program}, the same text twice where nothing must change; with "calls", lists of arguments of the program's function f,
what it does is compared too. docs/reference/transforms.md says what is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from jaxrl.config.command_line import at_least
from jaxrl.config.rules import nearest
from jaxrl.errors import UserError, command
from jaxrl.tasks.rewriting.programs import RULES, Pair, draw_pairs
from jaxrl.tasks.rewriting.score import Score, score
from jaxrl.tasks.rows import DataError, Row, read_rows
from rollouts.services import Services
from sandbox.pool import Pool
from sandbox.trees import tree_text


@command()
def main(arguments: list[str]) -> int:
    """The command: a table of precision and recall."""
    parser = argparse.ArgumentParser(prog="python -m jaxrl.transforms", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", help="Python file that defines transform(source: str) -> str")
    parser.add_argument("--rule", default="", help=f"one of {', '.join(RULES)}; without it, each of them")
    parser.add_argument("--pairs", default="", help='.jsonl of {"before", "after"}')
    parser.add_argument("--programs", type=at_least(1), default=40, help="drawn for each rule; three eighths stay")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the drawn programs")
    options = parser.parse_args(arguments)
    if options.rule and options.pairs:
        raise UserError("--rule and --pairs: give one of them")
    if options.rule and options.rule not in RULES:
        raise UserError(f"--rule {options.rule!r} does not exist{nearest(options.rule, [*RULES])}")
    try:
        program = Path(options.file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{options.file} cannot be read ({error})") from None
    if options.pairs:
        sets = {Path(options.pairs).name: read_pairs(options.pairs)}
    else:
        sets = {r: drawn(r, options.programs, options.seed) for r in ([options.rule] if options.rule else RULES)}
    table = Table(Column(no_wrap=True), "precision", "recall", "tp", "fp", "fn", "tn", "crashed", "broken")
    with Pool() as pool:
        for name, pairs in sets.items():
            table.add_row(name, *shown(asyncio.run(score(program, pairs, Services(pool)))))
    Console().print(table)
    return 0


def shown(found: Score) -> list[str]:
    """A row of the table."""
    counts = (found.tp, found.fp, found.fn, found.tn, found.crashed, found.broken)
    return [f"{found.precision:.3f}", f"{found.recall:.3f}", *map(str, counts)]


def drawn(rule: str, programs: int, seed: int) -> list[Pair]:
    """Different programs for the rule; three of eight must stay as they are."""
    controls = programs * 3 // 8
    return draw_pairs(rule, programs - controls, controls, random.Random(f"{rule} {seed}"))


def read_pairs(path: str) -> list[Pair]:
    """The pairs of a file. Raises DataError naming the line of what is not a pair of Python programs."""
    return [_pair(row) for row in read_rows(path)]


def _pair(row: Row) -> Pair:
    before, after = row.text("before"), row.text("after")
    for name, text in (("before", before), ("after", after)):
        if tree_text(text) is None:
            raise DataError(f"{row.where}: {name} must be a Python program")
    calls = row.values("calls") if "calls" in row.fields else []
    if not all(isinstance(call, list) for call in calls):
        raise DataError(f"{row.where}: calls must be a list of lists of arguments")
    return Pair(before, after, tuple(map(tuple, calls)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
