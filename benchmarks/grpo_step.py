"""One whole GRPO step, side by side: jaxrl, a naive JAX loop, TRL and Tunix, each in its own environment.

    python benchmarks/grpo_step.py --trl-python TRL_VENV/bin/python --tunix-python TUNIX_VENV/bin/python

The step is in workload.py. The peers take turns, in several rounds, never two at once; a peer without an interpreter
is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import workload as w
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent


def run(python: str, script: str, dtype: str, steps: int) -> dict | None:
    """The peer's JSON line, or None (with its last words shown) if it failed."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run(
        [python, str(FOLDER / script), "--dtype", dtype, "--steps", str(steps)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line for line in result.stdout.splitlines() if line.startswith('{"peer"')]
    if not lines:
        print(f"{script} {dtype} failed: {result.stderr.strip()[-800:]}", file=sys.stderr)
        return None
    return json.loads(lines[-1])


def summarize(peers: list[tuple[str | None, str, str]], results: dict[tuple[str, str], list[dict]]) -> None:
    """Prints the table; the last column compares with jaxrl at its faster dtype."""
    seconds = {key: [s for line in lines for s in line["step_s"]] for key, lines in results.items()}
    ours = min(statistics.median(s) for (script, _), s in seconds.items() if script == "jaxrl_step.py")
    table = Table("", "version", "dtype", "median s", "min s", "x jaxrl's best")
    for python, script, dtype in peers:
        if (script, dtype) not in results:
            table.add_row(script, "failed" if python else "not measured", dtype, "", "", "")
            continue
        line, median = results[script, dtype][0], statistics.median(seconds[script, dtype])
        numbers = [f"{median:.3f}", f"{min(seconds[script, dtype]):.3f}", f"{median / ours:.2f}"]
        table.add_row(line["peer"], line["version"], dtype, *numbers)
    console = Console(width=130)
    console.print(table)
    for (script, dtype), lines in results.items():
        names = lines[0]["phases"] if script == "jaxrl_step.py" else ()
        phases = {name: round(statistics.median(s for l in lines for s in l["phases"][name]), 3) for name in names}
        if phases:
            console.print(f"jaxrl {dtype} by phase, s: {phases}")
    console.print("arithmetic of a step, GFLOP:", {name: round(g, 1) for name, g in w.gflop().items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl-python", help="interpreter of an environment with trl and torch")
    parser.add_argument("--tunix-python", help="interpreter of an environment with google-tunix")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="counted steps a round")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    options = parser.parse_args()
    peers = [(sys.executable, "peer_naive.py", "float32")]
    for dtype in ("float32", "bfloat16"):
        peers.append((sys.executable, "jaxrl_step.py", dtype))
        peers.append((options.trl_python, "peer_trl.py", dtype))
        peers.append((options.tunix_python, "peer_tunix.py", dtype))
    results: dict[tuple[str, str], list[dict]] = {}
    for _ in range(options.rounds):
        for python, script, dtype in peers:
            line = run(python, script, dtype, options.steps) if python else None
            if line:
                results.setdefault((script, dtype), []).append(line)
    if not any(script == "jaxrl_step.py" for script, _ in results):
        sys.exit("jaxrl's own side failed: nothing to compare with")
    summarize(peers, results)
    if options.out:
        data = {f"{script} {dtype}": lines for (script, dtype), lines in results.items()}
        options.out.write_text(json.dumps({"workload": w.gflop(), "results": data}, indent=1) + "\n")


if __name__ == "__main__":
    main()
