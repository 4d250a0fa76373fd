"""The figures of reports: curves of one run or several, score against what an answer costs, training FLOPs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from jaxrl.reports.comparison import Row, mean, metric_of, pareto_front
from jaxrl.reports.page import COLOURS, DIM, INK, plain_axes, short, svg, visible
from jaxrl.reports.run_folder import Record, Run, is_share, metric, samples, score_name, stage_names, stage_title

Line = Sequence[tuple[int, float]]  # step, value
SMOOTH = 9  # steps of the moving mean
PRETRAINING_SHOWN = 20  # times the rest of the longest bar at most, or it would leave nothing else to see
COMPARED = (  # title, the metric's name, factor
    ("Solved, % of sampled episodes", "solved", 100),
    ("Length, sampled tokens an episode", "length/mean", 1),
    ("Length of solved episodes, tokens", "length/solved", 1),
    ("Length of unsolved episodes, tokens", "length/unsolved", 1),
    ("Turns an episode", "turns/mean", 1),
    ("Tool calls an episode", "calls/mean", 1),
    ("Failed, % of tool calls", "calls/failed", 100),
)
CURVES = (  # of one run: title, the metric's name, factor
    ("Reward of sampled episodes", "reward/mean", 1),
    ("Solved, % of sampled episodes", "solved", 100),
    ("Reward model's score, mean", "reward_model/score", 1),
    ("Reward model: pairs of a right and a wrong answer ordered rightly, %", "reward_model/accuracy", 100),
    ("Alarm: the reward model's score up, solved down", "reward_model/alarm", 1),
    ("Pairs ordered rightly, %", "accuracy", 100),
    ("Margin of pairs: score of the chosen - of the rejected", "margin", 1),
    ("Loss", "loss", 1),
    ("Entropy, nats a token", "entropy", 1),
    ("Reverse KL to the teacher, nats a token", "distill/reverse_kl", 1),
    ("Length, tokens an episode", "length/mean", 1),
    ("Turns an episode", "turns/mean", 1),
    ("Tool calls an episode", "calls/mean", 1),
    ("Failed, % of tool calls", "calls/failed", 100),
    ("Mismatch, max |log sampler / trainer|", "mismatch/max", 1),
    ("Age of learned tokens, versions", "staleness", 1),
    ("Too old to learn from, % of tokens", "staleness/masked", 100),
    ("Dropped as too old, % of groups", "stream/dropped", 100),
    ("Time of episodes: being sampled, %", "stream/sampling", 100),
    ("Time of episodes: tools and judges, %", "stream/tools", 100),
    ("Time of episodes: waiting for the engine, %", "stream/waiting", 100),
    ("The engine at rest, % of the time", "stream/engine_idle", 100),
)
# Of stages that sample episodes (True) and of others, in the order in which they come.
STAGES = {False: (COLOURS[0], *COLOURS[3:5], COLOURS[7]), True: (COLOURS[1], *COLOURS[5:7])}
EVALUATED = COLOURS[2]
PARTS = {  # of what training cost
    "pretraining": ("pretraining", COLOURS[7]),
    "supervised": ("{supervised}", COLOURS[0]),
    "sampling": ("{sampled}: sampling", COLOURS[4]),
    "logprobs": ("{sampled}: logprobs", COLOURS[3]),
    "update": ("{sampled}: updates", COLOURS[2]),
}


def palette(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label, the same in all plots of a page."""
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(dict.fromkeys(labels))}


