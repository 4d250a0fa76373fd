"""What programs and sessions cannot do to the host and to each other, on machines that give much and on those that give little.

Each machine is asked once, by one script (`LOOK`), for all that the tests here want to know of it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from machines import MACHINES, Machine, readable_package

# Tries each call, and prints its error's number (0: it worked).
PROBE = """
import ctypes, fcntl, json, os, resource, socket, sqlite3, struct
libc = ctypes.CDLL(None, use_errno=True)
def number(action):
    try:
        result = action()
    except OSError as error:
        return error.errno
    return ctypes.get_errno() if isinstance(result, int) and result < 0 else 0
shared, own = open(os.__file__, "rb"), open("own", "w+b")
def database():
    for value in range(2):
        with sqlite3.connect("db") as connection:
            connection.execute("create table if not exists t (x)")
            connection.execute("insert into t values (?)", (value,))
    return connection.execute("select count(*) from t").fetchone()[0]
context = ctypes.c_ulong()
print(json.dumps({
    "inotify": number(lambda: libc.inotify_init1(0)), "fanotify": number(lambda: libc.fanotify_init(0x200, 0)),
    "aio": number(lambda: libc.syscall(206, 1000, ctypes.byref(context))),
    "dnotify": number(lambda: fcntl.fcntl(os.open(os.path.dirname(os.__file__), 0), 1026, 0x80000001)),
    "lease": number(lambda: fcntl.fcntl(own, 1024, 1)), "owner": number(lambda: fcntl.fcntl(own, 8, 1)),
    "signal": number(lambda: fcntl.fcntl(own, 10, 9)), "pipe": number(lambda: fcntl.fcntl(os.pipe()[0], 1031, 1 << 20)),
    "ioctl owner": number(lambda: fcntl.ioctl(own, 0x8901, struct.pack("i", 1))),
    "cachestat": number(lambda: libc.syscall(451, 0, 0, 0, 0)),
    "all of the user": number(lambda: os.setpriority(os.PRIO_USER, 0, os.getpriority(os.PRIO_PROCESS, 0))),
    "raw protocol": number(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)),
    "lock": number(lambda: fcntl.flock(own, fcntl.LOCK_EX)), "database": database(),
    "nice": number(lambda: os.nice(1)), "dup": number(lambda: fcntl.fcntl(own, fcntl.F_DUPFD_CLOEXEC, 20)),
    "pair": number(lambda: len(socket.socketpair())), "core": resource.getrlimit(resource.RLIMIT_CORE),
    "inet": number(lambda: bool(socket.socket())), "host": os.uname().nodename,
    "places": [p for p in ("/proc/self", "/sys/kernel") if os.path.exists(p)],
}))
"""
DENIED = ("inotify", "fanotify", "aio", "dnotify", "lease", "owner", "signal", "pipe", "ioctl owner", "cachestat",
          "all of the user", "raw protocol")  # fmt: skip
KILL_ALL = """
import os, signal
def f(x):
    me, above = os.getpid(), x
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGRTMIN + 1, signal.SIGKILL):
        for p in [os.getppid(), -os.getppid(), *range(1, 5), *above]:
            if p != me and p != -1:
                try:
                    os.kill(p, s)
                except OSError:
                    pass
    os.kill(me, 0)
    return "alive"
"""
LEAVE = """
import os
def f(name):
    for folder in ("/tmp", "/var/tmp", "/dev/shm", "/run/lock", "."):
        try:
            os.makedirs(f"{folder}/{name}/closed")
            open(f"{folder}/{name}/closed/file", "w").close()
            os.chmod(f"{folder}/{name}/closed", 0)
            os.symlink("/usr", f"{folder}/{name}/link")
        except OSError:
            pass
    for i in range(2000):
        os.mkdir("d"); os.chdir("d")
    return "left"
