"""Programs that try to pass without solving, to get out, or to spoil the verdicts of others.

Each file in hostile/ is one program. Its first lines say which kind of test it meets and which statuses are right.
The task is always the same: add(a, b), or as a program, the sum of two numbers read from stdin.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from sandbox.pool import Pool
from sandbox.verdict import AssertTest, CallTest, CheckTest, Limits, Program, StdioTest

LIMITS = Limits(wall_s=2.0, cpu_s=1.0, memory_mb=256)
SLACK_S = 1.0  # promised are 0.2; the machine that runs the tests may be loaded
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(5, 5) == 10"
TESTS = {
    "check": (CheckTest(CHECK, "add"),),
    "call": (CallTest("add", (1, 2), 3), CallTest("add", (5, 5), 10)),
    "assert": (AssertTest("assert add(1, 2) == 3"), AssertTest("assert add(5, 5) == 10")),
    "stdio": (StdioTest("1 2\n", "3\n"), StdioTest("5 5\n", "10\n")),
}  # fmt: skip
FILES = sorted((Path(__file__).parent / "hostile").glob("*.py"))
HONEST = Program("def add(a, b):\n    open('f', 'w').write('x')\n    return a + b", TESTS["check"], LIMITS)


def read(path: Path) -> tuple[str, str, set[str]]:
    """The program, its kind of test and the right statuses."""
    code = path.read_text()
    kind, statuses = (re.search(rf"^# {key}: (.+)$", code, re.M)[1] for key in ("test", "status"))
    return code, kind, set(statuses.split("|"))


def names() -> list[str]:
    return [path.stem for path in FILES]


def test_there_are_at_least_80():
    assert len(FILES) >= 80


@pytest.mark.parametrize("path", FILES, ids=names())
def test_a_hostile_program_gets_its_verdict_in_time(pool, path):
    code, kind, statuses = read(path)
    start = time.monotonic()
    verdict = pool.run([Program(code, TESTS[kind], LIMITS)])[0]
    took = time.monotonic() - start
    assert verdict.status in statuses, (verdict.status, verdict.tests)
    assert took < LIMITS.wall_s + SLACK_S
    assert pool.run([HONEST])[0].passed


@pytest.mark.parametrize("kind", ["check", "call", "assert", "stdio"])
def test_none_passes_any_kind_of_test_and_none_spoils_a_neighbour(kind):
    """All of them in one batch, an honest program after each; then nothing is left of any."""
    programs = [Program(read(path)[0], TESTS[kind], LIMITS) for path in FILES]
    honest = HONEST if kind != "stdio" else Program("print(sum(map(int, input().split())))", TESTS[kind], LIMITS)
    files_before = set(os.listdir("/tmp"))
    sockets_before = abstract_sockets()
    with Pool(2) as pool:
        verdicts = pool.run([p for program in programs for p in (program, honest)])
        assert pool.sandbox_errors == 0
        pids = [judge.pid for judge in pool._judges]
        assert not runaway_processes(pids)
    assert [path.stem for path, v in zip(FILES, verdicts[::2]) if v.passed] == []
    assert [path.stem for path, v in zip(FILES, verdicts[1::2]) if not v.passed] == []
    new_files = {f for f in set(os.listdir("/tmp")) - files_before if "sandbox" in f or "hostile" in f or "note" in f}
    assert not new_files
    assert abstract_sockets() <= sockets_before


def abstract_sockets() -> set[str]:
    with open("/proc/net/unix") as f:
        return {line.split()[-1] for line in f if "hostile" in line}


def runaway_processes(judges: list[int]) -> list[str]:
    """Processes below the judges that are no part of the sandbox."""
    children: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as f:
                children.setdefault(int(f.read().rsplit(")", 1)[1].split()[1]), []).append(int(entry))
        except OSError:
            continue
    found, waiting = [], list(judges)
    while waiting:
        waiting += (below := children.get(waiting.pop(), []))
        for pid in below:
            try:
                with open(f"/proc/{pid}/cmdline") as f:
                    command = f.read()
            except OSError:
                continue
            if command and "sandbox." not in command:
                found.append(command)
    return found
