"""Runs side by side: a row for each variant, with its score, what it cost to train and what an answer costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrl.estimators import t_interval
from jaxrl.page import short
from jaxrl.run_folder import Record, Run, TrainingCost, find_parent, lineage, training_cost, up_to

SCORE = "held_out/pass@1"
ENVIRONMENTS = ("single_turn", "interpreter", "feedback")  # in the order of rows
BEYOND = {"interpreter": "Tool use", "feedback": "Execution feedback"}  # what they add to an answer at once
# Settings by which runs of one row may differ, and which say nothing about what a run is.
NAMES = ("name", "label", "runs_dir", "seed", "model.path")
TRAINING = ("sft.", "grpo.", "optimizer.", "batch.", "checkpoint.", "traces.")  # of no matter to a base model


@dataclass(frozen=True)
class Entry:
    """One evaluation of one run that belongs into a row."""

    run: Run
    record: Record  # of the evaluation
    training: TrainingCost
    seeds: tuple[int, ...]  # of the training runs that made the model; without any, of the evaluation
    base: bool  # before any training
    reinforced: bool  # by GRPO


@dataclass(frozen=True)
class Row:
    """A variant: the mean of its entries, one for each seed. None: not known.

    `interval` says what low and high are: "bootstrap" over the problems, of one run; "seeds", a t-interval over runs.
    """

    label: str
    entries: tuple[Entry, ...]
    score: float
    low: float | None
    high: float | None
    interval: str
    training: TrainingCost
    flops: float | None  # of an answer, on average, as the numbers below
    tokens: float | None
    turns: float | None
    calls: float | None
    failed_calls: float | None
    answers: float | None  # drawn for each that was kept; None: 1

    @property
    def reinforced(self) -> bool:
        return self.entries[0].reinforced

    @property
    def base(self) -> bool:
        return self.entries[0].base

    @property
    def environment(self) -> str:
        return str(_setting(self.entries[0].run, "rollout.environment", ENVIRONMENTS[0]))


def entries_of(run: Run) -> list[Entry]:
    """Of an evaluation run its evaluation; of a training run the last one after training, and the first one, as that of
    the base model, where its model is no other run.

    Raises ValueError for an evaluation without a score.
    """
    runs = lineage(run)
    seeds = tuple(int(r.config["seed"]) for r in runs if r.evaluation is None) or (int(run.config["seed"]),)
    older = any(r.stage("grpo") for r in runs[1:])
    if run.evaluation is not None:
        where, records = run.folder / "evaluation.json", [run.evaluation]
    else:
        where, records = run.folder / "metrics.jsonl", run.stage("evaluate")
    if any(not isinstance(r.get(SCORE), (int, float)) for r in records):
        raise ValueError(f"{where}: an evaluation has no number {SCORE!r}")
    if run.evaluation is not None:
        return [Entry(run, run.evaluation, training_cost(runs), seeds, False, older)]
    entries = []
    if len(runs) == 1 and find_parent(run)[0] != "gone":
        before = [r for r in records if r["after"] == "start"][:1]
        entries += [Entry(run, r, training_cost(runs, r["step"]), seeds, True, False) for r in before]
    for last in [r for r in records if r["after"] != "start"][-1:]:
        step = last["step"]
        reinforced = older or any(r["stage"] == "grpo" for r in up_to(run.records, step))
        entries.append(Entry(run, last, training_cost(runs, step), seeds, False, reinforced))
    return entries


def make_rows(runs: Sequence[Run]) -> list[Row]:
    """The rows of runs: those of the base model, of models without and with GRPO, then as given.

    Runs with the same label are seeds of one row. The base models of runs with different labels have rows of their own,
    as they may have been asked in different ways; "base" is the name of the only one.
    """
    groups: dict[tuple[bool, str], list[Entry]] = {}
    for entry in (e for run in runs for e in entries_of(run)):
        groups.setdefault((entry.base, entry.run.label), []).append(entry)
    bases = sum(base for base, _ in groups)
    rows = []
    for (base, label), entries in groups.items():
        name = label if not base else "base" if bases == 1 else f"base of {label}"
        rows.append(make_row(name, entries))

    def place(row: Row) -> tuple[bool, bool, int]:
        kind = ENVIRONMENTS.index(row.environment) if row.environment in ENVIRONMENTS else len(ENVIRONMENTS)
        return not row.base, row.reinforced, kind if row.reinforced else 0

    return sorted(rows, key=place)


def make_row(label: str, entries: Sequence[Entry]) -> Row:
    """The mean of the entries, with its interval."""
    scores = [float(e.record[SCORE]) for e in entries]
    low, high, interval = entries[0].record.get(f"{SCORE}/low"), entries[0].record.get(f"{SCORE}/high"), "bootstrap"
    if len(entries) > 1:
        t = t_interval(scores)
        low, high, interval = max(0.0, t.low), min(1.0, t.high), "seeds"
    elif low is None or high is None:
        low, high, interval = None, None, ""

    def cost(name: str) -> float | None:
        return mean([e.record.get(f"held_out/cost/{name}") for e in entries])

    parts = [e.training.parts() for e in entries]
    answers = [e.record.get("held_out/attempts", 1.0) for e in entries]
    tokens = mean([e.record.get("held_out/length") for e in entries])  # of runs that counted no costs yet
    return Row(
        label=label,
        entries=tuple(entries),
        score=float(np.mean(scores)),
        low=low,
        high=high,
        interval=interval,
        training=TrainingCost(**{name: mean([p[name] for p in parts]) for name in parts[0]}),
        flops=cost("flops"),
        tokens=tokens if cost("tokens") is None else cost("tokens"),
        turns=cost("turns"),
        calls=cost("calls"),
        failed_calls=cost("failed_calls"),
        answers=mean(answers) if any("held_out/attempts" in e.record for e in entries) else None,
    )


def mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if one value is not known."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which (cost, score) no other point beats: cheaper or as cheap, and better or as good, and not both the same.

    Sorted by cost.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front


def interval_text(row: Row) -> str:
    """The interval in percent, with a mark for its kind where it is not the bootstrap's."""
    if row.low is None or row.high is None:
        return "not known"
    return f"{100 * row.low:.1f} – {100 * row.high:.1f}{' †' if row.interval == 'seeds' else ''}"


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the comparison."""
    header = ["variant", "runs", "pass@1, %", "95% interval", "training FLOPs", "FLOPs a question", "tokens", "turns"]
    header += ["tool calls", "failed calls"]
    again = any(row.answers is not None for row in rows)
    header += ["answers drawn"] if again else []
    cells = []
    for row in rows:
        numbers = [row.flops, row.tokens, row.turns, row.calls]
        cells.append([row.label, str(len(row.entries)), f"{100 * row.score:.1f}", interval_text(row)])
        cells[-1] += [short(row.training.total), *map(short, numbers), failed_text(row)]
        cells[-1] += [short(row.answers or 1.0)] if again else []
    return header, cells


def failed_text(row: Row) -> str:
    """Failed calls a question, and their share of the calls."""
    if row.failed_calls is None or row.calls is None:
        return "not known"
    return f"{short(row.failed_calls)} ({row.failed_calls / row.calls:.0%})" if row.calls else "–"


def notes(rows: Sequence[Row], runs: Sequence[Run]) -> list[str]:
    """What a reader of the table must know."""
    said = [
        "Score: share of held-out answers that pass all tests. FLOPs a question, tokens (sampled), turns, tool calls "
        "and failed calls are means over the answers, those that were drawn again included. Training FLOPs are of the "
        "run and of all runs that its model came from."
    ]
    if any(row.interval == "bootstrap" for row in rows):
        said.append("Intervals: 95% bootstrap over the held-out problems, for one run.")
    if any(row.interval == "seeds" for row in rows):
        said.append("† mean of several runs, with a 95% t-interval over them, cut at 0 and 100%.")
    if any(row.training.total is None for row in rows):
        said.append(
            "Training FLOPs are not known where a run that the model came from is gone, where a pretrained model "
            "does not say its model.pretraining_tokens, or where steps did not count them."
        )
    for row in rows:
        if len({e.seeds for e in row.entries}) < len(row.entries):
            said.append(f"{row.label}: runs of the same seed among them, so the interval says less than it seems to.")
        different = sorted(_really_different([e.run for e in row.entries]) - set(NAMES))
        different = [n for n in different if not (row.base and n.startswith(TRAINING))]
        if different:
            said.append(f"{row.label}: its runs differ in {', '.join(different)}.")
    asked = sorted(n for n, values in _differing([_asked(run) for run in runs]).items() if None not in values)
    if asked:
        said.append(f"The runs differ in {', '.join(asked)}: they may not have been asked the same questions.")
    sizes = sorted({e.record["held_out/n"] for row in rows for e in row.entries if "held_out/n" in e.record})
    if len(sizes) > 1:
        said.append(f"The evaluations were on different numbers of problems: {', '.join(map(str, sizes))}.")
    shown = {id(e.run) for row in rows for e in row.entries if not e.base}
    missing = [run.name for run in runs if id(run) not in shown]
    if missing:
        said.append(f"Without an evaluation after training, and so without a row: {', '.join(missing)}.")
    return said


def headline(rows: Sequence[Row]) -> str:
    """Which variant is best, and what tools and feedback are worth beside answers at once."""
    if not rows:
        return "No run has been evaluated yet."
    best = max(rows, key=lambda row: row.score)
    if not best.score:
        return "No variant has solved a problem yet."
    interval = "" if best.low is None else f" (95% interval {interval_text(best).rstrip(' †')})"
    said = [f"Best is {best.label}: {100 * best.score:.1f}% pass@1{interval}."] if len(rows) > 1 else []
    if len(rows) == 1:
        said = [f"{best.label}: {100 * best.score:.1f}% pass@1{interval}."]
    even = [row.label for row in rows if row is not best and overlap(row, best)]
    if even:
        said.append(f"Its interval overlaps with that of {', '.join(even)}.")
    trained = [row for row in rows if row.reinforced] or [row for row in rows if not row.base]
    direct = best_of(trained, ENVIRONMENTS[0])
    for environment, name in BEYOND.items():
        other = best_of(trained, environment)
        if direct and other:
            said.append(worth(name, other, direct))
    return " ".join(said)


def best_of(rows: Sequence[Row], environment: str) -> Row | None:
    """The best row of an environment."""
    return max((r for r in rows if r.environment == environment), key=lambda r: r.score, default=None)


def overlap(one: Row, other: Row) -> bool:
    """Whether the intervals of two rows have a point in common; False where one is not known."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high