"""
READ_JUDGE = """
import os, re
def f(x):
    pid = os.getppid()
    for _ in range(6):
        try:
            command = open(f"/proc/{pid}/cmdline").read()
            parent = int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1])
        except OSError:
            return "sees nothing"
        if "sandbox.judge" in command:
            found = []
            for name in ("environ", "maps", "mem"):
                try:
                    found.append(open(f"/proc/{pid}/{name}", "rb").read(1))
                except OSError as error:
                    found.append(error.errno)
            return found
        pid = parent
    return "no judge above"
"""
NODE = "const kept = []; for (let i = 0; i < 15; i++) kept.push(Buffer.alloc(100 << 20, 1)); console.log(kept.length)"
LOOK = f"""
import fcntl, glob, time
from sandbox.pool import Pool
from sandbox.session import Sessions
from sandbox.verdict import CallTest, Limits, Program, StdioTest
PROBE, KILL_ALL, LEAVE, READ_JUDGE, NODE = {PROBE!r}, {KILL_ALL!r}, {LEAVE!r}, {READ_JUDGE!r}, {NODE!r}
good = Program("def f(x): return x + 1", (CallTest("f", (1,), 2),), Limits(wall_s=60))
limits = Limits(wall_s=10, cpu_s=5, memory_mb=64)
known = set()
def ours():
    # the processes below this one: their scores by number
    parents = {{}}
    for path in glob.glob("/proc/[0-9]*"):
        try:
            parents[int(path[6:])] = int(open(path + "/stat").read().rsplit(")", 1)[1].split()[1])
        except OSError:
            pass
    below = {{os.getpid()}}
    for _ in range(20):
        below |= {{pid for pid, parent in parents.items() if parent in below}}
    known.update(below)
    scores = {{}}
    for pid in below - {{os.getpid()}}:
        try:
            scores[pid] = int(open(f"/proc/{{pid}}/oom_score_adj").read())
        except OSError:  # it has just ended
            pass
    return scores
def call(code, argument, expected):
    verdict = pool.run([Program(code, (CallTest("f", (argument,), expected),), Limits(wall_s=10, cpu_s=5))])[0]
    after.append(pool.run([good])[0].status)
    return verdict.tests[0].actual if hasattr(verdict.tests[0], "actual") else verdict.tests[0].message
after, look = [], {{}}
with Pool(1, least="process") as pool:
    look["layers"] = pool.layers
    probe = pool.run([Program(PROBE, (StdioTest("", ""),))])[0]
    look["probe"] = json.loads(probe.stdout or repr(probe))
    before = ours()
    look["killer"] = call(KILL_ALL, [*before, *[-p for p in before], os.getpid(), -1], None)
    look["all alive"] = sorted(ours()) == sorted(before)
    token = "left-" + os.urandom(8).hex()
    look["leaver"] = call(LEAVE, token, None)
    look["left"] = [p for f in ("/tmp", "/var/tmp", "/dev/shm", "/run/lock") for p in glob.glob(f"{{f}}/{{token}}*")]
    look["reader"] = call(READ_JUDGE, 0, None)
    if {bool(shutil.which("node"))}:
        node = Program(NODE, (StdioTest("", "15"),), limits, command=("node", "{{filename}}"), filename="p.js")
        small = Program("console.log(15)", node.tests, limits, command=node.command, filename="p.js")
        look["node"] = [v.status for v in pool.run([node, small])]
    look["errors"], look["after"] = pool.sandbox_errors, after
