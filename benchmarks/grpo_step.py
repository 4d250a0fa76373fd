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
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run(
        [python, str(FOLDER / script), "--dtype", dtype, "--steps", str(steps)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line for line in result.stdout.splitlines() if line.startswith('{"peer"')]
    if not lines:
        print(f"{script} {dtype} failed: {result.stderr.strip()[-800:]}", file=sys.stderr)
        return None
    return json.loads(lines[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl-python", help="interpreter of an environment with trl and torch")
    parser.add_argument("--tunix-python", help="interpreter of an environment with google-tunix")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="counted steps a round")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    options = parser.parse_args()
    peers = [
        (sys.executable, "jaxrl_step.py", "float32"),
        (sys.executable, "jaxrl_step.py", "bfloat16"),
        (sys.executable, "peer_naive.py", "float32"),
        (options.trl_python, "peer_trl.py", "float32"),
        (options.trl_python, "peer_trl.py", "bfloat16"),
        (options.tunix_python, "peer_tunix.py", "float32"),
        (options.tunix_python, "peer_tunix.py", "bfloat16"),
    ]
    results: dict[tuple[str, str], list[dict]] = {}
    for _ in range(options.rounds):
        for python, script, dtype in peers:
            line = run(python, script, dtype, options.steps) if python else None
            if line:
                results.setdefault((script, dtype), []).append(line)
    if ("jaxrl_step.py", "float32") not in results:
        sys.exit("jaxrl's own side failed: nothing to compare with")
    best = {key: statistics.median(s for line in lines for s in line["step_s"]) for key, lines in results.items()}
    table = Table("", "version", "dtype", "median s", "min s", "x jaxrl f32")
    for python, script, dtype in peers:
        lines = results.get((script, dtype))
        if not lines:
            table.add_row(script, "not measured" if not python else "failed", dtype, "", "", "")
            continue
        seconds = [s for line in lines for s in line["step_s"]]
        ratio = best[script, dtype] / best["jaxrl_step.py", "float32"]
        table.add_row(
            lines[0]["peer"],
            lines[0]["version"],
            dtype,
            f"{best[script, dtype]:.3f}",
            f"{min(seconds):.3f}",
            f"{ratio:.2f}",
        )
    console = Console(width=130)
    console.print(table)
    own = results["jaxrl_step.py", "float32"]
    phases = {name: statistics.median(s for line in own for s in line["phases"][name]) for name in own[0]["phases"]}
    console.print("jaxrl f32 by phase, s:", {name: round(s, 3) for name, s in phases.items()})
    console.print("arithmetic of a step, GFLOP:", {name: round(g, 1) for name, g in w.gflop().items()})
    if options.out:
        data = {f"{script} {dtype}": lines for (script, dtype), lines in results.items()}
        options.out.write_text(json.dumps({"workload": w.gflop(), "results": data}, indent=1) + "\n")


if __name__ == "__main__":
    main()
