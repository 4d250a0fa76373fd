"""Sessions: variables live from call to call, limits hold for each, and nothing of one reaches another."""

from __future__ import annotations

import asyncio
import os
import re
import time

import pytest
from processes import descendants

from sandbox.isolation import PROGRAM
from sandbox.session import Sessions
from sandbox.verdict import Limits

QUICK = Limits(wall_s=0.5, cpu_s=0.4, output_kb=8)
SHORT = Limits(wall_s=30, cpu_s=20, output_kb=8)  # of what ends by itself, however busy the machine is
DEAF = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"

KILL_ALL = """
import os
for pid in range(1, 300):
    if pid != os.getpid():
        try:
            os.kill(pid, 9)
        except OSError:
            pass
"""
COUNTER = """
import threading, time
n = 0
def count():
    global n
    while True:
        n += 1
        time.sleep(0.001)
"""


@pytest.fixture(scope="module")
def sessions():
    with Sessions() as s:
        yield s


def test_variables_values_and_output(sessions):
    with sessions.open() as session:
        first = session.run("import math\nx = 3\nprint('out')\nmath.sqrt(x * 3)")
        assert (first.status, first.value, first.stdout) == ("passed", "3.0", "out\n")
        assert session.run("def f(y):\n    return x + y").value is None
        assert session.run("f(4)").value == "7" and session.run("_").value == "7"
        error = session.run("def g():\n    return 1 / 0\ng()")
        assert error.status == "runtime_error" and "line 2, in g" in error.traceback
        assert "sandbox" not in error.traceback and "return 1 / 0" in error.traceback
        assert session.run("x = (").status == "syntax_error"
        assert session.run("x").value == "3"
        session.reset()
        assert session.run("x").status == "runtime_error"


def test_a_slow_call_is_interrupted_and_keeps_its_variables(sessions):
    with sessions.open() as session:
        session.run("x = 5")
        start = time.monotonic()
        result = session.run("import time\ntime.sleep(60)", QUICK)
        assert result.status == "timeout" and not result.restarted and time.monotonic() - start < 2
        assert session.run("x").value == "5"


@pytest.mark.parametrize(
    ("code", "status", "limits"),
    [
        (DEAF + "while True: pass", "timeout", Limits(wall_s=0.5, cpu_s=30)),
        (DEAF + "while True: pass", "timeout", Limits(wall_s=30, cpu_s=0.4)),
        ("9 ** 9 ** 9", "timeout", Limits(wall_s=30, cpu_s=0.4)),
        ("import os\nos._exit(0)", "killed", SHORT),
        ("while True: print('x' * 100)", "output_limit", SHORT),
        ("import os\nos.close(3)", "killed", SHORT),
        ("import os\nos.write(3, b'x' * 100)", "killed", SHORT),
    ],
)
def test_a_session_that_ends_starts_afresh(sessions, code, status, limits):
    with sessions.open() as session:
        session.run("x = 1")
        start = time.monotonic()
        result = session.run(code, limits)
        assert result.status == status and result.restarted and time.monotonic() - start < 5
        assert session.run("1 + 1").value == "2"
        assert session.run("x").status == "runtime_error"


def test_a_large_value_loses_no_session(sessions):
    session = sessions.open()
    assert session.run("x = 1").status == "passed"
    result = session.run("list(range(1_500_000))")
    assert result.status == "passed" and result.value.startswith("[0, 1") and len(result.value) < 2**21
    assert session.run("x").value == "1"
    session.close()


def test_large_code_and_closed_output(sessions):
    with sessions.open() as session:
        assert session.run(f"x = {'y' * 9_000_000!r}; len(x)").value == "9000000"
        start = time.process_time()
        assert session.run("import os, time; os.close(1); os.close(2); time.sleep(1); x = 5").status == "passed"
        assert time.process_time() - start < 0.5  # of this process, which waits
        assert session.run("x").value == "5"


def test_sessions_see_nothing_of_each_other(sessions):
    with sessions.open() as one, sessions.open() as other:
        one.run("x = 1\nopen('file', 'w').write('secret')")
        assert other.run("x").status == "runtime_error"
        look = "import os; [os.path.exists(p) for p in ('file', '/tmp/file', '/proc')]"
        assert other.run(look).value == "[False, False, False]"
        assert one.run("open('file').read()").value == "'secret'"
        assert other.run(KILL_ALL).status == "passed"
        assert one.run("x").value == "1"


def test_nothing_runs_between_calls(sessions):
    with sessions.open() as session:
        session.run(COUNTER)
        session.run("threading.Thread(target=count, daemon=True).start()\ntime.sleep(0.05)")
        before = int(session.run("n").value)
        time.sleep(0.5)
        assert int(session.run("n").value) - before < 100


def test_hundreds_at_once_in_little_memory(sessions):
    many = [sessions.open() for _ in range(200)]

    async def all_at_once(code):
        return await asyncio.gather(*(s.run_async(code.format(i=i)) for i, s in enumerate(many)))

    assert all(r.status == "passed" for r in asyncio.run(all_at_once("x = {i}")))
    assert [r.value for r in asyncio.run(all_at_once("x"))] == [str(i) for i in range(200)]
    assert private_megabytes() < 200 * 6
    for session in many:
        session.close()


def private_megabytes() -> float:
    """Memory of all workers' processes, shared pages counted once."""
    total = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline") as f:
                if PROGRAM not in f.read():
                    continue
            with open(f"/proc/{entry}/smaps_rollup") as f:
                total += int(re.search(r"^Pss:\s+(\d+)", f.read(), re.M)[1])
        except OSError:
            continue
    return total / 1024


@pytest.mark.parametrize("which", ["first", "all"])
def test_a_template_that_died_is_started_again(which):
    """Its sessions die with it and are lost with their variables, but no later call is."""
    with Sessions() as sessions:
        session = sessions.open()
        assert session.run("x = 1").status == "passed"
        assert sessions._template.process is not None
        pids = [sessions._template.process.pid, *descendants(sessions._template.process.pid)]
        for pid in pids[:1] if which == "first" else reversed(pids):
            os.kill(pid, 9)
        time.sleep(0.5)
        lost = session.run("x")
        assert lost.restarted or lost.value == "1"  # a session in a jail of its own may outlive the template
        assert sessions.open().run("2").value == "2"
        session.reset()
        assert session.run("x = 3").status == "passed" and session.run("x").value == "3"