with Sessions(least="process") as sessions:
    a, b = sessions.open(), sessions.open()
    forks = "import os, time\\nfor i in range(14):\\n    if os.fork() == 0:\\n        time.sleep(99); os._exit(0)"
    look["forks"] = [a.run(forks).status, b.run(forks).status]
    scores, own = ours(), int(open("/proc/self/oom_score_adj").read())
    look["scores"] = [sum(s == 1000 for s in scores.values()), all(s in (own, 1000) for s in scores.values())]
    bind = "import socket\\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\\n"
    address = "\\\\x00" + os.urandom(8).hex()  # not 0 alone, which takes the octal digits that follow
    look["bound"] = a.run(bind + f"s.bind('{{address}}')").status
    look["sent"] = b.run(bind + f"s.sendto(b'x', '{{address}}')").status
    lock = "import fcntl, os\\nf = open(os.__file__, 'rb')\\nfcntl.flock(f, fcntl.LOCK_EX)\\nfcntl.lockf(f, fcntl.LOCK_SH)"
    look["locked"] = [a.run(lock).status, b.run(lock).status]
    with open(os.__file__, "rb") as f:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    bomb = "while True:\\n    try:\\n        if os.fork() == 0:\\n            time.sleep(99)\\n    except OSError: break"
    many = a.run("import os, time\\n" + bomb + "\\ntime.sleep(1)", Limits(wall_s=8, cpu_s=5))
    look["bomb"] = [many.status, b.run("1 + 1").value]
look["folders"] = [f for f in os.listdir("/tmp") if f.startswith("sandbox-") and int(f.split("-")[1]) in known]
look["processes"] = len(ours())
print(json.dumps(look))
"""


@pytest.fixture(scope="module")
def package():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own folders are closed to other users
        yield readable_package(Path(folder))


@pytest.fixture(scope="module", params=MACHINES, ids=str)
def look(request, package) -> tuple[Machine, dict[str, Any]]:
    return request.param, request.param.run(LOOK, package)


def test_the_host_s_quotas_and_files_are_out_of_reach(look):
    machine, seen = look
    probe = seen["probe"]
    assert [name for name in DENIED if not probe[name]] == []
    assert probe["core"] == [1, 1]
    assert seen["locked"] == ["passed", "passed"]  # and the script could lock the same file
    if "namespaces" not in machine.without:
        assert probe["host"] == "sandbox" and not probe["places"] and not probe["inet"]
    else:
        assert probe["inet"]  # a socket would be one of the host's


def test_what_programs_need_works(look):
    _, seen = look
    assert [name for name in ("lock", "nice", "dup", "pair") if seen["probe"][name]] == []
    assert seen["probe"]["database"] == 2


def test_signals_reach_neither_worker_nor_judge(look):
    _, seen = look
    assert "alive" in seen["killer"] and seen["all alive"]
    assert seen["layers"]["signals"] == "on"
    assert seen["errors"] == 0 and set(seen["after"]) == {"passed"}


def test_nothing_that_a_program_leaves_survives(look):
    _, seen = look
    assert "left" in seen["leaver"]
    if seen["layers"]["leftovers"] == "on":
        assert seen["left"] == []
    else:  # an ordinary user's machine with neither mount namespaces nor Landlock
        assert seen["layers"]["mount"] != "on" != seen["layers"]["landlock"]
    assert seen["folders"] == [] and seen["processes"] == 0


def test_the_judge_s_memory_cannot_be_read(look):
    machine, seen = look
    assert seen["layers"]["dumpable"] == "on"
    hidden = "sees nothing" in seen["reader"]
    assert hidden or "[13, 13, 13]" in seen["reader"], seen["reader"]
    assert hidden or machine.without == ("namespaces", "landlock")


def test_the_memory_of_commands_is_limited(look):
    _, seen = look
    assert seen["layers"]["memory"] == "on"
    if "node" not in seen:
        pytest.skip("no Node")
    assert seen["node"] == ["memory", "passed"]


def test_the_kernel_ends_programs_before_workers(look):
    _, seen = look
    assert seen["layers"]["oom"] == "on"
    assert seen["scores"] == [2 + 2 * 14, True]


def test_sessions_neither_count_for_nor_reach_each_other(look):
    machine, seen = look
    assert seen["forks"] == ["passed", "passed"]
    assert seen["sent"] == "runtime_error"
    assert seen["bound"] == ("passed" if "namespaces" not in machine.without else "runtime_error")
    # Where the kernel cannot count a session's own processes, one that has started too many is ended.
    counted = machine != Machine("ordinary", machine.without) or "namespaces" not in machine.without
    assert seen["bomb"] == ["passed" if counted else "killed", "2"]
