"""What the folder of a run says: settings, records, and the operations that its model has cost, ancestors included.

A run's config.model.path may be the folder of another run, its parent; the training of a model is that of its run and
of all its ancestors, up to the root: random weights, or a model from elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxrl.costs.flops import pretraining_flops
from jaxrl.errors import UserError
from jaxrl.files import read_metrics
from models.config import read_description

Record = dict[str, Any]
EVALUATION = "evaluate"  # the "stage" of records that are not of a training step
HEADLINE = "pass@1"  # the metric that counts where the record of an evaluation names none
BOUNDS = ("low", "high", "standard_error")  # of a metric: not slices
LOGPROBS = ("flops/old", "flops/reference")  # of a step that samples
JUDGE = "flops/reward_model"  # of a reward model's scores, in records of stages with one
TEACHER = "flops/teacher"  # logprobs too, in records of stages with a teacher


@dataclass(frozen=True)
class Run:
    """A training run (records of its steps and evaluations) or an evaluation run (its one evaluation)."""

    folder: Path
    config: Record
    records: list[Record]
    evaluation: Record | None
    devices: Record | None

    @property
    def name(self) -> str:
        return str(self.config["name"])

    @property
    def label(self) -> str:
        return str(self.config.get("label") or self.name)

    @property
    def evaluations(self) -> list[Record]:
        return [r for r in self.records if r["stage"] == EVALUATION]

    @property
    def steps(self) -> list[Record]:
        """The records of training steps."""
        return [r for r in self.records if r["stage"] != EVALUATION]

    @property
    def sampled(self) -> list[Record]:
        """The records of the steps of reinforcement learning."""
        return [r for r in self.steps if samples(r)]

    def stages(self) -> dict[str, list[Record]]:
        """The records of training steps by stage, in order."""
        names = dict.fromkeys(r["stage"] for r in self.steps)
        return {name: [r for r in self.steps if r["stage"] == name] for name in names}


def samples(record: Record) -> bool:
    """Whether it is of a step that learned from episodes which it had sampled."""
    return "reward/mean" in record


def stage_settings(config: Record) -> dict[str, Record]:
    """The sections of a run's config that are stages: those with a number of steps, plug-ins' own settings aside."""
    sections = {name: held for name, held in config.items() if isinstance(held, dict)}
    return {name: held for name, held in sections.items() if "steps" in held and "name" not in held}


def stage_title(stage: str) -> str:
    """The name of a stage, for people."""
    return stage.replace("_", " ").upper()


def stage_names(records: Sequence[Record]) -> str:
    """The stages of these records, for people."""
    return ", ".join(dict.fromkeys(stage_title(r["stage"]) for r in records))


def metric(evaluations: Sequence[Record]) -> str:
    """What the scores of these evaluations are."""
    return " or ".join(dict.fromkeys(str(r.get("headline", HEADLINE)) for r in evaluations)) or HEADLINE


def score_name(record: Record) -> str:
    """Which number of an evaluation is its score."""
    return f"held_out/{metric([record])}"


def is_share(evaluations: Sequence[Record]) -> bool:
    """Whether all scores of these evaluations are shares of the problems, as pass@k and maj@k are, shown in percent."""
    return all("@" in metric([r]) for r in evaluations)


def slice_scores(record: Record) -> dict[str, float]:
    """The score of an evaluation on parts of its problems, by the part's name: "difficulty 3", "task scramble".

    Records that do not name their headline were made before slices were shown, and have none.
    """
    if "headline" not in record:
        return {}
    prefix = f"{score_name(record)}/"
    parts = {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}
    return {name.replace("_", " ", 1): v for name, v in parts.items() if name.rpartition("/")[2] not in BOUNDS}


@dataclass(frozen=True)
class TrainingCost:
    """Floating-point operations of training, by what they were for; None: not known."""

    pretraining: float | None = 0.0
    supervised: float | None = 0.0  # and all else that samples nothing
    sampling: float | None = 0.0
    logprobs: float | None = (
        0.0  # before the first update of a step, of a reference policy, a teacher and a reward model
    )
    update: float | None = 0.0  # of reinforcement learning

    def parts(self) -> dict[str, float | None]:
        return dataclasses.asdict(self)

    @property
    def total(self) -> float | None:
        return add(*self.parts().values())

    def __add__(self, other: TrainingCost) -> TrainingCost:
        return TrainingCost(**{name: add(value, other.parts()[name]) for name, value in self.parts().items()})


UNKNOWN = TrainingCost(*[None] * 5)


def add(*values: float | None) -> float | None:
    """The sum; None if one is not known."""
    known = [v for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None


def read_run(folder: Path) -> Run:
    """The run in a folder.

    Raises FileNotFoundError if the folder holds no run, UserError naming a file that cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder / 'config.json'} does not exist; give the folder of a run, runs/NAME")
    log, evaluation = folder / "metrics.jsonl", folder / "evaluation.json"
    if not log.is_file() and not evaluation.is_file():
        raise FileNotFoundError(f"{log} does not exist, nor does evaluation.json: {folder} holds no run's results")
    config = _read_json(folder / "config.json")
    for name in ("name", "model", "task", "seed"):
        if name not in config:
            raise UserError(f"{folder / 'config.json'} has no field {name!r}; it is not the config.json of a run")
    return Run(
        folder=folder,
        config=config,
        records=read_metrics(log) if log.is_file() else [],
        evaluation=None if log.is_file() else _read_json(evaluation),
        devices=_read_json(folder / "devices.json") if (folder / "devices.json").is_file() else None,
    )


