"""The layers between a hostile program and the machine; which of them are active, and why others are missing.

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

A worker enters the jail once (`enter_jail`); each program's process then gives up the rest (`confinement`).
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sandbox import kernel
from sandbox.seccomp import program_filter, worker_filter

NAMESPACES = {
    "pid": kernel.CLONE_NEWPID,
    "mount": kernel.CLONE_NEWNS,
    "network": kernel.CLONE_NEWNET,
    "ipc": kernel.CLONE_NEWIPC,
    "uts": kernel.CLONE_NEWUTS,
}
LAYERS = ("user", *NAMESPACES, "uid", "capabilities", "no_new_privs", "seccomp", "landlock", "rlimits", "cgroup")
# Named answers to "what is the least that is accepted?"
LEVELS: dict[str, tuple[str, ...]] = {
    "process": ("no_new_privs", "rlimits"),
    "namespaces": ("user", *NAMESPACES, "capabilities", "no_new_privs", "seccomp", "rlimits"),
    "everything": tuple(layer for layer in LAYERS if layer != "uid"),
}
RULESET = 100  # file descriptor of Landlock's rules: out of the way of those that processes use
OPTIONAL = ("capabilities", "landlock", "seccomp")  # in the order in which a process takes them on
# What is asked for where nothing else is said. The variable is for machines, such as most containers, that give less.
LEAST = os.environ.get("JAXRL_SANDBOX_LEAST", "namespaces")
BOX_PARENT, BOX = "/w", "/w/box"  # the only writable folder of the jail
TEMPORARY = "/tmp"  # where programs get a folder without one
BOX_MB, BOX_FILES = 64, 4096
FILE_SIZE = 16 << 20
OPEN_FILES = 64
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
DEVICES = ("null", "zero", "full", "random", "urandom")
FIRST_ID, IDS = 0x60000000, 4  # host user ids for jails that root starts: far from those of people and containers
ZYGOTE_ID, CANDIDATE_ID, EXAMINER_ID = 0, 1000, 1001  # the same ids inside a jail


class IsolationError(Exception):
    """The machine gives less isolation than what was asked for."""


@dataclass
class Jail:
    """What a worker knows of its own confinement."""

    layers: dict[str, str] = field(default_factory=dict)  # layer: "on", or why it is missing
    box: str = ""
    ids: dict[str, int] = field(default_factory=dict)  # user ids by role; empty: all have the worker's
    ruleset: int = -1  # Landlock's
    optional: dict[str, kernel.Call] = field(default_factory=dict)  # calls by layer: see `confinement`
    size: int = 0  # bytes of address space before any program
    in_box: dict[str, str] = field(
        default_factory=dict
    )  # Python's folders below /tmp: where in the box, and its source

    @property
    def process_one(self) -> bool:
        return self.layers.get("pid") == "on"

    def try_layer(self, name: str, action: Callable[[], Any]) -> bool:
        """Runs the action, and notes whether it worked."""
        try:
            action()
        except (OSError, ValueError) as error:
            self.layers[name] = str(error)
            return False
        self.layers[name] = "on"
        return True


def required_layers(least: str) -> tuple[str, ...]:
    """The layers that a level, or names with commas, stand for. Raises ValueError for an unknown name."""
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
            f"the sandbox lacks {'; '.join(lacking)}. `python -m sandbox doctor` tells more; to accept less, name a "
            f"level ({', '.join(LEVELS)}) or layers as JAXRL_SANDBOX_LEAST, --least or config.sandbox.least"
        )


def enter_jail(python_paths: Iterable[str], cgroup: str) -> Jail:
    """Isolates this process as far as the kernel allows, and returns in the process that is to serve.

    With a pid namespace that is a child of this process (as process 1); this one only waits for it.

    Args:
        python_paths: folders that programs must be able to read: the Python installation and its packages.
        cgroup: "on", or why there is none.
    """
    jail = Jail(layers={"cgroup": cgroup})
    with open("/proc/self/statm") as f:
        jail.size = int(f.read().split()[0]) * resource.getpagesize()
    root = os.getuid() == 0
    ids = FIRST_ID + (os.getpid() % (1 << 20)) * IDS
    host = _Host()
    # Root can read folders that are closed to others, so it arranges the files before it gives up being root.
    if root and jail.try_layer("mount", lambda: kernel.unshare(kernel.CLONE_NEWNS)):
        jail.try_layer("mount", lambda: jail.in_box.update(_build_root(python_paths)))
    jail.try_layer("user", lambda: _enter_user_namespace(root, ids, host))
    host.leave()
    for name, flag in NAMESPACES.items():
        if name != "mount":
            jail.try_layer(name, lambda flag=flag: kernel.unshare(flag))
    own_mounts = _works(lambda: kernel.unshare(kernel.CLONE_NEWNS))
    if not root:
        jail.try_layer("mount", lambda: jail.in_box.update(_build_root(python_paths)))
    if root:
        base = 0 if jail.layers["user"] == "on" else ids
        jail.ids = {"candidate": base + CANDIDATE_ID, "examiner": base + EXAMINER_ID}
        with contextlib.suppress(OSError):
            os.setgroups([])
    jail.layers["uid"] = "on" if root else "not started by root: all processes of a worker have its user id"
    if jail.process_one and (child := os.fork()):
        _wait_and_exit(child)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    with contextlib.suppress(OSError):
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        kernel.drop_capability_bounds()
    if jail.layers["mount"] == "on" and own_mounts:
        jail.box = BOX
        mount_box(jail)
    _prepare_layers(jail, python_paths)
    return jail


def mount_box(jail: Jail) -> None:
    """A fresh private folder in the place of the last one."""
    options = f"size={BOX_MB}m,nr_inodes={BOX_FILES},mode=1777"
    kernel.mount("box", BOX, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
    for target, source in jail.in_box.items():
        os.makedirs(target)
        kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)


def fresh_box(jail: Jail) -> str:
    """An empty folder that only the next program will see."""
    if jail.box:
        return jail.box
    folder = f"{TEMPORARY}/sandbox-{os.urandom(8).hex()}"
    os.mkdir(folder, 0o700)
    if jail.ids:
        os.chown(folder, jail.ids["candidate"], jail.ids["candidate"])
    return folder


class _Host:
    """A process that stays outside: only from there can root name the user ids of its new namespace."""

    def __init__(self) -> None:
        asked, self._ask = os.pipe()
        self._answered, answer = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._ask)
            try:
                while request := os.read(asked, 4096):
                    _write(f"/proc/{parent}/uid_map", request.decode())
                    _write(f"/proc/{parent}/gid_map", request.decode())
                    os.write(answer, b"1")
            finally:
                os._exit(0)
        os.close(asked)
        os.close(answer)

    def map_ids(self, lines: str) -> None:
        os.write(self._ask, lines.encode())
        if not os.read(self._answered, 1):
            raise OSError("the user ids of a new namespace could not be set")

    def leave(self) -> None:
        os.close(self._ask)
        os.close(self._answered)
        os.waitpid(self._pid, 0)


def _enter_user_namespace(root: bool, ids: int, host: _Host) -> None:
    uid, gid = os.getuid(), os.getgid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    if root:  # three ids that nobody else has: even one who broke out of the jail would own nothing
        inside = (ZYGOTE_ID, CANDIDATE_ID, EXAMINER_ID)
        host.map_ids("".join(f"{there} {ids + i} 1\n" for i, there in enumerate(inside)))
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    else:  # an ordinary user can name only itself; not as 0, so that exec never gives capabilities
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{CANDIDATE_ID} {uid} 1")
        _write("/proc/self/gid_map", f"{CANDIDATE_ID} {gid} 1")


def _build_root(python_paths: Iterable[str]) -> dict[str, str]:
    """Makes a root of read-only views of the system and the Python installation, and moves there.

    The box is /tmp. Folders that lie below /tmp are mounted elsewhere, to be mounted again in each box: the result.
    """
    in_box: dict[str, str] = {}
    new = "/sys"  # exists everywhere and holds nothing that is needed
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    paths = _outermost([p for p in (*SYSTEM, *python_paths) if os.path.exists(p) and p != "/"])
    kernel.mount("root", new, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    for path in paths:
        target = new + path
        if path.startswith("/tmp/"):
            source = f"{BOX_PARENT}/python{len(in_box)}"
            in_box[path.replace("/tmp", BOX, 1)] = source
            target = new + source
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            open(target, "w").close()
        kernel.mount(path, target, None, kernel.MS_BIND | kernel.MS_REC)
        kernel.set_read_only(target)
    os.mkdir(f"{new}/dev")
    for name in DEVICES:
        open(f"{new}/dev/{name}", "w").close()
        kernel.mount(f"/dev/{name}", f"{new}/dev/{name}", None, kernel.MS_BIND)
    os.makedirs(new + BOX)
    os.symlink(BOX, f"{new}/tmp")
    os.symlink(BOX, f"{new}/dev/shm")
    os.mkdir(f"{new}/old")
    os.chdir(new)
    kernel.pivot_root(".", "old")
    os.chdir("/")
    kernel.unmount("/old")
    os.rmdir("/old")
    kernel.mount("none", "/", None, kernel.MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NOSUID)
    return in_box


def _outermost(paths: list[str]) -> list[str]:
    """The paths that lie within no other one (through links as well), in order."""
    kept: list[str] = []
    for path in sorted(dict.fromkeys(paths), key=len):
        if not any(path == k or path.startswith(k.rstrip("/") + "/") for k in kept):
            kept.append(path)
    return kept


def _wait_and_exit(child: int) -> None:
    """Stays as the worker's parent outside of its pid namespace: killing this process ends the worker."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
    os.closerange(0, 4096)  # the control socket above all: its end must be seen
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _prepare_layers(jail: Jail, python_paths: Iterable[str]) -> None:
    """Gives up what the worker itself does not need, and finds which calls of `confinement` work, in a child."""
    fixed = {"CORE": 0, "FSIZE": FILE_SIZE, "NOFILE": OPEN_FILES, "MSGQUEUE": 0, "MEMLOCK": 0}
    jail.try_layer("landlock", lambda: _make_ruleset(jail, python_paths))
    jail.try_layer(
        "rlimits", lambda: [resource.setrlimit(getattr(resource, f"RLIMIT_{k}"), (v, v)) for k, v in fixed.items()]
    )
    jail.try_layer("no_new_privs", lambda: kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1))
    jail.try_layer("seccomp", lambda: jail.optional.update(seccomp=kernel.seccomp_filter(program_filter())))
    if not jail.try_layer("seccomp", lambda: kernel.perform([kernel.seccomp_filter(worker_filter())])):
        jail.optional.pop("seccomp", None)
    jail.optional["capabilities"] = kernel.no_capabilities()
    if jail.ruleset >= 0:
        jail.optional["landlock"] = kernel.landlock_restriction(jail.ruleset)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        trial = Jail()
        try:
            for name in OPTIONAL:
                if name in jail.optional:
                    trial.try_layer(name, lambda name=name: kernel.perform([jail.optional[name]]))
        finally:
            os.write(write, "\n".join(f"{k}\t{v}" for k, v in trial.layers.items()).encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "r") as f:
        jail.layers.update(line.rstrip("\n").split("\t", 1) for line in f)  # type: ignore[misc]
    os.waitpid(pid, 0)


