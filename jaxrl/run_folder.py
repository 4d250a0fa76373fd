"""What the folder of a run says: settings, records, and the operations that its model has cost, ancestors included.

A run's config.model.path may be the folder of another run, its parent; the training of a model is that of its run and
of all its ancestors, up to the root: random weights, or a model that is no run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxrl.metrics import read_metrics

Record = dict[str, Any]
TRAINING = ("sft", "grpo")  # stages


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

    def stage(self, name: str) -> list[Record]:
        """The records of a stage: sft | grpo | evaluate."""
        return [r for r in self.records if r["stage"] == name]


@dataclass(frozen=True)
class TrainingCost:
    """Floating-point operations of training, by what they were for; None: not known."""

    pretraining: float | None = 0.0
    sft: float | None = 0.0
    sampling: float | None = 0.0
    logprobs: float | None = 0.0  # before the first update of a step, and of a reference policy
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

    Raises FileNotFoundError if the folder holds no run, ValueError naming a file that cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder / 'config.json'} does not exist; give the folder of a run, runs/NAME")
    log, evaluation = folder / "metrics.jsonl", folder / "evaluation.json"
    if not log.is_file() and not evaluation.is_file():
        raise FileNotFoundError(f"{log} does not exist, nor does evaluation.json: {folder} holds no run's results")
    config = _read_json(folder / "config.json")
    for name in ("name", "model", "task", "seed"):
        if name not in config:
            raise ValueError(f"{folder / 'config.json'} has no field {name!r}; it is not the config.json of a run")
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
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, should hold an object")
    return value


def find_parent(run: Run) -> tuple[str, Path | None]:
    """What config.model.path is: ("random" | "model" | "run" | "gone", folder if there is one).

    A relative path is looked for in the working directory, then in the folders above the run's own. "gone" is a folder
    that is not there any more; a name like Qwen/Qwen2.5-Coder-1.5B, without a folder Qwen, is a model of the hub.
    """
    name = run.config["model"]["path"]
    if not name:
        return "random", None
    path = Path(name).expanduser()
    bases = [Path(), *run.folder.resolve().parents]
    folder = next((base / path for base in bases if (base / path).is_dir()), None)
    if folder is not None:
        is_run = (folder / "metrics.jsonl").is_file() and (folder / "config.json").is_file()
        return ("run" if is_run else "model"), folder
    first = path.parts[0]
    is_hub_name = name.count("/") == 1 and not name.startswith((".", "~", "/"))
    return ("model" if is_hub_name and not any((base / first).is_dir() for base in bases) else "gone"), None


def lineage(run: Run) -> list[Run]:
    """The run and its ancestors that are there, newest first. Raises ValueError for a run that descends from itself."""
    runs = [run]
    while True:
        kind, folder = find_parent(runs[-1])
        if kind != "run" or folder is None:
            return runs
        if any(folder.resolve() == r.folder.resolve() for r in runs):
            raise ValueError(f"{runs[-1].folder}: config.model.path = {folder} leads back to itself")
        runs.append(read_run(folder))


def training_cost(runs: Sequence[Run], step: int | None = None) -> TrainingCost:
    """Of the model that the first of a lineage had after `step` (None: at its end)."""
    cost = root_cost(runs[-1])
    for run in runs:
        cost += own_cost(run.records if step is None or run is not runs[0] else up_to(run.records, step))
    return cost


def up_to(records: Sequence[Record], step: int) -> list[Record]:
    """The records of the first `step` steps."""
    return [r for r in records if r["step"] <= step]


def own_cost(records: Sequence[Record]) -> TrainingCost:
    """Of the steps in these records."""

    def total(stage: str, *names: str) -> float | None:
        return add(*(r.get(name) for r in records if r["stage"] == stage for name in names))

    return TrainingCost(
        sft=total("sft", "flops"),
        sampling=total("grpo", "flops/sampling"),
        logprobs=total("grpo", "flops/old", "flops/reference"),
        update=total("grpo", "flops/update"),
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
    from jaxrl.cost import pretraining_flops
    from models.convert import read_description

    return TrainingCost(pretraining=pretraining_flops(read_description(run.folder / "model"), tokens))
