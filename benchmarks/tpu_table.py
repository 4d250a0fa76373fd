"""Which models fit which TPU slices: models x slices x stages x contexts, each compiled without a TPU.

    python benchmarks/tpu_table.py                                        all cells: hours on two cores
    python benchmarks/tpu_table.py --models 0.5B,1.5B --contexts 4096     some
    python benchmarks/tpu_table.py --show --models 7B --slices v5e        print the rows of cells that exist

Each cell is a process of its own with a time limit; its result is a line of benchmarks/tpu_table.jsonl. Cells that
exist are not compiled again (--again does). The summary in docs/results/tpu.md is written from the lines.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl.aot.fit import RESERVED

ROOT = Path(__file__).parent.parent
LINES, PAGE = ROOT / "benchmarks" / "tpu_table.jsonl", ROOT / "docs" / "results" / "tpu.md"
BEGIN, END = "<!-- table: python benchmarks/tpu_table.py -->", "<!-- end of table -->"
GiB = 2**30

# The smallest slices that are sensible for training: state of 16 bytes a parameter in at most half of the memory.
SLICES = {
    "Qwen2.5-Coder-0.5B": ("v5e:2x2", "v6e:2x2", "v5p:2x2x1"),
    "Qwen2.5-Coder-1.5B": ("v5e:4x4", "v6e:2x4", "v5p:2x2x1"),
    "Qwen2.5-Coder-3B": ("v5e:4x4", "v6e:4x4", "v5p:2x2x2"),
    "Qwen2.5-Coder-7B": ("v5e:8x8", "v6e:4x4", "v5p:2x2x2"),
    "Llama-3.1-8B": ("v5e:8x8", "v6e:4x4", "v5p:2x2x2"),
    "Qwen2.5-Coder-14B": ("v5e:8x8", "v6e:4x8", "v5p:2x4x4"),
    "Qwen2.5-Coder-32B": ("v5e:8x16", "v6e:8x8", "v5p:4x4x4"),
    "Llama-3.1-70B": ("v5e:16x16", "v6e:8x16", "v5p:4x4x4"),
}
WITH_ENGINE = ("Qwen2.5-Coder-0.5B", "Qwen2.5-Coder-1.5B", "Qwen2.5-Coder-3B")
CONTEXTS = (4096, 32_768)
BETWEEN = {"Llama-3.1-8B": (8192, 16_384)}  # compiled too: a device's tokens, and so its memory, are the same for all


class Cell(NamedTuple):
    model: str
    topology: str
    stage: str
    context: int


def cells() -> Iterator[Cell]:
    """All of the table, small ones first."""
    for model, slices in SLICES.items():
        for topology in slices:
            for stage in ("sft", "grpo+jax" if model in WITH_ENGINE else "grpo"):
                for context in sorted(CONTEXTS + BETWEEN.get(model, ())):
                    yield Cell(model, topology, stage, context)


def compile_cell(cell: Cell, limit_s: float) -> dict[str, Any]:
    """The cell's line: what jaxrl.compile says, or "error"."""
    devices = math.prod(int(n) for n in cell.topology.partition(":")[2].split("x"))
    config = f"benchmarks/tpu_cell.py:{cell.model},{cell.stage},{cell.context},{devices}"
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", "jaxrl.compile", "--config", config, "--topology", cell.topology, "--json"]
        try:
            done = subprocess.run([*command, str(out)], cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
            error = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
            result: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"error": error[0][:300]}
        except subprocess.TimeoutExpired:
            result = {"error": f"not compiled in {limit_s:.0f} s"}
    for stage in result.get("stages", ()):
        for program in stage["programs"]:
            program.pop("largest_collectives", None)
    return {**cell._asdict(), "wall_s": round(time.perf_counter() - start, 1), **result, "model": cell.model}


def read_lines() -> dict[Cell, dict[str, Any]]:
    """The newest line of each cell; `mesh` may lack axes of size 1."""
    if not LINES.exists():
        return {}
    lines = [json.loads(line) for line in LINES.read_text().splitlines()]
    return {Cell(*(line[field] for field in Cell._fields)): line for line in lines}


