"""The benchmarks run; what they measure is no matter here."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT


def run(script: str, *arguments: str) -> str:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_measures_every_part(tmp_path):
    out = run("gpu.py", "--shape", "tiny", "--seconds", "800", "--out", str(tmp_path / "gpu.json"))
    lines = json.loads((tmp_path / "gpu.json").read_text())
    assert not [line["error"] for line in lines if "error" in line]
    assert [line["part"] for line in lines] == [
        "matmul", "sft tiny", "sft tiny", "engine tiny", "engine tiny", "grpo tiny", "limit tiny",
    ]  # fmt: skip
    assert all(line["tflops"] > 0 for line in lines if line["part"].startswith(("matmul", "sft", "grpo")))
    assert next(line for line in lines if line["part"] == "grpo tiny")["fill"] > 0.5
    assert "of matmul" in out


@pytest.mark.slow
def test_a_step_is_the_one_that_every_peer_takes():
    line = json.loads(run("jaxrl_step.py", "--size", "small", "--steps", "1").splitlines()[-1])
    assert line["work"]["tokens"] == line["expected"]["tokens"] and line["work"]["moved"] > 0


def test_episodes_of_several_turns_wait_side_by_side():
    assert "3 episodes of 4 turns" in run("turns.py", "--episodes", "3", "--call", "0.01")


def test_parts_for_which_no_time_is_left_are_said_to_be_skipped():
    assert run("gpu.py", "--shape", "tiny", "--seconds", "1").count("skipped") >= 5


WITHOUT = [
    "transformers",
    "tokenizers",
    "datasets",
    "ml_collections",
    "chex",
    "orbax",
    "scipy",
    "tensorboardX",
    "torch",
]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["grpo tiny", "engine tiny"])
def test_the_benchmark_of_a_gpu_needs_few_packages(part):
    """A borrowed machine has jax, flax and optax, not all that a run needs."""
    program = f"import runpy, sys; sys.modules.update(dict.fromkeys({WITHOUT!r})); "
    program += f"runpy.run_path({str(ROOT / 'benchmarks' / 'gpu.py')!r}, run_name='__main__')"
    command = [sys.executable, "-c", program, "--part", part, "--shape", "tiny", "--setting", "null"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert result.returncode == 0 and lines, result.stderr
    assert not [line["error"] for line in lines if "error" in line]
