"""A run's folder: one process (or group of processes) at a time, and the same settings for its whole life."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxrl.config import Config
from jaxrl.config.plugins import settle
from jaxrl.distributed.processes import Processes
from jaxrl.errors import UserError
from jaxrl.files import write_beside
from models.convert import check_folder_name

LOCK = "run.lock"
# What older runs had, where their config.json does not know a setting and that was not today's default. A setting whose
# default changes, or that came with a default that changed what runs do, has a line here.
EARLIER: dict[str, Any] = {"config.grpo.loss.std_ddof": 0, "config.task.hard_demonstrations": 0.0}
# What every task had, whether it used it or not, until tasks had settings of their own.
EARLIER_TASK_FIELDS = {
    "path", "held_out_path", "split", "prompt_style", "held_out_part", "extraction", "families", "max_difficulty",
    "demonstration_difficulty", "hard_demonstrations", "lazy_demonstrations", "demonstration_kinds", "min_tests",
    "max_tests", "public_tests", "max_prompt_characters", "language", "require_solution",
}  # fmt: skip


@contextlib.contextmanager
def open_run(config: Config, processes: Processes = Processes()) -> Iterator[Path]:
    """The run's folder, made if it is new, which no other run may use until this ends.

    Raises UserError if it is in use, was made by other settings (naming the first that differs), or has a name that
    cannot be saved to.
    """
    settle(config)
    folder = Path(config.runs_dir) / config.name
    if not config.name:
        raise UserError("name = '' must be the name of the run's folder in runs_dir")
    check_folder_name(folder)
    with contextlib.ExitStack() as held:
        with processes.after_first("config"):
            if processes.first:
                held.enter_context(only_user(folder))
                _keep_settings(config, folder)
        yield folder


@contextlib.contextmanager
def only_user(folder: Path) -> Iterator[None]:
    """Keeps other runs out of the folder, which is made if it is not there.

    The lock is the operating system's and ends with the process, however it ends. Raises UserError naming the process
    that has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.read(file, 4096).decode("utf-8", "replace").strip() or "another process"
            raise UserError(
                f"{folder} is in use by {other}; wait for its end, or choose another --config.name"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
                raise
        os.ftruncate(file, 0)
        os.write(file, f"{_this_process()}\n".encode())
        yield
    finally:
        os.close(file)


def _this_process() -> str:
    command = shlex.join(sys.orig_argv)
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()}, since {started} ({command[:300]})"


def _keep_settings(config: Config, folder: Path) -> None:
    """Writes FOLDER/config.json, or compares with it: a setting that is not in there is what it was at that time."""
    path, settings = folder / "config.json", _as_read(config)
    if not path.exists():
        write_beside(path, json.dumps(settings, indent=2) + "\n")
        return
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}; restore it, or choose another --config.name") from None
    if not isinstance(before, dict):
        raise UserError(f"{path} holds a {type(before).__name__}, should hold the settings of a run")
    before = modern(before, settings)
    difference = _first_difference(_lasting(before), _lasting(settings), _lasting(_as_read(_defaults(config))))
    if difference:
        name, old, new = difference
        resumable = new is not None and isinstance(old, (bool, int, float, str))
        same = f"--{name}={shlex.quote(str(old))} resumes it; otherwise " if resumable else ""
        raise UserError(
            f"{folder} was made by other settings ({name} was {old!r}, is {new!r}); {same}choose another "
            "--config.name, or delete it"
        )


def _defaults(config: Config) -> Config:
    """The default config with the same plug-ins."""
    default = Config()
    default.task, default.evaluation.task = type(config.task)(), type(config.evaluation.task)()
    default.rollout.environment = type(config.rollout.environment)()
    default.grpo.loss = type(config.grpo.loss)()
    settle(default)
    return default


def modern(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run as an earlier version wrote them, in today's form; `now`: today's, of the same run.

    Until plug-ins had settings of their own, a task had the fields of all tasks, and each environment its block.
    """
    before = json.loads(json.dumps(before))
    rollout, loss = before.get("rollout", {}), before.get("grpo", {}).get("loss", {})
    if isinstance(rollout.get("environment"), str):
        blocks = {name: rollout.pop(name, {}) for name in ("interpreter", "feedback")}
        rollout["environment"] = {"name": rollout["environment"]} | blocks.get(rollout["environment"], {})
        for old, new in ((before.get("task", {}), now["task"]), _evaluation_tasks(before, now)):
            for field in EARLIER_TASK_FIELDS & old.keys() - new.keys():
                del old[field]
        if loss:
            loss.setdefault("name", "policy_gradient")
    return before


def _evaluation_tasks(before: dict[str, Any], now: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return before.get("evaluation", {}).get("task", {}), now["evaluation"]["task"]


def _as_read(config: Config) -> dict[str, Any]:
    """The settings as they come back from JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _lasting(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that must not change in the life of a run: not the places of its servers, devices and logs."""
    rollout = {name: value for name, value in settings.get("rollout", {}).items() if name != "sidecar"}
    lasting = {name: value for name, value in settings.items() if name not in ("processes", "mesh", "log")}
    return lasting | {"rollout": rollout}


def _first_difference(old: Any, new: Any, default: Any, where: str = "config") -> tuple[str, Any, Any] | None:
    """The setting and its two values."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return None if old == new else (where, old, new)
    for name in [*new, *(n for n in old if n not in new)]:
        setting, usual = f"{where}.{name}", default.get(name)
        then = EARLIER.get(setting, {} if isinstance(usual, dict) else usual)
        if found := _first_difference(old.get(name, then), new.get(name), usual, setting):
            return found
    return None
