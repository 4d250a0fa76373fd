"""Whole GRPO steps, side by side: jaxrl, a naive JAX loop, TRL and Tunix, each in its own environment.

    python benchmarks/grpo_step.py --trl-python TRL_VENV/bin/python --tunix-python TUNIX_VENV/bin/python

The steps are in workload.py, at three sizes of the model. The peers take turns, in several rounds, never two at once;
a peer without an interpreter is left out, and the table says so. One that did not sample all tokens, or make all
updates, is shown as failed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import workload as w
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent
STEPS = {"small": 20, "medium": 10, "large": 3, "smollm2": 3, "qwen": 2}  # counted ones of a round


class Peer(NamedTuple):
    """What is run: a script, by an interpreter (None: not given), at a dtype."""

    python: str | None
    script: str
    dtype: str


def run(peer: Peer, size: str, steps: int) -> dict | None:
    """The peer's JSON line, or None (and why, on stderr) if it failed or did other work."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = str(FOLDER.parent)
    result = subprocess.run(
        [str(peer.python), str(FOLDER / peer.script), "--size", size, "--dtype", peer.dtype, "--steps", str(steps)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    name = f"{peer.script} {size} {peer.dtype}"
    lines = [line for line in result.stdout.splitlines() if line.startswith('{"peer"')]
    if not lines:
        print(f"{name} failed: {result.stderr.strip()[-800:]}", file=sys.stderr)
        return None
    line = json.loads(lines[-1])
    work, expected = line["work"], line["expected"]
    if any(work[key] != expected[key] for key in expected) or not work["moved"] > 0:
        print(f"{name} did other work: {work}, not {expected} with weights that move", file=sys.stderr)
        return None
    return line


def summarize(size: str, results: dict[Peer, list[dict]], table: Table) -> dict[str, float]:
    """Rows of the table; returns how many times jaxrl's best the best dtype of each peer takes."""
    seconds = {peer: [s for line in lines for s in line["step_s"]] for peer, lines in results.items()}
    median = {peer: statistics.median(s) for peer, s in seconds.items() if s}
    ours = min(m for peer, m in median.items() if peer.script == "jaxrl_step.py")
    for peer in results:
        if peer not in median:
            table.add_row(size, peer.script, "failed" if peer.python else "not measured", peer.dtype)
            continue
        line, ratio = results[peer][0], f"{median[peer] / ours:.2f}"
        numbers = f"{median[peer]:.3f}", f"{min(seconds[peer]):.3f}", ratio
        phases = {
            name: statistics.median(s for l in results[peer] for s in l["phases"][name]) for name in line["phases"]
        }
        shown = ", ".join(f"{name} {s:.3f}" for name, s in phases.items())
        table.add_row(size, line["peer"], line["version"], peer.dtype, *numbers, shown)
    scripts = {peer.script for peer in median} - {"jaxrl_step.py"}
    return {s: min(m for peer, m in median.items() if peer.script == s) / ours for s in sorted(scripts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="interpreter of an environment with trl and torch")
    parser.add_argument("--tunix-python", help="interpreter of an environment with google-tunix")
    parser.add_argument("--size", choices=w.SIZES, action="append", help="again for more than one; without it: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="counted steps a round; 0: by size")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    options = parser.parse_args()
    peers = [Peer(sys.executable, "peer_naive.py", "float32")]
    for dtype in ("float32", "bfloat16"):
        peers.append(Peer(sys.executable, "jaxrl_step.py", dtype))
        peers.append(Peer(options.trl_python, "peer_trl.py", dtype))
        peers.append(Peer(options.tunix_python, "peer_tunix.py", dtype))
    console, table, ratios, data = Console(width=160), Table(), {}, {}
    for name in ("size", "", "version", "dtype", "median s", "min s", "x jaxrl's best", "phases, s"):
        table.add_column(name, overflow="fold")
    for size in options.size or w.SIZES:
        results: dict[Peer, list[dict]] = {peer: [] for peer in peers}
        for _ in range(options.rounds):
            for peer in peers:
                line = run(peer, size, options.steps or STEPS[size]) if peer.python else None
                results[peer] += [line] if line else []
                if line:
                    print(f"{size} {peer.script} {peer.dtype}: {statistics.median(line['step_s']):.3f} s", flush=True)
        if not any(results[peer] for peer in peers if peer.script == "jaxrl_step.py"):
            sys.exit(f"jaxrl's own side failed at size {size}: nothing to compare with")
        ratios[size] = summarize(size, results, table)
        table.add_section()
        data[size] = {f"{peer.script} {peer.dtype}": lines for peer, lines in results.items()}
    console.print(table)
    for size, ratio in ratios.items():
        each = {name: round(g, 1) for name, g in w.gflop(w.SIZES[size]).items()}
        console.print(
            f"{size}: best dtype against best dtype", {s: round(r, 2) for s, r in ratio.items()}, "GFLOP", each
        )
    if options.out:
        options.out.write_text(json.dumps({"ratios": ratios, "results": data}, indent=1) + "\n")


if __name__ == "__main__":
    main()
