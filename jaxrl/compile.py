"""Whether a run fits a TPU slice and how fast it could be there, without a TPU:

    python -m jaxrl.compile --config configs/qwen2p5_coder_1p5b.py --topology v5e:4x4

Every program of the run is compiled for the slice by the TPU's own compiler, from shapes alone. Printed are memory a
chip against what it has, operations (counted analytically), collectives, and the time of a step by roofline.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxrl.auto_mesh import choose_mesh, load_of
from jaxrl.command_line import UserError, read_config
from jaxrl.config import Config
from jaxrl.cost import parameters
from jaxrl.hlo import collectives, hbm_bytes
from jaxrl.programs import Program, Stage, bytes_per_device, model_of, stages
from jaxrl.roofline import by_kind, memory_of, times_of
from jaxrl.topology import Topology, find_topology
from models.sharding import MESH_AXES

GiB = 2**30
RESERVED = 0.02  # of a chip's HBM, which its runtime keeps (v5e: 15.75 of 16 GiB are given to programs)


def compile_program(program: Program, topology: Topology, hlo: Path | None = None) -> dict[str, Any]:
    """What one program needs, in bytes a device and seconds; only "error" where the compiler finds it too large."""
    start = time.perf_counter()
    lowered = program.function.lower(*program.arguments, **program.static)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"name": program.name, "error": too_large(str(error)), "compile_s": time.perf_counter() - start}
    text = compiled.as_text() or ""
    if hlo is not None:
        hlo.mkdir(parents=True, exist_ok=True)
        (hlo / f"{program.name}.txt").write_text(text)
    memory, found = memory_of(compiled.memory_analysis()), collectives(text)
    times = times_of(topology.chip, len(topology.devices), program.executed, hbm_bytes(text), found)
    return {
        "name": program.name,
        "runs": program.runs,
        "memory": {
            "arguments": memory.arguments, "outputs": memory.outputs, "temporaries": memory.temporaries,
            "aliased": memory.aliased, "total": memory.total,
            "resident": sum(bytes_per_device(program.arguments[i]) for i in program.resident),
        },
        "flops": program.flops,
        "executed_flops": program.executed,
        "collectives": by_kind(found),
        "largest_collectives": [str(c) for c in sorted(found, key=lambda c: -c.count * c.sent)[:8]],
        "seconds": {
            "compute": times.compute, "hbm": times.hbm, "interconnect": times.interconnect,
            "best": times.best, "worst": times.worst, "limit": times.limit,
        },
        "compile_s": time.perf_counter() - start,
    }  # fmt: skip


def too_large(message: str) -> str:
    """One line of the compiler's refusal: the sizes that it names."""
    for pattern in (r"required for HLO \w+ \(([0-9.]+\w)\) exceeds available HBM \(([0-9.]+\w)\)",
                    r"Used ([0-9.]+\w) of ([0-9.]+\w)"):  # fmt: skip
        used = re.search(pattern, message)
        if used:
            return f"the compiler needs {used.group(1)} of {used.group(2)}"
    return re.sub(r"\s+", " ", message).strip()[:200]


def lower_stage(stage: Stage, topology: Topology) -> dict[str, Any]:
    """The stage's programs lowered for the topology's platform, and what stays in memory: no more can be known."""
    programs = []
    for program in stage.programs:
        start = time.perf_counter()
        traced = program.function.trace(*program.arguments, **program.static)
        text = traced.lower(lowering_platforms=(topology.platform,)).as_text()
        programs.append({
            "name": program.name, "runs": program.runs, "flops": program.flops, "stablehlo_bytes": len(text),
            "arguments": bytes_per_device(program.arguments), "lower_s": time.perf_counter() - start,
        })  # fmt: skip
    resident = {name: bytes_per_device(tree) for name, tree in stage.resident.items()}
    gradient = stage.programs[0].arguments[1]
    needed = sum(resident.values()) + bytes_per_device(gradient)
    hbm = topology.chip.hbm_bytes
    return {"stage": stage.name, "lowered": programs, "resident": resident, "hbm": hbm, "needed": needed,
            "fits": needed < hbm}  # fmt: skip


