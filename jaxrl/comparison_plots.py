"""Plots of runs side by side: score against what an answer costs, training FLOPs, curves over training."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from jaxrl.comparison import SCORE, Row, mean, pareto_front
from jaxrl.page import COLOURS, DIM, INK, legend, plain_axes, short, svg
from jaxrl.run_folder import Record, Run

SMOOTH = 9  # steps of the moving mean
PRETRAINING_SHOWN = 20  # times the rest of the longest bar at most, or it would leave nothing else to see
CURVES = (  # title, the metric's name, factor
    ("Solved, % of sampled episodes", "solved", 100),
    ("Length, sampled tokens an episode", "length/mean", 1),
    ("Length of solved episodes, tokens", "length/solved", 1),
    ("Length of unsolved episodes, tokens", "length/unsolved", 1),
    ("Turns an episode", "turns/mean", 1),
    ("Tool calls an episode", "calls/mean", 1),
    ("Failed, % of tool calls", "calls/failed", 100),
)
PARTS = {
    "pretraining": ("pretraining", COLOURS[7]),
    "sft": ("SFT", COLOURS[0]),
    "sampling": ("GRPO: sampling", COLOURS[4]),
    "logprobs": ("GRPO: logprobs", COLOURS[3]),
    "update": ("GRPO: updates", COLOURS[2]),
}


def palette(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label, the same in all plots of a page."""
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(dict.fromkeys(labels))}


def score_plot(rows: Sequence[Row], colours: Mapping[str, str]) -> str:
    """Score, with its interval, against operations a question; the Pareto front; a name at each point."""
    shown = [row for row in rows if row.flops]
    left_out = [row.label for row in rows if not row.flops]
    said = f"Left out, FLOPs a question not known: {', '.join(left_out)}." if left_out else ""
    if not shown:
        return f"<p class=dim>{html.escape(said)}</p>"
    figure, axis = plain_axes(7.6, 4.6, "pass@1, %")
    points = [(float(row.flops or 0), 100 * row.score) for row in shown]
    front = [points[i] for i in pareto_front(points)]
    axis.plot(*zip(*front), drawstyle="steps-post", color=DIM, linewidth=1.2, linestyle="--", zorder=2)
    for row, (x, y) in zip(shown, points):
        if row.low is not None and row.high is not None:
            axis.plot([x, x], [100 * row.low, 100 * row.high], color=colours[row.label], linewidth=1.6, zorder=3)
        axis.plot([x], [y], "o", color=colours[row.label], markersize=8, zorder=4)
    axis.set_xscale("log")
    axis.margins(x=0.22)
    low, high = axis.get_ylim()
    low, high = max(-3.0, low), min(103.0, high)
    axis.set_ylim(low, max(high, low + 10))
    if axis.get_xlim()[1] / axis.get_xlim()[0] < 4:
        middle = float(np.sqrt(np.prod(axis.get_xlim())))
        axis.set_xlim(middle / 2.5, middle * 2.5)
    axis.set_xlabel("inference FLOPs a question (log scale)", fontsize=9, color=DIM)
    write_names(figure, axis, points, shown, front)
    note = f"Bars: 95% intervals. Dashed: the Pareto front, which no variant beats in both. {said}"
    return f"<div class=plot>{svg(figure)}</div><p class=dim>{html.escape(note)}</p>"


