"""The layers: as root and as an ordinary user, reported as they are, and never fewer than were asked for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox import seccomp
from sandbox.cgroup import Cgroup
from sandbox.layers import LAYERS, LEVELS, IsolationError, missing, require
from sandbox.leftovers import changed_at, remove_of_owners, remove_old_folders, remove_tree
from sandbox.verdict import CallTest, Limits, Program

ROOT = Path(__file__).resolve().parents[2]
LOOK = """
import ctypes, os
def look():
    libc = ctypes.CDLL(None, use_errno=True)
    writable = []
    for folder in ("/", "/usr", "/tmp", "/dev", "/w", "/root", "/home"):
        try:
            open(os.path.join(folder, "probe"), "w").close()
            writable.append(folder)
        except OSError:
            pass
    return {
        "uid": os.getuid(), "groups": os.getgroups(), "no_new_privs": libc.prctl(39, 0, 0, 0, 0),
        "seccomp": libc.prctl(21, 0, 0, 0, 0), "writable": writable, "proc": os.path.exists("/proc"),
        "root": sorted(os.listdir("/")), "repository": os.listdir(ROOT) if os.path.exists(ROOT) else [], "environment": sorted(os.environ), "descriptors": [
            fd for fd in range(256) if libc.fcntl(fd, 1) >= 0],
        "host": os.uname().nodename == HOST, "capabilities": [c for c in range(41) if libc.prctl(23, c, 0, 0, 0) == 1],
    }
"""


def test_inside_of_the_jail(pool):
    code = f"HOST, ROOT = {os.uname().nodename!r}, {str(ROOT)!r}\n{LOOK}"
    verdict = pool.run([Program(code, (CallTest("look", (), "show me"),), Limits(wall_s=10))])[0]
    seen = pool_value(pool, code)
    assert verdict.status == "wrong_answer"
    assert (seen["uid"] != 0 and seen["groups"] in ([], [65534])) or not all_active(pool)
    if all_active(pool):
        assert seen["no_new_privs"] == 1 and seen["seccomp"] == 2 and not seen["capabilities"]
        assert seen["writable"] == ["/tmp"] and not seen["proc"]
        assert not {"proc", "sys", "var", "mnt"} & set(seen["root"]) and seen["repository"] in ([], [".venv"])
        assert seen["descriptors"] == [0, 1, 2]
        assert set(seen["environment"]) <= {"PATH", "HOME", "TMPDIR", "LANG", "TZ", "LC_CTYPE", "PYTHONHASHSEED"}


def pool_value(pool, code):
    """What look() gives, by a program that prints it."""
    from sandbox.verdict import StdioTest

    verdict = pool.run([Program(code + "\nimport json\nprint(json.dumps(look()))", (StdioTest("", ""),))])[0]
    return json.loads(verdict.stdout)


def all_active(pool) -> bool:
    return not missing(pool.layers, "namespaces")


def test_less_than_wanted_is_an_error_that_says_what_and_why():
    layers = dict.fromkeys(LAYERS, "on") | {"pid": "unshare: Operation not permitted"}
    require(layers, "process")
    with pytest.raises(IsolationError, match=r"lacks pid \(unshare: Operation not permitted\).*doctor"):
        require(layers, "namespaces")
    with pytest.raises(IsolationError, match=r"lacks pid"):
        require(layers, "seccomp, pid")
    with pytest.raises(ValueError, match="unknown sandbox layer 'pids'"):
        missing(layers, "pids")
    assert set().union(*LEVELS.values()) <= set(LAYERS)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_as_an_ordinary_user(tmp_path):
    """With a Python that this user can read: the system's, where there is one."""
    python = next((p for p in ("/usr/bin/python3", "/usr/local/bin/python3") if usable(p)), None)
    if python is None:
        pytest.skip("no Python (3.11 or newer) that an ordinary user could start")
    os.chmod(tmp_path, 0o755)
    package = tmp_path / "sandbox"
    subprocess.run(["cp", "-r", str(ROOT / "sandbox"), str(package)], check=True)
    for parent in [package, *tmp_path.parents]:
        if str(parent).startswith("/tmp/"):
            os.chmod(parent, 0o755)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from sandbox.pool import Pool\nfrom sandbox.verdict import *\n"
        "with Pool(1) as pool:\n"
        "    good = Program('def f(x): return x + 1', (CallTest('f', (1,), 2),))\n"
        "    fork = 'import os\\nwhile True:\\n    try:\\n        os.fork()\\n    except OSError: pass'\n"
        "    kill = 'import os\\ndef f(x):\\n    for p in range(1, 99):\\n        if p != os.getpid():\\n"
        "            try: os.kill(p, 9)\\n            except OSError: pass\\n    return 0'\n"
        "    script = Program('print(input(), open(\"/dev/stdin\").read())', (StdioTest('7', '7 7'),))\n"
        "    said = [v.stderr or v.status for v in pool.run([script, script])]\n"
        "    assert said == ['passed', 'passed'], said\n"
        "    limits = Limits(wall_s=1, cpu_s=1)\n"
        "    bad = [Program(c, (CallTest('f', (1,), 2),), limits) for c in (fork, kill)]\n"
        "    print([v.status for v in pool.run([good, bad[0], good, bad[1], good])])\n"
        "    print({k: v for k, v in pool.layers.items() if v != 'on'})\n"
    )
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", python, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, cwd="/", env={"PATH": os.environ["PATH"]})
    assert not out.returncode, out.stderr
    statuses, layers = out.stdout.splitlines()
    good, fork, after, kill, last = eval(statuses)
    assert (good, after, last) == ("passed",) * 3 and fork != "passed" and kill != "passed"
    assert set(eval(layers)) <= {"uid", "cgroup", "landlock"}


