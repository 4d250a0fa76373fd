"""The same program gets the same verdict each time, also while the machine is busy with other things."""

from __future__ import annotations

import collections
import multiprocessing
import os

import pytest

from sandbox.pool import Pool
from sandbox.verdict import AssertTest, CallTest, CheckTest, Limits, Program, StdioTest, Test

ROUNDS = int(os.environ.get("JAXRL_ROUNDS", "200"))  # of about 50 programs, in the slow test
LIMITS = Limits(wall_s=60, cpu_s=2, memory_mb=256)
CALL = (CallTest("f", (1,), 2), CallTest("f", (5,), 6))
ASSERTS = (AssertTest("assert f(1) == 2"), AssertTest("x = [5]\nassert f(x[0]) == 6\nassert x == [5]"))
CHECK = (CheckTest("def check(c):\n    assert c(1) == 2\n    for i in range(9):\n        assert c(i) == i + 1", "f"),)
STDIO = (StdioTest("1\n", "2\n"), StdioTest("5\n", "6\n"))
# What a function f(x), or the body of a program, does; most are wrong in one way or another.
BODIES = (
    "return x + 1", "return x", "return str(x + 1)", "raise ValueError(x)", "print('x' * 140_000)\n    return x + 1",
    "print('x' * 30_000)\n    return x + 1", "import os\n    os.write(1, b'x' * 80_000)\n    return x + 1", "import sys\n    sys.exit(0)",
    "import os\n    os._exit(0)", "import os, signal\n    os.kill(os.getpid(), signal.SIGSEGV)", "import os\n    os.kill(os.getpid(), 40)",
    "return [0] * 10 ** 9", "return bytearray(300 << 20)", "return f(x)", "import random\n    return x + random.randint(0, 1)",
    "return x + hash(str(x)) % 2", "return list({'a', 'b', 'c', 'd'}).index('a') + x", "import sys\n    sys.stderr.write('e' * 90_000)\n    return x + 1",
    "import threading\n    threading.Thread(target=print, args=('y' * 100,)).start()\n    return x + 1", "return {x: x}", "return float(x + 1)",
)  # fmt: skip
WHOLE = (
    "def f(:",
    "x = 1",
    "1 / 0",
    "raise SystemExit",
    "import os; os._exit(3)",
    "def f(x): return x + 1\nraise MemoryError",
    "print('x' * 200_000)",
)


def programs() -> list[Program]:
    functions = [f"def f(x):\n    {body}" for body in BODIES]
    tests: list[tuple[Test, ...]] = [CALL, ASSERTS, CHECK]
    made = [Program(code, tests[i % 3], LIMITS) for i, code in enumerate(functions)]
    made += [Program(f"{code}\nprint(f(int(input())))", STDIO, LIMITS) for code in functions]
    made += [Program(code, tests[i % 3], LIMITS) for i, code in enumerate(WHOLE)]
    made.append(Program("import numpy as np\ndef f(x): return x + int(np.random.randint(0, 2))", CALL, LIMITS))
    return made


def outcome(verdict) -> tuple:
    return verdict.status, tuple((t.status, t.form) for t in verdict.tests)


@pytest.mark.parametrize("rounds", [4, pytest.param(ROUNDS, marks=pytest.mark.slow)])
def test_one_verdict_each_under_load(rounds):
    batch = programs()
    assert len(batch) >= 50
    load = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for process in load:
        process.start()
    try:
        seen = [collections.Counter() for _ in batch]
        with Pool() as pool:
            for _ in range(rounds):
                for counter, verdict in zip(seen, pool.run(batch)):
                    counter[outcome(verdict)] += 1
    finally:
        for process in load:
            process.kill()
    assert [(p.code, c) for p, c in zip(batch, seen) if len(c) > 1] == []
    assert not any(status == "sandbox_error" for counter in seen for status, _ in counter)


def _spin() -> None:
    while True:
        sum(range(10_000))
