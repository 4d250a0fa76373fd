"""Runs side by side: a row for each variant, with its score, what it cost to train and what an answer costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrl.errors import UserError
from jaxrl.evaluation.estimators import t_interval
from jaxrl.reports.page import score_text, short
from jaxrl.reports.run_folder import (
    HEADLINE,
    Record,
    Run,
    TrainingCost,
    find_parent,
    is_share,
    lineage,
    metric,
    score_name,
    slice_scores,
    stage_settings,
    training_cost,
)

ENVIRONMENTS = ("single_turn", "interpreter", "feedback")  # in the order of rows
BEYOND = {"interpreter": "Tool use", "feedback": "Execution feedback"}  # what they add to an answer at once
# Settings by which runs of one row may differ, and which say nothing about what a run is.
NAMES = ("name", "label", "runs_dir", "seed", "model.path")
TRAINING = ("optimizer", "batch", "checkpoint", "traces")  # and the stages: of no matter to a base model


@dataclass(frozen=True)
class Entry:
    """One evaluation of one run that belongs into a row."""

    run: Run
    record: Record  # of the evaluation
    training: TrainingCost
    ancestry: tuple[Run, ...]  # the run and what its model came from
    base: bool  # before any training
    reinforced: bool  # by reinforcement learning

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the training runs that made the model; if there are none, that of the evaluation."""
        trained = tuple(int(r.config["seed"]) for r in self.ancestry if r.evaluation is None)
        return trained or (int(self.run.config["seed"]),)

    @property
    def score(self) -> float:
        return float(self.record[score_name(self.record)])


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
    flops: float | None  # mean per answer, like the numbers below
    tokens: float | None
    turns: float | None
    calls: float | None
    failed_calls: float | None
    answers: float | None  # drawn per answer that was kept; None: 1

    @property
    def reinforced(self) -> bool:
        return self.entries[0].reinforced

    @property
    def base(self) -> bool:
        return self.entries[0].base

    @property
    def share(self) -> bool:
        return is_share([e.record for e in self.entries])

    @property
    def environment(self) -> str:
        chosen = self.entries[0].run.config.get("rollout", {}).get("environment", ENVIRONMENTS[0])
        return str(chosen["name"] if isinstance(chosen, Mapping) else chosen)


def entries_of(run: Run) -> list[Entry]:
    """The evaluations of a run that belong into rows.

    An evaluation run has one. A training run has its last one after training and, if its model does not come from
    another run, its first one, as that of the base model.

    Raises UserError for an evaluation without a score.
    """
    runs = tuple(lineage(run))
    older = any(r.sampled for r in runs[1:])
    if run.evaluation is not None:
        where, records = run.folder / "evaluation.json", [run.evaluation]
    else:
        where, records = run.folder / "metrics.jsonl", run.evaluations
    for record in records:
        if not isinstance(record.get(score_name(record)), (int, float)):
            raise UserError(f"{where}: an evaluation has no number {score_name(record)!r}")
    if run.evaluation is not None:
        return [Entry(run, run.evaluation, training_cost(runs), runs, False, older)]
    entries = []
    if len(runs) == 1 and find_parent(run)[0] != "gone":
        before = [r for r in records if r["after"] == "start"][:1]
        entries += [Entry(run, r, training_cost(runs, r["step"]), runs, True, False) for r in before]
    for last in [r for r in records if r["after"] != "start"][-1:]:
        step = last["step"]
        reinforced = older or any(r["step"] <= step for r in run.sampled)
        entries.append(Entry(run, last, training_cost(runs, step), runs, False, reinforced))
    return entries


def make_rows(runs: Sequence[Run]) -> list[Row]:
    """The rows of runs: base models first, then models without and with reinforcement learning, in the given order.

    Runs with the same label are seeds of one row. The base models of runs with different labels have rows of their own,
    because their prompts may differ; a single one is called "base".
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
    scores, first = [e.score for e in entries], entries[0].record
    low, high, interval = first.get(f"{score_name(first)}/low"), first.get(f"{score_name(first)}/high"), "bootstrap"
    if len(entries) > 1:
        t = t_interval(scores)
        low, high, interval = (max(0.0, t.low), min(1.0, t.high), "seeds") if is_share([first]) else (*t[:2], "seeds")
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
    """The interval, with a mark for its kind where it is not the bootstrap's."""
    if row.low is None or row.high is None:
        return "not known"
    low, high = (score_text(bound, row.share, "") for bound in (row.low, row.high))
    return f"{low} – {high}{' †' if row.interval == 'seeds' else ''}"


