"""Verdicts: right programs pass, wrong and hostile ones do not, and nothing outlives its limits."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sandbox.compare import equal, same_output
from sandbox.pool import Pool
from sandbox.verdict import AssertTest, CallTest, CheckTest, Limits, Program, StdioTest

QUICK = Limits(wall_s=2, cpu_s=1, memory_mb=256)


def verdict(pool, code, *tests, limits=QUICK):
    return pool.run([Program(code, tests, limits)])[0]


@pytest.mark.parametrize(
    ("code", "test", "status"),
    [
        ("def f(x): return x + 1", CallTest("f", (1,), 2), "passed"),
        ("def f(x): return x + 1", CallTest("f", (1,), 3), "wrong_answer"),
        ("def f(x): return x / 3", CallTest("f", (1,), 1 / 3 + 1e-9), "passed"),
        ("def f(x, y=0): return {x: [y]}", CallTest("f", (1,), {1: [5]}, {"y": 5}), "passed"),
        ("def f(): return float('nan')", CallTest("f", (), float("nan")), "passed"),
        ("def f(): return {1, 2}", CallTest("f", (), {2, 1}), "passed"),
        ("def f(): return True", CallTest("f", (), 1), "wrong_answer"),
        ("def g(): pass", CallTest("f", (), None), "runtime_error"),
        ("def f(x): return 1 // x", CallTest("f", (0,), 0), "runtime_error"),
        ("def f(:", CallTest("f", (), 0), "syntax_error"),
        ("x = 3", AssertTest("assert x == 3"), "passed"),
        ("x = 3", AssertTest("assert x == 4"), "wrong_answer"),
        ("def f(x): return x", CheckTest("def check(c):\n    assert c(4) == 4", "f"), "passed"),
        ("def f(x): return 0", CheckTest("def check(c):\n    assert c(4) == 4", "f"), "wrong_answer"),
        ("print(int(input()) * 2)", StdioTest("21\n", "42\n"), "passed"),
        ("print(int(input()) * 2)", StdioTest("21", "42  \n\n"), "passed"),
        ("print(41)", StdioTest("", "42"), "wrong_answer"),
        ("import sys\nprint(42)\nsys.exit(0)", StdioTest("", "42"), "passed"),
        ("import sys\nprint(42)\nsys.exit(3)", StdioTest("", "42"), "runtime_error"),
        ("if __name__ == '__main__': print(1)", StdioTest("", "1"), "passed"),
        ("if __name__ == '__main__': 1 / 0\ndef f(): return 1", CallTest("f", (), 1), "passed"),
    ],
)
def test_status(pool, code, test, status):
    assert verdict(pool, code, test).status == status


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import sys\nsys.exit(0)", "runtime_error"),
        ("import os\nos._exit(0)", "runtime_error"),
        ("print('done')\nraise SystemExit", "runtime_error"),
        ("while True: pass", "timeout"),
        ("import time\ntime.sleep(60)", "timeout"),
        ("x = bytearray(10**10)", "memory"),
        ("x = []\nwhile True: x.append(bytearray(10**7))", "memory"),
        ("while True: print('x' * 1000)", "output_limit"),
        ("import os\nwhile True: os.fork()", "killed"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed"),
        ("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass", "timeout"),
        ("try:\n    while True: pass\nexcept BaseException:\n    pass\nwhile True: pass", "timeout"),
        ("def f(): return f()\nf()", "runtime_error"),
        ("import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'done')\n    except OSError: pass\nos._exit(0)",
         "runtime_error"),
    ],
)  # fmt: skip
def test_hostile_programs_do_not_pass(pool, code, status):
    start = time.monotonic()
    assert verdict(pool, code, AssertTest("pass")).status == status
    assert time.monotonic() - start < QUICK.wall_s + 3  # generous: the machine may be loaded


def test_an_object_that_equals_everything_does_not_pass(pool):
    code = "class E(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\ndef f(): return E()"
    assert verdict(pool, code, CallTest("f", (), 5)).status == "wrong_answer"


def test_expected_values_are_not_in_the_process(pool):
    """The program searches its frames and all objects for the digits of the expected value, which it knows by half."""
    code = """
import gc, sys
def f():
    frame, seen = sys._getframe().f_back, []
    while frame:
        seen.append(repr(frame.f_locals))
        frame = frame.f_back
    seen += [repr(o)[:1000] for o in gc.get_objects() if isinstance(o, (dict, list, tuple))]
    return "-".join(("SECRET", "7391")) in "".join(seen)
"""
    v = verdict(pool, code, CallTest("f", (), "SECRET-7391"))
    assert v.tests[0].message == "f() gave False, expected 'SECRET-7391'"
    assert verdict(pool, code, CallTest("f", ("SECRET-7391",), 0)).status == "runtime_error"
    found = code.replace("def f():", "def f(x):")
    assert "gave True" in verdict(pool, found, CallTest("f", ("SECRET-7391",), 0)).tests[0].message  # it can see


def test_patched_builtins_do_not_reach_the_comparison(pool):
    code = "import builtins, json\nbuiltins.repr = json.dumps = lambda *a, **k: '3'\ndef f(): return 4"
    assert not verdict(pool, code, CallTest("f", (), 3)).passed


def test_results_stand_in_order_with_messages(pool):
    v = verdict(
        pool, "def f(x):\n    return 6 // x", CallTest("f", (2,), 3), CallTest("f", (0,), 0), CallTest("f", (1,), 5)
    )
    assert [t.status for t in v.tests] == ["passed", "runtime_error", "wrong_answer"]
    assert v.status == "runtime_error" and v.pass_fraction == pytest.approx(1 / 3)
    assert "ZeroDivisionError" in v.tests[1].message and "program.py, line 2" in v.tests[1].message
    assert v.tests[2].message == "f(1) gave 6, expected 5"


def test_the_test_during_which_a_program_hangs_is_the_timeout(pool):
    code = "def f(x):\n    while x == 2: pass\n    return x"
    v = verdict(pool, code, CallTest("f", (1,), 1), CallTest("f", (2,), 2), CallTest("f", (3,), 3))
    assert [t.status for t in v.tests] == ["passed", "timeout", "runtime_error"]
    assert v.status == "timeout"


def test_stop_at_first_failure(pool):
    tests = (CallTest("f", (), 2), CallTest("f", (), 1))
    v = pool.run([Program("def f(): raise ValueError('no')", tests, stop_at_first_failure=True)])[0]
    assert len(v.tests) == 1 and v.status == "runtime_error"


def test_arguments_are_fresh_for_each_test(pool):
    code = "def f(x):\n    x.append(1)\n    return len(x)"
    shared = [0]
    assert verdict(pool, code, CallTest("f", (shared,), 2), CallTest("f", (shared,), 2)).passed
    assert shared == [0]


def test_daemons_and_files_do_not_survive(pool, tmp_path):
    marker = tmp_path / "alive"
    code = f"""
