"""How a worker isolates itself: its root of files, its namespaces and user ids, and what its programs give up.

A worker enters the jail once (`enter_jail`), its clones separate from it (`separate`); each program's process then
gives up the rest (`confinement`). What each layer is for is in sandbox/layers.py.
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from sandbox import kernel
from sandbox.layers import NAMESPACES
from sandbox.leftovers import PREFIX, changed_at, open_folders, remove_of_owners, remove_old_folders, remove_tree
from sandbox.seccomp import own_signals_filter, program_filter, worker_filter

OPTIONAL = ("capabilities", "landlock", "signals", "seccomp")  # in the order in which a process takes them on
BOX_PARENT, BOX = "/w", "/w/box"  # the only writable folder of the jail
ANY_PROGRAM = "/proc/self/cwd/program.py"  # a script without a mount namespace, where each has a folder of its own
PROGRAM, STDIN = f"{BOX}/program.py", f"{BOX}/.stdin"  # where a script lies, and a copy of its stdin if it wants one
TEMPORARY = "/tmp"  # where programs get a folder without one
BOX_MB, BOX_FILES = 64, 4096
FILE_SIZE = 256 << 20  # also of the answers that a program gives
OPEN_FILES = 64
SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime",
    "/etc/ssl/openssl.cnf",  # Node ends when it may not read this
)  # fmt: skip
DEVICES = ("null", "zero", "full", "random", "urandom")
# Host user ids for jails that root starts: a block for each template, between those that systemd gives to containers
# and to foreign images.
FIRST_ID, IDS, BLOCKS = 0x70000000, 4096, 65504
# In a jail: the worker's, and the first candidate's and examiner's; each clone has a pair of its own.
ZYGOTE_ID, CANDIDATE_ID, EXAMINER_ID = 0, 1000, 1001
SLOTS = (IDS - CANDIDATE_ID) // 2
OTHERS = 4096  # processes with the program's user id where those of others count as well
HOST_NAME = "sandbox"


@dataclass
class Jail:
    """What a worker knows of its own confinement."""

    layers: dict[str, str] = field(default_factory=dict)  # layer: "on", or why it is missing
    box: str = ""
    folder: str = ""  # where the box is made for each program, on machines without mount namespaces
    open_folders: tuple[str, ...] = ()  # that a program could write to as well: see `clean_folders`
    first_id: int = -1  # user id from which `ids` are counted
    ids: dict[str, int] = field(default_factory=dict)  # user ids by role; empty: all have the worker's
    others: int = 0  # processes that the kernel counts as the program's beside its own
    proc: int = -1  # descriptor of the host's /proc; no program's process has it
    python: tuple[str, ...] = ()  # folders that programs must be able to read
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


def enter_jail(python_paths: Iterable[str], cgroup: str) -> Jail:
    """Isolates this process as far as the kernel allows, and returns in the process that is to serve.

    With a pid namespace that is a child of this process (as process 1); this one only waits for it.

    Args:
        python_paths: folders that programs must be able to read: the Python installation and its packages.
        cgroup: "on", or why there is none.
    """
    jail = Jail(layers={"cgroup": cgroup}, python=tuple(python_paths))
    started_as = os.getpid()
    with contextlib.suppress(OSError):
        jail.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    with open("/proc/self/statm") as f:
        jail.size = int(f.read().split()[0]) * resource.getpagesize()
    root = os.getuid() == 0
    ids = FIRST_ID + started_as % BLOCKS * IDS
    with contextlib.suppress(OSError):
        remove_old_folders(TEMPORARY, range(FIRST_ID, FIRST_ID + BLOCKS * IDS) if root else (os.getuid(),))
    host = _Host()
    # Root can read folders that are closed to others, so it arranges the files before it gives up being root.
    if root and jail.try_layer("mount", lambda: kernel.unshare(kernel.CLONE_NEWNS)):
        jail.try_layer("mount", lambda: jail.in_box.update(_build_root(jail.python)))
    jail.try_layer("user", lambda: _enter_user_namespace(root, ids, host))
    host.leave()
    for name, flag in NAMESPACES.items():
        if name != "mount":
            jail.try_layer(name, lambda flag=flag: kernel.unshare(flag))
    if jail.layers["uts"] == "on":
        jail.try_layer("uts", lambda: kernel.sethostname(HOST_NAME, "(none)"))
    own_mounts = _works(lambda: kernel.unshare(kernel.CLONE_NEWNS))
    if not root:
        jail.try_layer("mount", lambda: jail.in_box.update(_build_root(jail.python)))
    if root:
        jail.first_id = 0 if jail.layers["user"] == "on" else ids
        jail.ids = _ids(jail, 0)
        with contextlib.suppress(OSError):
            os.setgroups([])
    jail.layers["uid"] = "on" if root else "not started by root: all processes of a worker have its user id"
    if jail.process_one and (child := os.fork()):
        _wait_and_exit(child)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
    jail.try_layer("dumpable", lambda: kernel.prctl(kernel.PR_SET_DUMPABLE, 0))
    with contextlib.suppress(OSError):
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        kernel.drop_capability_bounds()
    _count_processes(jail, jail.layers["user"] == "on", 2)  # this one, and the one that waits for it
    if jail.layers["mount"] == "on" and own_mounts:
        jail.box = BOX
        mount_box(jail)
    else:
        jail.folder = f"{TEMPORARY}/{PREFIX}{started_as}-{os.urandom(8).hex()}"
        os.mkdir(jail.folder, 0o711 if root else 0o700)
    _prepare_layers(jail)
    return jail


def separate(jail: Jail, slot: int) -> Jail:
    """What a clone of a worker does first: namespaces and user ids of its own. Its next child will be process 1.

    Where root did not start it all jails have one user id, and the kernel counts its processes for each user namespace.
    """
    new = replace(jail, layers=dict(jail.layers), optional=dict(jail.optional))
    new.ids = _ids(jail, slot) if jail.ids else {}
    nested = not new.ids and jail.layers["user"] == "on" and _works(lambda: _nest_user_namespace(jail.proc))
    _count_processes(new, nested, 1)
    flags = [NAMESPACES[name] for name in ("pid", "network", "ipc") if jail.layers[name] == "on"]
    if wanted := sum(flags) | (kernel.CLONE_NEWNS if jail.box else 0):
        kernel.unshare(wanted)
    return new


def settle(jail: Jail) -> None:
    """What a clone does then, in the process that is to serve."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    with contextlib.suppress(OSError):  # does not pass to a fork
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    if jail.box:
        mount_box(jail)
        return
    jail.folder = f"{jail.folder}/{os.urandom(8).hex()}"
    os.mkdir(jail.folder, 0o711 if jail.ids else 0o700)
    if jail.layers["landlock"] == "on":
        os.close(jail.ruleset)
        _make_ruleset(jail)
        jail.optional["landlock"] = kernel.landlock_restriction(jail.ruleset)


