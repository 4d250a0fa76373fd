"""The few Linux calls that Python's standard library lacks, by ctypes. Each raises OSError with the call's name."""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
import signal
import struct
from collections.abc import Callable, Iterable
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER = 1, 4, 24, 22, 36
PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 38, 2

# Numbers that differ between machines; calls added after Linux 5.1 have one number everywhere.
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CLOSE_RANGE, _MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 436, 442, 444, 445, 446
_AT_RECURSIVE, _AT_FDCWD = 0x8000, -100
_LANDLOCK_PATH_BENEATH = 1

# PyDLL keeps the GIL: these calls are short, and a process about to fork must not have a second running thread.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, name: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def _syscall(name: str, number: int, *arguments: object) -> int:
    return _checked(_libc.syscall(ctypes.c_long(number), *arguments), name)


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    _checked(_libc.setns(fd, flags), "setns")


def sethostname(name: str, domain: str) -> None:
    for function, text in (("sethostname", name), ("setdomainname", domain)):
        _checked(getattr(_libc, function)(text.encode(), len(text)), function)


def prctl(option: int, value: int = 0) -> None:
    _checked(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), "prctl")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    arguments = source.encode(), target.encode(), kind.encode() if kind else None
    _checked(_libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None), f"mount {target}")


def unmount(target: str) -> None:
    """Detaches at once; what still has files open there keeps them."""
    _checked(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def set_read_only(target: str) -> None:
    """A mount and all mounts below it: no writing, no setuid programs, no devices. Falls back to the mount alone."""
    attributes = struct.pack("<QQQQ", MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    size = ctypes.c_size_t(len(attributes))
    try:
        _syscall("mount_setattr", _MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, size)
    except OSError:
        flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV
        mount("none", target, None, flags)


def pivot_root(new_root: str, old_root: str) -> None:
    if platform.machine() not in _PIVOT_ROOT:
        raise OSError(f"pivot_root: unknown machine {platform.machine()}")
    _syscall("pivot_root", _PIVOT_ROOT[platform.machine()], new_root.encode(), old_root.encode())


def drop_capability_bounds() -> None:
    """Empties the bounding set, so that exec cannot add capabilities. Present ones stay."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # past the last one of this kernel, or not ours to drop
            return


# What a fresh process does to itself is a list of calls prepared before the fork: each page that the process writes
# must be copied first, and a call in Python code touches a dozen of them.
Call = tuple[Callable[..., int], tuple[Any, ...]]
_CAPABILITY_HEADER, _NO_CAPABILITIES = struct.pack("<Ii", 0x20080522, 0), bytes(24)  # version 3, this process


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


class Bound(ctypes.Structure):
    """struct rlimit."""

    _fields_ = (("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64))


def call(name: str, *arguments: Any) -> Call:
    """A call of the C library, to be made later: ints, bytes and ctypes values."""
    return getattr(_libc, name), tuple(a.encode() if isinstance(a, str) else a for a in arguments)


def set_limit(kind: int, bound: Bound) -> Call:
    """A resource limit whose value may be changed in `bound` until the call is made."""
    return call("setrlimit", kind, ctypes.byref(bound))


def no_capabilities() -> Call:
    return call("capset", _CAPABILITY_HEADER, _NO_CAPABILITIES)


def seccomp_filter(code: bytes) -> Call:
    """`code`: BPF instructions of 8 bytes each. Needs no-new-privileges."""
    program = ctypes.byref(_Filter(len(code) // 8, code))
    return call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)


def unblock_signals() -> Call:
    return call("sigprocmask", signal.SIG_SETMASK, bytes(128), None)


def own_signals_only(filter_for: Callable[[int], bytes]) -> Call:
    """A seccomp filter that depends on the process' own number, known only within it."""

    def install() -> int:
        function, arguments = seccomp_filter(filter_for(os.getpid()))
        return function(*arguments)

    return install, ()


def close_from(first: int) -> Call:
    return call("syscall", ctypes.c_long(_CLOSE_RANGE), first, ctypes.c_uint((1 << 32) - 1), 0)


def landlock_restriction(ruleset: int) -> Call:
    return call("syscall", ctypes.c_long(_LANDLOCK_RESTRICT), ruleset, 0)


def perform(calls: Iterable[Call]) -> None:
    """Makes the calls in order. Raises OSError with the first one that fails."""
    for function, arguments in calls:
        if function(*arguments) < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))


def fork() -> int:
    """fork(2) without Python's hooks: for a process with one thread that runs little before the program takes over."""
    return _checked(_libc.fork(), "fork")


def version() -> tuple[int, int]:
    """The kernel's version, such as (6, 1)."""
    major, minor = platform.release().split(".")[:2]
    return int(major), int("".join(itertools.takewhile(str.isdigit, minor)) or 0)


def landlock_version() -> int:
    """The ABI version of this kernel. Raises OSError without Landlock."""
    return _syscall("landlock", _LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)


def landlock_ruleset(files: int, network: int, scopes: int) -> int:
    """A file descriptor of a ruleset that forbids the given kinds of access, except where rules allow them."""
    attributes = struct.pack("<QQQ", files, network, scopes)
    version = landlock_version()
    size = 8 if version < 4 else 16 if version < 6 else 24
    return _syscall("landlock_create_ruleset", _LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0)


def landlock_allow(ruleset: int, path: str, access: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("<Qi", access, fd)
        _syscall("landlock_add_rule", _LANDLOCK_ADD, ruleset, _LANDLOCK_PATH_BENEATH, rule, 0)
    finally:
        os.close(fd)
