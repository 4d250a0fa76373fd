"""The pages of runs: of one, or of several side by side; and their table in Markdown."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.errors import UserError
from jaxrl.files import write_beside
from jaxrl.reports import comparison, episodes, plots
from jaxrl.reports.page import COLOURS, markdown_table, markdown_text, render, score_text
from jaxrl.reports.run_folder import Record, Run, is_share, metric, read_run, score_name, stage_names, stage_title

Table = tuple[list[str], list[list[str]]]  # header and rows
WRITTEN = ("report.html", "report.md")
EPISODES = 20  # of a run that has a page of its own
EPISODES_COMPARED = 8  # of each of several runs
PHASES = {"sample": 0, "score": 4, "train": 2, "sync": 6, "evaluate": 3, "other": 7}  # and their colours


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Writes report.html and report.md of a run into `output` (None: its own folder); returns the page's path.

    Raises FileNotFoundError if the folder holds no run, UserError for a file of it that cannot be read.
    """
    run = read_run(folder)
    if run.evaluation is not None:
        return write_comparison([folder], output or folder)
    rows = comparison.make_rows([run])
    title = f"jaxrl: {run.name}"
    page = render(
        "run.html",
        title=title,
        run=run,
        about=_about(run),
        headline=[(_score(r), metric([r]), _moment(r)) for r in _stage_ends(run)],
        curves=plots.run_curves(run),
        stages=stages(run),
        slices=comparison.slices([(_moment(r), [r]) for r in _stage_ends(run)]),
        scores=_scores_and_costs(rows, [run]),
        wall_time=wall_time(run),
        busy=busy(run),
        ages=ages(run),
        episodes=_viewer([run], EPISODES),
        settings=json.dumps(run.config, indent=2),
    )
    return _write(output or folder, page, markdown(title, rows, [run]))


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Writes report.html and report.md of runs side by side; returns the page's path. Raises as write_report does."""
    places = [folder.resolve() for folder in folders]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise UserError(f"{folders[i]} is given twice; each run counts once")
    runs = with_distinct_names([read_run(folder) for folder in folders])
    rows = comparison.make_rows(runs)
    heading = runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side"
    page = render(
        "comparison.html",
        title=f"jaxrl: {heading}",
        heading=heading,
        tasks=", ".join(dict.fromkeys(map(_tasks, runs))),
        headline=comparison.headline(rows),
        scores=_scores_and_costs(rows, runs),
        slices=comparison.slices([(row.label, [e.record for e in row.entries]) for row in rows]),
        samples=plots.samples_curves(rows),
        training=plots.training_curves(runs, rows) if any(run.sampled for run in runs) else None,
        measured=measured(runs) if any(run.records for run in runs) else None,
        episodes=_viewer(runs, EPISODES_COMPARED),
        different=_differences(runs) if len(runs) > 1 else None,
    )
    return _write(output, page, markdown(f"jaxrl: {heading}", rows, runs))


def with_distinct_names(runs: Sequence[Run]) -> list[Run]:
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


