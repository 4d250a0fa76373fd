"""Programs that try to pass without solving, to get out, or to spoil the verdicts of others.

Each file in hostile/ is one program. Its first lines say which kind of test it meets and which statuses are right.
The task is always the same: add(a, b), or as a program, the sum of two numbers read from stdin.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sandbox.pool import Pool
from sandbox.verdict import AssertTest, CallTest, CheckTest, Limits, Program, StdioTest

LIMITS = Limits(wall_s=1.5, cpu_s=0.5, memory_mb=256)
SLACK_S = 1.0  # promised are 0.2; the machine that runs the tests may be loaded
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(5, 5) == 10"
TESTS = {
    "check": (CheckTest(CHECK, "add"),),
    "call": (CallTest("add", (1, 2), 3), CallTest("add", (5, 5), 10)),
    "assert": (AssertTest("assert add(1, 2) == 3"), AssertTest("assert add(5, 5) == 10")),
    "stdio": (StdioTest("1 2\n", "3\n"), StdioTest("5 5\n", "10\n")),
}  # fmt: skip
FILES = sorted((Path(__file__).parent / "hostile").glob("*.py"))
HONEST = Program("def add(a, b):\n    open('f', 'w').write('x')\n    return a + b", TESTS["check"], Limits(wall_s=10))


def read(path: Path) -> tuple[str, str, set[str]]:
    """The program, its kind of test and the right statuses."""
    code = path.read_text()
    kind, statuses = (re.search(rf"^# {key}: (.+)$", code, re.M)[1] for key in ("test", "status"))
    return code, kind, set(statuses.split("|"))


@pytest.fixture(scope="module", params=TESTS)
def batch(request):
    """All of them with one kind of test, an honest program after each: the verdicts by name, and those of the honest.

    What is left behind is looked for at the end.
    """
    programs = [Program(path.read_text(), TESTS[request.param], LIMITS) for path in FILES]
    honest = HONEST
    if request.param == "stdio":
        honest = Program("print(sum(map(int, input().split())))", TESTS["stdio"], HONEST.limits)
    files_before, sockets_before = set(os.listdir("/tmp")), abstract_sockets()
    with Pool() as pool:
        verdicts = pool.run([p for program in programs for p in (program, honest)])
        assert pool.sandbox_errors == 0
        assert not runaway_processes([judge.pid for judge in pool._judges])
    new_files = {f for f in set(os.listdir("/tmp")) - files_before if "sandbox" in f or "hostile" in f or "note" in f}
    assert not new_files and abstract_sockets() <= sockets_before
    by_name = {path.stem: verdict for path, verdict in zip(FILES, verdicts[::2])}
    return request.param, by_name, dict(zip(by_name, verdicts[1::2]))


def test_there_are_at_least_80():
    assert len(FILES) >= 80


def test_none_passes_any_kind_of_test(batch):
    _, verdicts, _ = batch
    assert [name for name, v in verdicts.items() if v.passed] == []


def test_none_changes_the_verdict_of_the_program_after_it(batch):
    _, _, honest = batch
    assert [name for name, v in honest.items() if not v.passed] == []


def test_none_takes_longer_than_its_limit(batch):
    _, verdicts, _ = batch
    assert [(name, v.wall_s) for name, v in verdicts.items() if v.wall_s > LIMITS.wall_s + SLACK_S] == []


def test_each_gets_its_verdict(batch):
    """With the kind of test that it was written for."""
    kind, verdicts, _ = batch
    wrong = {}
    for path in FILES:
        _, own_kind, statuses = read(path)
        if own_kind == kind and verdicts[path.stem].status not in statuses:
            wrong[path.stem] = (verdicts[path.stem].status, statuses, verdicts[path.stem].tests)
    assert not wrong


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
