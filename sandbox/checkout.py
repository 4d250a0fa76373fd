"""Working trees: a private writable copy of a folder, and commands that run in it one after the other.

    with Checkout(folder, read_only={"node_modules": modules}) as checkout:
        checkout.run(["git", "apply"], stdin=patch)
        ran = checkout.run(["npm", "test"], wall_s=60)

A checkout has a process of its own with the layers of sandbox/layers.py: the system read-only, no network, no other
processes, a private file system in memory of bounded size. Its commands run in the tree, with the rights of a program
that is judged. What one of them changes the next one sees; all is gone when the checkout is closed, or its owner ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any, Literal

from sandbox import kernel
from sandbox.cgroup import Cgroup
from sandbox.isolation import BOX, Bounds, Jail, confinement, enter_jail, mount_box
from sandbox.launch import ROOT, python_environment
from sandbox.layers import LEAST, IsolationError, require
from sandbox.victims import FirstVictims

TREE = f"{BOX}/tree"
FILES = 200_000  # in the private file system
PROCESSES = 256  # threads count: Node has a dozen
CPU_S_MORE = 5.0  # CPU time of a command above its wall time for each core it may use: a bound, not a measure
START_S = 60.0


class CheckoutError(RuntimeError):
    """The checkout itself failed, not a command in it."""


@dataclass(frozen=True)
class Ran:
    """How a command ended. `output` has stdout and stderr as they came; exit_code is None where it was ended."""

    status: Literal["finished", "timeout", "output_limit", "no_command"]
    exit_code: int | None
    output: str
    wall_s: float


class Checkout:
    """A copy of `folder`, at `TREE` for its commands.

    Args:
        read_only: folders that appear in the tree by a link, such as node_modules: name in the tree -> folder.
        memory_mb: of all its processes together, where the machine has control groups.
        disk_mb: of the tree and all that is written.

    Raises IsolationError where the machine provides less than `least`, or no private mounts; CheckoutError where the
    folder cannot be copied.
    """

    def __init__(
        self,
        folder: str,
        read_only: Mapping[str, str] | None = None,
        *,
        memory_mb: int = 2048,
        disk_mb: int = 1024,
        least: str = LEAST,
    ):
        boot = f"import sys; sys.path.insert(0, {ROOT!r}); from sandbox.checkout import main; main()"
        # What commands read: first the tree, since the checkout's own user could not read a folder closed to others.
        self._given, self._giving = tempfile.TemporaryFile(buffering=0), threading.Lock()
        try:
            _pack(folder, self._given)
        except BaseException:
            self._given.close()
            raise
        number = os.open(f"/proc/self/fd/{self._given.fileno()}", os.O_RDONLY)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", boot],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(number,),
        )
        os.close(number)
        self._cgroup: Cgroup | None = None
        try:
            state = "on"
            try:
                self._cgroup = Cgroup(f"jaxrl-checkout-{self._process.pid}")
                self._cgroup.add(self._process.pid)
                self._cgroup.sweep()
                self._cgroup.limit(memory_mb, PROCESSES)
            except OSError as error:
                state = str(error)
            links = {name: os.path.realpath(path) for name, path in (read_only or {}).items()}
            hello = self._ask(
                {"given": number, "links": links, "disk_mb": disk_mb, "cgroup": state,
                 "python": python_environment()["python"]}, START_S,
            )  # fmt: skip
            layers: dict[str, str] = hello["layers"]
            if self._cgroup and "memory" in self._cgroup.folders:
                layers["memory"] = "on"
            require(layers, least)
            for layer in ("mount", "pid"):  # a private file system; and an end for all processes that is only theirs
                if layers[layer] != "on":
                    raise IsolationError(f"a working tree needs layer {layer}, which is missing: {layers[layer]}")
            self._ask({"copy": True}, START_S)
        except BaseException:
            self.close()
            raise

    def run(self, command: Sequence[str], wall_s: float = 60.0, output_kb: int = 4096, stdin: str | bytes = b"") -> Ran:
        """Runs a command in the tree, which reads `stdin`. Raises CheckoutError when the checkout has ended."""
        message = {"command": list(command), "wall_s": wall_s, "output": output_kb << 10}
        self._give(stdin if isinstance(stdin, bytes) else _encoded(stdin))
        return Ran(**self._ask(message, wall_s + START_S)["ran"])

    def _give(self, data: bytes) -> None:
        """Puts data where the next command reads it."""
        with self._giving:  # the file's number is another's as soon as it is closed
            try:
                number = self._given.fileno()
                os.ftruncate(number, 0)
                written = 0
                while written < len(data):
                    written += os.pwrite(number, data[written:], written)
            except (OSError, ValueError) as error:
                ended = self._given.closed
                raise CheckoutError("the checkout has ended" if ended else f"nothing can be given: {error}") from None

    def _ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], seconds)
            line = self._process.stdout.readline() if ready else b""
        except (BrokenPipeError, ValueError):
            line = b""
        if not line.endswith(b"\n"):
            self.close()  # a late answer would be taken for that of the next request
            raise CheckoutError("the checkout has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise CheckoutError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends all that runs in it. The tree is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # process 1 dies with this one, and all others with it
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        with self._giving:
            self._given.close()
        if self._cgroup:
            self._cgroup.remove()

    def __enter__(self) -> Checkout:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _encoded(text: str) -> bytes:
    """As UTF-8; bytes that were read as lone surrogates become themselves again."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # other surrogates
        return text.encode("utf-8", "replace")


def _pack(folder: str, archive: IO[bytes]) -> None:
    """Writes the folder as a tar archive. Raises CheckoutError if it cannot be read."""

    def owned_by_nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    try:
        with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as packed:
            packed.add(folder, ".", filter=owned_by_nobody)
    except OSError as error:
        raise CheckoutError(f"{folder} cannot be read: {error}") from None