import os, time
open("left-behind", "w").write(os.getcwd())
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1.5)
        open({str(marker)!r}, "w").write("x")
        os._exit(0)
def f(): return os.getcwd()
"""
    v = verdict(pool, code, CallTest("f", (), "?"))
    folder = v.tests[0].message.split("'")[1]
    assert folder.startswith("/") and not os.path.exists(folder)
    time.sleep(2)
    assert not marker.exists()


def test_no_network_where_the_layer_is_active(pool):
    if pool.layers["network"] != "own namespace":
        pytest.skip("the kernel gives no network namespace")
    code = "import socket\ndef f():\n    socket.create_connection(('127.0.0.1', 80), 1)"
    assert "unreachable" in verdict(pool, code, CallTest("f", (), None)).tests[0].message


def test_environment_is_clean(pool, monkeypatch):
    code = "import os\ndef f(): return sorted(os.environ)"
    assert "SECRET" not in verdict(pool, code, CallTest("f", (), [])).tests[0].message


def test_many_at_once_keep_their_order(pool):
    programs = [Program(f"def f(): return {i}", (CallTest("f", (), i if i % 3 else -1),)) for i in range(150)]
    assert [v.passed for v in pool.run(programs)] == [i % 3 != 0 for i in range(150)]

    async def gather():
        return await asyncio.gather(*(pool.run_async(p) for p in programs))

    for _ in range(2):  # several event loops
        assert [v.passed for v in asyncio.run(gather())] == [i % 3 != 0 for i in range(150)]


def test_a_killed_worker_is_replaced():
    with Pool(1) as pool:
        os.kill(pool._workers[0]._process.pid, signal.SIGKILL)
        assert verdict(pool, "x = 1", AssertTest("assert x")).passed


def test_workers_end_with_their_parent():
    code = (
        "import os\nfrom sandbox.pool import Pool\np = Pool(2)\n"
        "print(*(w._process.pid for w in p._workers), flush=True)\nos._exit(0)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    deadline = time.monotonic() + 10
    pids = [int(pid) for pid in out.stdout.split()]
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) == 2 and not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_programs_without_tests_and_mixed_tests_are_errors(pool):
    with pytest.raises(ValueError, match="without tests"):
        pool.run([Program("x = 1", ())])
    with pytest.raises(ValueError, match="mixed"):
        pool.run([Program("x = 1", (AssertTest("pass"), StdioTest("", "")))])


@pytest.mark.parametrize(
    ("actual", "expected", "same"),
    [
        (1, 1.0, True), (0.1 + 0.2, 0.3, True), (1.0, 1.1, False), (True, 1, False), (False, 0, False),
        ([1, 2], (1, 2), True), ([1, [2]], [1, [2.0]], True), ([1], [1, 2], False), ("1", 1, False), (None, 0, False),
        ({"a": 0.3}, {"a": 0.1 + 0.2}, True), ({1}, frozenset({1}), False), ("é", "é", True), (10**400, 1.0, False),
        (float("inf"), float("inf"), True), (float("inf"), 1e308, False), (1 + 2j, complex(1, 2), True),
    ],
)  # fmt: skip
def test_equality(actual, expected, same):
    assert equal(actual, expected, 1e-6) is same


def test_output_comparison():
    assert same_output("1 \n2\n\n", "1\n2")
    assert not same_output("1\n", "1\n2")  # a correct beginning is not enough
    assert not same_output("1\n2\n3", "1\n2")
    assert not same_output("1\n\n2", "1\n2")


def test_humaneval_references_pass(pool, data):
    rows = [json.loads(line) for line in gzip.open(data / "humaneval" / "HumanEval.jsonl.gz")]
    programs = [Program(r["prompt"] + r["canonical_solution"], (CheckTest(r["test"], r["entry_point"]),)) for r in rows]
    assert len(rows) == 164 and all(v.passed for v in pool.run(programs))
    empty = [Program(r["prompt"] + "    pass\n", (CheckTest(r["test"], r["entry_point"]),)) for r in rows]
    assert not any(v.passed for v in pool.run(empty))


def test_mbpp_references_pass(pool, data):
    rows = [json.loads(line) for line in open(data / "mbpp" / "mbpp.jsonl")]
    programs = [
        Program(r["code"], tuple(AssertTest(f"{r['test_setup_code']}\n{t}") for t in r["test_list"])) for r in rows
    ]
    verdicts = pool.run(programs)
    assert len(rows) == 974 and [r["task_id"] for r, v in zip(rows, verdicts) if not v.passed] == []