def usable(python: str) -> bool:
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c", check]
    return os.path.exists(python) and subprocess.run(command, capture_output=True).returncode == 0


DAEMON = """
import ctypes, os, time
def f(x):
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(15, b"NAME")  # PR_SET_NAME
            os.write(write, b"there")
            time.sleep(99)
        os._exit(0)
    return os.read(read, 9)
"""


def test_without_namespaces_it_still_works_when_that_is_accepted(tmp_path):
    """As in most containers: here by forbidding namespaces in a namespace of one's own."""
    name = f"daemon{os.getpid()}"
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import ctypes\nfrom sandbox import kernel\n"
        "from sandbox.layers import IsolationError\nfrom sandbox.pool import Pool\nfrom sandbox.verdict import *\n"
        "kernel.prctl(38, 1)\n"
        "from sandbox import seccomp\n"
        "kernel.perform([kernel.seccomp_filter(seccomp.program_filter())])\n"
        "try:\n    Pool(1)\n    print('no error')\nexcept IsolationError as error:\n    print('pid' in str(error))\n"
        "with Pool(1, least='process') as pool:\n"
        "    good = Program('def f(x): return x + 1', (CallTest('f', (1,), 2),))\n"
        "    code = 'print(input(), open(\"/dev/stdin\").read(), open(__file__).readline()[:5])\\nexit()'\n"
        "    script = Program(code, (StdioTest('7', '7 7 print'),))\n"
        "    said = [v.stderr or v.status for v in pool.run([script, script])]\n"
        "    assert said == ['passed', 'passed'], said\n"
        f"    daemon = Program({DAEMON.replace('NAME', name)!r}, (CallTest('f', (1,), b'there'),), Limits(wall_s=5))\n"
        "    print([v.status for v in pool.run([good, daemon, good])])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.splitlines() == ["True", "['passed', 'passed', 'passed']"], out.stderr
    assert name not in subprocess.run(["ps", "-eo", "comm"], capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
)
def test_system_call_numbers_are_the_kernel_headers(column, header):
    if not os.path.exists(header):
        pytest.skip(f"no {header}")
    numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text()))
    table = seccomp._DENIED | seccomp._WITHOUT_EFFECT | seccomp._SIGNALS
    table |= {name: pair for name, (pair, _) in seccomp._OWN_PROCESS.items()}
    table |= {"socket": seccomp._SOCKET, "clone": seccomp._CLONE, "clone3": seccomp._CLONE3, "ioctl": seccomp._IOCTL}
    table |= {"socketpair": seccomp._SOCKETPAIR, "fcntl": seccomp._FCNTL}
    table |= {"pidfd_send_signal": seccomp._PIDFD_SEND_SIGNAL}
    for name, pair in table.items():
        known = numbers.get(name)
        assert pair[column] == (int(known) if known else None) or (known is None and pair[column] is not None), name


