"""The result of fit.compile_config as tables in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

GiB = 2**30


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
