"""Thousands of mixed programs in a row: the same verdicts as one by one, and nothing leaks.

JAXRL_SOAK=100000 makes it the long run whose figures are in docs/results/sandbox.md.
"""

from __future__ import annotations

import os
import random
import re

import pytest

from sandbox.pool import Pool
from sandbox.verdict import AssertTest, CallTest, CheckTest, Limits, Program, StdioTest

COUNT = int(os.environ.get("JAXRL_SOAK", "2000"))
LIMITS = Limits(wall_s=5, cpu_s=0.5, memory_mb=128, output_kb=8, processes=8)
CALL, OUTPUT = CallTest("f", (2,), 3), StdioTest("2", "3")
CHECK, ASSERT = CheckTest("def check(c):\n    assert c(2) == 3", "f"), AssertTest("assert f(2) == 3")
MIX = [  # (weight, code, test)
    (20, "def f(x): return x + 1", CALL),
    (20, "def f(x): return x + 1", CHECK),
    (10, "def f(x): return x", ASSERT),
    (10, "print(int(input()) + 1)", OUTPUT),
    (5, "def f(x): return 1 / 0", CHECK),
    (5, "def f(x:", CALL),
    (5, "import os\ndef f(x):\n    open('file', 'w').write('x')\n    os.mkdir('d')\n    return x + 1", CHECK),
    (5, "import os\ndef f(x): os._exit(0)", CHECK),
    (
        5,
        "import os\nif os.fork() == 0:\n    os.setsid()\n    import time\n    time.sleep(100)\ndef f(x): return x + 1",
        CALL,
    ),
    (3, "x = bytearray(10 ** 10)", CALL),
    (3, "while True: print('x' * 100)", OUTPUT),
    (3, "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGKILL)", CHECK),
    (3, "import socket\ns = socket.socket(socket.AF_UNIX)\ns.bind('\\0soak')\ndef f(x): return x + 1", CALL),
    (3, "def f(x): return x + 1", AssertTest("import inspect\nassert f(2) == 3")),
    (1, "while True: pass", CALL),
]


@pytest.mark.slow
def test_soak():
    kinds = [Program(code, (test,), LIMITS) for _, code, test in MIX]
    order = random.Random(0).choices(range(len(kinds)), [weight for weight, _, _ in MIX], k=COUNT)
    with Pool() as pool:
        alone = [pool.run([program])[0].status for program in kinds]
        assert alone.count("passed") == 7 and "sandbox_error" not in alone
        pool.run([kinds[i] for i in order[:300]])  # everything has started that will be used
        before = usage(pool)
        for start in range(0, COUNT, 1000):
            chunk = order[start : start + 1000]
            assert [v.status for v in pool.run([kinds[i] for i in chunk])] == [alone[i] for i in chunk]
        after = usage(pool)
        assert pool.sandbox_errors == 0
    print(f"\n{COUNT} programs; before: {before}; after: {after}")
    assert after["descriptors"] <= before["descriptors"] + 4
    assert after["processes"] == before["processes"]
    assert after["files"] <= before["files"]
    assert after["memory_mb"] < before["memory_mb"] * 1.2 + 20


def usage(pool: Pool) -> dict[str, float]:
    """What this process, the judges and the workers hold: descriptors, processes, memory, files in /tmp, groups."""
    pids, descriptors, memory = [os.getpid()], 0, 0
    for pid in pids:
        descriptors += len(os.listdir(f"/proc/{pid}/fd"))
        with open(f"/proc/{pid}/smaps_rollup") as f:
            memory += int(re.search(r"^Pss:\s+(\d+)", f.read(), re.M)[1]) if pid != os.getpid() else 0
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as f:
                pids += [child for child in map(int, f.read().split()) if not has_ended(child)]
    files = sum(name.startswith("sandbox-") for name in os.listdir("/tmp"))
    return {"descriptors": descriptors, "processes": len(pids), "memory_mb": round(memory / 1024, 1), "files": files}


def has_ended(pid: int) -> bool:
    """Whether the process only waits for its parent to look; it holds nothing."""
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rpartition(")")[2].split()[0] in "ZX"
