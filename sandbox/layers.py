"""The layers between a hostile program and the machine, and how many of them are required.

    layer            what it takes away
    user             real user ids: in the namespace there are only unprivileged ones, capabilities end at its border
    pid              the sight of other processes; when the worker (process 1) ends, all end
    mount            the file system: Python and the system's libraries read-only, one small private tmpfs, no /proc
    network          all interfaces        ipc, uts     queues and segments of others; the host's name
    uid              the worker's own user id: candidate and examiner have ids of their own (only when started by root)
    capabilities     all of them           no_new_privs setuid programs
    seccomp          system calls (sandbox/seccomp.py)
    landlock         writing outside of the box, TCP, signals and abstract sockets to others
    rlimits          address space, CPU, file size, open files, processes
    cgroup           memory, processes and CPU of all processes of a worker together

What follows from these, each in more than one way:

    signals          signals to the worker and to all others: pid, landlock, uid, or seccomp
    leftovers        files that outlive a program: mount, landlock, or uid and a search of world-writable folders
    processes        counting the processes of others: uid, a user namespace for each worker, or cgroup
    memory           the memory of commands without a limit of address space: cgroup, or a look at them in /proc
    oom              the kernel killing a worker when a program has taken the memory
    dumpable         reading a worker's memory and descriptors by processes with its user id
"""

from __future__ import annotations

import os

from sandbox import kernel

NAMESPACES = {
    "pid": kernel.CLONE_NEWPID,
    "mount": kernel.CLONE_NEWNS,
    "network": kernel.CLONE_NEWNET,
    "ipc": kernel.CLONE_NEWIPC,
    "uts": kernel.CLONE_NEWUTS,
}
LAYERS = (
    "user", *NAMESPACES, "uid", "capabilities", "no_new_privs", "seccomp", "landlock", "rlimits", "cgroup",
    "signals", "leftovers", "processes", "memory", "oom", "dumpable",
)  # fmt: skip
# Named levels of the least isolation that is accepted.
LEVELS: dict[str, tuple[str, ...]] = {
    "process": ("no_new_privs", "rlimits"),
    "namespaces": ("user", *NAMESPACES, "capabilities", "no_new_privs", "seccomp", "rlimits"),
    "everything": tuple(layer for layer in LAYERS if layer != "uid"),
}
# The default requirement. The variable is for machines, such as most containers, that provide less.
LEAST = os.environ.get("JAXRL_SANDBOX_LEAST", "namespaces")


class IsolationError(Exception):
    """The machine provides less isolation than required."""


def required_layers(least: str) -> tuple[str, ...]:
    """The layers of a level, or of comma-separated names. Raises ValueError for an unknown name."""
    wanted = LEVELS.get(least) or tuple(name.strip() for name in least.split(",") if name.strip())
    if unknown := [name for name in wanted if name not in LAYERS]:
        raise ValueError(
            f"unknown sandbox layer {unknown[0]!r}; levels: {', '.join(LEVELS)}; layers: {', '.join(LAYERS)}"
        )
    return wanted


def missing(layers: dict[str, str], least: str) -> list[str]:
    """The layers of `least` (see `required_layers`) that are not active, with the reasons."""
    wanted = required_layers(least)
    return [f"{name} ({layers.get(name, 'not tried')})" for name in wanted if layers.get(name) != "on"]


def require(layers: dict[str, str], least: str) -> None:
    """Raises IsolationError when less than `least` is active."""
    if lacking := missing(layers, least):
        raise IsolationError(
            f"the sandbox lacks {'; '.join(lacking)}. `python -m sandbox doctor` shows more; to accept less, set a "
            f"level ({', '.join(LEVELS)}) or layers as JAXRL_SANDBOX_LEAST, --least or config.sandbox.least"
        )