def _write(folder: Path, page: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path, table = (folder / name for name in WRITTEN)
    write_beside(table, text)
    write_beside(path, page)
    return path


def markdown(title: str, rows: Sequence[comparison.Row], runs: Sequence[Run]) -> str:
    """The headline, the table and its notes."""
    notes = "\n".join(f"- {markdown_text(note)}" for note in comparison.notes(rows, runs))
    head = f"# {markdown_text(title)}\n\n{markdown_text(comparison.headline(rows))}\n\n"
    return f"{head}{markdown_table(*comparison.table(rows))}\n{notes}\n"


def _scores_and_costs(rows: Sequence[comparison.Row], runs: Sequence[Run]) -> dict[str, Any] | None:
    """The table with its notes, the plot of score against cost, and the bars of training FLOPs."""
    if not rows:
        return None
    several = len(rows) > 1
    return {
        "table": comparison.table(rows),
        "best": max(range(len(rows)), key=lambda i: rows[i].score) if several and any(r.score for r in rows) else -1,
        "notes": comparison.notes(rows, runs),
        "plot": plots.score_plot(rows) if several else None,
        "training": plots.training_bars(rows),
    }


def _viewer(runs: Sequence[Run], count: int) -> dict[str, Any]:
    choose, decoder = episodes.choose_episodes, episodes.run_decoder
    return episodes.viewer([(r.name, choose(r.folder / "samples", count), decoder(r.folder)) for r in runs])


def _differences(runs: Sequence[Run]) -> dict[str, Any]:
    different = comparison.differences(runs)
    rows = [[name, *map(json.dumps, values)] for name, values in different.items() if None not in values]
    return {"table": (["setting", *(run.name for run in runs)], rows), "missing": len(different) - len(rows)}


def measured(runs: Sequence[Run]) -> Table:
    """Device-seconds, tokens a second and MFU of each training run, as measured."""
    header = ["run", "devices", "peak FLOP/s", "steps", "device-seconds", "tokens/s", "MFU"]
    rows = []
    for run in runs:
        steps, devices = run.steps, run.devices
        kind, peak, cost = ["not known"] * 3
        if devices:
            kind, peak = f"{devices['count']} × {devices['kind']}", f"{devices['peak_flops']:.2e} ({devices['peak']})"
            cost = f"{sum(r['time/step_s'] for r in steps) * devices['count']:,.0f}"
        speed, mfu = _median(steps, "time/tokens_per_s", "{:,.0f}"), _median(steps, "time/mfu", "{:.1%}")
        rows += [[run.name, kind, peak, f"{len(steps):,}", cost, speed, mfu]] if steps else []
    return header, rows


def _median(records: Sequence[Record], name: str, form: str) -> str:
    values = [r[name] for r in records if isinstance(r.get(name), (int, float))]
    return form.format(float(np.median(values))) if values else "not known"


def _about(run: Run) -> str:
    model, task_file = run.config["model"], run.folder / "task.json"
    task = json.loads(task_file.read_text()) if task_file.is_file() else {}
    name = model["path"] or "{num_hidden_layers} layers x {hidden_size}, random start".format(**model["shape"])
    counts = ", ".join(f"{reason}: {n}" for reason, n in (task.get("rejected") or {}).items())
    rejected = f"; problems rejected: {counts}" if counts else ""
    return f"{_tasks(run)}, model {name}, seed {run.config['seed']}{rejected}"


def _score(record: Record) -> str:
    return score_text(record[score_name(record)], is_share([record]))


def _moment(record: Record) -> str:
    return "at the start" if record["after"] == "start" else f"after {stage_title(record['after'])}"


def _stage_ends(run: Run) -> list[Record]:
    """The last evaluation of the start and of each stage."""
    return list({r["after"]: r for r in run.evaluations}.values())


def stages(run: Run) -> Table:
    """The table of stages: score before and after, what it cost."""
    scores, name = _stage_ends(run), metric(run.evaluations)
    rows = []
    for stage, steps in run.stages().items():
        after = next((i for i, r in enumerate(scores) if r["after"] == stage), -1)
        shown = [_score(scores[i]) if i >= 0 else "" for i in (after - 1, after)]
        time, flops, tokens = (sum(r.get(key, 0) for r in steps) for key in ("time/step_s", "flops", "tokens"))
        rows.append([stage_title(stage), f"{len(steps):,}", *shown, f"{time:,.0f} s", f"{flops:.2e}", f"{tokens:,.0f}"])
    header = ["stage", "steps", f"{name} before", f"{name} after", "time", "training FLOPs", "tokens in the loss"]
    return header, rows


def wall_time(run: Run) -> dict[str, Any]:
    """The run's wall time by phase, as a bar and a table. Steps without phases are all training."""
    seconds = {phase: float(sum(r.get(f"time/{phase}_s", 0) for r in run.records)) for phase in PHASES}
    for step in run.steps:
        times = [step[f"time/{phase}_s"] for phase in PHASES if f"time/{phase}_s" in step]
        seconds["other" if times else "train"] += step["time/step_s"] - sum(times)
    seconds["other"] = max(0.0, seconds["other"])
    total = sum(seconds.values()) or 1.0
    rows = [[phase, f"{s:,.1f} s", f"{s / total:.1%}"] for phase, s in seconds.items()]
    bar = [(phase, s / total, COLOURS[PHASES[phase]]) for phase, s in seconds.items()]
    return {"bar": bar, "table": (["phase", "time", "share"], rows)}


def busy(run: Run) -> dict[str, Any] | None:
    """How much of the steps' time sampler, sandbox and trainer were at work; over 100% in all if they overlap."""
    steps = [r for r in run.steps if "time/busy_trainer_s" in r]
    total = sum(r["time/step_s"] for r in steps)
    if not total:
        return None
    rows = []
    parts = {part: sum(r[f"time/busy_{part}_s"] for r in steps) for part in ("sampler", "sandbox", "trainer")}
    parts["sampler and trainer, one after another"] = parts["sampler"] + parts["trainer"]
    for part, seconds in parts.items():
        rows.append([part, f"{seconds:,.1f} s", f"{seconds / total:.1%}"])
    return {"during": f"{total:,.1f} s of {stage_names(steps)} steps", "table": (["part", "busy", "share"], rows)}


def ages(run: Run) -> Table | None:
    """How many versions old the sampled tokens were when they were trained on, as shares of all tokens."""
    steps = [r for r in run.steps if "staleness/0" in r]
    tokens = sum(r["tokens"] for r in steps)
    if not tokens:
        return None
    found = sorted({int(age) for r in steps for name in r if (age := name.removeprefix("staleness/")).isdigit()})
    shares = [sum(r.get(f"staleness/{age}", 0.0) * r["tokens"] for r in steps) / tokens for age in found]
    return ["versions old", "tokens"], [[str(age), f"{share:.1%}"] for age, share in zip(found, shares)]
