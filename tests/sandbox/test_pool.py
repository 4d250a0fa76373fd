"""Verdicts: right programs pass, wrong and hostile ones do not, and nothing outlives its limits."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from processes import descendants

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
        ("import os\nwhile True: os.fork()", "runtime_error"),  # the limit on processes is an OSError
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


RAW = """
import json, os, struct, time
def send(message):
    data = json.dumps(message).encode()
    data = struct.pack("<I", len(data)) + data
    while data:
        data = data[os.write(3, data):]
"""


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(): send({'value': ['Fraction', '1e9000000']})", CallTest("f", (), 1)),  # as a number it takes seconds
        ("def f(): [send({'loaded': True}) for _ in range(1000)]", CallTest("f", (), 1)),  # each asked for a call
        ("send({'failed': {'message': 'A' * 9_000_000}})\ntime.sleep(9)", AssertTest("assert f() == 1")),
        ("# numpy\ndef f(*a): send({'value': ['ndarray', ['dict', []]]})", AssertTest("assert f(f()) == 1")),
    ],
)
def test_answers_made_by_hand_are_the_programs_failure(pool, code, test):
    start = time.monotonic()
    v = verdict(pool, RAW + code, test, limits=Limits(wall_s=8, cpu_s=8))
    assert v.status in ("wrong_answer", "runtime_error") and time.monotonic() - start < 8
    assert v.tests[0].form != "in_process"


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
    assert [t.status for t in v.tests] == ["passed", "timeout", "timeout"]
    assert v.status == "timeout" and v.tests[2].message.startswith("not run")


def test_stop_at_first_failure(pool):
    tests = (CallTest("f", (), 2), CallTest("f", (), 1))
    v = pool.run([Program("def f(): raise ValueError('no')", tests, stop_at_first_failure=True)])[0]
    assert len(v.tests) == 1 and v.status == "runtime_error"


def test_arguments_are_fresh_for_each_test(pool):
    code = "def f(x):\n    x.append(1)\n    return len(x)"
    shared = [0]
    assert verdict(pool, code, CallTest("f", (shared,), 2), CallTest("f", (shared,), 2)).passed
    assert shared == [0]


def test_hashes_and_random_numbers_are_the_same_each_time(pool):
    code = "import random\ndef f(): return hash('a'), random.random()"
    with Pool(1) as other:
        (first,), (second,) = (p.run([Program(code, (CallTest("f", (), "?"),))]) for p in (pool, other))
    assert first.tests[0].message == second.tests[0].message


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
    if pool.layers["network"] != "on":
        pytest.skip("the kernel gives no network namespace")
    code = "import socket\ndef f():\n    socket.create_connection(('127.0.0.1', 80), 1)"
    message = verdict(pool, code, CallTest("f", (), None)).tests[0].message
    assert "unreachable" in message or "not permitted" in message or "denied" in message


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


def test_a_number_of_workers_below_zero_is_named():
    with pytest.raises(ValueError, match="workers = -1 must be >= 0"):
        Pool(-1)


def test_a_killed_worker_is_replaced():
    with Pool(1) as pool:
        assert verdict(pool, "x = 1", AssertTest("assert x")).passed
        os.kill(pool._judges[0].pid, signal.SIGKILL)
        assert verdict(pool, "x = 1", AssertTest("assert x")).passed
        for worker in descendants(pool._judges[0].pid):
            with contextlib.suppress(ProcessLookupError):  # one of the kills before may have ended it
                os.kill(worker, signal.SIGKILL)
            assert verdict(pool, "x = 1", AssertTest("assert x")).passed
        assert pool.sandbox_errors == 0


def test_a_judge_that_cannot_be_restarted_is_tried_again_with_each_program(monkeypatch):
    from sandbox import pool as module

    def refuse(self):
        raise module.WorkerError("no more processes")

    with Pool(1) as pool:
        start = module._JudgeProcess._start
        monkeypatch.setattr(module._JudgeProcess, "_start", refuse)
        os.kill(pool._judges[0].pid, signal.SIGKILL)
        for _ in range(3):
            failed = verdict(pool, "x = 1", AssertTest("assert x"))
            assert failed.status == "sandbox_error" and failed.stderr.endswith("cannot be restarted: no more processes")
        monkeypatch.setattr(module._JudgeProcess, "_start", start)
        assert verdict(pool, "x = 1", AssertTest("assert x")).passed
        assert pool.sandbox_errors == 3


def test_workers_end_with_their_parent():
    code = (
        "import os\nfrom sandbox.pool import Pool\np = Pool(2)\n"
        "print(*(j.pid for j in p._judges), flush=True)\nos._exit(0)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    deadline = time.monotonic() + 10
    pids = [int(pid) for pid in out.stdout.split()]
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) == 2 and not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_programs_that_can_have_no_verdict_are_errors(pool):
    with pytest.raises(ValueError, match="without tests"):
        pool.run([Program("x = 1", ())])
    with pytest.raises(ValueError, match="only have stdio tests"):
        pool.run([Program("x = 1", (AssertTest("pass"),), command=("node", "{filename}"))])
    with pytest.raises(ValueError, match="relative path"):
        pool.run([Program("x = 1", (AssertTest("pass"),), files={"../x": ""})])


def test_kinds_of_tests_may_be_mixed(pool):
    code = "def f(x): return x + 1\nif __name__ == '__main__': print(f(int(input())))"
    tests = (CallTest("f", (1,), 2), StdioTest("4", "5"), AssertTest("assert f(2) == 3"), StdioTest("4", "6"))
    v = verdict(pool, code, *tests)
    assert [t.status for t in v.tests] == ["passed", "passed", "passed", "wrong_answer"]
    assert [t.form for t in v.tests] == ["values", "output", "values", "output"]
    assert (v.first_failure.input, v.first_failure.expected, v.first_failure.actual) == ("4", "6", "5\n")


def test_what_is_cut_has_a_digest_of_the_whole(pool):
    long, printed = [0] * 100, "x" * 201
    code = f"def f(x): return {long!r}\nif __name__ == '__main__': print({printed!r}, end='')"
    v = verdict(pool, code, CallTest("f", (1,), 2), StdioTest("", "5"), CallTest("f", (1,), long))
    assert [t.status for t in v.tests] == ["wrong_answer", "wrong_answer", "passed"]
    assert v.tests[1].digest == hashlib.sha256(printed.encode()).hexdigest()[:16]
    assert v.tests[0].digest and not v.tests[2].digest and len(v.tests[0].actual) < len(repr(long))
    (short,) = verdict(pool, "def f(x): return x", CallTest("f", (1,), 2)).tests
    assert (short.actual, short.digest) == ("1", "")


OBJECTS = """
class One:
    made = None
    def __new__(cls):
        cls.made = cls.made or super().__new__(cls)
        return cls.made