def _ids(jail: Jail, slot: int) -> dict[str, int]:
    first = jail.first_id + 2 * slot
    return {"candidate": first + CANDIDATE_ID, "examiner": first + EXAMINER_ID}


def _count_processes(jail: Jail, own_namespace: bool, others: int) -> None:
    """Notes whose processes the kernel counts against a program's limit (for each user namespace since Linux 5.14)."""
    jail.layers["processes"] = "on"
    if jail.ids:
        jail.others = 0
    elif own_namespace and kernel.version() >= (5, 14):
        jail.others = others
    else:
        jail.others = OTHERS
        jail.layers["processes"] = "all processes of this user count; a program's own are counted by looking"


def open_own(jail: Jail, name: str) -> int:
    """A file of /proc/self for reading and writing, which only a dumpable process may; for before any program."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    try:
        return os.open(f"self/{name}", os.O_RDWR, dir_fd=jail.proc)
    finally:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def mount_box(jail: Jail, mb: int = BOX_MB, files: int = BOX_FILES) -> None:
    """A fresh private folder in the place of the last one."""
    options = f"size={mb}m,nr_inodes={files},mode=1777"
    kernel.mount("box", BOX, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
    for target, source in jail.in_box.items():
        os.makedirs(target)
        kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)


def empty_file_system(jail: Jail) -> None:
    """Leaves this process, and all that it will start, an empty folder as the root of its files.

    For processes that run test code: they find nothing that a program could have written. Without a mount namespace
    they keep the file system, in which they import nothing (sandbox/examiner.py).
    """
    if jail.box:
        kernel.mount("empty", BOX, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_RDONLY, "size=4k,mode=755")
        os.chdir(BOX)
        os.chroot(".")
        jail.box, jail.in_box = "/", {}


def fresh_box(jail: Jail) -> str:
    """An empty folder that only the next program will see."""
    if jail.box:
        return jail.box
    folder = f"{jail.folder}/box"
    os.mkdir(folder, 0o700)
    if jail.ids:
        os.chown(folder, jail.ids["candidate"], jail.ids["candidate"])
    return folder


def clean_folders(jail: Jail, before: list[int]) -> list[int]:
    """Without a mount namespace: removes what a program has left, and says what `before` is for the next one.

    Its box; and where Landlock did not hold it there, but its user id is its own, all that it owns in open folders.
    """
    for entry in os.listdir(jail.folder):
        remove_tree(f"{jail.folder}/{entry}")
    if (now := changed_at(jail.open_folders)) != before:
        remove_of_owners(jail.open_folders, jail.ids.values())
        now = changed_at(jail.open_folders)
    return now


class _Host:
    """A process that stays outside: only from there can root name the user ids of its new namespace."""

    def __init__(self) -> None:
        requests, self._ask = os.pipe()
        self._answered, answer = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._ask)
            try:
                while request := os.read(requests, 4096):
                    _write(f"/proc/{parent}/uid_map", request.decode())
                    _write(f"/proc/{parent}/gid_map", request.decode())
                    os.write(answer, b"1")
            finally:
                os._exit(0)
        os.close(requests)
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
    if root:  # ids that nobody else has: even one who broke out of the jail would own nothing
        host.map_ids(f"0 {ids} {IDS}\n")
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    else:  # an ordinary user can name only itself; not as 0, so that exec never gives capabilities
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{CANDIDATE_ID} {uid} 1")
        _write("/proc/self/gid_map", f"{CANDIDATE_ID} {gid} 1")


def _nest_user_namespace(proc: int) -> None:
    """A user namespace below an ordinary user's, for the same user id. Raises OSError where there can be none."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # for the files in /proc
    kernel.unshare(kernel.CLONE_NEWUSER)
    for name in ("uid_map", "gid_map"):
        fd = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(fd, f"{CANDIDATE_ID} {CANDIDATE_ID} 1".encode())
        os.close(fd)


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
    os.mkdir(f"{new}/dev/fd")
    for name in ("stdin", "fd/0"):  # what a script may find there: sandbox/script.py
        os.symlink(STDIN, f"{new}/dev/{name}")
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


