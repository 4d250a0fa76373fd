"""`python -m jaxrl.report RUN`: one self-contained page of a run: curves, stages, episodes, where the time went."""

from __future__ import annotations

import html
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrl.files import write_beside
from jaxrl.metrics import read_metrics

Record = dict[str, Any]
EPISODES = 20
CURVES = (  # title, the metric's name, factor, stages
    ("Reward of sampled episodes", "reward/mean", 1, ("grpo",)),
    ("Solved, % of sampled episodes", "solved", 100, ("grpo",)),
    ("Loss", "loss", 1, ("sft", "grpo")),
    ("Entropy, nats a token", "entropy", 1, ("sft", "grpo")),
    ("Length, tokens an episode", "length/mean", 1, ("grpo",)),
    ("Mismatch, max |log sampler / trainer|", "mismatch/max", 1, ("grpo",)),
)
PHASES = ("sample", "score", "train", "sync", "evaluate")

_STYLE = """
:root { --fg: #1c2430; --dim: #667085; --line: #e3e7ee; --bg: #fff; --card: #f7f8fb; --good: #12805c; --bad: #b42318; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg);
       max-width: 1100px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem } .dim { color: var(--dim) }
table { border-collapse: collapse; width: 100% } th { text-align: left; color: var(--dim); font-weight: 500 }
td, th { padding: .4rem .7rem .4rem 0; border-bottom: 1px solid var(--line) } td { font-variant-numeric: tabular-nums }
.big { font-size: 2.1rem; font-weight: 650; margin-right: 2.5rem; display: inline-block }
.big small { display: block; font-size: .8rem; font-weight: 400; color: var(--dim) }
svg { width: 100%; height: auto }
.bar { display: flex; height: 22px; border-radius: 5px; overflow: hidden; margin: .8rem 0 }
.episode { border: 1px solid var(--line); border-radius: 9px; margin: .8rem 0; padding: .8rem 1rem;
  background: var(--card) }
pre { margin: .5rem 0 0; font: 13px/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.passed { color: var(--good); font-weight: 600 } .failed { color: var(--bad); font-weight: 600 }
@media (prefers-color-scheme: dark) {
  :root { --fg: #e6e9ef; --dim: #98a2b3; --line: #2b3340; --bg: #12161d; --card: #1a2029;
  --good: #3ccb95; --bad: #f97066 } img, svg { filter: invert(.88) hue-rotate(180deg) } }
"""
_COLOURS = {
    "sample": "#3b7ddd",
    "score": "#e8963a",
    "train": "#3aa676",
    "sync": "#8e6bd1",
    "evaluate": "#d45f8c",
    "other": "#98a2b3",
}


def write_report(folder: Path) -> Path:
    """Writes FOLDER/report.html and returns its path. Raises FileNotFoundError if the folder holds no run."""
    for name in ("config.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist; give the folder of a run, runs/NAME")
    config, records = json.loads((folder / "config.json").read_text()), read_metrics(folder / "metrics.jsonl")
    task_file = folder / "task.json"
    task = json.loads(task_file.read_text()) if task_file.is_file() else {}
    parts = [
        _head(config, task, records),
        "<h2>Learning curves</h2>",
        curves(records),
        "<h2>Stages</h2>",
        stages(records),
        "<h2>Where the time went</h2>",
        wall_time(records),
        busy(records),
        "<h2>Episodes</h2>",
        *map(_episode, choose_episodes(folder / "samples")),
        "<h2>Settings</h2>",
        f"<details><summary>config.json</summary><pre>{html.escape(json.dumps(config, indent=2))}</pre></details>",
    ]
    title = html.escape(f"jaxrl: {config['name']}")
    page = (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{title}</title>"
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )
    path = folder / "report.html"
    write_beside(path, page)
    return path