def _make_ruleset(jail: Jail, python_paths: Iterable[str]) -> None:
    """Landlock: reading everywhere in the jail (or in the system's folders without one), writing in the box."""
    version = kernel.landlock_version()
    read = 1 << 0 | 1 << 2 | 1 << 3  # execute, read files, read folders
    write = 1 << 1
    in_box = sum(1 << i for i in range(13)) & ~(1 << 6 | 1 << 11)  # no character or block devices
    handled = sum(1 << i for i in range(13))
    for since, bit in ((2, 13), (3, 14), (5, 15)):  # linking between folders, truncating, device controls
        if version >= since:
            handled |= 1 << bit
            in_box |= 1 << bit if bit != 15 else 0
    ruleset = kernel.landlock_ruleset(handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    for path in ("/",) if jail.box else (*SYSTEM, *python_paths):
        if os.path.exists(path):
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
            kernel.landlock_allow(ruleset, path, read if is_folder else read & ~(1 << 3))
    # The rule is on the box's parent, so that it holds for each tmpfs that is mounted there.
    kernel.landlock_allow(ruleset, BOX_PARENT if jail.box else TEMPORARY, in_box)
    for name in DEVICES:
        kernel.landlock_allow(ruleset, f"/dev/{name}", read & ~(1 << 3) & ~1 | write)
    jail.ruleset = os.dup2(ruleset, RULESET)
    os.close(ruleset)


@dataclass
class Bounds:
    """The limits that differ between programs; set before the fork."""

    cpu: kernel.Bound = field(default_factory=kernel.Bound)
    processes: kernel.Bound = field(default_factory=kernel.Bound)
    memory: kernel.Bound = field(default_factory=kernel.Bound)

    def set(self, size: int, cpu_s: float, processes: int, memory_mb: int) -> None:
        """memory_mb: address space above the `size` that Python has already; 0: unlimited."""
        seconds, count = max(1, int(cpu_s + 0.999)), processes
        size = (memory_mb << 20) + size if memory_mb else (1 << 64) - 1
        values = (self.cpu, seconds, seconds + 1), (self.processes, count, count), (self.memory, size, size)
        for bound, soft, hard in values:  # CPU time: first the signal that says why
            bound.soft, bound.hard = soft, hard


def confinement(jail: Jail, role: str, bounds: Bounds) -> list[kernel.Call]:
    """What a program's process must do to itself; each call that worked when the worker tried it must work again.

    Args:
        role: "candidate" or "examiner".
    """
    calls = [
        kernel.set_limit(resource.RLIMIT_CPU, bounds.cpu),
        kernel.set_limit(resource.RLIMIT_NPROC, bounds.processes),
        kernel.set_limit(resource.RLIMIT_AS, bounds.memory),
    ]
    if jail.ids:
        own = jail.ids[role]
        calls += [kernel.call("setresgid", own, own, own), kernel.call("setresuid", own, own, own)]
    return calls + [jail.optional[name] for name in OPTIONAL if jail.layers.get(name) == "on"]


def _works(action: Callable[[], Any]) -> bool:
    with contextlib.suppress(OSError):
        action()
        return True
    return False


def _write(path: str, text: str) -> None:
    with open(path, "w") as f:
        f.write(text)
