"""The system call filter of a candidate: what a program that computes never needs gives "not permitted".

Denied are the ways to reach other processes (ptrace, process_vm_*, pidfd_getfd), to change what is mounted or named,
to make namespaces, to talk to the kernel's larger attack surfaces (bpf, io_uring, keyctl, perf, userfaultfd,
modules, netlink, packet and vsock sockets), to keep memory that outlives a process (System V and POSIX queues, memfd),
to change another process' scheduling or limits, to watch the files that all jails and the host share (inotify,
fanotify, leases, cachestat) and to take from quotas that the kernel keeps for the whole host (asynchronous I/O
contexts, keys, queues, large pipes). Calls that were added to Linux after this table was made do not exist for a
candidate; calls of another instruction set kill it.

stdout and stderr may be files in memory whose output is counted by the position in them. Seeking in descriptors 1 and
2 therefore fails, as it does on a pipe. A filter cannot tell a duplicate of them from another file.

Some calls succeed without an effect (`_WITHOUT_EFFECT`): advice to the host's page cache, flushing the host's disks,
and file locks. A lock belongs to the file, and the files of Python and the system are the host's, so a real lock would
stop other jails and the host; a filter cannot see which file a descriptor leads to. In a folder that one program has
for itself, SQLite, dbm and lock files work as they do on a file system that is mounted without locks.
"""

from __future__ import annotations

import errno
import itertools
import platform
import struct

# name: number on x86_64, number on aarch64 (None: no such call there)
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429),
    "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "swapon": (167, 224), "swapoff": (168, 225), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "unshare": (272, 97), "setns": (308, 268), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "acct": (163, 89), "syslog": (103, 116),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "personality": (135, 92),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "lookup_dcookie": (212, 18), "vhangup": (153, 58),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "mbind": (237, 235), "set_mempolicy": (238, 237), "set_mempolicy_home_node": (450, 450),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27),
    "inotify_rm_watch": (255, 28), "fanotify_mark": (301, 263), "cachestat": (451, 451), "io_setup": (206, 0),
    "io_destroy": (207, 1), "io_submit": (209, 2), "io_cancel": (210, 3), "io_getevents": (208, 4),
    "io_pgetevents": (333, 292),
}  # fmt: skip
_WITHOUT_EFFECT: dict[str, tuple[int, int]] = {
    "flock": (73, 32), "sync": (162, 81), "syncfs": (306, 267), "fadvise64": (221, 223), "readahead": (187, 213),
}  # fmt: skip
_WORKER_NEEDS = ("mount", "umount2", "unshare", "chroot")  # for a fresh box and for workers cloned from it
# Allowed for the process itself only: these arguments (position: value) say so.
_OWN_PROCESS: dict[str, tuple[tuple[int, int], dict[int, int]]] = {
    "prlimit64": ((302, 261), {0: 0}), "sched_setaffinity": ((203, 122), {0: 0}),
    "sched_setscheduler": ((144, 119), {0: 0}), "sched_setparam": ((142, 118), {0: 0}),
    "sched_setattr": ((314, 274), {0: 0}),
    "setpriority": ((141, 140), {0: 0, 1: 0}), "ioprio_set": ((251, 30), {0: 1, 1: 0}),  # not all of a user's processes
}  # fmt: skip
# Calls that signal a process, and so must name the caller itself where nothing else protects the others.
_SIGNALS = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}  # fmt: skip
_PIDFD_SEND_SIGNAL = (424, 424)
_SOCKET, _SOCKETPAIR, _CLONE, _CLONE3 = (41, 198), (53, 199), (56, 220), (435, 435)
_FCNTL, _IOCTL, _LSEEK, _SEEK_CUR = (72, 25), (16, 29), (8, 62), 1
# Duplicating, flags, asking for locks, owners, leases, seals, hints and the size of pipes. Not: F_SETOWN and F_SETSIG
# (any signal to any process of the user), F_SETLEASE and F_NOTIFY (what others do with a file), F_SETPIPE_SZ (a quota).
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 9, 11, 16, 17, 36, 1025, 1027, 1028, 1030, 1032, 1033, 1034, 1035, 1037)
_FCNTL_LOCKS = (6, 7, 37, 38)  # F_SETLK, F_SETLKW and those of open file descriptions
_IOCTL_REQUESTS = (0x8901, 0x8902, 0x5412, 0x541C)  # FIOSETOWN, SIOCSPGRP, TIOCSTI, TIOCLINUX
_FAMILIES = (1, 2, 10)  # unix, inet, inet6; the latter lead nowhere in an empty network namespace
_SOCKET_KINDS = (1, 2, 5)  # stream, datagram, seqpacket: not raw
_PROTOCOLS = (0, 6, 17)  # TCP and UDP: others load modules into the host's kernel
_NEW_NAMESPACES = 0x7E020080  # all CLONE_NEW* flags
_LAST_KNOWN = 462  # mseal, Linux 6.10

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _AND, _EQUAL, _ABOVE, _ANY, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data


