"""Machines that give less: Python scripts run as root or as an ordinary user, without some of the kernel's features."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.leftovers import open_folders, remove_of_owners

ROOT = Path(__file__).resolve().parents[2]
ORDINARY_ID = 65534
ORDINARY = ("setpriv", f"--reuid={ORDINARY_ID}", f"--regid={ORDINARY_ID}", "--clear-groups", "--inh-caps=-all")
# Calls that such a machine refuses, as (number on x86_64, error).
REFUSED = {
    "landlock": [("landlock_create_ruleset", 444, "EOPNOTSUPP")],
    "namespaces": [("mount", 165, "EPERM"), ("umount2", 166, "EPERM"), ("unshare", 272, "EPERM")],
}
PROLOGUE = """
import errno, json, os, sys
sys.path.insert(0, {root!r})
from sandbox import kernel, seccomp
if {hide_groups!r}:  # control groups cannot be seen
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("none", "/sys/fs/cgroup", "tmpfs", kernel.MS_RDONLY)
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
code = [seccomp._op(seccomp._LOAD, 0)]
for name, number, error in {refused!r}:
    code += [seccomp._op(seccomp._EQUAL, number, 0, 1), seccomp._return(seccomp._ERRNO | getattr(errno, error))]
kernel.perform([kernel.seccomp_filter(b"".join([*code, seccomp._return(seccomp._ALLOW)]))])
"""


@dataclass(frozen=True)
class Machine:
    """user: "root" or "ordinary"; without: any of "landlock", "namespaces", "cgroup"."""

    user: str
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-without-".join((self.user, *self.without))

    def run(self, script: str, package: Path = ROOT, timeout_s: float = 120) -> Any:
        """What the script prints last, read as JSON. The machine itself may give less: see `layers` there."""
        if os.uname().machine != "x86_64":
            pytest.skip("the refused calls are numbered for x86_64")
        refused = [call for name in self.without for call in REFUSED.get(name, [])]
        hide = "cgroup" in self.without and self.user == "root"
        python = ordinary_python()  # for root as well: without namespaces its programs are other users
        command = list(ORDINARY) if self.user == "ordinary" else []
        prologue = PROLOGUE.format(root=str(package), hide_groups=hide, refused=refused)
        command += [python, "-c", prologue + script]
        try:
            out = subprocess.run(
                command, capture_output=True, text=True, cwd="/", env={"PATH": os.environ["PATH"]}, timeout=timeout_s
            )
        finally:  # where nothing keeps programs in their folders they leave files, such as a json.py in /tmp
            orphans = end_orphans()
            remove_of_owners(open_folders(), [ORDINARY_ID])
        assert not out.returncode, out.stderr[-4000:]
        assert not orphans, f"{orphans} programs outlived their sandbox"
        return json.loads(out.stdout.splitlines()[-1])


def end_orphans() -> int:
    """Ends programs of the ordinary user that no sandbox is above any more, before they slow what comes next; how many."""
    total = 0
    while found := _orphans():
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        total += len(found)
    return total


def _orphans() -> list[int]:
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            status, command = (Path("/proc", entry, name).read_text() for name in ("stat", "cmdline"))
            if os.stat(f"/proc/{entry}").st_uid == ORDINARY_ID and "program.py" in command:
                parents[int(entry)] = int(status.rpartition(")")[2].split()[1])
    return [pid for pid, parent in parents.items() if parent == 1 or parent in parents]


MACHINES = [
    Machine(user, without)
    for user in ("root", "ordinary")
    for without in ((), ("landlock",), ("namespaces",), ("namespaces", "landlock"), ("cgroup",))
    if not (user == "ordinary" and without == ("cgroup",))  # has none as it is
]


def ordinary_python() -> str:
    """A Python that an ordinary user can start; skips the test where there is none, or nobody can become that user."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if (
            os.path.exists(python)
            and not subprocess.run([*ORDINARY, python, "-c", check], capture_output=True).returncode
        ):
            return python
    pytest.skip("no Python (3.11 or newer) that an ordinary user could start")


def readable_package(folder: Path) -> Path:
    """A copy of the sandbox's code in a folder of this user's that every user can reach."""
    shutil.copytree(ROOT / "sandbox", folder / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))
    os.chmod(folder, 0o755)
    return folder