def add(a, b): return a + b
def mul(a, b): return a * b
def get(name): return globals()[name]
def fail(n): return ValueError(n)
"""


@pytest.mark.parametrize(
    ("code", "test", "form", "status"),
    [
        # What a test may do with a program through plain values.
        ("def f(x): x.append(1)", "a = [0]\nf(a)\nassert a == [0, 1]", "examined", "passed"),
        ("def f(g, x): return g(x)", "assert f(lambda x: x * 2, 4) == 8", "examined", "passed"),
        ("def f(n): return lambda x: x + n", "assert f(1)(2) == 3", "values", "passed"),
        ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2]", "values", "passed"),
        ("import math\nPI = 3", "assert math.floor(PI) == 3", "values", "passed"),
        ("def f(x): raise KeyError('k')", "try:\n    f(1)\n    assert False\nexcept KeyError: pass", "examined", "passed"),
        ("def f(x, t): return isinstance(x, t)", "assert f(1, int)", "values", "passed"),
        ("def sum(a, b): return a + b + 1", "assert sum(1, 2) == 4", "values", "passed"),
        ("from collections import Counter\ndef f(s): return Counter(s)", "assert f('aab')['a'] == 2", "values", "passed"),
        ("import numpy as np\ndef f(n): return np.arange(n)", "assert f(3).sum() == 3", "examined", "passed"),
        ("def abs(x): return 0\ndef f(x): return 99", "r = f(1)\nassert abs(r - 1) < 0.1", "values", "wrong_answer"),
        ("def len(x): return 3\nX = []", "assert len(X) == 3", "values", "wrong_answer"),
        ("def all(x): return True\ndef f(): return [0]", "assert all(x == 1 for x in f())", "values", "wrong_answer"),
        ("from typing import Any\nfrom collections import deque\ndef f(x): return deque(x)", "q: Any = f([1])\nassert q == deque([1])", "values", "passed"),
        # Its classes: objects stay in the program's process.
        ("class P:\n    def __init__(s, x): s.x = x\n    def get(s): return s.x", "p = P(3)\nassert p.get() == 3 == p.x",
         "examined", "passed"),
        ("class S:\n    def __init__(s): s.i = []\n    def push(s, x): s.i.append(x)\n    def __len__(s): return len(s.i)",
         "s = S()\ns.push(4)\nassert len(s) == 1", "examined", "passed"),
        ("class E(Exception): pass\ndef f(): raise E('x')", "try:\n    f()\n    assert 0\nexcept E: pass", "examined", "passed"),
        ("class A:\n    def __eq__(s, o): return True", "assert A() == 1", "values", "wrong_answer"),
        ("class V:\n    def __init__(s, x): s.x = x\n    def __mul__(s, k): return V(s.x * k)", "assert (V(2) * 3).x == 6",
         "examined", "passed"),
        # It does not decide what is left of a difference, nor that its answers are objects.
        ("class Tri:\n    def __init__(s, *a): pass\n    def __sub__(s, o): return 0.0", "assert abs(Tri(3) - 6.0) < 1e-6",
         "examined", "runtime_error"),
        ("class SIGALRM: pass\nclass X:\n    def __sub__(s, o): return 0.0\ndef f(): return X()",
         "import signal\nsignal.SIGALRM\nassert abs(f() - 2.0) < 1e-6", "examined", "runtime_error"),
        ("from itertools import permutations\ndef f(x): return permutations(x)", "assert list(f([1, 2])) == [(1, 2), (2, 1)]",
         "values", "passed"),
        # Iterators are read as the test reads them: they may have no end, and errors come in their place.
        ("def f():\n    a, b = 0, 1\n    while True:\n        yield a\n        a, b = b, a + b",
         "from itertools import islice\nassert list(islice(f(), 40))[-1] == 63245986", "examined", "passed"),
        ("def f():\n    yield 1\n    yield 2\n    raise ValueError",
         "g = f()\nassert next(g) == 1 and next(g) == 2\ntry:\n    next(g)\n    assert 0\nexcept ValueError: pass", "examined", "passed"),
        ("def f():\n    yield from range(100)\n    raise ValueError",
         "seen = []\ntry:\n    for x in f(): seen.append(x)\nexcept ValueError: pass\nassert len(seen) == 100", "examined", "passed"),
        ("seen = []\ndef f():\n    for x in range(3):\n        seen.append(x)\n        yield x\ndef g(): return seen",
         "it = f()\nnext(it)\nassert g() == [0]", "examined", "passed"),
        ("def f(n): return (x for x in range(n))", "assert sum(f(300_000)) == 44999850000", "values", "passed"),
        ("class C:\n    def __init__(s): s.n = 0\n    def __iter__(s): return s\n    def __next__(s):\n        s.n += 1\n"
         "        if s.n > 3: raise StopIteration\n        return s.n", "assert list(C()) == [1, 2, 3]", "examined", "passed"),
        # An iterator of the program's that goes to another function of its own is still full.
        ("def g(n): return iter(range(n))\ndef h(x): return sum(x)", "assert h(g(4)) == 6", "examined", "passed"),
        ("def g(n): return iter(range(n))\ndef h(x): return sum(x)", "assert h(g(4)) == 0", "examined", "wrong_answer"),
        ("def g():\n    n = 0\n    while True:\n        yield n\n        n += 1\ndef h(x): return next(x)",
         "x = g()\nassert h(x) == 0\nassert next(x) == 1\nassert h(x) == 2", "examined", "passed"),
        # The program's objects are distinguished as Python does.
        (OBJECTS, "a = One()\nb = One()\nassert a is b and get('add') is add and get('add') == add != mul", "examined", "passed"),
        (OBJECTS, "a = One()\nb = One()\nassert a is not b", "examined", "wrong_answer"),
        (OBJECTS, "assert get('mul') == add", "examined", "wrong_answer"),
        (OBJECTS, "assert fail(1) == fail(2)", "examined", "wrong_answer"),
        (OBJECTS, "assert type(One()) is One and type(One()) == One and type(fail(1)).__name__ == 'ValueError'", "examined", "passed"),
        (OBJECTS, "assert type(One()) == type(add)", "examined", "wrong_answer"),
        (OBJECTS, "assert repr(fail(1)) == 'ValueError(1)' and repr('a') == \"'a'\"", "examined", "passed"),
        ("def f(): return [ValueError(1)]", "assert repr(f()) == str(f()) == '[ValueError(1)]'", "examined", "passed"),
        ("def f(): return [ValueError(1)]", "x = f()\nassert f'{x}' == '%s' % x == '[ValueError(1)]'", "examined", "passed"),
        ("def f(): return [ValueError(1)]", "assert str({1: f()}) == '{1: []}'", "examined", "wrong_answer"),
        (OBJECTS, "def check(c):\n    assert type(c('add')(1, 2)) is int and isinstance(int, type)\ncheck(get)", "examined", "passed"),
        ("def f(): return [float('nan')]", "assert f() == f()", "values", "wrong_answer"),
        ("class C: pass", "assert C()", "examined", "passed"),
        ("class C:\n    def __bool__(s): return False", "assert not C()", "examined", "passed"),
        # Exceptions are those that the program has raised, arguments and all.
        ("def f(b): return b.decode()", "try:\n    f(b'\\xff')\n    assert 0\nexcept UnicodeDecodeError as e:\n    assert e.start == 0",
         "examined", "passed"),
        ("def f(b): return b.decode()", "try:\n    f(b'\\xff')\nexcept TypeError: pass", "examined", "runtime_error"),
        ("def f(): return {}['k']", "try:\n    f()\nexcept KeyError as e:\n    assert e.args == ('k',) and str(e) == \"'k'\"",
         "examined", "passed"),
        ("def f(): return open('/none')", "try:\n    f()\nexcept OSError as e:\n    assert e.errno == 2", "examined", "passed"),
        ("def f(): raise ExceptionGroup('x', [ValueError()])", "f()", "values", "runtime_error"),
        # Where the test needs the program in its own process, it is said.
        ("import os\ndef f(): return os.getcwd()",
         "from unittest.mock import patch\nwith patch('os.getcwd', return_value='x'):\n    assert f() == 'x'",
         "in_process", "passed"),
        ("def f(n): return n.v", "class N:\n    v = 3\nassert f(N()) == 3", "in_process", "passed"),
        ("import builtins\nbuiltins.len = lambda x: 3", "import inspect\nassert len([]) == 3", "in_process", "wrong_answer"),
        ("def f(): import os; os._exit(0)", "import inspect\nf()", "in_process", "runtime_error"),
    ],
)  # fmt: skip
def test_how_test_code_meets_the_program(pool, code, test, form, status):
    test = AssertTest(test, form="in_process" if form == "in_process" else "auto")
    v = verdict(pool, code, test, limits=Limits(wall_s=10, cpu_s=5))
    assert (v.tests[0].form, v.status) == (form, status), v


SUCCESSOR = "def f(x):\n    act(x)\n    return x + 1\n"


@pytest.mark.parametrize("form", ["values", "examined", "in_process"])
@pytest.mark.parametrize(
    ("act", "status"),
    [
        ("def act(x):\n    with open(1, 'a', closefd=False) as out: out.write('4')", "passed"),
        ("def act(x): os.write(1, b'x' * (32 << 10))", "passed"),
        ("def act(x): os.write(1, b'x' * (32 << 10) + b'y')", "output_limit"),
        # One verdict, whenever the judge looks.
        ("def act(x):\n    os.write(1, b'x' * 70000)\n    time.sleep(0.05)\n    os.lseek(1, 0, os.SEEK_SET)", "output_limit"),
        ("def act(x):\n    os.write(1, b'x' * 70000)\n    os.lseek(1, -70000, os.SEEK_CUR)", "output_limit"),
        ("def act(x):\n    os.write(1, b'x' * 70000)\n    time.sleep(0.05)\n    os.write(3, b'no answer')", "output_limit"),
        ("print('x' * 70000)\ntime.sleep(0.05)\nraise ValueError", "output_limit"),
        ("print('x' * 70000)\nraise ValueError", "output_limit"),
    ],
)  # fmt: skip
def test_output_is_counted_as_that_of_a_pipe_is(pool, act, status, form):
    asked = "import json\nassert json.loads(str(f({x}))) == {y}" if form == "examined" else "assert f({x}) == {y}"
    tests = [AssertTest(asked.format(x=x, y=x + 1), form=form if form == "in_process" else "auto") for x in (1, 2)]
    v = verdict(pool, f"import os, time\n{SUCCESSOR}{act}\n", *tests, limits=Limits(wall_s=10, cpu_s=5))
    assert (v.status, v.tests[0].form) == (status, form), v


def test_a_checker_decides_where_there_are_many_right_answers(pool):
    checker = "def check(stdin, stdout, expected):\n    a, b = map(int, stdout.split())\n    return a + b == int(stdin)"
    for printed, status in (("3 4", "passed"), ("3 5", "wrong_answer")):
        v = verdict(pool, f"print({printed!r})", StdioTest("7", "", checker=checker))
        assert v.status == status
    unreadable = verdict(pool, "print('x')", StdioTest("7", "", checker=checker))
    assert unreadable.status == "wrong_answer" and "checker refused" in unreadable.tests[0].message
    match = "import re\ndef check(stdin, stdout, expected): return re.match(expected, stdout)"
    for printed, status in (("7", "passed"), ("8", "wrong_answer")):  # an object whose truth counts
        assert verdict(pool, f"print({printed})", StdioTest("", "7", checker=match)).status == status
    broken = verdict(pool, "print(1)", StdioTest("7", "", checker="def check(*a: return 1"))
    assert broken.status == "sandbox_error" and "checker" in broken.stderr


def test_several_files(pool):
    files = {"helper.py": "def g(x): return x * 2", "data/n.txt": "21"}
    code = "from helper import g\nprint(g(int(open('data/n.txt').read())))"
    assert pool.run([Program(code, (StdioTest("", "42"),), QUICK, files=files)])[0].passed


@pytest.mark.skipif(not shutil.which("node"), reason="Node is not installed")
def test_another_language(pool):
    code = "const n = parseInt(require('fs').readFileSync(0)); console.log(n * 2)"
    node = {"command": ("node", "{filename}"), "filename": "program.js"}
    tests = (StdioTest("4", "8"), StdioTest("5", "10"))
    assert pool.run([Program(code, tests, Limits(), **node)])[0].passed
    for wrong, status in (
        ("throw new Error('x')", "runtime_error"),
        ("while (true);", "timeout"),
        ("", "wrong_answer"),
    ):
        assert pool.run([Program(wrong, tests, QUICK, **node)])[0].status == status
    assert pool.run([Program(code, tests, command=("no-such-language",))])[0].status == "sandbox_error"


def test_outputs_tracebacks_and_measures(pool):
    code = "import sys\ndef f(x):\n    x = bytearray(50 << 20)\n    print('to stdout')\n    print('to stderr', file=sys.stderr)\n    return g()\ndef g():\n    return 1 / 0"
    v = verdict(pool, code, CheckTest("def check(c):\n    c(1)", "f"))
    assert v.stdout == "to stdout\n" and v.stderr == "to stderr\n" and v.status == "runtime_error"
    assert "line 8, in g" in v.traceback and "return 1 / 0" in v.traceback and "sandbox" not in v.traceback
    assert 50 < v.memory_mb < 100 and 0 < v.cpu_s < 1 and v.cpu_s <= v.wall_s + 0.05


def test_exits_hooks_and_threads_of_a_program_with_stdin(pool):
    late = (
        "import atexit, threading\natexit.register(print, 'c')\nprint('a')\nthreading.Timer(0.05, print, 'b').start()"
    )
    assert verdict(pool, late, StdioTest("", "a\nb\nc")).passed
    assert verdict(pool, "import sys\nsys.stdout.buffer.write(b'\\xff')", StdioTest("", "\ufffd")).passed
    assert verdict(pool, "print(sum(int(x) for x in open(0)))", StdioTest("1\n2\n" * 50_000, "150000")).passed


@pytest.mark.parametrize("sleeping", [True, False])
def test_time_limits_hold(pool, sleeping):
    code = "import time\ntime.sleep(60)" if sleeping else "while True: pass"
    limits = Limits(wall_s=0.7, cpu_s=5) if sleeping else Limits(wall_s=10, cpu_s=0.7)
    verdicts = [verdict(pool, code, AssertTest("pass"), limits=limits) for _ in range(3)]
    assert 0.6 < min(v.wall_s if sleeping else v.cpu_s for v in verdicts) < 0.7 + 0.2


def test_a_loaded_machine_makes_no_timeouts(pool):
    """Four programs a core: each takes several times its CPU time, and none is out of time."""
    program = Program(
        "def f():\n    for i in range(3 * 10 ** 6): pass\n    return 1", (CallTest("f", (), 1),), Limits(wall_s=30)
    )
    with Pool(4 * len(os.sched_getaffinity(0))) as crowded:
        assert all(v.passed for v in crowded.run([program] * 16))