def run_curves(run: Run) -> dict[str, Any]:
    """Plots of the held-out score and the metrics of training over the steps of a run, their legend and a note."""
    stages = run.stages()
    free = {sampling: cycle(tones) for sampling, tones in STAGES.items()}
    tones = {stage: next(free[samples(steps[0])]) for stage, steps in stages.items()}
    ends = [steps[-1]["step"] for steps in stages.values()][:-1]
    share = is_share(run.evaluations)
    scores = [(r["step"], (100 if share else 1) * r[score_name(r)]) for r in run.evaluations]
    title, limits = f"Held-out {metric(run.evaluations)}{', %' * share}", (0, 100) if share else (None, None)
    figures = [run_curve(title, "o-", [(EVALUATED, scores)], ends, limits)]
    for title, name, factor in CURVES:
        lines = [
            (tones[stage], [(r["step"], factor * r[name]) for r in steps if _is_number(r.get(name))])
            for stage, steps in stages.items()
        ]
        least = 0 if factor == 100 or name.startswith(("length/", "turns/", "calls/")) else None
        if any(line for _, line in lines):
            figures.append(run_curve(title, "-", lines, ends, (least, 100 if factor == 100 else None)))
    names = [stage_title(stage) for stage in stages]
    note = f"Dotted: the end of {', '.join(names[:-1])}." if ends else ""
    return {"figures": figures, "legend": list(zip(names, tones.values())), "note": note}


def run_curve(title: str, marks: str, lines: Sequence[tuple[str, Line]], ends: Sequence[int], limits: tuple) -> Markup:
    """Lines with their colours, and the ends of stages."""
    figure, axis = plain_axes(4.6, 2.6, title)
    for colour, line in lines:
        if line:
            axis.plot(*zip(*line), marks, color=colour, linewidth=1.1, markersize=4)
    if limits != (None, None):
        axis.set_ylim(*limits)
    for end in ends:
        axis.axvline(end, color="#7f7f7f", linewidth=0.9, linestyle=":")
    return svg(figure)


def score_plot(rows: Sequence[Row]) -> tuple[Markup | None, str]:
    """Score, with its interval, against operations a question; the Pareto front; a name at each point. And a note."""
    shown, colours = [row for row in rows if row.flops], palette([row.label for row in rows])
    left_out = [row.label for row in rows if not row.flops]
    note = f"Left out, FLOPs a question not known: {', '.join(left_out)}." if left_out else ""
    if not shown:
        return None, note
    share = all(row.share for row in rows)
    factor = 100 if share else 1
    figure, axis = plain_axes(7.6, 4.6, f"{metric_of(rows)}{', %' * share}")
    points = [(float(row.flops or 0), factor * row.score) for row in shown]
    front = [points[i] for i in pareto_front(points)]
    axis.plot(*zip(*front), drawstyle="steps-post", color=DIM, linewidth=1.2, linestyle="--", zorder=2)
    for row, (x, y) in zip(shown, points):
        if row.low is not None and row.high is not None:
            axis.plot([x, x], [factor * row.low, factor * row.high], color=colours[row.label], linewidth=1.6, zorder=3)
        axis.plot([x], [y], "o", color=colours[row.label], markersize=8, zorder=4)
    axis.set_xscale("log")
    axis.margins(x=0.22)
    if share:
        low, high = axis.get_ylim()
        low, high = max(-3.0, low), min(103.0, high)
        axis.set_ylim(low, max(high, low + 10))
    if axis.get_xlim()[1] / axis.get_xlim()[0] < 4:
        middle = float(np.sqrt(np.prod(axis.get_xlim())))
        axis.set_xlim(middle / 2.5, middle * 2.5)
    axis.set_xlabel("inference FLOPs a question (log scale)", fontsize=9, color=DIM)
    write_names(figure, axis, points, shown, front, factor)
    return svg(figure), f"Bars: 95% intervals. Dashed: the Pareto front, which no variant beats in both. {note}"