def _head(config: Record, task: Record, records: Sequence[Record]) -> str:
    model = config["model"]
    name = model["path"] or "{num_hidden_layers} layers x {hidden_size}, random start".format(**model["shape"])
    scores = [r for r in records if r["stage"] == "evaluate"]
    numbers = "".join(
        f"<span class=big>{r['held_out/pass@1']:.1%}<small>held-out pass@1, {html.escape(_moment(r))}</small></span>"
        for r in _stage_ends(scores)
    )
    rejected = task.get("rejected") or {}
    counts = ", ".join(f"{html.escape(reason)}: {n}" for reason, n in rejected.items())
    return (
        f"<h1>{html.escape(config['name'])}</h1><p class=dim>task {html.escape(config['task']['name'])}, model "
        f"{html.escape(name)}, seed {config['seed']}{'; problems rejected: ' + counts if counts else ''}</p>"
        f"<p>{numbers}</p>"
    )


def _moment(record: Record) -> str:
    return "at the start" if record["after"] == "start" else f"after {record['after'].upper()}"


def _stage_ends(scores: Sequence[Record]) -> list[Record]:
    """The last evaluation of the start and of each stage."""
    return list({r["after"]: r for r in scores}.values())


def curves(records: Sequence[Record]) -> str:
    """Inline SVG of the learning curves and the held-out score over the steps of the run."""
    from matplotlib.figure import Figure

    scores = [r for r in records if r["stage"] == "evaluate"]
    shown = [c for c in CURVES if any(c[1] in r for r in records)]
    rows = -(-(len(shown) + 1) // 2)
    figure = Figure(figsize=(11, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for axis in axes[len(shown) + 1 :]:
        axis.set_axis_off()
    axes[0].plot([r["step"] for r in scores], [100 * r["held_out/pass@1"] for r in scores], "o-", color="#12805c")
    axes[0].set_title("Held-out pass@1, %", loc="left", fontsize=10)
    axes[0].set_ylim(0, 100)
    for axis, (title, name, factor, stages_shown) in zip(axes[1:], shown):
        for stage, colour in zip(stages_shown, ("#3b7ddd", "#e8963a") if len(stages_shown) > 1 else ("#e8963a",)):
            points = [(r["step"], factor * r[name]) for r in records if r["stage"] == stage and _number(r.get(name))]
            if points:
                axis.plot(*zip(*points), color=colour, linewidth=1, label=stage.upper())
        if len(stages_shown) > 1:
            axis.legend(frameon=False, fontsize=8)
        axis.set_title(title, loc="left", fontsize=10)
    boundary = max((r["step"] for r in records if r["stage"] == "sft"), default=0)
    for axis in axes[: len(shown) + 1]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("step", fontsize=8)
        if boundary:
            axis.axvline(boundary, color="#98a2b3", linewidth=0.8, linestyle=":")
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float))


def stages(records: Sequence[Record]) -> str:
    """The table of stages: score before and after, what it cost."""
    scores = _stage_ends([r for r in records if r["stage"] == "evaluate"])
    rows = []
    for stage in ("sft", "grpo"):
        steps = [r for r in records if r["stage"] == stage]
        if not steps:
            continue
        after = next((r for r in scores if r["after"] == stage), None)
        before = scores[scores.index(after) - 1] if after and scores.index(after) else None
        rows.append(
            [
                stage.upper(),
                f"{len(steps):,}",
                f"{before['held_out/pass@1']:.1%}" if before else "",
                f"{after['held_out/pass@1']:.1%}" if after else "",
                f"{sum(r['time/step_s'] for r in steps):,.0f} s",
                f"{sum(r.get('flops', 0) for r in steps):.2e}",
                f"{sum(r.get('tokens', 0) for r in steps):,.0f}",
            ]
        )
    header = ["stage", "steps", "pass@1 before", "pass@1 after", "time", "training FLOPs", "tokens in the loss"]
    return _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def wall_time(records: Sequence[Record]) -> str:
    """The run's wall time by phase, as a bar and a table. SFT steps are all training."""
    seconds: dict[str, float] = {phase: sum(r.get(f"time/{phase}_s", 0.0) for r in records) for phase in PHASES}
    seconds["train"] += sum(r["time/step_s"] for r in records if r["stage"] == "sft")
    grpo = [r for r in records if r["stage"] == "grpo"]
    inside = sum(r.get(f"time/{phase}_s", 0.0) for r in grpo for phase in PHASES)
    seconds["other"] = max(0.0, sum(r["time/step_s"] for r in grpo) - inside)
    total = sum(seconds.values()) or 1.0
    bar = "".join(
        f"<div title='{phase}' style='width:{100 * s / total:.2f}%;background:{_COLOURS[phase]}'></div>"
        for phase, s in seconds.items()
    )
    rows = [[phase, f"{s:,.1f} s", f"{s / total:.1%}"] for phase, s in seconds.items()]
    return f"<div class=bar>{bar}</div>{_table(['phase', 'time', 'share'], rows)}"


def busy(records: Sequence[Record]) -> str:
    """How much of the GRPO steps' time sampler, sandbox and trainer were at work; over 100% in all if they overlap."""
    steps = [r for r in records if r["stage"] == "grpo" and "time/busy_trainer_s" in r]
    total = sum(r["time/step_s"] for r in steps)
    if not total:
        return ""
    rows = []
    for part in ("sampler", "sandbox", "trainer"):
        seconds = sum(r[f"time/busy_{part}_s"] for r in steps)
        rows.append([part, f"{seconds:,.1f} s", f"{seconds / total:.1%}"])
    return f"<p class=dim>At work during {total:,.1f} s of GRPO steps:</p>{_table(['part', 'busy', 'share'], rows)}"


def choose_episodes(folder: Path) -> list[Record]:
    """EPISODES sampled episodes spread over training, solved and unsolved by turns, of as many problems as there are.

    No episode is chosen twice. A run that kept no training episodes shows those of its evaluations.
    """
    files = sorted(folder.glob("[0-9]*.jsonl")) or sorted(folder.glob("*.jsonl"))
    if not files:
        return []
    chosen: list[Record] = []
    for i in range(EPISODES):
        path = files[round(i * (len(files) - 1) / (EPISODES - 1))]
        episodes = [json.loads(line) for line in path.read_text().splitlines()]
        prompts = {c["prompt"] for c in chosen}
        fresh = sorted(
            (e for e in episodes if e not in chosen),
            key=lambda e: (e["prompt"] in prompts, bool(e["solved"]) != (i % 2 == 0)),
        )
        chosen += fresh[:1]
    return chosen


def _episode(episode: Record) -> str:
    verdict = episode.get("verdict") or {}
    status = str(verdict.get("status") or episode["status"])
    message = next((t["message"] for t in verdict.get("tests", ()) if t["status"] != "passed"), "")
    parts = ", ".join(f"{name} {value:.3g}" for name, value in episode["parts"].items())
    return (
        f"<div class=episode><span class=dim>step {episode['step']}, {html.escape(str(episode['problem']))}, "
        f"{episode['tokens']} tokens</span><br>{html.escape(episode['prompt'])}"
        f"<pre>{html.escape(episode['text'])}</pre>"
        f"<p><span class={'passed' if episode['solved'] else 'failed'}>{html.escape(status)}</span> "
        f"<span class=dim>{html.escape(message)}</span><br>reward {episode['reward']:.3g} "
        f"<span class=dim>({html.escape(parts)})</span></p></div>"
    )


def main(arguments: Sequence[str]) -> int:
    """Writes the report of each run given; 2 with a line on stderr if there is none."""
    if not arguments:
        print("usage: python -m jaxrl.report RUN [RUN ...]", file=sys.stderr)
        return 2
    try:
        for name in arguments:
            print(write_report(Path(name)))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