def worth(name: str, row: Row, direct: Row) -> str:
    """A sentence about what `row` has over `direct`, in points and in operations."""
    points = 100 * (row.score - direct.score)
    doubt = " (their intervals overlap)" if overlap(row, direct) else ""
    cost = "; what it costs at inference is not known"
    if row.flops and direct.flops:
        ratio = f"{row.flops / direct.flops:.2g} times the inference FLOPs"
        cost = f", for {ratio} a question ({short(row.flops)} against {short(direct.flops)})"
    return (
        f"{name} is worth {points:+.1f} points over answering at once{doubt}: {row.label} against {direct.label}{cost}."
    )


def evaluated_task(run: Run) -> Record:
    """The settings of the task whose held-out problems a run was evaluated on: its own, or config.evaluation.task."""
    other = run.config.get("evaluation", {}).get("task") or {}
    return other if other.get("name") else run.config["task"]


def _asked(run: Run) -> Record:
    temperature = _setting(run, "evaluation.temperature", None)
    return {"task": evaluated_task(run), "evaluation.temperature": temperature}


def _really_different(runs: Sequence[Run]) -> set[str]:
    """The settings in which runs differ, without those that some of them, of another version, do not have."""
    return {name for name, values in differences(runs).items() if None not in values}


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings in which runs differ, by their dotted names: the value of each run, None where it has none."""
    return _differing([run.config for run in runs])


def _differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    flat = [dict(_flatten(s)) for s in settings]
    names = list(dict.fromkeys(name for f in flat for name in f))
    values = {name: [f.get(name) for f in flat] for name in names}
    return {name: v for name, v in values.items() if any(x != v[0] for x in v)}


def _flatten(settings: Mapping[str, Any], where: str = "") -> list[tuple[str, Any]]:
    flat = []
    for name, value in settings.items():
        inner = _flatten(value, f"{where}{name}.") if isinstance(value, Mapping) else [(where + name, value)]
        flat += inner
    return flat


def _setting(run: Run, name: str, default: Any) -> Any:
    return dict(_flatten(run.config)).get(name, default)