def test_cgroups_of_both_versions(tmp_path):
    """The files that are written, in folders that only look like control groups."""
    v2 = tmp_path / "v2"
    (v2 / "app").mkdir(parents=True)
    membership = tmp_path / "cgroup"
    membership.write_text("0::/app\n")
    with pytest.raises(OSError, match="delegates no controllers"):
        Cgroup("one", str(membership), str(v2))
    assert sorted(p.name for p in v2.rglob("*")) == ["app"]
    membership.write_text("4:memory:/a\n8:pids:/\n0::/\n")
    v1 = tmp_path / "v1"
    for folder in ("memory/a", "pids"):
        (v1 / folder).mkdir(parents=True)
    group = Cgroup("one", str(membership), str(v1))
    assert str(group) == "on (v1: memory, pids)"
    group.add(123)
    group.limit(256, 16)
    memory = v1 / "memory/a/one"
    assert (memory / "cgroup.procs").read_text() == "123"
    assert (memory / "memory.limit_in_bytes").read_text() == str(256 << 20)
    (memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    with group.memory_events() as events:
        assert b"oom_kill 2" in events.read()


def test_a_control_group_whose_worker_has_ended_is_removed_by_the_next(tmp_path):
    membership = tmp_path / "cgroup"
    membership.write_text("4:memory:/\n")
    old, living, foreign = (tmp_path / "memory" / f"jaxrl-sandbox-{n}" for n in (4194305, os.getpid(), "x"))
    for folder in (old, living, foreign):
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - 10, time.time() - 10))
    Cgroup("jaxrl-sandbox-1", str(membership), str(tmp_path)).sweep()
    assert not old.exists() and living.exists()


def test_a_tree_is_removed_however_deep_and_closed_it_is(tmp_path):
    top = tmp_path / "top"
    (top / "closed").mkdir(parents=True)
    (top / "closed" / "file").write_text("")
    os.symlink(tmp_path / "other", top / "link")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept").write_text("")
    os.chmod(top / "closed", 0)
    before = os.getcwd()
    os.chdir(top)
    try:
        for _ in range(2000):  # a path of 4,000 characters, more levels than recursion allows
            os.mkdir("d")
            open("file", "w").close()
            os.chdir("d")
    finally:
        os.chdir(before)
    remove_tree(str(top))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["kept", "other"]


def test_only_what_belongs_to_the_owners_and_to_ended_workers_is_removed(tmp_path):
    for name in ("mine", f"sandbox-{os.getpid()}-a", "sandbox-4194305-a", "sandbox-x"):
        (tmp_path / name).mkdir()
    before = changed_at([str(tmp_path)])
    remove_old_folders(str(tmp_path), (os.getuid() + 1,))
    assert changed_at([str(tmp_path)]) == before
    remove_old_folders(str(tmp_path), (os.getuid(),))
    assert sorted(os.listdir(tmp_path)) == ["mine", f"sandbox-{os.getpid()}-a", "sandbox-x"]
    assert changed_at([str(tmp_path)]) != before
    remove_of_owners([str(tmp_path)], (os.getuid() + 1,))
    assert len(os.listdir(tmp_path)) == 3
    remove_of_owners([str(tmp_path)], (os.getuid(),))
    assert os.listdir(tmp_path) == []


def test_doctor_reports_every_layer_and_what_it_protects():
    out = subprocess.run([sys.executable, "-m", "sandbox", "doctor", "--least", ""], capture_output=True, text=True)
    lines = {line.split()[1]: line for line in out.stdout.splitlines() if line.startswith(("active", "missing"))}
    assert list(lines) == list(LAYERS)
    assert "inotify" in lines["seccomp"] and "host name" in lines["uts"] and "files" in lines["leftovers"]
