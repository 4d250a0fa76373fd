"""Fixtures shared by the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from changed import UNKNOWN_S
from hypothesis import settings

# Drawn cases are the same in every run: a failure is of the change at hand, and repeats. For a wider search:
# pytest --hypothesis-profile=default
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).parent.parent
# Most of the time goes to compiling small programs. Without LLVM's optimizations that takes less than half as long, and
# what one process has compiled, later ones read, to the same bits. Both hold in processes that tests start too, and
# neither where the variable is set: `make test-slow` runs optimized programs.
UNOPTIMIZED = "--xla_backend_optimization_level=0"
os.environ.setdefault("XLA_FLAGS", UNOPTIMIZED)
COMPILED = ROOT / ".pytest_cache" / "xla"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
PATHS = os.pathsep.join([str(ROOT), *(path for path in sys.path if path.startswith(str(ROOT / "tests")))])
SECONDS = ROOT / "tests" / "seconds.json"
TAKEN: dict[str, float] = defaultdict(float)  # by this session's files
DATA = Path(os.environ.get("JAXRL_DATA", ROOT.parent / "shared" / "data"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", action="store_true", help=f"write how long each file takes to {SECONDS.name}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In one of several processes the longest files come first, so that none is left to one process at the end."""
    if hasattr(config, "workerinput"):
        seconds = json.loads(SECONDS.read_text())
        items.sort(key=lambda item: -seconds.get(item.nodeid.split("::")[0], UNKNOWN_S))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    TAKEN[report.nodeid.split("::")[0]] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--seconds") and not hasattr(session.config, "workerinput"):
        seconds = json.loads(SECONDS.read_text()) | {file: round(taken, 1) for file, taken in TAKEN.items()}
        there = {file: taken for file, taken in sorted(seconds.items()) if (ROOT / file).exists()}
        SECONDS.write_text(json.dumps(there, indent=1) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started by a shell in the background; children inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        for path in COMPILED.glob("*"):
            if path.stat().st_atime < time.time() - 14 * 24 * 3600:
                path.unlink(missing_ok=True)


def on_eight_devices(program: str) -> str:
    """What a Python program prints in a process of its own with eight CPU devices; fails if it does.

    These programs ask how arrays are cut, in which LLVM's optimizations have no part.
    """
    flags = f"--xla_force_host_platform_device_count=8 {UNOPTIMIZED}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": PATHS}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real benchmark data; tests that need it are skipped, visibly, without it."""
    if not DATA.is_dir():
        pytest.skip(f"no benchmark data in {DATA}; set JAXRL_DATA")
    return DATA


@pytest.fixture(scope="session")
def pool():
    from sandbox.pool import Pool

    with Pool(2) as p:
        yield p