def worker_filter(machine: str = "", network: bool = True) -> bytes:
    """BPF instructions for a worker: all that its children must not do, except what it needs itself.

    A filter costs most when it is installed, so the long one is installed once and inherited.

    Args:
        network: whether there is a network namespace; without one every socket would be one of the host's, so only
            pairs of sockets can be made.
    """
    column = _column(machine)
    denied, without_effect = _return(_ERRNO | errno.EPERM), _return(_ERRNO)
    machine = list(_AUDIT_ARCH)[column]
    code = [_op(_LOAD, _ARCH), _op(_EQUAL, _AUDIT_ARCH[machine], 1, 0), _return(_KILL), _op(_LOAD, _NUMBER)]
    # Above the last known number are new calls and, on x86_64, the x32 calls (bit 30).
    code += [_op(_ABOVE, _LAST_KNOWN, 0, 1), _return(_ERRNO | errno.ENOSYS)]
    code += [_op(_EQUAL, _CLONE3[column], 0, 1), _return(_ERRNO | errno.ENOSYS)]  # its flags cannot be read: use clone
    for name, numbers in _DENIED.items():
        if (number := numbers[column]) is not None and name not in _WORKER_NEEDS:
            code += [_op(_EQUAL, number, 0, 1), denied]
    for numbers in _WITHOUT_EFFECT.values():
        code += [_op(_EQUAL, numbers[column], 0, 1), without_effect]
    for numbers, arguments in _OWN_PROCESS.values():
        checks = ((_argument(position), _op(_EQUAL, value, 1, 0), denied) for position, value in arguments.items())
        code += _when(numbers[column], [*itertools.chain(*checks)])
    code += _when(_CLONE[column], [_argument(0), _op(_ANY, _NEW_NAMESPACES, 0, 1), denied])
    locks = [_argument(1), *_any_of(_FCNTL_LOCKS, without_effect)]
    code += _when(_FCNTL[column], locks + _one_of(_FCNTL_COMMANDS, denied))
    code += _when(_IOCTL[column], [_argument(1), *_any_of(_IOCTL_REQUESTS, denied)])
    outputs = [_argument(0), *_any_of((1, 2), _return(_ERRNO | errno.ESPIPE))]
    where = [_argument(2), _op(_EQUAL, _SEEK_CUR, 0, 2), _argument(1), _op(_EQUAL, 0, len(outputs), 0)]
    code += _when(_LSEEK[column], [*where, *outputs])
    if not network:
        code += [_op(_EQUAL, _SOCKET[column], 0, 1), denied]
    for numbers in (_SOCKET, _SOCKETPAIR):
        family = [_argument(0), *_one_of(_FAMILIES, denied)]
        kind = [_argument(1), _op(_AND, 0xF), *_one_of(_SOCKET_KINDS, denied)]
        code += _when(numbers[column], family + kind + [_argument(2), *_one_of(_PROTOCOLS, denied)])
    return b"".join([*code, _return(_ALLOW)])


def program_filter(machine: str = "") -> bytes:
    """BPF instructions for a program's process, on top of its worker's."""
    column = _column(machine)
    code = [_op(_LOAD, _NUMBER)]
    for name in _WORKER_NEEDS:
        code += [_op(_EQUAL, _DENIED[name][column] or 0, 0, 1), _return(_ERRNO | errno.EPERM)]
    return b"".join([*code, _return(_ALLOW)])


def own_signals_filter(pid: int, machine: str = "") -> bytes:
    """BPF instructions for a program's process `pid`: it and its children may signal that process and nothing else."""
    column = _column(machine)
    denied = _return(_ERRNO | errno.EPERM)
    code = [_op(_LOAD, _NUMBER), _op(_EQUAL, _PIDFD_SEND_SIGNAL[column], 0, 1), denied]
    for name, numbers in _SIGNALS.items():
        allowed = (pid, 0) if name == "kill" else (pid,)  # 0: its own process group
        code += _when(numbers[column], [_argument(0), *_one_of(allowed, denied)])
    return b"".join([*code, _return(_ALLOW)])


def _column(machine: str) -> int:
    """Raises OSError for a machine without a table."""
    machine = machine or platform.machine()
    if machine not in _AUDIT_ARCH:
        raise OSError(f"seccomp: no table for {machine}")
    return list(_AUDIT_ARCH).index(machine)


def _op(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, k)


def _return(action: int) -> bytes:
    return _op(_RETURN, action)


def _when(number: int, then: list[bytes]) -> list[bytes]:
    """For one call: `then`, and allowed if that returns nothing. The number is still loaded for what follows."""
    return [_op(_EQUAL, number, 0, len(then) + 1), *then, _return(_ALLOW)]


def _argument(position: int) -> bytes:
    """Loads the lower half of a call's argument: all that the kernel looks at where these are checked."""
    return _op(_LOAD, _ARGUMENTS + 8 * position)


def _one_of(values: tuple[int, ...], otherwise: bytes) -> list[bytes]:
    """`otherwise`, unless what is loaded is one of the values."""
    jumps = [_op(_EQUAL, value, len(values) - i, 0) for i, value in enumerate(values)]
    return [*jumps, otherwise]


def _any_of(values: tuple[int, ...], then: bytes) -> list[bytes]:
    """`then`, if what is loaded is one of the values."""
    last = len(values) - 1
    jumps = [_op(_EQUAL, value, last - i, 0 if i < last else 1) for i, value in enumerate(values)]
    return [*jumps, then]
