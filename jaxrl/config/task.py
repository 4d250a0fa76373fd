"""Settings that all tasks have. A task's own are in its module, in a class Settings that inherits these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxrl.config.plugins import PLUGINS, make_settings
from jaxrl.config.rules import Count, Positive, rules_of


@dataclass
class TaskSettings:
    """How many problems of which task."""

    name: str = ""  # a module of jaxrl.tasks, an import path (my_package.my_task), or a file (path/to/task.py)
    train_problems: Positive = 20_000  # problems generated, or at most read
    held_out_problems: Positive = 128
    demonstrations: Count = 20_000  # problems with a demonstration, for SFT

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