def compile_stage(stage: Stage, topology: Topology, hlo: Path | None = None) -> dict[str, Any]:
    """All programs of a stage, and the stage as a whole: its memory, the time of a step and the MFU of its updates."""
    programs = [compile_program(p, topology, hlo and hlo / stage.name) for p in stage.programs]
    resident = {name: bytes_per_device(tree) for name, tree in stage.resident.items()}
    kept, compiled = sum(resident.values()), [p for p in programs if "error" not in p]
    phases = {p["name"]: kept + p["memory"]["total"] - p["memory"]["resident"] for p in compiled}
    available = topology.chip.hbm_bytes * (1 - RESERVED)
    result: dict[str, Any] = {
        "stage": stage.name,
        "programs": programs,
        "resident": resident,
        "hbm": topology.chip.hbm_bytes,
        "fits": len(compiled) == len(programs) and all(size <= available for size in phases.values()),
        "compile_s": sum(p["compile_s"] for p in programs),
    }
    if len(compiled) == len(programs):
        result |= {"needed": max(phases.values()), "largest_phase": max(phases, key=lambda name: phases[name])}
        result["step"] = _step(stage, compiled, topology)
    return result


def _step(stage: Stage, programs: list[dict[str, Any]], topology: Topology) -> dict[str, Any]:
    """Of a step whose episodes are all as long as they may be."""
    best, worst = (sum(p["runs"] * p["seconds"][kind] for p in programs) for kind in ("best", "worst"))
    update = [p for p in programs if p["name"] in ("accumulate", "apply")]
    flops = sum(p["runs"] * p["flops"] for p in update)
    peak = topology.chip.flops * len(topology.devices)
    seconds = {kind: sum(p["runs"] * p["seconds"][kind] for p in update) for kind in ("best", "worst")}
    longest = max(programs, key=lambda p: p["runs"] * p["seconds"]["best"])
    return {
        "tokens": stage.tokens,
        "seconds": best,
        "seconds_without_overlap": worst,
        "update_seconds": seconds["best"],
        "mfu": flops / (seconds["best"] * peak),
        "mfu_without_overlap": flops / (seconds["worst"] * peak),
        "limit": f"{longest['seconds']['limit']} of {longest['name']}",
    }


def compile_config(config: Config, topology: Topology, only: str = "", hlo: Path | None = None) -> dict[str, Any]:
    """Every stage of the config (or `only` one) compiled for the topology. Raises UserError."""
    model = model_of(config)
    if topology.platform == "cuda" and config.model.compute_dtype == "auto":
        config.model.compute_dtype = "bfloat16"  # the devices that stand for GPUs are the CPU's
    try:
        sizes = choose_mesh(model, len(topology.devices), load_of(config), topology.chip.hbm_bytes, config.mesh.sizes)
    except ValueError as error:
        raise UserError(str(error)) from None
    compiled = []
    for stage in stages(config, model, topology.mesh(sizes)):
        if only in ("", stage.name):
            tpu = topology.platform == "tpu"
            compiled.append(compile_stage(stage, topology, hlo) if tpu else lower_stage(stage, topology))
    if not compiled:
        raise UserError(f"the config has no {only} stage: {only}.steps is 0")
    return {
        "model": config.model.path or "config.model.shape",
        "parameters": parameters(model),
        "topology": topology.name,
        "chip": topology.chip.name,
        "devices": len(topology.devices),
        "mesh": dict(zip(MESH_AXES, sizes)),
        "microbatch_rows": config.batch.microbatch_rows,
        "row_length": load_of(config).row_length,
        "stages": compiled,
        "fits": all(stage["fits"] for stage in compiled),
        "jax": jax.__version__,
    }


def show(result: dict[str, Any], console: Console) -> None:
    """The result of compile_config as tables."""
    mesh = " x ".join(f"{name} {size}" for name, size in result["mesh"].items())
    console.print(
        f"{result['model']} ({result['parameters'] / 1e9:.2f}B parameters) on {result['topology']}: mesh {mesh}, "
        f"microbatches of {result['microbatch_rows']} rows x {result['row_length']} tokens"
    )
    for stage in result["stages"]:
        if "lowered" in stage:
            _show_lowered(stage, console)
            continue
        console.print(_memory_table(stage))
        console.print(_collective_table(stage))
        _say(stage, console)


def _show_lowered(stage: dict[str, Any], console: Console) -> None:
    for p in stage["lowered"]:
        console.print(
            f"{stage['stage']}: {p['name']} is lowered in {p['lower_s']:.1f} s ({p['stablehlo_bytes'] / 1e6:.1f} MB of "
            f"StableHLO, arguments {p['arguments'] / GiB:.2f} GiB a device, {p['flops'] / 1e12:.1f} TFLOP)"
        )
    console.print(
        f"{stage['stage']}: state and gradient take {stage['needed'] / GiB:.2f} of {stage['hbm'] / GiB:.1f} GiB a "
        "device; activations are not known without a compiler for it"
    )


