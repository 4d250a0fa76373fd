"""What runs show: a page of one run, or of several side by side; and their table in Markdown.

    python -m jaxrl.report RUN                             RUN/report.html and RUN/report.md
    python -m jaxrl.report RUN RUN ... [--output FOLDER]   a row for each variant, into FOLDER (the folder they are in)

A RUN is the folder of a training run or of an evaluation (python -m jaxrl.evaluate). A page is one file, without
scripts, and needs no network.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxrl.errors import command
from jaxrl.reports.run_page import WRITTEN, write_comparison, write_report


@command(failed=2)
def main(arguments: Sequence[str]) -> int:
    """Writes the report of the runs given and prints where; 2 with a line on stderr if there is none."""
    parser = argparse.ArgumentParser(prog="python -m jaxrl.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="*", help="folder of a training run or an evaluation")
    parser.add_argument("--output", type=Path, help="folder for report.html and report.md")
    options = parser.parse_args(arguments)
    # The second `jaxrl.report runs/study/*` is given what the first has written there.
    folders: list[Path] = [path for path in options.runs if path.name not in WRITTEN]
    if not folders:
        print("usage: python -m jaxrl.report RUN [RUN ...] [--output FOLDER]", file=sys.stderr)
        return 2
    if len(folders) == 1:
        print(write_report(folders[0], options.output))
    else:
        common = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
        print(write_comparison(folders, options.output or common))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