def row(cell: Cell, line: dict[str, Any]) -> str:
    """One line of the markdown table."""
    shown = [cell.model, cell.topology, cell.stage, f"{cell.context // 1024}k"]
    if "error" in line:
        return "| " + " | ".join([*shown, "", f"error: {line['error']}", "", "", "", "", "", ""]) + " |"
    (stage,) = line["stages"]
    mesh = "x".join(str(line["mesh"].get(axis, 1)) for axis in ("data", "fsdp", "context", "tensor"))
    rows, seconds = str(line["microbatch_rows"]), f"{stage['compile_s']:.0f}"
    if "step" not in stage:
        refused = "; ".join(f"{p['name']}: {p['error']}" for p in stage["programs"] if "error" in p)
        return "| " + " | ".join([*shown, mesh, rows, f"no: {refused}", "", "", "", "", seconds]) + " |"
    step, verdict = stage["step"], "yes" if stage["fits"] else "no"
    memory = f"{verdict}: {stage['needed'] / GiB:.1f} of {stage['hbm'] / GiB:.0f}"
    ahead = "" if cell.stage == "sft" else sampled_ahead(stage)
    times = f"{step['seconds']:.1f} to {step['seconds_without_overlap']:.1f}"
    mfu = f"{step['mfu']:.0%} to {step['mfu_without_overlap']:.0%}"
    return "| " + " | ".join([*shown, mesh, rows, memory, ahead, times, mfu, step["limit"], seconds]) + " |"


def sampled_ahead(stage: dict[str, Any]) -> str:
    """What it needs, on the same mesh, when the sampler works ahead: as jaxrl.compile counts it (see `phases_of`)."""
    own = {p["name"]: p["memory"]["total"] - p["memory"]["resident"] for p in stage["programs"]}
    sampler = max((own.pop(name) for name in ("prefill", "decode") if name in own), default=0.0)
    published = stage["gathered"] or stage["resident"]["parameters"]
    needed = sum(stage["resident"].values()) + published + max(own.values()) + sampler
    return f"{'yes' if needed <= stage['hbm'] * (1 - RESERVED) else 'no'}: {needed / GiB:.1f}"


def table(lines: dict[Cell, dict[str, Any]]) -> str:
    """Markdown with all that is known of the cells, in the order of `cells`."""
    head = ["model", "slice", "stage", "context", "mesh", "rows", "fits: GiB a device", "sampled ahead", "step, s",
            "MFU of updates", "limited by", "compiled in, s"]  # fmt: skip
    body = [row(cell, lines[cell]) for cell in cells() if cell in lines]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *body])


def summary(lines: dict[Cell, dict[str, Any]]) -> str:
    """Markdown: reinforcement learning of each model at each context, a column for each kind of chip."""
    kinds = ["v5e", "v6e", "v5p"]
    rows: dict[tuple[str, int], dict[str, str]] = {}
    for cell in cells():
        if cell in lines and cell.stage != "sft" and (cell.context == CONTEXTS[0] or cell.model in BETWEEN):
            kind, _, shape = cell.topology.partition(":")
            rows.setdefault((cell.model, cell.context), {})[kind] = short(shape, lines[cell])
    body = [
        "| " + " | ".join([model, f"{context // 1024}k", *(found.get(kind, "") for kind in kinds)]) + " |"
        for (model, context), found in rows.items()
    ]
    return "\n".join(["| " + " | ".join(["model", "context", *kinds]) + " |", "|" + " --- |" * 5, *body])


def short(shape: str, line: dict[str, Any]) -> str:
    """A slice, what is needed of a device's memory, and the time of a step."""
    (stage,) = line.get("stages", [{}])
    if "step" not in stage:
        return f"{shape}: **no**, not compiled"
    memory = f"{stage['needed'] / GiB:.1f} of {stage['hbm'] / GiB:.0f} GiB"
    if not stage["fits"]:
        return f"{shape}: **no**, {memory}"
    return f"{shape}: {memory}, {stage['step']['seconds']:.1f} to {stage['step']['seconds_without_overlap']:.1f} s"


def write_page() -> None:
    """The summary into docs/results/tpu.md, between its two marks."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{summary(read_lines())}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="", help="parts of their names, with commas")
    parser.add_argument("--slices", default="", help="beginnings, such as v5e,v6e:4x4")
    parser.add_argument("--stages", default="", help="sft, grpo, grpo+jax")
    parser.add_argument("--contexts", default="", help="tokens, with commas")
    parser.add_argument("--limit", type=float, default=1800, help="seconds a cell")
    parser.add_argument("--again", action="store_true", help="compile cells that exist again")
    parser.add_argument("--show", action="store_true", help="compile nothing: print the rows")
    options = parser.parse_args()

    def wanted(cell: Cell) -> bool:
        return (
            any(part in cell.model for part in options.models.split(","))
            and any(cell.topology.startswith(part) for part in options.slices.split(","))
            and (not options.stages or cell.stage in options.stages.split(","))
            and (not options.contexts or str(cell.context) in options.contexts.split(","))
        )

    if options.show:
        print(table({cell: line for cell, line in read_lines().items() if wanted(cell)}))
        return
    for cell in filter(wanted, cells()):
        if cell in read_lines() and not options.again:
            continue
        line = compile_cell(cell, options.limit)
        with LINES.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(row(cell, line), flush=True)
        write_page()
    write_page()


if __name__ == "__main__":
    main()
