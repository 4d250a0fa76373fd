"""The process's heap on a CPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

PROGRAM = """
import jax
from jaxrl.runs.host import prepare_process

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1000

prepare_process()
blocks = [bytearray(b"x" * 200_000) for _ in range(2000)]
full, last = resident(), blocks[-1]
del blocks
kept = resident()
for seconds in (0.1, 60.0):
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", seconds)
    print(full - kept, full - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the heap is glibc's")
def test_the_heap_keeps_what_is_freed_until_a_long_compilation_ends():
    out = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (kept, short), (_, long) = [[float(x) for x in line.split()] for line in out.splitlines()]  # MB that were returned
    assert kept < 50 and short < 50 and long > 300