def write_names(
    figure: Figure,
    axis: Any,
    points: Sequence[tuple[float, float]],
    rows: Sequence[Row],
    front: Sequence[tuple[float, float]],
    factor: float,
) -> None:
    """Writes each row's label beside its point, where it covers no other label, no point, bar or step of the front."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")  # the axis stays where it is measured now
    taken = []
    for row, (x, y) in zip(rows, points):
        px, py = axis.transData.transform((x, y))
        ends = [axis.transData.transform((x, factor * v))[1] for v in (row.low, row.high) if v is not None] or [py]
        taken += [Bbox([[px - 6, py - 6], [px + 6, py + 6]]), Bbox([[px - 2, min(ends)], [px + 2, max(ends)]])]
    steps = axis.transData.transform(front)
    for (x0, y0), (x1, y1) in pairwise(steps):
        taken += [Bbox([[x0, y0 - 1], [x1, y0 + 1]]), Bbox([[x1 - 1, y0], [x1 + 1, y1]])]
    names = [axis.annotate(visible(row.label), point, (0, 0), textcoords="offset points", fontsize=9.5, color=INK,
                           va="bottom", parse_math=False)
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


def training_bars(rows: Sequence[Row]) -> dict[str, Any]:
    """Training FLOPs of each row as a stacked bar: (label, pieces of (title, share of the longest, colour), total)."""
    later = [sum(v or 0.0 for n, v in row.training.parts().items() if n != "pretraining") for row in rows]
    pretraining = max((row.training.pretraining or 0.0 for row in rows), default=0.0)
    hidden = pretraining > PRETRAINING_SHOWN * max([*later, 0.0])
    names = [name for name in PARTS if not (hidden and name == "pretraining")]
    names = [name for name in names if any(row.training.parts()[name] for row in rows)]
    longest = max((sum(row.training.parts()[n] or 0.0 for n in names) for row in rows), default=0.0) or 1.0
    steps = [r for row in rows for e in row.entries for run in e.ancestry for r in run.steps]
    stages = {"sampled": stage_names([r for r in steps if samples(r)])}
    stages["supervised"] = stage_names([r for r in steps if not samples(r)])
    parts = {name: (PARTS[name][0].format(**stages), PARTS[name][1]) for name in names}
    bars = []
    for row in rows:
        values = row.training.parts()
        pieces = [(f"{t}: {short(values[n])}", (values[n] or 0) / longest, c) for n, (t, c) in parts.items()]
        bars.append((row.label, pieces, short(row.training.total)))
    note = f"Pretraining, {pretraining:.2e} FLOPs, is in the numbers and not in the bars." if hidden else ""
    return {"bars": bars, "legend": list(parts.values()), "note": note}


def samples_curves(rows: Sequence[Row]) -> dict[str, Any] | None:
    """pass@k over k of the variants evaluated at three or more k, as a plot and a table; None if there are none."""
    found = {row.label: pass_at(row) for row in rows}
    found = {label: values for label, values in found.items() if len(values) > 2}
    if not found:
        return None
    colours = palette([row.label for row in rows])
    figure, axis = plain_axes(4.6, 2.8, "pass@k, % of problems, over k")
    for label, values in found.items():
        axis.plot(values.keys(), [100 * v for v in values.values()], "o-", color=colours[label], markersize=4)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    ks = sorted(set().union(*found.values()))
    distinct = {row.label: mean([e.record.get("held_out/distinct_solutions") for e in row.entries]) for row in rows}
    table = [
        [label, *(f"{100 * values[k]:.1f}" if k in values else "–" for k in ks), short(distinct[label], "–")]
        for label, values in found.items()
    ]
    return {
        "figure": svg(figure),
        "legend": [(label, colours[label]) for label in found],
        "table": (["variant", *(f"pass@{k}, %" for k in ks), "distinct solutions"], table),
    }


def pass_at(row: Row) -> dict[int, float]:
    """pass@k by k, each the mean over the row's entries."""
    names = (re.fullmatch(r"held_out/pass@(\d+)", name) for name in row.entries[0].record)
    values = {int(n[1]): mean([e.record.get(n[0]) for e in row.entries]) for n in names if n}
    return {k: value for k, value in sorted(values.items()) if value is not None}


def training_curves(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, Any]:
    """The curves of all runs with reinforcement learning in common axes, over its steps; a small plot a metric."""
    trained = [run for run in runs if run.sampled]
    colours = palette([*(row.label for row in rows), *(run.label for run in runs)])
    figures = [held_out_plot(trained, colours)]
    for title, name, factor in COMPARED:
        if any(name in r for run in trained for r in run.sampled):
            figures.append(metric_plot(trained, colours, title, name, factor))
    return {
        "figures": figures,
        "legend": [(label, colours[label]) for label in dict.fromkeys(run.label for run in trained)],
        "note": f"Over the steps of {stage_names([r for run in trained for r in run.sampled])}. Thin: each step; "
        f"thick: moving mean of {SMOOTH} steps.",
        "longer": longer(trained),
        "change": change(trained),
    }


