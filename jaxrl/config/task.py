"""Settings that all tasks have. A task's own are in its module, in a class Settings that inherits these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from jaxrl.config.plugins import PLUGINS, make_settings
from jaxrl.config.rules import Count, Positive, Share, rules_of
from jaxrl.errors import UserError


@dataclass
class ByRates:
    """Training problems chosen by stored pass rates (jaxrl/tasks/rates.py); those that the file lacks are left out."""

    path: str = ""  # a rates file, as python -m jaxrl.rates writes it; "": all problems
    choose: Literal["band", "hard_quarter"] = "band"  # by their mean rate, or AceCoder's hard 25%
    of: Literal["tests", "solved"] = "tests"  # an answer's rate: share of tests passed, or 1 if it passes all
    least: Share = 0.0  # of a band: mean rates from here
    most: Share = 1.0  # to here

    def check(self, where: str = "task.rates") -> None:
        """Raises UserError for settings that do nothing, and for an empty band."""
        default = ByRates(path=self.path)
        if not self.path and self != default:
            raise UserError(f"{where}.path = '' must be a rates file where other settings of {where} are given")
        if self.choose == "hard_quarter" and (self.least, self.most) != (default.least, default.most):
            raise UserError(f"{where}.least and {where}.most belong to {where}.choose = 'band', not 'hard_quarter'")
        if self.least > self.most:
            raise UserError(f"{where}.least = {self.least:g} must be at most {where}.most = {self.most:g}")


@dataclass
class TaskSettings:
    """How many problems of which task."""

    name: str = ""  # a module of jaxrl.tasks, an import path (my_package.my_task), or a file (path/to/task.py)
    train_problems: Positive = 20_000  # problems generated, or at most read
    held_out_problems: Positive = 128
    demonstrations: Count = 20_000  # problems with a demonstration, for SFT
    rates: ByRates = field(default_factory=ByRates)  # which training problems are taken

    def __getattr__(self, field: str) -> Any:
        """A setting of the task that `name` chooses, as long as these settings are not of its class: see `settle`."""
        name = vars(self).get("name", "")
        if name and not field.startswith("_"):
            default = make_settings(PLUGINS["task"], name)
            if type(default) is not type(self) and field in rules_of(type(default)):
                vars(self)[field] = getattr(default, field)
                return vars(self)[field]
        raise AttributeError(f"task {name!r} has no setting {field!r}")


@dataclass
class DataSettings(TaskSettings):
    """Of a task that is read from data."""

    path: str = ""  # local .jsonl, .json, .gz, .parquet or a hub name
    held_out_path: str = ""  # as path; "": the task's own held-out problems
    split: str = "train"  # split of a hub data set
