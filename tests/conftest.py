"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Drawn cases are the same in every run: a failure is of the change at hand, and repeats. For a wider search:
# pytest --hypothesis-profile=default
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("JAXRL_DATA", ROOT.parent / "shared" / "data"))


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