def metric_plot(runs: Sequence[Run], colours: Mapping[str, str], title: str, name: str, factor: float) -> Markup:
    figure, axis = plain_axes(4.6, 2.8, title)
    for run in runs:
        points = [(r["stage_step"], factor * r[name]) for r in run.sampled if _is_number(r.get(name))]
        if points:
            x, y = zip(*points)
            tone = colours[run.label]
            axis.plot(x, y, color=tone, linewidth=0.7, alpha=0.4)
            axis.plot(x, moving_mean(y), color=tone, linewidth=1.8)
    axis.set_ylim(bottom=0)
    return svg(figure)


def held_out_plot(runs: Sequence[Run], colours: Mapping[str, str]) -> Markup:
    """Held-out score at each evaluation, with its interval, before and in reinforcement learning."""
    evaluations = [r for run in runs for r in run.evaluations]
    share = is_share(evaluations)
    factor = 100 if share else 1
    figure, axis = plain_axes(4.6, 2.8, f"Held-out {metric(evaluations)}{', %' * share}")
    for run in runs:
        start = run.sampled[0]["step"] - run.sampled[0]["stage_step"]
        scores = [r for r in run.evaluations if r["step"] >= start]
        tone = colours[run.label]
        steps = [r["step"] - start for r in scores]
        axis.plot(steps, [factor * r[score_name(r)] for r in scores], "o-", color=tone, markersize=4, linewidth=1.4)
        for step, r in zip(steps, scores):
            low, high = (r.get(f"{score_name(r)}/{end}") for end in ("low", "high"))
            if low is not None and high is not None:
                axis.plot([step] * 2, [factor * low, factor * high], color=tone, linewidth=1)
    if share:
        axis.set_ylim(0, None)
    return svg(figure)


def moving_mean(values: Sequence[float], width: int = SMOOTH) -> list[float]:
    """The mean of each value and its neighbours, `width` in all; fewer at the ends."""
    half = width // 2
    return [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]


def longer(runs: Sequence[Run]) -> str:
    """A sentence for each label of runs that sampled: how long their episodes were at first and at last, on average."""
    lengths: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        first, last = (tenth_mean(run.sampled, "length/mean", last) for last in (False, True))
        if first and last is not None:
            lengths.setdefault(run.label, []).append((first, last))
    sentences = []
    for label, pairs in lengths.items():
        first, last = np.mean(pairs, axis=0)
        sentences.append(
            f"{label}: episodes went from {first:.3g} to {last:.3g} sampled tokens ({last / first - 1:+.0%})."
        )
    return " ".join(sentences)


def tenth_mean(records: Sequence[Record], name: str, last: bool) -> float | None:
    """The mean of a metric over the first or the last tenth of the records; None where none has it."""
    tenth = max(1, len(records) // 10)
    part = records[-tenth:] if last else records[:tenth]
    return mean([float(r[name]) for r in part if _is_number(r.get(name))])


def change(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """A table of what training changed: means over the first and the last tenth of each run's steps."""
    header = ["run", "steps", "solved, %", "length", "length, solved", "length, unsolved", "turns", "tool calls"]
    rows = [
        [run.name, str(len(run.sampled)), *(first_to_last(run.sampled, name, factor) for _, name, factor in COMPARED)]
        for run in runs
    ]
    return [*header, "failed calls, %"], rows


def first_to_last(records: Sequence[Record], name: str, factor: float) -> str:
    """first → last: means over the first and the last tenth of the steps; – where there is nothing."""
    ends = [tenth_mean(records, name, last) for last in (False, True)]
    means = ["–" if end is None else f"{factor * end:.3g}" for end in ends]
    return " → ".join(means) if set(means) != {"–"} else "–"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