# --- in the checkout's own process


def main() -> None:
    """Enters the jail and serves requests from stdin; the answers go to stdout."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    stream = os.fdopen(requests, "rb", buffering=0)
    start = json.loads(_line(stream))
    jail = enter_jail([*start["python"], *start["links"].values()], start["cgroup"])

    def say(message: dict[str, Any]) -> None:
        os.write(answers, json.dumps(message).encode() + b"\n")

    commands = Commands(jail, start["given"])
    say({"layers": jail.layers})
    while line := _line(stream):
        message = json.loads(line)
        try:
            say(_serve(message, start, commands))
        except OSError as error:
            say({"error": str(error)})


def _line(stream: Any) -> bytes:
    """A whole line of an unbuffered stream, which may come in pieces."""
    data = bytearray()
    while part := stream.read(1 << 16):
        data += part
        if data.endswith(b"\n"):
            break
    return bytes(data)


def _serve(message: dict[str, Any], start: dict[str, Any], commands: Commands) -> dict[str, Any]:
    if "copy" in message:
        mount_box(commands.jail, start["disk_mb"], FILES)
        unpack = ["sh", "-c", f"mkdir {TREE} && tar -xf - -C {TREE} --no-same-owner"]
        unpacked = commands.run(unpack, START_S, 4096)
        if unpacked.exit_code:
            raise OSError(f"the folder cannot be copied: {unpacked.output.strip()[-300:]}")
        for name, path in start["links"].items():
            commands.run(["ln", "-sfn", path, f"{TREE}/{name}"], START_S, 4096)
        return {}
    return {"ran": asdict(commands.run(message["command"], message["wall_s"], message["output"]))}


class Commands:
    """Runs commands with a program's rights, one at a time; all of them read from `given`."""

    def __init__(self, jail: Jail, given: int):
        self.jail, self.bounds, self.given = jail, Bounds(), given
        self.victims: FirstVictims | None = None
        jail.try_layer("oom", self._prepare_victims)

    def _prepare_victims(self) -> None:
        self.victims = FirstVictims(self.jail)

    def run(self, command: list[str], wall_s: float, limit: int) -> Ran:
        """Runs a command in the tree. All that it leaves running is ended with it."""
        cores = len(os.sched_getaffinity(0))
        self.bounds.set(self.jail.size, wall_s * cores + CPU_S_MORE, PROCESSES + self.jail.others, 0)
        os.lseek(self.given, 0, os.SEEK_SET)
        fcntl.fcntl(self.given, fcntl.F_SETFL, 0)  # an earlier command may have set flags
        ours, theirs = os.pipe()
        try:
            try:
                pid = self.victims.fork() if self.victims else os.fork()
                if pid == 0:
                    _become(command, self.given, theirs, self.jail, self.bounds)
            finally:
                os.close(theirs)
            return _watched(pid, ours, wall_s, limit)
        finally:
            os.close(ours)


def _watched(pid: int, ours: int, wall_s: float, limit: int) -> Ran:
    """Reads what a command prints, until it ends or must end."""
    began = time.monotonic()
    data, status, deadline = bytearray(), "finished", began + wall_s
    while True:
        left = deadline - time.monotonic()
        ready, _, _ = select.select([ours], [], [], min(max(left, 0), 0.05))
        part = os.read(ours, 1 << 16) if ready else None
        data += part or b""
        ended, code = os.waitpid(pid, os.WNOHANG)
        if part == b"" or len(data) > limit or left <= 0 or ended:
            break
    if not ended:
        if len(data) > limit:
            status = "output_limit"
        elif left <= 0:
            status = "timeout"
        else:  # it closed its output, and ends now
            ended, code = _wait(pid, deadline)
            status = "finished" if ended else "timeout"
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(-1, signal.SIGKILL)  # process 1 itself is spared
    if not ended:
        os.waitpid(pid, 0)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    while len(data) <= limit and (part := os.read(ours, 1 << 16)):  # what was in the pipe
        data += part
    exit_code = os.waitstatus_to_exitcode(code) if ended else None
    text = data[:limit].decode("utf-8", "replace")
    if exit_code == NO_COMMAND and text.startswith(MARK):
        return Ran("no_command", None, text[len(MARK) :], time.monotonic() - began)
    return Ran(status, exit_code, text, time.monotonic() - began)  # type: ignore[arg-type]


NO_COMMAND, MARK = 127, "\0no command: "


def _become(command: list[str], stdin: int, output: int, jail: Jail, bounds: Bounds) -> None:
    """The forked process: confined, in the tree, with its output in the pipe."""
    try:
        for descriptor, target in ((stdin, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, target)
        os.setsid()
        os.chdir(TREE if os.path.isdir(TREE) else BOX)
        os.umask(0o022)
        kernel.perform([*confinement(jail, "candidate", bounds), kernel.close_from(3)])
        environment = {
            "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
            "HOME": BOX,
            "TMPDIR": BOX,
            "LANG": "C.UTF-8",
        }
        environment |= {"TZ": "UTC", "CI": "1", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CEILING_DIRECTORIES": BOX}
        try:
            os.execvpe(command[0], command, environment)
        except OSError as error:
            os.write(1, f"{MARK}{command[0]}: {error.strerror}".encode())
            os._exit(NO_COMMAND)
    except BaseException as error:
        os.write(1, f"the command could not be confined: {error}".encode())
    finally:
        os._exit(126)


def _wait(pid: int, deadline: float) -> tuple[int, int]:
    while time.monotonic() < deadline:
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            return ended, code
        time.sleep(0.005)
    return 0, 0
