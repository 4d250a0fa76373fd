"""Fixtures shared by the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Drawn cases are the same in every run: a failure is of the change at hand, and repeats. For a wider search:
# pytest --hypothesis-profile=default
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("JAXRL_DATA", ROOT.parent / "shared" / "data"))


def on_eight_devices(program: str) -> str:
    """What a Python program prints in a process of its own with eight CPU devices; fails if it does.

    These programs ask how arrays are cut. LLVM's optimizations, a third of their time, have no part in that.
    """
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
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
