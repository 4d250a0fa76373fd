"""A control group for one worker: memory, processes and CPU of all that runs in it. Versions 1 and 2.

Used where this process may make one: as root, or as a user to whom a subtree is delegated.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import IO

CPU_SHARE = 1.5  # cores: a program's process, and the examiner's or the worker's own work beside it
_PERIOD_US = 100_000
# controller: {its file in version 1: in version 2}; both limits of version 1's memory count swap as well where known
_MEMORY = {"v1": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), "v2": ("memory.max",)}
_EVENTS = {"v1": "memory.oom_control", "v2": "memory.events"}  # they count "oom_kill"


class Cgroup:
    """Folders of one group: one in version 2, one for each controller in version 1.

    Raises OSError, saying what was tried, where no controller can be used.
    """

    def __init__(self, name: str, membership: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup"):
        self.folders: dict[str, str] = {}  # by controller
        self._version = "v1"
        self._memory_mb = 0
        problems: list[str] = []
        for controllers, path in _memberships(membership):
            if controllers == [""]:
                self._try_version_2(path, name, root, problems)
            for controller in {"memory", "pids", "cpu"} & set(controllers):
                self._try_folder(controller, os.path.join(root, controller, path.lstrip("/"), name), problems)
        if "memory" not in self.folders and "pids" not in self.folders:
            self.remove()
            raise OSError(problems[0] if problems else "no memory or pids controller")

    def _try_version_2(self, path: str, name: str, root: str, problems: list[str]) -> None:
        """Below the own group, or beside it: a group with processes gives no controllers to groups below it."""
        base = os.path.join(root, path.lstrip("/"))
        for parent in (base, os.path.dirname(base.rstrip("/"))):
            folder = os.path.join(parent, name)
            try:
                os.mkdir(folder)
            except OSError as error:
                problems.append(f"mkdir {folder}: {error.strerror}")
                continue
            found = [c for c, file in (("memory", "memory.max"), ("pids", "pids.max"), ("cpu", "cpu.max"))
                     if os.path.exists(os.path.join(folder, file))]  # fmt: skip
            if found:
                self._version = "v2"
                self.folders = dict.fromkeys(found, folder)
                return
            os.rmdir(folder)
            problems.append(f"{parent} delegates no controllers")

    def _try_folder(self, controller: str, folder: str, problems: list[str]) -> None:
        try:
            os.mkdir(folder)
            self.folders[controller] = folder
        except OSError as error:
            problems.append(f"mkdir {folder}: {error.strerror}")

    def sweep(self) -> None:
        """Removes groups that a killed process has left: empty ones whose worker has ended, not made just now."""
        for folder in set(self.folders.values()):
            prefix, own = os.path.basename(folder).rsplit("-", 1)[0], os.path.basename(folder)
            for entry in os.scandir(os.path.dirname(folder)):
                with contextlib.suppress(OSError):
                    if not entry.name.startswith(f"{prefix}-") or entry.name == own:
                        continue
                    alive = os.path.exists(f"/proc/{entry.name.rpartition('-')[2]}")
                    if time.time() - entry.stat().st_mtime > (60 if alive else 2):
                        os.rmdir(entry.path)

    def __str__(self) -> str:
        return f"on ({self._version}: {', '.join(sorted(self.folders))})"

    def add(self, pid: int) -> None:
        """Moves a process here, with all that it will start. Sets the bounds that are the same for all programs."""
        for folder in set(self.folders.values()):
            _write(folder, "cgroup.procs", str(pid))
        if "cpu" in self.folders:
            quota = int(CPU_SHARE * _PERIOD_US)
            if self._version == "v2":
                _write(self.folders["cpu"], "cpu.max", f"{quota} {_PERIOD_US}")
            else:
                _write(self.folders["cpu"], "cpu.cfs_quota_us", str(quota))

    def limit(self, memory_mb: int, processes: int) -> None:
        """For the program that comes next; written only when it changes."""
        if memory_mb != self._memory_mb and "memory" in self.folders:
            bounds = _MEMORY[self._version]
            order = bounds if memory_mb < self._memory_mb or not self._memory_mb else bounds[::-1]
            for file in order:
                with contextlib.suppress(OSError):  # no swap accounting
                    _write(self.folders["memory"], file, str(memory_mb << 20))
        if memory_mb != self._memory_mb and "pids" in self.folders:
            _write(self.folders["pids"], "pids.max", str(max(64, 2 * processes)))
        self._memory_mb = memory_mb

    def memory_events(self) -> IO[bytes] | None:
        """The file that counts the processes ended for want of memory; None without that controller."""
        if "memory" not in self.folders:
            return None
        return open(os.path.join(self.folders["memory"], _EVENTS[self._version]), "rb", buffering=0)

    def remove(self) -> None:
        """Once its processes have ended; they may take a moment to leave."""
        for folder in set(self.folders.values()):
            for _ in range(50):
                try:
                    os.rmdir(folder)
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.01)


def _memberships(path: str) -> list[tuple[list[str], str]]:
    """(controllers, path) of each hierarchy; version 2's controllers are [""]."""
    with contextlib.suppress(OSError), open(path) as f:
        lines = [line.rstrip("\n").split(":", 2) for line in f]
        return [(controllers.split(","), group) for _, controllers, group in lines]
    return []


def _write(folder: str, file: str, text: str) -> None:
    with open(os.path.join(folder, file), "w") as f:
        f.write(text)
