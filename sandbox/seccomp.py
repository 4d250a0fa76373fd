"""The system call filter of a candidate: what a program that computes never needs gives "not permitted".

Denied are the ways to reach other processes (ptrace, process_vm_*, pidfd_getfd), to change what is mounted or named,
to make namespaces, to talk to the kernel's larger attack surfaces (bpf, io_uring, keyctl, perf, userfaultfd,
modules, netlink, packet and vsock sockets), to keep memory that outlives a process (System V and POSIX queues, memfd)
and to change another process' scheduling or limits. Calls that were added to Linux after this table was made do not
exist for a candidate; calls of another instruction set kill it.
"""

from __future__ import annotations

import errno
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
    "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "mq_open": (240, 180), "memfd_create": (319, 279), "memfd_secret": (447, 447), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "mbind": (237, 235), "set_mempolicy": (238, 237),
}  # fmt: skip
_WORKER_NEEDS = ("mount", "umount2", "unshare")  # for a fresh box and for workers cloned from it
# Allowed for the process itself only: the argument with the process' number must be 0.
_OWN_PROCESS = {
    "prlimit64": ((302, 261), 0), "sched_setaffinity": ((203, 122), 0), "sched_setscheduler": ((144, 119), 0),
    "sched_setparam": ((142, 118), 0), "sched_setattr": ((314, 274), 0), "setpriority": ((141, 140), 1),
    "ioprio_set": ((251, 30), 1),
}  # fmt: skip
_SOCKET, _CLONE, _CLONE3 = (41, 198), (56, 220), (435, 435)
_FAMILIES = (1, 2, 10)  # unix, inet, inet6; the latter lead nowhere in an empty network namespace
_SOCKET_KINDS = (1, 2, 5)  # stream, datagram, seqpacket: not raw
_NEW_NAMESPACES = 0x7E020080  # all CLONE_NEW* flags
_LAST_KNOWN = 462  # mseal, Linux 6.10

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _AND, _EQUAL, _ABOVE, _ANY, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data


def worker_filter(machine: str = "") -> bytes:
    """BPF instructions for a worker: all that its children must not do, but for what itself needs.

    A filter costs most when it is installed, so the long one is installed once and inherited.
    """
    column = _column(machine)
    denied = _return(_ERRNO | errno.EPERM)
    machine = list(_AUDIT_ARCH)[column]
    code = [_op(_LOAD, _ARCH), _op(_EQUAL, _AUDIT_ARCH[machine], 1, 0), _return(_KILL), _op(_LOAD, _NUMBER)]
    # Above the last known number are new calls and, on x86_64, the x32 calls (bit 30).
    code += [_op(_ABOVE, _LAST_KNOWN, 0, 1), _return(_ERRNO | errno.ENOSYS)]
    code += [_op(_EQUAL, _CLONE3[column], 0, 1), _return(_ERRNO | errno.ENOSYS)]  # its flags cannot be read: use clone
    for name, numbers in _DENIED.items():
        if (number := numbers[column]) is not None and name not in _WORKER_NEEDS:
            code += [_op(_EQUAL, number, 0, 1), denied]
    for numbers, position in _OWN_PROCESS.values():
        code += _when(numbers[column], [_op(_LOAD, _ARGUMENTS + 8 * position), _op(_EQUAL, 0, 1, 0), denied])
    new_namespace = [_op(_LOAD, _ARGUMENTS), _op(_ANY, _NEW_NAMESPACES, 0, 1), denied]
    code += _when(_CLONE[column], new_namespace)
    family = [_op(_LOAD, _ARGUMENTS), *_one_of(_FAMILIES, denied)]
    kind = [_op(_LOAD, _ARGUMENTS + 8), _op(_AND, 0xF), *_one_of(_SOCKET_KINDS, denied)]
    code += _when(_SOCKET[column], family + kind)
    return b"".join([*code, _return(_ALLOW)])


def program_filter(machine: str = "") -> bytes:
    """BPF instructions for a program's process, on top of its worker's."""
    column = _column(machine)
    code = [_op(_LOAD, _NUMBER)]
    for name in _WORKER_NEEDS:
        code += [_op(_EQUAL, _DENIED[name][column] or 0, 0, 1), _return(_ERRNO | errno.EPERM)]
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


def _one_of(values: tuple[int, ...], otherwise: bytes) -> list[bytes]:
    jumps = [_op(_EQUAL, value, len(values) - i, 0) for i, value in enumerate(values)]
    return [*jumps, otherwise]
