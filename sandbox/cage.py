"""A cage for another grader while it grades hostile programs.

Most graders isolate nothing, and the corpus holds programs that write to the system's files, fill disks and kill what
they can. A cage has its own process numbers, network, mounts (all read-only except fresh temporary folders and a fresh
home), user id (as root) and control group; what runs in it ends with it. It protects the machine, not the grader.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from sandbox import kernel
from sandbox.cgroup import Cgroup
from sandbox.launch import ROOT, python_environment

MEMORY_MB, PROCESSES, FILE_BYTES, TMP_MB = 2048, 128, 256 << 20, 256
HIDDEN = ("/root", "/home", "/tmp", "/var/tmp", "/dev/shm")  # folders that are replaced by empty ones
DEVICES = ("null", "zero", "full", "random", "urandom")
HOME = "/tmp/home"
FIRST_ID = 0x50000000  # unused user ids
TAIL = 4096  # bytes kept of what a grader prints


class CageError(OSError):
    """The machine does not allow it, or a cage has ended."""


@dataclass(frozen=True)
class Answer:
    """How a grader ended. exit_code: None after a timeout."""

    exit_code: int | None
    output: str
    errors: str
    seconds: float


class Cage:
    """Runs commands one after the other in one cage, so that each meets what the others left. Raises CageError.

    Args:
        keep: folders below the hidden ones that stay visible, read-only; Python's own and the repository's always do.
    """

    def __init__(self, keep: tuple[str, ...] = ()):
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {ROOT!r}); from sandbox.cage import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._cgroup: Cgroup | None = None
        try:
            with contextlib.suppress(OSError):
                self._cgroup = Cgroup(f"jaxrl-cage-{self._process.pid}")
                self._cgroup.add(self._process.pid)
                self._cgroup.limit(MEMORY_MB, PROCESSES // 2)
            kept = [*python_environment()["python"], ROOT, *map(os.path.abspath, keep)]
            self._ask(
                {"keep": kept, "limited": self._cgroup is not None, "pythonpath": os.environ.get("PYTHONPATH", "")}
            )
        except OSError:
            self.close()
            raise

    def run(self, command: list[str], text: str, timeout_s: float) -> Answer:
        """The command, with `text` as its stdin. Raises CageError."""
        return Answer(**self._ask({"command": command, "text": text, "timeout_s": timeout_s}))

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline() or b'{"error": "the cage has ended"}')
        except BrokenPipeError:
            answer = {"error": "the cage has ended"}
        if "error" in answer:
            raise CageError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the cage and all that is in it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # process 1 dies with this process, and all with process 1
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._cgroup:
            self._cgroup.remove()

    def __enter__(self) -> Cage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_command(command: list[str], text: str, timeout_s: float, **process: Any) -> Answer:
    """Runs a command with a file as its stdout: a process left behind that holds a pipe would never let it end."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as stdin:
        stdin.write(text.encode())
        stdin.seek(0)
        grader = subprocess.Popen(command, stdin=stdin, stdout=output, stderr=errors, start_new_session=True, **process)
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = grader.wait(timeout_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(grader.pid, signal.SIGKILL)
        grader.wait()
        seconds = time.monotonic() - start
        texts = []
        for file in (output, errors):
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            texts.append(file.read(TAIL).decode("utf-8", "replace"))
    return Answer(code, texts[0], texts[1], seconds)


def main() -> None:
    """Enters the cage and serves requests from stdin; the answers go to stdout."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # a cage ends with its starter
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode() + b"\n")
        answers.flush()

    start = json.loads(requests.readline())
    try:
        process = _enter(start["keep"], start["limited"])
    except OSError as error:
        say({"error": f"no cage for the grader on this machine: {error}"})
        return
    say({})
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": HOME, "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
    environment["PYTHONPATH"] = start["pythonpath"]
    for line in requests:
        message = json.loads(line)
        try:
            say(
                vars(run_command(message["command"], message["text"], message["timeout_s"], env=environment, **process))
            )
        except OSError as error:
            say({"error": str(error)})


def _enter(keep: list[str], limited: bool) -> dict[str, Any]:
    """Returns in process 1 of the cage, with what its processes are started with."""
    root, uid, gid, number = os.getuid() == 0, os.getuid(), os.getgid(), os.getpid()
    others = _tasks_of(uid)
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    kernel.unshare(flags if root else flags | kernel.CLONE_NEWUSER)
    if not root:
        for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{file}", "w") as f:
                f.write(text)
    if child := os.fork():
        os.waitpid(child, 0)
        os._exit(0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    _arrange_files(keep)
    own = {"user": FIRST_ID + number, "group": FIRST_ID + number, "extra_groups": []} if root else {}
    os.chdir("/tmp")
    os.mkdir(HOME)
    os.chmod(HOME, 0o777)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.drop_capability_bounds()
    no_new_privileges = kernel.call("prctl", kernel.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    bounds = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, FILE_BYTES)]
    bounds += [(resource.RLIMIT_NPROC, PROCESSES + (0 if root else others))]
    bounds += [] if limited else [(resource.RLIMIT_AS, MEMORY_MB << 21)]

    def confine() -> None:
        for kind, bound in bounds:
            resource.setrlimit(kind, (bound, bound))
        kernel.perform([kernel.no_capabilities(), no_new_privileges])

    return {"preexec_fn": confine, "cwd": HOME, **own}


def _arrange_files(keep: list[str]) -> None:
    """Everything read-only; fresh temporary folders; the folders to keep where they were."""
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    folders = [p for p in dict.fromkeys(keep) if os.path.isdir(p)]
    kept = [(p, os.open(p, os.O_PATH)) for p in folders if p.startswith(tuple(f"{h}/" for h in HIDDEN))]
    devices = {name: os.open(f"/dev/{name}", os.O_PATH) for name in DEVICES}
    kernel.set_read_only("/")
    for folder in ("/dev", *HIDDEN):
        if os.path.isdir(folder) or folder == "/dev/shm":
            if folder.startswith("/dev/"):
                os.makedirs(folder, exist_ok=True)
            kernel.mount("fresh", folder, "tmpfs", kernel.MS_NOSUID, f"size={TMP_MB}m,mode=1777")
    for name, fd in devices.items():
        open(f"/dev/{name}", "w").close()
        kernel.mount(f"/proc/self/fd/{fd}", f"/dev/{name}", None, kernel.MS_BIND)
        kernel.mount(
            "none", f"/dev/{name}", None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_NOSUID
        )  # a device again
    os.symlink("/proc/self/fd", "/dev/fd")
    for path, fd in kept:
        os.makedirs(path, exist_ok=True)
        kernel.mount(f"/proc/self/fd/{fd}", path, None, kernel.MS_BIND | kernel.MS_REC)
        kernel.set_read_only(path)
    kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_RDONLY)


def _tasks_of(uid: int) -> int:
    """Processes and threads of a user, which the kernel counts together with those of the cage."""
    count = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{entry}").st_uid == uid:
                count += len(os.listdir(f"/proc/{entry}/task"))
    return count
