"""Makes problems of git histories: of task swe_rl a commit's message, its files before, and what it made of them.

    python -m jaxrl.swe_data --repository DIR OUT.jsonl
    python -m jaxrl.swe_data --repository DIR --repository OTHER --suffix .py --files 2 OUT.jsonl
    python -m jaxrl.swe_data --repository DIR --run OUT.jsonl

With --run they are of task repository: commits that change code and tests, whose tests are run in the sandbox.

Commits that are no problems are counted by reason. The repositories are only read, and the same commits and options
give the same file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxrl.config.command_line import at_least
from jaxrl.errors import UserError, command
from jaxrl.runs.log import Progress
from jaxrl.tasks.repositories.mine import Runs, mine_tests
from jaxrl.tasks.swe.history import commit_ids
from jaxrl.tasks.swe.mining import Rules, mine

FILES = Path("~/.cache/jaxrl/swebench/files")  # of commits, as task repository keeps them


def write_rows(
    repositories: list[Path],
    revision: str,
    rules: Rules,
    path: Path,
    runs: Runs | None = None,
    limit: int | None = None,
) -> tuple[int, Counter[str]]:
    """Writes the rows of all repositories; how many there are, and the commits that were rejected, by reason.

    With `runs` the rows are of task repository, else of swe_rl; `limit`: of each repository the newest commits alone.
    Raises UserError for a folder that is no repository, or two of the same name.
    """
    names = [folder.resolve().name for folder in repositories]
    if len({*names}) < len(names):
        raise UserError(f"--repository: two folders have the same name: {', '.join(sorted(names))}")
    rejected: Counter[str] = Counter()
    seen: set[Any] = set()
    rows, partial = 0, path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with Progress() as progress, partial.open("w", encoding="utf-8") as file:
            for folder, name in zip(repositories, names):
                ids = commit_ids(folder, revision)[-limit if limit else None :]
                progress.stage(name, len(ids))
                mined = mine(folder, name, ids, rules, rejected, seen)
                for number, row in mine_tests(folder, name, ids, rules, runs, rejected) if runs else mined:
                    if row is not None:
                        file.write(json.dumps(row) + "\n")
                        rows += 1
                    progress.update(number)
        if rows:
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return rows, rejected


IDLE = {True: ("tests", "characters", "others"), False: ("test_s",)}  # options that do nothing with --run, without it


def parser() -> argparse.ArgumentParser:
    """Rules and limits are only in what it returns where they are given."""
    made = argparse.ArgumentParser(prog="python -m jaxrl.swe_data", description=(__doc__ or "").split("\n")[0])
    made.add_argument("out", type=Path, help="the .jsonl to write")
    made.add_argument("--repository", type=Path, action="append", required=True, help="may be given several times")
    made.add_argument("--revision", default="HEAD", help="its history is read (HEAD)")
    made.add_argument("--run", action="store_true", help="problems of task repository: their tests are run (pytest)")
    made.add_argument("--limit", type=at_least(1), help="the newest commits, that many, are read (all)")
    add = partial(made.add_argument, default=argparse.SUPPRESS)
    add("--files", type=at_least(1), help=f"changed at most ({Rules.files})")
    add("--characters", type=at_least(1), help=f"of a file ({Rules.characters})")
    add("--diff", type=at_least(1), help=f"characters of all diffs ({Rules.diff})")
    add("--message", type=at_least(1), help=f"characters of it ({Rules.message})")
    add("--others", type=at_least(0), help=f"unchanged files shown ({Rules.others})")
    add("--suffix", action="append", dest="suffixes", help="of code, such as .py; the others do not count")
    add("--tests", action="store_true", help="changes of tests count, too")
    add("--test-s", type=at_least(1), help=f"of a commit's tests ({Runs.wall_s:.0f})")
    return made


@command()
def main(arguments: list[str]) -> int:
    """The command: writes the rows and prints a table; 1, with one line on stderr, if there are none."""
    options = parser().parse_args(arguments)
    given = vars(options)
    for name in IDLE[options.run]:
        if name in given:
            how = "with" if options.run else "without"
            raise UserError(f"--{name.replace('_', '-')} has no effect {how} --run; leave it out")
    rules = {field.name: given[field.name] for field in fields(Rules) if field.name in given}
    if "suffixes" in rules:
        rules["suffixes"] = tuple(rules["suffixes"])
    runs = Runs(FILES.expanduser(), given.get("test_s", Runs.wall_s)) if options.run else None
    rows, rejected = write_rows(options.repository, options.revision, Rules(**rules), options.out, runs, options.limit)
    table = Table("commits", "")
    table.add_row("problems", str(rows), style="bold")
    for reason, count in rejected.most_common():
        table.add_row(reason, str(count))
    Console().print(table)
    if not rows:
        raise UserError("no commit is a problem; the table says why not")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
