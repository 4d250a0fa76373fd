"""How long HumanEval+ and MBPP+ take to judge: the sandbox beside EvalPlus' own evaluate, which isolates nothing.

    python benchmarks/evalplus_rate.py PYTHON

PYTHON is an interpreter in an environment of its own with `pip install evalplus`. Both read the same files of
JAXRL_DATA and the same samples (`--samples` right solutions for each problem), have the expected values at hand from a
run before, use a process for each core, and are timed from the start of an evaluation to its last verdict, in turn.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from jaxrl.tasks.evalplus import evalplus_tests
from jaxrl.tasks.rows import read_rows
from sandbox.pool import Pool
from sandbox.verdict import Limits, Program

DATA = Path(os.environ.get("JAXRL_DATA", "../shared/data")) / "evalplus"
FILES = {"humaneval": "v0.1.10-HumanEvalPlus.jsonl.gz", "mbpp": "MbppPlus-v0.1.0.jsonl.gz"}
LEFT_OUT = "Mbpp/255"  # its answer is a list of 582 MB
LIMITS = Limits(wall_s=120, cpu_s=60, memory_mb=4096)
EVALUATE = """
import os, sys, time
from evalplus.evaluate import evaluate
if __name__ == "__main__":
    name, samples, workers = sys.argv[1:]
    start = time.monotonic()
    evaluate(name, samples, parallel=int(workers))
    print("seconds", time.monotonic() - start, flush=True)
    os._exit(0)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds for HumanEval+ and MBPP+.")
    parser.add_argument("python", help="Python with the evalplus package")
    parser.add_argument("--samples", type=int, default=2, help="for each problem")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Pool() as pool:
        for name, file in FILES.items():
            rows = [r for r in map(json.loads, gzip.open(DATA / file)) if r["task_id"] != LEFT_OUT]
            problems, samples = Path(folder, f"{name}.jsonl"), Path(folder, f"{name}-samples.jsonl")
            problems.write_text("".join(f"{json.dumps(r)}\n" for r in rows))
            samples.write_text("".join(f"{json.dumps(sample(r))}\n" for r in rows for _ in range(options.samples)))
            times: dict[str, list[float]] = {"EvalPlus": [], "the sandbox": []}
            by_evalplus(options.python, name, problems, samples, pool.workers)  # expected values are computed
            by_sandbox(pool, name, problems, options.samples)
            for _ in range(options.rounds):
                times["EvalPlus"].append(by_evalplus(options.python, name, problems, samples, pool.workers))
                times["the sandbox"].append(by_sandbox(pool, name, problems, options.samples))
            for who, seconds in times.items():
                count = len(rows) * options.samples
                print(f"{name}+, {count} samples, {who:<12} {min(seconds):7.1f} s   (all: {seconds})")
            print(f"{name}+: {min(times['EvalPlus']) / min(times['the sandbox']):.2f} times EvalPlus' rate")


def sample(row: dict) -> dict[str, str]:
    header = row["prompt"] if row["task_id"].startswith("HumanEval") else ""
    return {"task_id": row["task_id"], "solution": header + row["canonical_solution"]}


def by_evalplus(python: str, name: str, problems: Path, samples: Path, workers: int) -> float:
    samples.with_name(samples.name.replace(".jsonl", "_eval_results.json")).unlink(missing_ok=True)
    environment = os.environ | {f"{name.upper()}_OVERRIDE_PATH": str(problems), "HOME": str(problems.parent)}
    command = [python, "-c", EVALUATE, name, str(samples), str(workers)]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    passed = re.findall(r"pass@1:\s+([\d.]+)", out)
    assert len(passed) == 2 and min(map(float, passed)) > 0.97, out[-2000:]  # its limits are tight on a busy machine
    return round(float(out.rsplit("seconds", 1)[1]), 2)


def by_sandbox(pool: Pool, name: str, problems: Path, samples: int) -> float:
    start = time.monotonic()
    programs = []
    for row in read_rows(str(problems), ""):
        header = row.text("prompt") if name == "humaneval" else ""
        code, tests = header + row.text("canonical_solution"), evalplus_tests(row, header)
        programs += [Program(code, tests, LIMITS, stop_at_first_failure=True)] * samples
    assert all(v.passed for v in pool.run(programs))
    return round(time.monotonic() - start, 2)


if __name__ == "__main__":
    main()