def write_names(
    figure: Figure,
    axis: Any,
    points: Sequence[tuple[float, float]],
    rows: Sequence[Row],
    front: Sequence[tuple[float, float]],
) -> None:
    """Writes each row's label beside its point, where it covers no other label, no point, bar or step of the front."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")  # the axis stays where it is measured now
    taken = []
    for row, (x, y) in zip(rows, points):
        px, py = axis.transData.transform((x, y))
        ends = [axis.transData.transform((x, 100 * v))[1] for v in (row.low, row.high) if v is not None] or [py]
        taken += [Bbox([[px - 6, py - 6], [px + 6, py + 6]]), Bbox([[px - 2, min(ends)], [px + 2, max(ends)]])]
    steps = axis.transData.transform(front)
    for (x0, y0), (x1, y1) in pairwise(steps):
        taken += [Bbox([[x0, y0 - 1], [x1, y0 + 1]]), Bbox([[x1 - 1, y0], [x1 + 1, y1]])]
    names = [axis.annotate(row.label, point, (0, 0), textcoords="offset points", fontsize=9.5, color=INK, va="bottom",
                           parse_math=False)
             for row, point in zip(rows, points)]  # fmt: skip
    renderer = canvas.get_renderer()
    boxes = [name.get_window_extent(renderer) for name in names]
    places = label_places([(b.x0, b.y0, b.width, b.height) for b in boxes], taken, axis.get_window_extent(renderer))
    for name, (dx, dy) in zip(names, places):
        name.set_position((dx, dy))


def label_places(
    texts: Sequence[tuple[float, float, float, float]], taken: Sequence[Bbox], frame: Bbox
) -> list[tuple[float, float]]:
    """How far to move each text (x, y of its point, width, height; pixels) so that it covers nothing, near its point.

    Where there is no free place inside the frame, the one that covers the fewest things.
    """
    placed: list[Bbox] = []
    moves: list[tuple[float, float]] = []
    for x, y, width, height in texts:
        sides = (10.0, -10.0 - width)
        heights = [-height / 2 + sign * 6.0 * i for i in range(20) for sign in (1, -1)]
        ranked = []
        for order, (dx, dy) in enumerate((dx, dy) for dy in heights for dx in sides):
            box = Bbox([[x + dx, y + dy], [x + dx + width, y + dy + height]])
            outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
            ranked.append((100 * outside + sum(box.overlaps(other) for other in (*taken, *placed)), order, dx, dy, box))
        _, _, dx, dy, box = min(ranked, key=lambda r: r[:2])
        placed.append(box)
        moves.append((dx, dy))
    return moves


def training_bars(rows: Sequence[Row]) -> str:
    """Training FLOPs of each row as a stacked bar."""
    later = [sum(v or 0.0 for n, v in row.training.parts().items() if n != "pretraining") for row in rows]
    pretraining = max((row.training.pretraining or 0.0 for row in rows), default=0.0)
    hidden = pretraining > PRETRAINING_SHOWN * max([*later, 0.0])
    names = [name for name in PARTS if not (hidden and name == "pretraining")]
    longest = max((sum(row.training.parts()[n] or 0.0 for n in names) for row in rows), default=0.0) or 1.0
    bars = []
    for row in rows:
        values = row.training.parts()
        pieces = "".join(
            f"<div title='{PARTS[n][0]}: {short(values[n])}' style='width:{75 * (values[n] or 0) / longest:.3f}%;"
            f"background:{PARTS[n][1]}'></div>"
            for n in names
        )
        bars.append(
            f"<div>{html.escape(row.label)}</div><div class=bar>{pieces}<span>{short(row.training.total)}</span></div>"
        )
    used = [n for n in names if any(row.training.parts()[n] for row in rows)]
    said = f"Pretraining, {pretraining:.2e} FLOPs, is in the numbers and not in the bars." if hidden else ""
    key = legend([PARTS[n][0] for n in used], [PARTS[n][1] for n in used])
    return f"{key}<div class=bars>{''.join(bars)}</div><p class=dim>{said}</p>"


def training_curves(runs: Sequence[Run], colours: Mapping[str, str]) -> str:
    """The curves of all GRPO runs in common axes, over the steps of their GRPO stage; a small plot a metric."""
    trained = [run for run in runs if run.stage("grpo")]
    labels = list(dict.fromkeys(run.label for run in trained))
    plots = [held_out_plot(trained, colours)]
    for title, name, factor in CURVES:
        if any(name in r for run in trained for r in run.stage("grpo")):
            plots.append(metric_plot(trained, colours, title, name, factor))
    key = legend(labels, [colours[label] for label in labels])
    return (
        f"{key}<div class=plots>{''.join(plots)}</div><p class=dim>Over the steps of GRPO. Thin: each step; thick: "
        f"moving mean of {SMOOTH} steps.</p>"
    )


def metric_plot(runs: Sequence[Run], colours: Mapping[str, str], title: str, name: str, factor: float) -> str:
    figure, axis = plain_axes(4.6, 2.8, title)
    for run in runs:
        points = [(r["stage_step"], factor * r[name]) for r in run.stage("grpo") if _is_number(r.get(name))]
        if points:
            x, y = zip(*points)
            tone = colours[run.label]
            axis.plot(x, y, color=tone, linewidth=0.7, alpha=0.4)
            axis.plot(x, moving_mean(y), color=tone, linewidth=1.8)
    axis.set_ylim(bottom=0)
    return f"<div>{svg(figure)}</div>"


def held_out_plot(runs: Sequence[Run], colours: Mapping[str, str]) -> str:
    """Held-out score at each evaluation, with its interval, before and in the GRPO stage."""
    figure, axis = plain_axes(4.6, 2.8, "Held-out pass@1, %")
    for run in runs:
        start = run.stage("grpo")[0]["step"] - run.stage("grpo")[0]["stage_step"]
        scores = [r for r in run.stage("evaluate") if r["step"] >= start]
        tone = colours[run.label]
        steps = [r["step"] - start for r in scores]
        axis.plot(steps, [100 * r[SCORE] for r in scores], "o-", color=tone, markersize=4, linewidth=1.4)
        for step, r in zip(steps, scores):
            if f"{SCORE}/low" in r:
                axis.plot([step] * 2, [100 * r[f"{SCORE}/low"], 100 * r[f"{SCORE}/high"]], color=tone, linewidth=1)
    axis.set_ylim(0, None)
    return f"<div>{svg(figure)}</div>"


def moving_mean(values: Sequence[float], width: int = SMOOTH) -> list[float]:
    """The mean of each value and its neighbours, `width` in all; fewer at the ends."""
    half = width // 2
    return [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]


def longer(runs: Sequence[Run]) -> str:
    """A sentence for each label of GRPO runs: how long their episodes were at first and at last, on average."""
    lengths: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        first, last = (tenth_mean(run.stage("grpo"), "length/mean", last) for last in (False, True))
        if first and last is not None:
            lengths.setdefault(run.label, []).append((first, last))
    said = []
    for label, pairs in lengths.items():
        first, last = np.mean(pairs, axis=0)
        said.append(f"{label}: episodes went from {first:.3g} to {last:.3g} sampled tokens ({last / first - 1:+.0%}).")
    return " ".join(said)


def tenth_mean(records: Sequence[Record], name: str, last: bool) -> float | None:
    """The mean of a metric over the first or the last tenth of the records; None where none has it."""
    tenth = max(1, len(records) // 10)
    part = records[-tenth:] if last else records[:tenth]
    return mean([float(r[name]) for r in part if _is_number(r.get(name))])


def change(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """A table of what training changed: means over the first and the last tenth of each GRPO run's steps."""
    header = ["run", "steps", "solved, %", "length", "length, solved", "length, unsolved", "turns", "tool calls"]
    header += ["failed calls, %"]
    rows = []
    for run in runs:
        records = run.stage("grpo")
        if records:
            cells = [first_to_last(records, name, factor) for _, name, factor in CURVES]
            rows.append([run.name, str(len(records)), *cells])
    return header, rows


def first_to_last(records: Sequence[Record], name: str, factor: float) -> str:
    """first → last: means over the first and the last tenth of the steps; – where there is nothing."""
    ends = [tenth_mean(records, name, last) for last in (False, True)]
    means = ["–" if end is None else f"{factor * end:.3g}" for end in ends]
    return " → ".join(means) if set(means) != {"–"} else "–"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
