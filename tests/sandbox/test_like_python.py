"""Programs judged by stdin and stdout behave as under `python program.py`: output, errors and exit status."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from python_programs import Case, cases

from sandbox.isolation import BOX
from sandbox.launch import WorkerProcess, python_environment
from sandbox.layers import LEAST
from sandbox.run import run_script
from sandbox.verdict import Limits

ENVIRONMENT = {"HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0"}
LIMITS = Limits(wall_s=80, cpu_s=20, output_kb=1024)
QUICK = 8  # every eighth program is compared in the quick tests
Behaviour = tuple[int, str, str]  # exit status (negative: a signal), stdout, stderr


def test_there_are_many_programs():
    names = [name for name, _, _ in cases()]
    assert len(names) == len(set(names)) >= 300


def test_some_programs_behave_as_under_python(tmp_path: Path):
    assert differences(cases()[::QUICK], tmp_path) == {}


@pytest.mark.slow
def test_programs_behave_as_under_python(tmp_path: Path):
    assert differences(cases(), tmp_path) == {}


def differences(programs: list[Case], folder: Path) -> dict[str, tuple[Behaviour, Behaviour]]:
    """By the programs' names: what Python does and what the sandbox does, where that is not the same."""
    with ThreadPoolExecutor(2) as threads:
        expected = list(threads.map(lambda i: by_python(programs[i], folder / str(i)), range(len(programs))))
    template = WorkerProcess(python_environment(), (), LEAST)
    worker = template.clone()
    try:
        actual = [by_sandbox(case, worker) for case in programs]
    finally:
        worker.stop()
        template.stop()
    return {case[0]: (e, a) for case, e, a in zip(programs, expected, actual) if e != a}


def by_python(case: Case, folder: Path) -> Behaviour:
    _, code, stdin = case
    folder.mkdir()
    (folder / "program.py").write_bytes(code.encode("utf-8", "surrogatepass"))
    given = folder.with_suffix(".stdin")
    given.write_bytes(stdin.encode("utf-8", "surrogatepass"))
    environment = ENVIRONMENT | {"PATH": os.environ["PATH"]}
    with given.open("rb") as f:
        done = subprocess.run(
            [sys.executable, "program.py"],
            stdin=f,
            capture_output=True,
            cwd=folder,
            env=environment,
            timeout=80,
            start_new_session=True,
        )
    return behaviour(done.returncode, done.stdout, done.stderr, str(folder))


def by_sandbox(case: Case, worker: WorkerProcess) -> Behaviour:
    _, code, stdin = case
    _, outcome = run_script(worker, {"code": code, "files": {}}, LIMITS, time.monotonic() + LIMITS.wall_s, stdin)
    assert not outcome.cause and not outcome.ended["cause"], (case, outcome)
    return behaviour(os.waitstatus_to_exitcode(outcome.ended["status"]), outcome.stdout, outcome.stderr, BOX)


def behaviour(status: int, stdout: bytes, stderr: bytes, folder: str) -> Behaviour:
    """Without what differs between any two runs: the folder's name and addresses."""

    def plain(data: bytes) -> str:
        text = data.decode("utf-8", "backslashreplace").replace(folder, "FOLDER")
        return re.sub(r"0x[0-9a-f]{6,}|(?<=Thread-)\d+", "0x", text)

    return status, plain(stdout), plain(stderr)
