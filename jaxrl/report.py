"""What runs show: a page of one run, or of several side by side; and their table in Markdown.

    python -m jaxrl.report RUN                             RUN/report.html and RUN/report.md
    python -m jaxrl.report RUN RUN ... [--output FOLDER]   a row for each variant, into FOLDER (the folder they are in)

A RUN is the folder of a training run or of an evaluation (python -m jaxrl.evaluate). A page is one file, without
scripts, and needs no network.
"""

from __future__ import annotations

import argparse
import dataclasses
import html
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl import comparison, comparison_plots, episode_view
from jaxrl.files import write_beside
from jaxrl.page import COLOURS, html_table, legend, markdown_table, markdown_text, page, plain_axes, svg
from jaxrl.run_folder import Record, Run, read_run

WRITTEN = ("report.html", "report.md")
EPISODES = 20  # of a run that has a page of its own
EPISODES_COMPARED = 8  # of each of several runs
CURVES = (  # title, the metric's name, factor, stages
    ("Reward of sampled episodes", "reward/mean", 1, ("grpo",)),
    ("Solved, % of sampled episodes", "solved", 100, ("grpo",)),
    ("Loss", "loss", 1, ("sft", "grpo")),
    ("Entropy, nats a token", "entropy", 1, ("sft", "grpo")),
    ("Length, tokens an episode", "length/mean", 1, ("grpo",)),
    ("Turns an episode", "turns/mean", 1, ("grpo",)),
    ("Tool calls an episode", "calls/mean", 1, ("grpo",)),
    ("Failed, % of tool calls", "calls/failed", 100, ("grpo",)),
    ("Mismatch, max |log sampler / trainer|", "mismatch/max", 1, ("grpo",)),
)
PHASES = ("sample", "score", "train", "sync", "evaluate")
STAGE_COLOURS = {"sft": COLOURS[0], "grpo": COLOURS[1], "evaluate": COLOURS[2]}
_COLOURS = {
    "sample": COLOURS[0], "score": COLOURS[4], "train": COLOURS[2], "sync": COLOURS[6], "evaluate": COLOURS[3],
    "other": COLOURS[7],
}  # fmt: skip


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Writes report.html and report.md of a run into `output` (None: its own folder); returns the page's path.

    Raises FileNotFoundError if the folder holds no run, ValueError for a file of it that cannot be read.
    """
    run = read_run(folder)
    if run.evaluation is not None:
        return write_comparison([folder], output or folder)
    rows = comparison.make_rows([run])
    task_file = folder / "task.json"
    task = json.loads(task_file.read_text()) if task_file.is_file() else {}
    parts = [
        _head(run, task),
        "<h2>Learning curves</h2>",
        curves(run.records),
        "<h2>Stages</h2>",
        stages(run.records),
        *_scores_and_costs(rows, [run]),
        "<h2>Where the time went</h2>",
        wall_time(run.records),
        busy(run.records),
        "<h2>Episodes</h2>",
        _viewer([run], EPISODES),
        "<h2>Settings</h2>",
        f"<details><summary>config.json</summary><pre>{html.escape(json.dumps(run.config, indent=2))}</pre></details>",
    ]
    title = f"jaxrl: {run.name}"
    return _write(output or folder, title, parts, markdown(title, rows, [run]))


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Writes report.html and report.md of runs side by side; returns the page's path. Raises as write_report does."""
    places = [folder.resolve() for folder in folders]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise ValueError(f"{folders[i]} is given twice; each run counts once")
    runs = told_apart([read_run(folder) for folder in folders])
    rows = comparison.make_rows(runs)
    title = "jaxrl: " + (runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side")
    tasks = ", ".join(dict.fromkeys(map(_tasks, runs)))
    parts = [
        f"<h1>{html.escape(title.removeprefix('jaxrl: '))}</h1><p class=dim>{html.escape(tasks)}</p>",
        f"<p class=lead>{html.escape(comparison.headline(rows))}</p>",
        *_scores_and_costs(rows, runs),
        *_training(rows, runs),
        "<h2>Episodes</h2>",
        _viewer(runs, EPISODES_COMPARED),
        *(["<h2>Settings that differ</h2>", _differences(runs)] if len(runs) > 1 else []),
    ]
    return _write(output, title, parts, markdown(title, rows, runs))


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs; those of the same name get that of the folder which they are in before it."""
    names = Counter(run.name for run in runs)
    return [
        run
        if names[run.name] == 1
        else dataclasses.replace(
            run, config=run.config | {"label": run.label, "name": f"{run.folder.resolve().parent.name}/{run.name}"}
        )
        for run in runs
    ]


def _tasks(run: Run) -> str:
    own, tested = run.config["task"]["name"], comparison.evaluated_task(run)["name"]
    return f"task {own}" + (f" (evaluated on {tested})" if tested != own else "")


def _write(folder: Path, title: str, parts: Sequence[str], text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path, table = (folder / name for name in WRITTEN)
    write_beside(table, text)
    write_beside(path, page(title, parts, episode_view.STYLE))
    return path


def markdown(title: str, rows: Sequence[comparison.Row], runs: Sequence[Run]) -> str:
    """The headline, the table and its notes."""
    said = "\n".join(f"- {markdown_text(note)}" for note in comparison.notes(rows, runs))
    head = f"# {markdown_text(title)}\n\n{markdown_text(comparison.headline(rows))}\n\n"
    return f"{head}{markdown_table(*comparison.table(rows))}\n{said}\n"


def _scores_and_costs(rows: Sequence[comparison.Row], runs: Sequence[Run]) -> list[str]:
    """The table with its notes, the plot of score against cost, and the bars of training FLOPs."""
    if not rows:
        return []
    colours = comparison_plots.palette([row.label for row in rows])
    best = max(range(len(rows)), key=lambda i: rows[i].score) if len(rows) > 1 and any(r.score for r in rows) else -1
    said = "".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes(rows, runs))
    return [
        "<h2>Scores and what they cost</h2>",
        html_table(*comparison.table(rows), numbers=True, best=best),
        f"<ul class=dim>{said}</ul>",
        *(
            ["<h2>Score against inference FLOPs</h2>", comparison_plots.score_plot(rows, colours)]
            if len(rows) > 1
            else []
        ),
        "<h2>Training FLOPs</h2>",
        comparison_plots.training_bars(rows),
    ]


def _viewer(runs: Sequence[Run], count: int) -> str:
    choose, decoder = episode_view.choose_episodes, episode_view.run_decoder
    return episode_view.viewer([(r.name, choose(r.folder / "samples", count), decoder(r.folder)) for r in runs])


def _training(rows: Sequence[comparison.Row], runs: Sequence[Run]) -> list[str]:
    """Curves of the runs with a GRPO stage, and what training took where it was measured."""
    parts = []
    if any(run.stage("grpo") for run in runs):
        colours = comparison_plots.palette([*(row.label for row in rows), *(run.label for run in runs)])
        parts += [
            "<h2>Does the model learn to reason for longer?</h2>",
            f"<p>{html.escape(comparison_plots.longer(runs))}</p>",
            comparison_plots.training_curves(runs, colours),
            "<p class=dim>Means over the first tenth of the steps → over the last tenth:</p>",
            html_table(*comparison_plots.change(runs), numbers=True),
        ]
    if any(run.records for run in runs):
        parts += ["<h2>Where it ran</h2>", _measured(runs)]
    return parts


def _differences(runs: Sequence[Run]) -> str:
    different = comparison.differences(runs)
    rows = [[name, *map(json.dumps, values)] for name, values in different.items() if None not in values]
    missing = len(different) - len(rows)
    said = (
        f"<p class=dim>Left out: {missing} settings that runs of an older version do not have.</p>" if missing else ""
    )
    return (
        html_table(["setting", *(run.name for run in runs)], rows) + said if rows else f"<p class=dim>None.</p>{said}"
    )


def _measured(runs: Sequence[Run]) -> str:
    """Device-seconds, tokens a second and MFU of each training run, as measured."""
    header = ["run", "devices", "peak FLOP/s", "steps", "device-seconds", "tokens/s", "MFU"]
    rows = []
    for run in runs:
        steps = [r for r in run.records if r["stage"] in ("sft", "grpo")]
        if not steps:
            continue
        devices = run.devices or {}
        seconds = sum(r["time/step_s"] for r in steps)
        rows.append(
            [
                run.name,
                f"{devices['count']} × {devices['kind']}" if devices else "not known",
                f"{devices['peak_flops']:.2e} ({devices['peak']})" if devices else "not known",
                f"{len(steps):,}",
                f"{seconds * devices['count']:,.0f}" if devices else "not known",
                _median(steps, "time/tokens_per_s", "{:,.0f}"),
                _median(steps, "time/mfu", "{:.1%}"),
            ]
        )
    said = (
        "<p class=dim>Device-seconds: wall time of all steps, evaluations aside, times the devices. Tokens a second "
        "and MFU (the share of the devices' peak that the updates reached) are medians over the steps. A peak is "
        "published by the device's maker, or measured with a large matrix product.</p>"
    )
    return html_table(header, rows, numbers=True) + said if rows else "<p class=dim>No training run.</p>"


def _median(records: Sequence[Record], name: str, form: str) -> str:
    values = [r[name] for r in records if _number(r.get(name))]
    return form.format(float(np.median(values))) if values else "not known"


def _head(run: Run, task: Record) -> str:
    config, model = run.config, run.config["model"]
    name = model["path"] or "{num_hidden_layers} layers x {hidden_size}, random start".format(**model["shape"])
    scores = run.stage("evaluate")
    numbers = "".join(
        f"<span class=big>{r['held_out/pass@1']:.1%}<small>held-out pass@1, {html.escape(_moment(r))}</small></span>"
        for r in _stage_ends(scores)
    )
    rejected = task.get("rejected") or {}
    counts = ", ".join(f"{html.escape(reason)}: {n}" for reason, n in rejected.items())
    return (
        f"<h1>{html.escape(config['name'])}</h1><p class=dim>{html.escape(_tasks(run))}, model "
        f"{html.escape(name)}, seed {config['seed']}{'; problems rejected: ' + counts if counts else ''}</p>"
        f"<p>{numbers}</p>"
    )


def _moment(record: Record) -> str:
    return "at the start" if record["after"] == "start" else f"after {record['after'].upper()}"


def _stage_ends(scores: Sequence[Record]) -> list[Record]:
    """The last evaluation of the start and of each stage."""
    return list({r["after"]: r for r in scores}.values())


def curves(records: Sequence[Record]) -> str:
    """Plots of the held-out score and the metrics of training over the steps of the run."""
    boundary = max((r["step"] for r in records if r["stage"] == "sft"), default=0)
    plots = [_curve(records, "Held-out pass@1, %", comparison.SCORE, 100, ("evaluate",), boundary)]
    for title, name, factor, names in CURVES:
        if any(_number(r.get(name)) for r in records if r["stage"] in names):
            plots.append(_curve(records, title, name, factor, names, boundary))
    trained = [stage for stage in ("sft", "grpo") if any(r["stage"] == stage for r in records)]
    key = legend([stage.upper() for stage in trained], [STAGE_COLOURS[stage] for stage in trained])
    end = "<p class=dim>Dotted: the end of SFT.</p>" if len(trained) > 1 else ""
    return f"{key}<div class=plots>{''.join(plots)}</div>{end}"


def _curve(records: Sequence[Record], title: str, name: str, factor: float, names: Sequence[str], boundary: int) -> str:
    figure, axis = plain_axes(4.6, 2.6, title)
    for stage in names:
        points = [(r["step"], factor * r[name]) for r in records if r["stage"] == stage and _number(r.get(name))]
        if points:
            marks = "o-" if stage == "evaluate" else "-"
            axis.plot(*zip(*points), marks, color=STAGE_COLOURS[stage], linewidth=1.1, markersize=4)
    if factor == 100:
        axis.set_ylim(0, 100)
    elif name.startswith(("length/", "turns/", "calls/")):
        axis.set_ylim(bottom=0)
    if boundary:
        axis.axvline(boundary, color="#7f7f7f", linewidth=0.9, linestyle=":")
    return f"<div>{svg(figure)}</div>"


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
    return html_table(header, rows)


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
    return f"<div class=bar>{bar}</div>{html_table(['phase', 'time', 'share'], rows)}"


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
    return f"<p class=dim>At work during {total:,.1f} s of GRPO steps:</p>{html_table(['part', 'busy', 'share'], rows)}"


def main(arguments: Sequence[str]) -> int:
    """Writes the report of the runs given and prints where; 2 with a line on stderr if there is none."""
    parser = argparse.ArgumentParser(prog="python -m jaxrl.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="*", help="folder of a training run or an evaluation")
    parser.add_argument("--output", type=Path, help="folder for report.html and report.md")
    options = parser.parse_args(arguments)
    # The second `jaxrl.report runs/study/*` is given what the first has written there.
    folders: list[Path] = [path for path in options.runs if path.name not in WRITTEN]
    if not folders:
        print("usage: python -m jaxrl.report RUN [RUN ...] [--output FOLDER]", file=sys.stderr)
        return 2
    try:
        if len(folders) == 1:
            print(write_report(folders[0], options.output))
        else:
            common = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
            print(write_comparison(folders, options.output or common))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
