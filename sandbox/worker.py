"""The confined process that starts programs: warm, isolated once, and free of secrets.

It never sees a program, a test or an answer. For each run it gets file descriptors and limits, forks a process for
the candidate and, where test code is to run, one for the examiner, hands them their descriptors, watches the limits,
and when the run ends kills all that is left and says how it went. What a run's processes say to each other and to
the judge (sandbox/judge.py) does not pass through here.

    {"do": "run", "id", "limits", "kind", "others"} + descriptors   start a run
    {"do": "end", "id", "grace_s"}                           end it now; answered, as every run, by {"id", "ended": ...}
    {"do": "suspend"} {"do": "resume", "cpu_s"}              freeze a session's processes, wake them with fresh CPU time
    {"do": "interrupt"}                                      SIGINT to the candidate
    {"do": "clone"} + a control socket                       a worker like this one, in a jail of its own; a worker
                                                             that has been cloned runs nothing itself
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

from sandbox import candidate, examiner, kernel
from sandbox.isolation import Bounds, Jail, confinement, enter_jail, fresh_box, mount_box

ENDLESS = 1 << 30  # seconds
TICK_S = 0.05  # between two looks at a run's CPU time
CANDIDATE_FILES = 5  # descriptors of a candidate: stdin, stdout, stderr, the channel, the program's text
CONTROL, RESERVED = 101, 10  # the control socket's descriptor; those below the second are for programs' processes
# What programs of this kind import: loaded once, so that a fresh child finds it in memory.
USUAL_MODULES = (
    "array", "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "io",
    "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "struct", "traceback",
    "typing",
)  # fmt: skip


def main(control_fd: int) -> None:
    """Isolates this process and serves until the control socket is closed."""
    control = socket.socket(fileno=os.dup2(control_fd, CONTROL))
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, *range(3, RESERVED)):
        os.dup2(null, fd)
    start = json.loads(control.recv(1 << 20))
    sys.path[:] = start["path"]
    for name in (*USUAL_MODULES, *start["preload"]):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.disable()
    jail = enter_jail(start["python"], start["cgroup"])
    os.environ.clear()
    os.environ.update(PATH="/usr/local/bin:/usr/bin:/bin", HOME="/tmp", TMPDIR="/tmp", LANG="C.UTF-8", TZ="UTC")
    sys.argv = ["program.py"]
    sys.path.insert(0, jail.box or "")
    for name in [n for n in sys.modules if n.partition(".")[0] == "sandbox"]:
        del sys.modules[name]  # a program's own module may have that name
    candidate.prepare()
    worker = Worker(control, jail)
    gc.freeze()
    worker.serve()


@dataclass
class Run:
    """The processes of one program, and what they may use."""

    id: int
    candidate: int
    examiner: int
    pidfd: int
    box: str
    cpu_s: float
    cpu_before: float = 0.0  # used before the present call of a session
    suspended: bool = False


class Worker:
    """One run at a time; see the module's text for the messages."""

    def __init__(self, control: socket.socket, jail: Jail):
        self.control, self.jail = control, jail
        self.run: Run | None = None
        self.bounds = Bounds()
        sys.modules["random"].seed(0)  # each os.fork() has seeded it anew
        self.confinements = {role: confinement(jail, role, self.bounds) for role in ("candidate", "examiner")}
        self.box_state = self._box_state()

    def serve(self) -> None:
        self.say({"layers": self.jail.layers})
        while True:
            poll = select.poll()
            poll.register(self.control, select.POLLIN)
            if self.run:
                poll.register(self.run.pidfd, select.POLLIN)
            ready = dict(poll.poll(TICK_S * 1000 if self.run and not self.run.suspended else None))
            if self.control.fileno() in ready and not self.receive():
                if self.run:  # nobody waits for it any more
                    self.kill_all()
                    self.clean_box(self.run.box)
                return
            if self.run and self.run.pidfd in ready:
                self.finish("")
            if self.run and self.cpu_used(self.run) > self.run.cpu_s:
                self.finish("cpu")

    def receive(self) -> bool:
        """One message; false when there will be no more."""
        data, fds, _, _ = socket.recv_fds(self.control, 1 << 16, 8)
        if not data:
            return False
        message = json.loads(data)
        match message["do"]:
            case "run":
                self.start(message, fds)
            case "end" if self.run and self.run.id == message["id"]:
                # One that has closed its channel may be about to end: then its own exit status is what counts.
                self.finish("" if _ends_within(self.run.pidfd, message["grace_s"]) else "end")
            case "suspend" if self.run:
                self.signal_all(signal.SIGSTOP)
                self.run.suspended = True
            case "resume" if self.run:
                self.run.cpu_before = self.cpu_used(self.run)
                self.run.cpu_s = self.run.cpu_before + message["cpu_s"]
                self.run.suspended = False
                self.signal_all(signal.SIGCONT)
            case "interrupt" if self.run:
                os.kill(self.run.candidate, signal.SIGINT)
            case "clone":
                self.clone(fds[0])
        return True

    def say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.control.send(json.dumps(message).encode())

    def start(self, message: dict[str, Any], fds: list[int]) -> None:
        limits, kind, box = message["limits"], message["kind"], fresh_box(self.jail)
        memory = limits["memory_mb"] if kind != "command" else 0
        cpu_s = limits["cpu_s"] if kind not in ("session", "examiner") else ENDLESS
        # A user id of its own: only the program's processes count. A shared one: those of other workers count too.
        processes = limits["processes"] + (0 if self.jail.ids else message["others"])
        self.bounds.set(self.jail.size, cpu_s, processes, memory)
        own, channels = fds[:CANDIDATE_FILES], fds[CANDIDATE_FILES:]
        try:
            helper = self.fork("examiner", kind, box, [0, 1, 0, *channels]) if channels else 0
            if kind == "examiner":  # one that stays, for test code that leaves no traces
                pid = self.fork("examiner", kind, box, [0, 1, 0, own[3]])
            else:
                pid = self.fork("candidate", kind, box, own)
            self.run = Run(message["id"], pid, helper, os.pidfd_open(pid), box, cpu_s)
        except OSError as error:
            self.kill_all()
            self.say({"id": message["id"], "failed": str(error)})
        finally:
            for fd in fds:
                os.close(fd)

    def fork(self, role: str, kind: str, box: str, fds: list[int]) -> int:
        """A confined process with `fds` as its descriptors 0, 1, ...; of these, programs that it starts get 0 to 2."""
        calls = [kernel.call("setsid"), kernel.call("chdir", box)]
        calls += [kernel.call("dup2", fd, i) for i, fd in enumerate(fds[:3]) if fd != i]
        calls += [kernel.call("dup3", fd, i + 3, os.O_CLOEXEC) for i, fd in enumerate(fds[3:])]
        calls += [*self.confinements[role], kernel.close_from(len(fds))]
        calls += [kernel.call("prctl", kernel.PR_SET_PDEATHSIG, signal.SIGKILL)]
        if pid := kernel.fork():
            return pid
        try:
            kernel.perform(calls)
            gc.enable()
            if role == "candidate":
                candidate.main(kind)
            elif kind == "examiner":
                examiner.stand()
            else:
                examiner.main()
        finally:
            os._exit(1)

    def cpu_used(self, run: Run) -> float:
        """CPU seconds of the candidate's or the examiner's process, whichever used more."""
        return max(_cpu_clock(run.candidate), _cpu_clock(run.examiner) if run.examiner else 0.0)

    def finish(self, cause: str) -> None:
        """Ends the run, and says how: cause is "" when the candidate ended by itself, "end" or "cpu"."""
        assert self.run
        run, self.run = self.run, None
        status, cpu, peak = self.kill_all(run.candidate, run.examiner)
        os.close(run.pidfd)
        ended = {"cause": cause, "status": status, "cpu_s": cpu, "memory_kb": peak}
        self.say({"id": run.id, "ended": ended})
        self.clean_box(run.box)

    def kill_all(self, pid: int = 0, examiner: int = 0) -> tuple[int, float, int]:
        """Kills all processes but this one; the wait status, CPU seconds and peak kilobytes of process `pid`.

        The CPU seconds are those of all processes but the examiner.

        As process 1 one call does it, and no fork bomb can outrun it: a process with a deadly signal does not fork.
        """
        status, cpu, peak = 0, 0.0, 0
        while True:
            self.signal_all(signal.SIGKILL)
            try:
                ended, how, usage = os.wait4(-1, 0)
            except ChildProcessError:
                return status, cpu, peak
            cpu += usage.ru_utime + usage.ru_stime if ended != examiner else 0.0
            if ended == pid:
                status, peak = how, usage.ru_maxrss

    def signal_all(self, number: int) -> None:
        if self.jail.process_one:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, number)
            return
        for pid in _descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def clean_box(self, box: str) -> None:
        if not self.jail.box:
            importlib.import_module("shutil").rmtree(box, ignore_errors=True)
        elif self._box_state() != self.box_state:  # constant time, however deep or odd what was left there is
            kernel.unmount(self.jail.box)
            mount_box(self.jail)
            self.box_state = self._box_state()

    def _box_state(self) -> tuple[int, int] | None:
        """Changes with every file made, every mode or attribute set in the box's top folder."""
        if not self.jail.box:
            return None
        status = os.stat(self.jail.box)
        return status.st_ctime_ns, status.st_mode

    def clone(self, control_fd: int) -> None:
        """A process 1 of a new pid namespace, with a box of its own; it shares this one's memory until it writes."""
        new = kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # clones that have ended
                pass
        if self.jail.process_one:
            if middle := os.fork():  # unshare changes the caller's children for good, hence a process that then ends
                os.close(control_fd)
                os.waitpid(middle, 0)
                return
            kernel.unshare(new)
            if os.fork():
                os._exit(0)
            kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
            mount_box(self.jail)
        elif os.fork():
            os.close(control_fd)
            return
        with contextlib.suppress(OSError):  # does not pass to a fork
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        self.control.close()
        Worker(socket.socket(fileno=control_fd), self.jail).serve()
        os._exit(0)


def _ends_within(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(seconds and poll.poll(seconds * 1000))


def _cpu_clock(pid: int) -> float:
    """CPU seconds of a process, its threads included; 0 when it has ended."""
    with contextlib.suppress(OSError):
        return time.clock_gettime(~pid << 3 | 2)  # how Linux numbers the clocks of processes
    return 0.0


def _descendants(pid: int) -> list[int]:
    """All living processes below pid; for machines without pid namespaces."""
    found = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as f:
                for child in map(int, f.read().split()):
                    found += [child, *_descendants(child)]
    return found