def _memory_table(stage: dict[str, Any]) -> Table:
    table = Table(title=f"{stage['stage']}: GiB a device, of {stage['hbm'] / GiB:.1f}; seconds of one execution")
    columns = ("program", "arguments", "outputs", "temporary", "in place", "total", "runs", "TFLOP", "compute", "HBM",
               "links", "compiled in")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column == "program" else "right")
    for p in stage["programs"]:
        if "error" in p:
            table.add_row(p["name"], "[red]too large[/red]", *[""] * 9, f"{p['compile_s']:.1f}")
            continue
        m, s = p["memory"], p["seconds"]
        sizes = [f"{m[name] / GiB:.2f}" for name in ("arguments", "outputs", "temporaries", "aliased", "total")]
        seconds = [f"{s[name]:.4f}" for name in ("compute", "hbm", "interconnect")]
        table.add_row(
            p["name"], *sizes, f"{p['runs']:g}", f"{p['flops'] / 1e12:.1f}", *seconds, f"{p['compile_s']:.1f}"
        )
    return table


def _collective_table(stage: dict[str, Any]) -> Table:
    table = Table(title=f"{stage['stage']}: collectives of one execution, loops included")
    for column in ("program", "kind", "executions", "MiB sent by a device"):
        table.add_column(column, justify="right" if column.startswith(("exec", "MiB")) else "left")
    for p in stage["programs"]:
        for kind, c in p.get("collectives", {}).items():
            table.add_row(p["name"], kind, f"{c['count']:.0f}", f"{c['sent_bytes'] / 2**20:.1f}")
    return table


def _say(stage: dict[str, Any], console: Console) -> None:
    parts = ", ".join(f"{name} {size / GiB:.2f}" for name, size in stage["resident"].items())
    if "step" not in stage:
        refused = "; ".join(f"{p['name']}: {p['error']}" for p in stage["programs"] if "error" in p)
        console.print(f"{stage['stage']}: does NOT fit ({parts} GiB a device stay in memory). {refused}")
        return
    step, verdict = stage["step"], "fits" if stage["fits"] else "does NOT fit"
    console.print(
        f"{stage['stage']}: {verdict}: {stage['needed'] / GiB:.2f} GiB a device in {stage['largest_phase']} ({parts} "
        f"stay in memory), of {stage['hbm'] / GiB:.1f}"
    )
    console.print(
        f"{stage['stage']}: a step of at most {step['tokens']:,} tokens takes {step['seconds']:.2f} s if everything "
        f"overlaps, {step['seconds_without_overlap']:.2f} s if nothing does; limited by {step['limit']}; updates: MFU "
        f"{step['mfu']:.0%} to {step['mfu_without_overlap']:.0%}"
    )


def read_arguments(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and those for the config."""
    parser = argparse.ArgumentParser(
        "python -m jaxrl.compile",
        description="Whether a run fits a TPU slice, and how fast it could be",
        allow_abbrev=False,
    )
    parser.add_argument("--topology", default="v5e:4x4", help="a TPU slice (v5e:4x4), or a number of GPUs (h100:8)")
    parser.add_argument("--model", default="", help="a folder with a config.json, or a published shape's name")
    parser.add_argument("--stage", default="", choices=("", "sft", "grpo"), help="only this one")
    parser.add_argument("--hlo", type=Path, help="a folder to write the compiled programs' text to")
    parser.add_argument("--json", type=Path, help="also write the result there")
    return parser.parse_known_args(arguments)


def main(arguments: list[str]) -> int:
    """The command: 0 if the run fits, 1 if it does not, 2 with one line on stderr for a mistake."""
    jax.config.update("jax_platforms", "cpu")
    try:
        options, rest = read_arguments(arguments)
        config = read_config(rest)
        config.model.path = options.model or config.model.path
        for settings in (config.model, config.mesh, config.rollout, config.batch, config.grpo.loss):
            settings.check()
        if options.json and not options.json.parent.is_dir():  # said before the compilation, not after it
            raise UserError(f"--json {options.json}: there is no folder {options.json.parent}")
        result = compile_config(config, find_topology(options.topology), options.stage, options.hlo)
    except (UserError, OSError, ValueError) as error:
        if os.environ.get("JAXRL_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(result, Console(width=None if sys.stdout.isatty() else 140))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["fits"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
