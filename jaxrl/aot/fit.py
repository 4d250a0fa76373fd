"""What a run needs on a topology: the memory of each stage, and the time of its step, compiled from shapes alone."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxrl.aot.hlo import collectives, hbm_bytes
from jaxrl.aot.program import Program, Stage, bytes_per_device
from jaxrl.aot.roofline import by_kind, memory_of, times_of
from jaxrl.aot.topology import Topology
from jaxrl.aot.training import model_of, stages, teacher_of
from jaxrl.config import Config
from jaxrl.costs.flops import parameters
from jaxrl.costs.mesh import choose_mesh, load_of, local_count
from jaxrl.errors import UserError
from models.sharding import MESH_AXES

RESERVED = 0.02  # share of a chip's HBM that its runtime keeps (v5e: executables get 15.75 of 16 GiB)


def compile_config(
    config: Config,
    topology: Topology,
    only: str = "",
    hlo: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Compiles every stage of the config (or `only` one) for the topology, and says how far it is. Raises UserError."""
    model = model_of(config)
    if topology.platform == "cuda" and config.model.compute_dtype == "auto":
        config.model.compute_dtype = "bfloat16"  # CPU devices stand for the GPUs
    try:
        local, hbm = local_count(topology.devices), topology.chip.hbm_bytes
        load = load_of(config, local, teacher_of(config))
        sizes = choose_mesh(model, len(topology.devices), load, hbm, config.mesh.sizes, local or None)
    except ValueError as error:
        raise UserError(str(error)) from None
    compiled = []
    for stage in stages(config, model, topology.mesh(sizes)):
        if only in ("", stage.name):
            tpu = topology.platform == "tpu"
            compiled.append(compile_stage(stage, topology, hlo, say) if tpu else lower_stage(stage, topology))
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
        "row_length": load.row_length,
        "stages": compiled,
        "fits": all(stage["fits"] for stage in compiled),
        "jax": jax.__version__,
    }


def compile_stage(
    stage: Stage, topology: Topology, hlo: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """All programs of a stage compiled; its memory, the time of a step and the MFU of its updates."""
    programs = []
    for number, program in enumerate(stage.programs, 1):
        say(f"{stage.name}: compiling {program.name} ({number} of {len(stage.programs)})")
        programs.append(compile_program(program, topology, hlo and hlo / stage.name))
    resident = {name: bytes_per_device(tree) for name, tree in stage.resident.items()}
    compiled = [p for p in programs if "error" not in p]
    phases = phases_of(stage, sum(resident.values()), compiled)
    available = topology.chip.hbm_bytes * (1 - RESERVED)
    result: dict[str, Any] = {
        "stage": stage.name,
        "programs": programs,
        "resident": resident,
        "gathered": bytes_per_device(stage.gathered),
        "hbm": topology.chip.hbm_bytes,
        "fits": len(compiled) == len(programs) and all(size <= available for size in phases.values()),
        "compile_s": sum(p["compile_s"] for p in programs),
    }
    if len(compiled) == len(programs):
        result |= {"needed": max(phases.values()), "largest_phase": max(phases, key=lambda name: phases[name])}
        result["step"] = _step(stage, compiled, topology)
    return result


def lower_stage(stage: Stage, topology: Topology) -> dict[str, Any]:
    """The stage's programs lowered, not compiled, for the topology's platform, and what stays in memory."""
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


def compile_program(program: Program, topology: Topology, hlo: Path | None = None) -> dict[str, Any]:
    """Bytes per device and seconds of one program; only an "error" where the compiler finds it too large."""
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


def phases_of(stage: Stage, kept: float, programs: list[dict[str, Any]]) -> dict[str, float]:
    """Bytes per device while each program runs, including what is `kept` all the time.

    Where the sampler works ahead, each program of the trainer may coincide with the sampler's largest. Parameters are
    gathered for the sampler between two updates; where it works ahead, the gathered ones are what is published.
    """
    own = {p["name"]: p["memory"]["total"] - p["memory"]["resident"] for p in programs}
    sampler = {p.name for p in stage.programs if p.sampler} & own.keys()
    if stage.gathered is not None and not stage.ahead:
        own["weights for the sampler"] = bytes_per_device(stage.gathered)
    if not stage.ahead or not sampler:
        return {name: kept + size for name, size in own.items()}
    beside = max(sampler, key=lambda name: own[name])
    return {f"{name} beside {beside}": kept + own[name] + own[beside] for name in own if name not in sampler}


def _step(stage: Stage, programs: list[dict[str, Any]], topology: Topology) -> dict[str, Any]:
    """Time and MFU of a step whose episodes all have the maximal length."""
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


def too_large(message: str) -> str:
    """One line of the compiler's out-of-memory message, with the sizes that it names."""
    for pattern in (r"required for HLO \w+ \(([0-9.]+\w)\) exceeds available HBM \(([0-9.]+\w)\)",
                    r"Used ([0-9.]+\w) of ([0-9.]+\w)"):  # fmt: skip
        used = re.search(pattern, message)
        if used:
            return f"the compiler needs {used.group(1)} of {used.group(2)}"
    return re.sub(r"\s+", " ", message).strip()[:200]
