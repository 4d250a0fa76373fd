"""Starts workers (sandbox/worker.py) and talks to them; nothing else outside knows a worker."""

from __future__ import annotations

import contextlib
import fcntl
import json
import marshal
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.cgroup import Cgroup
from sandbox.isolation import ANY_PROGRAM, PROGRAM, SLOTS
from sandbox.layers import require
from sandbox.leftovers import remove_tree
from sandbox.verdict import Limits

ROOT = str(Path(__file__).resolve().parent.parent)
PIPED = ("script", "command", "session")  # kinds that print to pipes; the others to files in memory
WRITTEN_AT_ONCE = 2 << 20  # bytes of a file in memory that Linux writes whole or, where it may not grow, not at all
START_S = 30.0  # on a loaded machine a Python with NumPy may take seconds to start
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from sandbox.{module} import main; main({argument})"


class WorkerError(Exception):
    """The worker failed; the program that it ran is not to blame."""


def python_command(module: str, argument: str = "") -> list[str]:
    """Starts `sandbox.MODULE.main(ARGUMENT)` in a bare Python without site packages, to be given an environment.

    Not with -I, which would not see the PYTHONHASHSEED there.
    """
    return [sys.executable, "-P", "-s", "-S", "-c", _BOOT.format(module=module, argument=argument), ROOT]


def python_environment() -> dict[str, Any]:
    """What a bare Python needs to know about this one: module folders for programs, and their parent folders."""
    prefixes = [os.path.realpath(p) for p in (sys.base_prefix, sys.prefix)] + [sys.base_prefix, sys.prefix]
    prefixes += [p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages")]
    path = [p for p in sys.path if os.path.exists(p) and any(p.startswith(x.rstrip("/") + "/") for x in prefixes)]
    path += [p for p in sys.path if p in prefixes and p not in path]
    return {"path": path, "python": sorted(set(prefixes))}


class WorkerProcess:
    """A worker and its control socket. Raises IsolationError when less than `least` can be had.

    Args:
        python: see `python_environment`.
        preload: modules that it imports once for all programs.
        program: the path that scripts see as theirs.
    """

    def __init__(
        self, python: dict[str, Any], preload: tuple[str, ...] = (), least: str = "namespaces", program: str = PROGRAM
    ):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {
            "PYTHONPATH": f"{ROOT}/sandbox/boot",
            "SANDBOX_CONTROL": str(theirs.fileno()),
            "PYTHONHASHSEED": "0",
            "LANG": "C.UTF-8",
            "HOME": os.devnull,  # ignores the user's own packages
            "LD_BIND_NOW": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        self.process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, program],
            # Of the same kinds as a program's own descriptors: Python looks at them when it makes sys.stdout.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent
        )
        theirs.close()
        assert self.process.stdout and self.process.stderr
        self._errors = self.process.stderr
        self.cgroup: Cgroup | None = None
        try:
            self.cgroup = Cgroup(f"jaxrl-sandbox-{self.process.pid}")
            self.cgroup.add(self.process.pid)
            self.cgroup.sweep()
            state = "on"
        except OSError as error:
            state = str(error)
        self._last_id, self._slots, self._slot = 0, {0}, 0
        self._template: WorkerProcess | None = None
        self._folder = ""
        try:
            self.control.send(json.dumps({**python, "preload": preload, "cgroup": state}).encode())
            hello = self.receive(START_S)
            self.layers: dict[str, str] = hello["layers"]
            self._folder = hello["folder"]
            for controller, layer in (("memory", "memory"), ("pids", "processes")):
                if self.cgroup and controller in self.cgroup.folders:
                    self.layers[layer] = "on"
            require(self.layers, least)
            if self.layers["mount"] != "on" and program == PROGRAM:  # that path will not exist: try again with another
                self.stop()
                self.__init__(python, preload, least, ANY_PROGRAM)
        except BaseException:
            self.stop()
            raise

    def run(self, kind: str, program: dict[str, Any], limits: Limits, **given: Any) -> Started:
        """Starts a process for a program: a candidate of some kind (sandbox/candidate.py), or an examiner.

        Args:
            program: plain data for it.
            stdin, calls: bytes, for kinds that take them.
            channel: for "served" and "examiner" the socket that leads to the other one, which is closed here.
            printed: for "examiner" the files of what the other one prints, to see how much it is.

        Raises WorkerError when it cannot be started.
        """
        if self.cgroup:
            self.cgroup.limit(limits.memory_mb + 64, limits.processes)
        self._last_id += 1
        data = marshal.dumps(program)
        text = _memory_file(len(data).to_bytes(8, "little"), data, given.get("calls", b""))
        streams = [_stream(kind, limits) for _ in range(2)]
        (stdout, stdout_end), (stderr, stderr_end) = streams
        started = Started(self._last_id, stdout, stderr, text, tuple(set(sum(streams, ())) - {stdout, stderr}))
        theirs: list[int] = [_memory_file(given.get("stdin", b"")), stdout_end, stderr_end]
        if kind in ("in_process", "session"):
            started.channel, other = socket.socketpair()
            channel = other.detach()
        elif kind == "served":
            channel = given["channel"].detach()
        else:
            started.answers = _memory_file()
            channel = given["channel"].detach() if kind == "examiner" else os.dup(started.answers)
        theirs += [channel, text]
        if kind == "examiner":
            theirs += [os.dup(fd) for fd in (started.answers, *given["printed"])]
        message = {"do": "run", "id": started.id, "kind": kind, "limits": vars(limits)}
        try:
            self.send(message, theirs)
        except WorkerError:
            started.close()
            raise
        finally:
            for fd in theirs:
                if fd not in (text, stdout_end, stderr_end):
                    os.close(fd)
        return started

    def send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        try:
            socket.send_fds(self.control, [json.dumps(message).encode()], fds or [])
        except OSError as error:
            raise WorkerError(f"the worker is gone: {error}") from None

    def receive(self, timeout_s: float | None) -> dict[str, Any]:
        """Raises WorkerError when nothing comes in time, or the worker has ended."""
        self.control.settimeout(timeout_s)
        try:
            data = self.control.recv(1 << 16)
        except OSError as error:
            raise WorkerError(f"the worker does not answer: {error}") from None
        if not data:
            last = drain(self._errors.fileno(), 1 << 16).decode("utf-8", "replace").strip().splitlines()[-1:]
            raise WorkerError(f"the worker has ended{': ' + last[0] if last else ''}")
        return json.loads(data)

    def end(self, run: int, grace_s: float = 0.0, timeout_s: float = 5.0) -> dict[str, Any]:
        """Ends a run if it does not end by itself within `grace_s`; how it went. Raises WorkerError."""
        self.send({"do": "end", "id": run, "grace_s": grace_s})
        while (message := self.receive(timeout_s)).get("id") != run:
            pass
        return message

    def clone(self, role: str = "candidate", modules: Sequence[str] = ()) -> WorkerProcess:
        """A worker with this one's modules in memory, and more, in a jail of its own; it ends when this one ends.

        A worker that has been cloned must not run programs: what ends one run would end its clones.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        slot = next(i for i in range(len(self._slots) + 1) if i not in self._slots)  # user ids of its own: see separate
        if slot >= SLOTS:
            raise WorkerError(f"{slot} workers are alive, more than one template can have")
        self.send({"do": "clone", "slot": slot, "role": role, "modules": list(modules)}, [theirs.fileno()])
        theirs.close()
        ours.settimeout(START_S)
        try:
            data, ancillary, _, _ = ours.recvmsg(1 << 16, socket.CMSG_SPACE(12))
        except OSError as error:
            raise WorkerError(f"a worker could not be cloned: {error}") from None
        if not data:
            raise WorkerError("a worker could not be cloned")
        (pid,) = struct.unpack_from("i", ancillary[0][2])  # as this side's process numbers have it
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        new = object.__new__(WorkerProcess)
        new.control, new.process, new._errors, new._last_id = ours, None, self._errors, 0
        hello = json.loads(data)
        new.layers, new._folder = hello["layers"], hello["folder"]
        new._template, new._slot, new._slots = self, slot, set()
        self._slots.add(slot)
        new.cgroup = None
        if self.cgroup:
            with contextlib.suppress(OSError):
                new.cgroup = Cgroup(f"jaxrl-sandbox-{pid}")
                new.cgroup.add(pid)
        if new.cgroup and (events := new.cgroup.memory_events()) is not None:
            with events:
                new.send({"do": "memory"}, [events.fileno()])
        return new

    def stop(self) -> None:
        """Ends the worker and all that runs in it."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)
            self.control.settimeout(1.0)
            while not self.process and self.control.recv(1 << 16):  # a clone ends its run first
                pass
        self.control.close()
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            self._errors.close()
            assert self.process.stdout
            self.process.stdout.close()
        if self.cgroup:
            self.cgroup.remove()
        if self._folder and os.path.exists(self._folder):
            remove_tree(self._folder)  # it was ended before it could do so
        if self._template:
            self._template._slots.discard(self._slot)


