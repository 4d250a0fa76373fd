"""The confined process that starts programs: warm, isolated once, and free of secrets.

It never sees a program, a test or an answer. For each run it gets file descriptors and limits, forks a process, passes
it its descriptors, watches the limits, and when the run ends kills all that is left and reports how it ended. What a
run's process writes for the judge (sandbox/judge.py) does not pass through here. A worker starts either candidates or
examiners, never both: its role is set when it is cloned.

    {"do": "run", "id", "limits", "kind"} + descriptors      start a run
    {"do": "end", "id", "grace_s"}                           end it now; answered, as every run, by {"id", "ended": ...}
    {"do": "suspend"} {"do": "resume", "cpu_s"}              freeze a session's processes, wake them with fresh CPU time
    {"do": "interrupt"}                                      SIGINT to the candidate
    {"do": "clone", "role", "modules", "slot"} + a control socket
                                                             a worker like this one, in a jail of its own, with more
                                                             modules in memory; a worker that has been cloned runs
                                                             nothing itself
    {"do": "memory"} + a file of its control group           whose "oom_kill" counts processes killed for lack of memory
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

from sandbox import candidate, examiner, kernel, processes, script
from sandbox.isolation import (
    OTHERS,
    PROGRAM,
    Bounds,
    Jail,
    clean_folders,
    confinement,
    empty_file_system,
    enter_jail,
    fresh_box,
    mount_box,
    separate,
    settle,
)  # fmt: skip
from sandbox.leftovers import changed_at, remove_tree
from sandbox.victims import FirstVictims

ENDLESS = 1 << 30  # seconds
STARTING = 64  # processes of others that may start during a run
TICK_S, WATCHED_TICK_S = 0.05, 0.02  # between checks of a run's CPU time, and of its memory in /proc
MORE_KB = 64 << 10  # that a program's processes may take together above the limit of each, as in a control group
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
    script.only_usual_finders()
    for name in (*USUAL_MODULES, *start["preload"]):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.disable()
    # Blocked, not ignored: ignored signals would stay so in each program's process, and in what it starts.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    jail = enter_jail(start["python"], start["cgroup"])
    os.environ.clear()
    os.environ.update(PATH="/usr/local/bin:/usr/bin:/bin", HOME="/tmp", TMPDIR="/tmp", LANG="C.UTF-8", TZ="UTC")
    os.environ.update(PYTHONHASHSEED="0")  # for the Pythons that a program starts
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker started in the background has it ignored
    sys.argv, sys.orig_argv = ["program.py"], [sys.executable, "program.py"]
    sys.path.insert(0, jail.box or "")
    for name in [n for n in sys.modules if n.partition(".")[0] == "sandbox"]:
        del sys.modules[name]  # a program's own module may have that name
    worker = Worker(control, jail)
    script.prepare(worker)
    gc.freeze()
    worker.serve()
    if jail.folder:
        remove_tree(jail.folder)


@dataclass
class Run:
    """One program's or examiner's process, and what it may use."""

    id: int
    pid: int
    pidfd: int
    box: str
    cpu_s: float
    memory_kb: int = 0  # for all of its processes together, to be watched here; 0: not watched
    processes: int = 0  # limit to enforce here; 0: the kernel does
    cpu_before: float = 0.0  # used before the present call of a session
    suspended: bool = False


class Worker:
    """Serves one run at a time; see the module's docstring for the messages."""

    def __init__(self, control: socket.socket, jail: Jail, role: str = "candidate"):
        self.control, self.jail, self.role = control, jail, role
        self.run: Run | None = None
        self.bounds = Bounds()
        self.memory_events = -1  # see {"do": "memory"}
        self.oom_kills = 0
        self.victims: FirstVictims | None = None
        jail.try_layer("oom", self._prepare_victims)
        if "memory" not in jail.layers and not jail.try_layer("memory", lambda: _watchable(jail.proc)):
            jail.layers["memory"] += "; without a control group, commands have no limit"
        if jail.folder:
            os.environ.update(HOME=f"{jail.folder}/box", TMPDIR=f"{jail.folder}/box")
        seed_random_numbers()  # each os.fork() has reseeded them
        self.confinement = confinement(jail, role, self.bounds)
        self.box_state = self._box_state()
        self.folders_state = changed_at(jail.open_folders)

    def _prepare_victims(self) -> None:
        self.victims = FirstVictims(self.jail)

    def serve(self) -> None:
        self.say({"layers": self.jail.layers, "folder": self.jail.folder})
        while True:
            poll = select.poll()
            poll.register(self.control, select.POLLIN)
            if self.run:
                poll.register(self.run.pidfd, select.POLLIN)
            tick = WATCHED_TICK_S if self.run and self.run.memory_kb else TICK_S
            ready = dict(poll.poll(tick * 1000 if self.run and not self.run.suspended else None))
            if self.control.fileno() in ready and not self.receive():
                if self.run:  # its caller has gone
                    self.kill_all()
                    self.clean_box(self.run.box)
                return
            if self.run and self.run.pidfd in ready:
                self.finish("")
            if self.run and not ready and (cause := self.exceeded(self.run)):
                self.finish(cause)

    def receive(self) -> bool:
        """Handles one message; false after the last one."""
        data, fds, _, _ = socket.recv_fds(self.control, 1 << 16, 8)
        if not data:
            return False
        message = json.loads(data)
        match message["do"]:
            case "run":
                self.start(message, fds)
            case "end" if self.run and self.run.id == message["id"]:
                # A process that has closed its channel may be about to end; then its own exit status counts.
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
                os.kill(self.run.pid, signal.SIGINT)
            case "clone":
                self.clone(fds[0], message)
            case "memory":
                self.memory_events = fds[0]
                self.out_of_memory()
        return True

    def say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.control.send(json.dumps(message).encode())

    def start(self, message: dict[str, Any], fds: list[int]) -> None:
        limits, kind, box = message["limits"], message["kind"], fresh_box(self.jail)
        memory = limits["memory_mb"] if kind != "command" else 0
        cpu_s = limits["cpu_s"] if kind != "session" else ENDLESS
        self.bounds.set(self.jail.size, cpu_s, limits["processes"] + self.others(), memory)
        try:
            pid = self.fork(kind, box, fds)
            self.run = Run(message["id"], pid, os.pidfd_open(pid), box, cpu_s)
            if kind == "command" and self.memory_events < 0 and self.jail.layers["memory"] == "on":
                self.run.memory_kb = (limits["memory_mb"] << 10) + MORE_KB
            if self.jail.others == OTHERS:
                self.run.processes = 2 * limits["processes"]
        except OSError as error:
            self.kill_all()
            self.say({"id": message["id"], "failed": str(error)})
        finally:
            for fd in fds:
                with contextlib.suppress(OSError):  # closed in a process that becomes a script
                    os.close(fd)

    def others(self) -> int:
        """Processes that the kernel may count as the program's beside its own.

        Where all of this user's count, not more than there are on the machine, and some that start meanwhile: a fork
        bomb that fills a larger limit leaves this process too little time to end it.
        """
        if self.jail.others < OTHERS:
            return self.jail.others
        with contextlib.suppress(OSError, ValueError, IndexError):
            return min(OTHERS, processes.threads_of_all(self.jail.proc) + STARTING)
        return OTHERS

    def fork(self, kind: str, box: str, fds: list[int]) -> int:
        """A confined process with `fds` as its descriptors 0, 1, ...; of these, programs that it starts get 0 to 2."""
        calls = [kernel.call("setsid"), kernel.call("chdir", box)]
        calls += [kernel.call("dup2", fd, i) for i, fd in enumerate(fds[:3]) if fd != i]
        calls += [kernel.call("dup3", fd, i + 3, os.O_CLOEXEC) for i, fd in enumerate(fds[3:])]
        calls += [*self.confinement, kernel.close_from(len(fds))]
        calls += [kernel.call("prctl", kernel.PR_SET_PDEATHSIG, signal.SIGKILL), kernel.unblock_signals()]
        if pid := self.victims.fork(kernel.fork) if self.victims else kernel.fork():
            return pid
        try:
            kernel.perform(calls)
            gc.enable()
            if self.role == "candidate":
                candidate.main(kind)
            else:
                examiner.main()
        except script.Handover:  # leaves all frames of the worker's
            raise
        except BaseException:
            os._exit(1)
        os._exit(1)

    def cpu_used(self, run: Run) -> float:
        """CPU seconds of the run's first process."""
        return _cpu_clock(run.pid)

    def exceeded(self, run: Run) -> str:
        """The cause for which a run must end now, or ""."""
        if self.cpu_used(run) > run.cpu_s:
            return "cpu"
        if self.out_of_memory():
            return "memory"
        if run.memory_kb and not run.suspended and processes.memory_kb(self.jail.proc, run.memory_kb) > run.memory_kb:
            return "memory"
        if run.processes and len(processes.descendants(self.jail.proc)) > run.processes:
            return "processes"
        return ""

    def out_of_memory(self) -> bool:
        """Whether the kernel has ended a process of this worker for lack of memory since the last call."""
        if self.memory_events < 0:
            return False
        before = self.oom_kills
        with contextlib.suppress(OSError, ValueError):
            counts = os.pread(self.memory_events, 4096, 0).split()
            self.oom_kills = int(counts[counts.index(b"oom_kill") + 1])
        return self.oom_kills > before

    def finish(self, cause: str) -> None:
        """Ends the run and reports how.

        The cause is "" if its process ended by itself, else "end", "cpu", "memory" or "processes".
        """
        assert self.run
        run, self.run = self.run, None
        status, cpu, peak = self.kill_all(run.pid)
        os.close(run.pidfd)
        if self.out_of_memory() or (run.memory_kb and peak > run.memory_kb):
            cause = "memory"
        ended = {"cause": cause, "status": status, "cpu_s": cpu, "memory_kb": peak}
        self.say({"id": run.id, "ended": ended})
        self.clean_box(run.box)

    def kill_all(self, pid: int = 0) -> tuple[int, float, int]:
        """Kills all processes except this one; the wait status of process `pid`, the CPU seconds of all, its peak kB.

        For process 1 one call does it, and a fork bomb cannot outrun it: a process with a pending
        SIGKILL does not fork.
        """
        status, cpu, peak = 0, 0.0, 0
        if pid and not self.jail.process_one:
            with contextlib.suppress(ProcessLookupError):  # at once all that have stayed in the program's own group
                os.killpg(pid, signal.SIGKILL)
        while True:
            self.signal_all(signal.SIGKILL)
            ended = -1
            while ended:
                try:
                    ended, how, usage = os.wait4(-1, 0 if self.jail.process_one else os.WNOHANG)
                except ChildProcessError:
                    return status, cpu, peak
                cpu += usage.ru_utime + usage.ru_stime
                if ended == pid:
                    status, peak = how, usage.ru_maxrss
            time.sleep(0.0002)  # killed, but not gone yet; or left by one that was killed before it was found

    def signal_all(self, number: int) -> None:
        if self.jail.process_one:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, number)
        elif number == signal.SIGKILL:
            processes.kill_descendants(self.jail.proc)
        else:
            processes.signal_all(processes.descendants(self.jail.proc), number)

    def clean_box(self, box: str) -> None:
        if not self.jail.box:
            self.folders_state = clean_folders(self.jail, self.folders_state)
        elif self._box_state() != self.box_state and not self._only_script_removed():
            # In constant time, however deep or odd the remaining files are.
            kernel.unmount(self.jail.box)
            mount_box(self.jail)
        self.box_state = self._box_state()

    def _only_script_removed(self) -> bool:
        """Empties a box that holds only a script; not one that programs own, whose attributes they can set."""
        with os.scandir(self.jail.box) as entries:
            names = [entry.name for entry in itertools.islice(entries, 2)]
        if not self.jail.ids or names != [os.path.basename(PROGRAM)]:
            return False
        with contextlib.suppress(OSError):  # a folder
            os.unlink(PROGRAM)
            return True
        return False

    def _box_state(self) -> tuple[int, int, int] | None:
        """Changes with every file made and every mode or attribute set in the box's top folder.

        The time alone does not: before Linux 6.13 it can be milliseconds old.
        """
        if not self.jail.box:
            return None
        status = os.stat(self.jail.box)
        return status.st_ctime_ns, status.st_size, status.st_mode

    def clone(self, control_fd: int, message: dict[str, Any]) -> None:
        """A worker in namespaces and with a box of its own; it shares this one's memory until it writes."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # clones that have ended
                pass
        if middle := os.fork():
            os.close(control_fd)
            if self.jail.process_one:
                os.waitpid(middle, 0)
            return
        jail = separate(self.jail, message["slot"])
        if jail.process_one and os.fork():  # a new pid namespace holds only children, hence a process that then ends
            os._exit(0)
        settle(jail)
        self.control.close()
        if self.victims:
            self.victims.close()
        for name in message["modules"]:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        if message["role"] == "examiner":
            empty_file_system(jail)
        Worker(socket.socket(fileno=control_fd), jail, message["role"]).serve()
        if jail.folder:
            remove_tree(jail.folder)
        os._exit(0)


def seed_random_numbers() -> None:
    """The same random numbers in every worker, so that verdicts repeat."""
    sys.modules["random"].seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


def _ends_within(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(seconds and poll.poll(seconds * 1000))


def _cpu_clock(pid: int) -> float:
    """CPU seconds of a process, its threads included; 0 when it has ended."""
    with contextlib.suppress(OSError):
        return time.clock_gettime(~pid << 3 | 2)  # how Linux numbers the clocks of processes
    return 0.0


def _watchable(proc: int) -> None:
    if not processes.visible(proc):
        raise OSError("the children of a process cannot be seen in /proc")