def _read_json(path: Path) -> Record:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, should hold an object")
    return value


def find_parent(run: Run) -> tuple[str, Path | None]:
    """What config.model.path is: ("random" | "model" | "run" | "gone", folder or file if there is one).

    A relative path is looked for in the working directory, then in the folders above the run's own. "gone" is a folder
    that does not exist any more; a name like Qwen/Qwen2.5-Coder-1.5B, without a folder Qwen, is a model of the hub.
    """
    name = run.config["model"]["path"]
    if not name:
        return "random", None
    path = Path(os.path.expanduser(name))  # pathlib's raises for a user without a home folder
    bases = [Path(), *run.folder.resolve().parents]
    folder = next((base / path for base in bases if (base / path).exists()), None)
    if folder is not None:
        is_run = (folder / "metrics.jsonl").is_file() and (folder / "config.json").is_file()
        return ("run" if is_run else "model"), folder
    first = path.parts[0]
    is_hub_name = name.count("/") == 1 and not name.startswith((".", "~", "/"))
    return ("model" if is_hub_name and not any((base / first).is_dir() for base in bases) else "gone"), None


def lineage(run: Run) -> list[Run]:
    """The run and those of its ancestors that still exist, newest first.

    Raises UserError for a run that descends from itself.
    """
    runs = [run]
    while True:
        kind, folder = find_parent(runs[-1])
        if kind != "run" or folder is None:
            return runs
        if any(folder.resolve() == r.folder.resolve() for r in runs):
            raise UserError(f"{runs[-1].folder}: config.model.path = {folder} leads back to itself")
        runs.append(read_run(folder))


def training_cost(runs: Sequence[Run], step: int | None = None) -> TrainingCost:
    """The cost of the model that the first run of a lineage had after `step` (None: at its end)."""
    cost = root_cost(runs[-1])
    for run in runs:
        cost += own_cost([r for r in run.steps if step is None or run is not runs[0] or r["step"] <= step])
    return cost


def own_cost(steps: Sequence[Record]) -> TrainingCost:
    """The cost of these steps. Whatever else a step that samples counts, as flops/NAME, is part of its update."""
    sampled = [r for r in steps if samples(r)]

    def total(*names: str) -> float | None:
        return add(*(r.get(name) for r in sampled for name in names))

    known = ("flops/update", "flops/sampling", *LOGPROBS, TEACHER, JUDGE)
    others = sum(v for r in sampled for name, v in r.items() if name.startswith("flops/") and name not in known)
    return TrainingCost(
        supervised=add(*(r.get("flops") for r in steps if not samples(r))),
        sampling=total("flops/sampling"),
        logprobs=add(total(*LOGPROBS), *(r.get(name, 0.0) for r in sampled for name in (TEACHER, JUDGE))),
        update=add(total("flops/update"), others),
    )


def root_cost(run: Run) -> TrainingCost:
    """What was spent on the weights that the oldest run of a lineage started from.

    Of a model that says no pretraining_tokens the pretraining is not known; of a run that is gone nothing is.
    """
    kind, _ = find_parent(run)
    tokens = run.config["model"].get("pretraining_tokens", 0.0)
    if kind == "gone":
        return UNKNOWN
    if kind == "random" and not tokens:
        return TrainingCost()
    if not tokens or not (run.folder / "model" / "model.json").is_file():
        return TrainingCost(pretraining=None)
    return TrainingCost(pretraining=pretraining_flops(read_description(run.folder / "model"), tokens))