def metric_of(rows: Sequence[Row]) -> str:
    return metric([e.record for row in rows for e in row.entries])


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the comparison."""
    share = all(row.share for row in rows)
    header = [
        "variant",
        "runs",
        f"{metric_of(rows)}{', %' * share}",
        "95% interval",
        "training FLOPs",
        "FLOPs a question",
    ]
    header += ["tokens", "turns", "tool calls", "failed calls"]
    again = any(row.answers is not None for row in rows)
    header += ["answers drawn"] if again else []
    cells = []
    for row in rows:
        numbers = [row.flops, row.tokens, row.turns, row.calls]
        cells.append(
            [
                row.label,
                str(len(row.entries)),
                score_text(row.score, row.share, "" if share else "%"),
                interval_text(row),
            ]
        )
        cells[-1] += [short(row.training.total), *map(short, numbers), failed_text(row)]
        cells[-1] += [short(row.answers or 1.0)] if again else []
    return header, cells


def slices(columns: Sequence[tuple[str, Sequence[Record]]]) -> tuple[list[str], list[list[str]]] | None:
    """Header and cells of the scores on parts of the problems: a row for each part, a column for each (name, records)
    with the mean of its records. None where no record has parts."""
    found = [[slice_scores(record) for record in records] for _, records in columns]
    names = dict.fromkeys(name for column in found for scores in column for name in scores)
    shares = [is_share(records) for _, records in columns]
    cells = []
    for name in names:
        means = [mean([scores.get(name) for scores in column]) for column in found]
        cells.append([name, *("–" if m is None else score_text(m, share) for m, share in zip(means, shares))])
    return (["part of the problems", *(name for name, _ in columns)], cells) if names else None


def failed_text(row: Row) -> str:
    """Failed calls a question, and their share of the calls."""
    if row.failed_calls is None or row.calls is None:
        return "not known"
    return f"{short(row.failed_calls)} ({row.failed_calls / row.calls:.0%})" if row.calls else "–"


def notes(rows: Sequence[Row], runs: Sequence[Run]) -> list[str]:
    """What a reader of the table must know."""
    name = metric_of(rows)
    score = "share of held-out answers that pass all tests" if name == HEADLINE else f"{name}, as the task defines it"
    lines = [
        f"Score: {score}. FLOPs a question, tokens (sampled), turns, tool calls "
        "and failed calls are means over the answers, those that were drawn again included. Training FLOPs are of the "
        "run and of all runs that its model came from."
    ]
    if any(row.interval == "bootstrap" for row in rows):
        lines.append("Intervals: 95% bootstrap over the held-out problems, for one run.")
    if any(row.interval == "seeds" for row in rows):
        lines.append("† mean of several runs, with a 95% t-interval over them, cut at 0 and 100%.")
    if any(row.training.total is None for row in rows):
        lines.append(
            "Training FLOPs are not known where a run that the model came from is gone, where a pretrained model "
            "does not say its model.pretraining_tokens, or where steps did not count them."
        )
    metrics = dict.fromkeys(metric([e.record]) for row in rows for e in row.entries)
    if len(metrics) > 1:
        lines.append(f"The evaluations have different headline metrics: {', '.join(metrics)}.")
    for row in rows:
        if len({e.seeds for e in row.entries}) < len(row.entries):
            lines.append(f"{row.label}: runs of the same seed among them, so the interval says less than it seems to.")
        different = sorted(_really_different([e.run for e in row.entries]) - set(NAMES))
        different = [n for n in different if not (row.base and _of_training(n, row.entries[0].run))]
        if different:
            lines.append(f"{row.label}: its runs differ in {', '.join(different)}.")
    unequal = sorted(n for n, values in _differing([_questions(run) for run in runs]).items() if None not in values)
    if unequal:
        lines.append(f"The runs differ in {', '.join(unequal)}: they may not have had the same questions.")
    sizes = sorted({e.record["held_out/n"] for row in rows for e in row.entries if "held_out/n" in e.record})
    if len(sizes) > 1:
        lines.append(f"The evaluations were on different numbers of problems: {', '.join(map(str, sizes))}.")
    shown = {id(e.run) for row in rows for e in row.entries if not e.base}
    missing = [run.name for run in runs if id(run) not in shown]
    if missing:
        lines.append(f"Without an evaluation after training, and so without a row: {', '.join(missing)}.")
    return lines


def headline(rows: Sequence[Row]) -> str:
    """Which variant is best, and what tools and feedback are worth beside answers at once."""
    if not rows:
        return "No run has been evaluated yet."
    best = max(rows, key=lambda row: row.score)
    if not best.score:
        return "No variant has solved a problem yet."
    interval = "" if best.low is None else f" (95% interval {interval_text(best).rstrip(' †')})"
    sentences = [f"{best.label}: {score_text(best.score, best.share)} {metric_of([best])}{interval}."]
    sentences = [f"Best is {sentences[0]}"] if len(rows) > 1 else sentences
    even = [row.label for row in rows if row is not best and overlap(row, best)]
    if even:
        sentences.append(f"Its interval overlaps with that of {', '.join(even)}.")
    trained = [row for row in rows if row.reinforced] or [row for row in rows if not row.base]
    direct = best_of(trained, ENVIRONMENTS[0])
    for environment, name in BEYOND.items():
        other = best_of(trained, environment)
        if direct and other and metric_of([direct]) == metric_of([other]):
            sentences.append(worth(name, other, direct))
    return " ".join(sentences)


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
    more = f"{100 * (row.score - direct.score):+.1f} points" if row.share else f"{row.score - direct.score:+.4g}"
    doubt = " (their intervals overlap)" if overlap(row, direct) else ""
    cost = "; what it costs at inference is not known"
    if row.flops and direct.flops:
        ratio = f"{row.flops / direct.flops:.2g} times the inference FLOPs"
        cost = f", for {ratio} a question ({short(row.flops)} against {short(direct.flops)})"
    return f"{name} is worth {more} over answering at once{doubt}: {row.label} against {direct.label}{cost}."


def evaluated_task(run: Run) -> Record:
    """The settings of the task whose held-out problems a run was evaluated on: its own, or config.evaluation.task."""
    other = run.config.get("evaluation", {}).get("task") or {}
    return other if other.get("name") else run.config["task"]


def _questions(run: Run) -> Record:
    temperature = _setting(run, "evaluation.temperature", None)
    return {"task": evaluated_task(run), "evaluation.temperature": temperature}


def _really_different(runs: Sequence[Run]) -> set[str]:
    """The settings in which runs differ, except those that some of them lack because another version made them."""
    return {name for name, values in differences(runs).items() if None not in values}


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings in which runs differ, by their dotted names: the value of each run, None where it has none."""
    return _differing([run.config for run in runs])


def _of_training(name: str, run: Run) -> bool:
    """Whether a setting says how a model is trained."""
    return name.split(".")[0] in (*TRAINING, *stage_settings(run.config))


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