def _prepare_layers(jail: Jail) -> None:
    """Gives up what the worker itself does not need, and finds which calls of `confinement` work, in a child."""
    fixed = {
        "FSIZE": FILE_SIZE, "NOFILE": OPEN_FILES, "MSGQUEUE": 0, "MEMLOCK": 0, "NICE": 0, "RTPRIO": 0,
        "SIGPENDING": 256, "CORE": 1,  # less than a page: neither a file nor, as 0 would, the host's program for cores
    }  # fmt: skip
    jail.try_layer("landlock", lambda: _make_ruleset(jail))
    jail.try_layer(
        "rlimits", lambda: [resource.setrlimit(getattr(resource, f"RLIMIT_{k}"), (v, v)) for k, v in fixed.items()]
    )
    jail.try_layer("no_new_privs", lambda: kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1))
    jail.try_layer("seccomp", lambda: jail.optional.update(seccomp=kernel.seccomp_filter(program_filter())))
    filters = worker_filter(network=jail.layers["network"] == "on")
    if not jail.try_layer("seccomp", lambda: kernel.perform([kernel.seccomp_filter(filters)])):
        jail.optional.pop("seccomp", None)
    jail.optional["capabilities"] = kernel.no_capabilities()
    if jail.ruleset >= 0:
        jail.optional["landlock"] = kernel.landlock_restriction(jail.ruleset)
    others_hidden = jail.process_one or jail.ids or (jail.ruleset >= 0 and kernel.landlock_version() >= 6)
    if others_hidden:
        jail.layers["signals"] = "on"
    else:
        jail.optional["signals"] = kernel.own_signals_only(own_signals_filter)
    _try_optional(jail)
    if "signals" in jail.optional and jail.layers["signals"] != "on":
        del jail.optional["signals"]
    _look_for_leftovers(jail)


def _look_for_leftovers(jail: Jail) -> None:
    jail.layers["leftovers"] = "on"
    if jail.box or jail.layers["landlock"] == "on":
        return
    if jail.ids:
        jail.open_folders = tuple(open_folders())
    else:
        jail.layers["leftovers"] = (
            "without mount, landlock and uid nothing tells a program's files outside of its folder from the user's own"
        )


def _try_optional(jail: Jail) -> None:
    """Notes which of the calls work, by making them in a child."""
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


def _make_ruleset(jail: Jail) -> None:
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
    for path in ("/",) if jail.box else (*SYSTEM, *jail.python):
        if os.path.exists(path):
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
            kernel.landlock_allow(ruleset, path, read if is_folder else read & ~(1 << 3))
    # The rule is on the box's parent, so that it holds for each box that is mounted or made there.
    kernel.landlock_allow(ruleset, BOX_PARENT if jail.box else jail.folder, in_box)
    for name in DEVICES:
        kernel.landlock_allow(ruleset, f"/dev/{name}", read & ~(1 << 3) & ~1 | write)
    jail.ruleset = ruleset


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
    return calls + [jail.optional[n] for n in OPTIONAL if n in jail.optional and jail.layers.get(n) == "on"]


def _works(action: Callable[[], Any]) -> bool:
    with contextlib.suppress(OSError):
        action()
        return True
    return False


def _write(path: str, text: str) -> None:
    with open(path, "w") as f:
        f.write(text)