@dataclass
class Started:
    """A run's descriptors on this side: stdout, stderr, and the file of its answers or a channel to it."""

    id: int
    stdout: int
    stderr: int
    text: int
    # The writing ends of pipes: while they are open here, nobody is woken by the process' end. Without pipes, what is
    # printed goes to files in memory.
    ends: tuple[int, ...]
    answers: int = -1
    channel: socket.socket | None = None

    def was_read(self) -> bool:
        """Whether the process has come as far as reading its program (its place in it is shared)."""
        return os.lseek(self.text, 0, os.SEEK_CUR) > 0

    def close(self) -> None:
        for fd in (self.stdout, self.stderr, self.text, *self.ends, self.answers):
            if fd >= 0:
                os.close(fd)
        if self.channel:
            self.channel.close()


def drain(fd: int, room: int) -> bytes:
    """What is in a pipe now, at most `room` bytes."""
    data = bytearray()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while len(data) < room and poll.poll(0) and (part := os.read(fd, min(65536, room - len(data)))):
        data += part
    return bytes(data)


def _stream(kind: str, limits: Limits) -> tuple[int, int]:
    """Where a process prints: the descriptor to read it from, and its own."""
    if kind in PIPED:
        return os.pipe()
    if kind == "examiner":  # what a test prints is for nobody
        fd = os.open(os.devnull, os.O_RDWR)
    else:  # a file that cannot grow, with room for the write that passes the limit
        fd = os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, ((limits.output_kb << 10) // WRITTEN_AT_ONCE + 1) * WRITTEN_AT_ONCE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd, fd


def _memory_file(*parts: bytes) -> int:
    """A descriptor from which a process reads the data, whatever their size."""
    fd = os.memfd_create("sandbox")
    for data in parts:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
