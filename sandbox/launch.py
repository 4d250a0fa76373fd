"""Starts workers (sandbox/worker.py), and speaks with them: the one place that knows a worker from outside."""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sandbox.cgroup import Cgroup
from sandbox.isolation import require
from sandbox.verdict import Limits

ROOT = str(Path(__file__).resolve().parent.parent)
# Processes beside a program's own that have its user id, where root did not start the worker: the worker, its
# template, the examiner and the examiner's worker.
POOL_OTHERS = 4
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
    """What a bare Python must be told about this one: module folders for programs, and the folders they lie in."""
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
    """

    def __init__(self, python: dict[str, Any], preload: tuple[str, ...] = (), least: str = "namespaces"):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors = tempfile.TemporaryFile()
        environment = {
            "PYTHONHASHSEED": "0",
            "LD_BIND_NOW": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        self.process: subprocess.Popen[bytes] | None = subprocess.Popen(
            python_command("worker", str(theirs.fileno())),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=(theirs.fileno(),),
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent
        )
        theirs.close()
        self.cgroup: Cgroup | None = None
        try:
            self.cgroup = Cgroup(f"jaxrl-sandbox-{self.process.pid}")
            self.cgroup.add(self.process.pid)
            self.cgroup.sweep()
            state = "on"
        except OSError as error:
            state = str(error)
        self._last_id, self.others = 0, POOL_OTHERS
        try:
            self.control.send(json.dumps({**python, "preload": preload, "cgroup": state}).encode())
            self.layers: dict[str, str] = self.receive(START_S)["layers"]
            require(self.layers, least)
        except BaseException:
            self.stop()
            raise

    def run(
        self, kind: str, program: dict[str, Any], limits: Limits, stdin: bytes, examiner: socket.socket | None = None
    ) -> Started:
        """Starts a candidate process, and an examiner that gets the given socket to its judge.

        Raises WorkerError when it cannot be started.
        """
        if self.cgroup:
            self.cgroup.limit(limits.memory_mb + 64, limits.processes)
        ours, channel = socket.socketpair()
        (stdout, stdout_end), (stderr, stderr_end) = os.pipe(), os.pipe()
        text, given = _memory_file(marshal.dumps(program)), _memory_file(stdin)
        started = Started(self._last_id + 1, stdout, stderr, None if examiner else ours, text)
        fds = [given, stdout_end, stderr_end, channel.fileno(), text]
        fds += [ours.fileno(), examiner.fileno()] if examiner else []
        self._last_id += 1
        message = {"do": "run", "id": started.id, "kind": kind, "limits": vars(limits), "others": self.others}
        try:
            self.send(message, fds)
        except WorkerError:
            started.close()
            raise
        finally:
            for fd in (given, stdout_end, stderr_end):
                os.close(fd)
            channel.close()
            if examiner:
                ours.close()
                examiner.close()
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
            self._errors.seek(0)
            said = self._errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            raise WorkerError(f"the worker has ended{': ' + said[0] if said else ''}")
        return json.loads(data)

    def end(self, run: int, grace_s: float = 0.0, timeout_s: float = 5.0) -> dict[str, Any]:
        """Ends a run if it does not end by itself within `grace_s`; how it went. Raises WorkerError."""
        self.send({"do": "end", "id": run, "grace_s": grace_s})
        while (message := self.receive(timeout_s)).get("id") != run:
            pass
        return message

    def clone(self) -> WorkerProcess:
        """A worker with this one's modules in memory, in a jail of its own; it ends when this one ends.

        A worker that has been cloned must not run programs: what ends one run would end its clones.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.send({"do": "clone"}, [theirs.fileno()])
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
        new.layers, new.others = json.loads(data)["layers"], self.others
        new.cgroup = None
        if self.cgroup:
            with contextlib.suppress(OSError):
                new.cgroup = Cgroup(f"jaxrl-sandbox-{pid}")
                new.cgroup.add(pid)
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
        if self.cgroup:
            self.cgroup.remove()


class Started:
    """A run's descriptors on this side: stdout, stderr and, without an examiner, the candidate's channel."""

    def __init__(self, id: int, stdout: int, stderr: int, channel: socket.socket | None, text: int):
        self.id, self.stdout, self.stderr, self.channel, self._text = id, stdout, stderr, channel, text

    def was_read(self) -> bool:
        """Whether the candidate's process has come as far as reading its program (its place in it is shared)."""
        return os.lseek(self._text, 0, os.SEEK_CUR) > 0

    def close(self) -> None:
        for fd in (self.stdout, self.stderr, self._text):
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


def _memory_file(data: bytes) -> int:
    """A descriptor from which a process reads the data, whatever their size."""
    fd = os.memfd_create("sandbox")
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
