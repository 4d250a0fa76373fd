"""The real vLLM, hung or left without its owner. tests/rollouts/test_sidecar_life.py does the same with a stand-in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from processes import command_line
from test_sidecar_life import wait_for
from test_train import TINY
from test_vllm import ENVIRONMENT, PROMPTS, VLLM, model, pytestmark  # noqa: F401

from models.convert import load_model
from rollouts.collect import generate
from rollouts.engine import SamplingParams
from rollouts.supervisor import descendants, processes
from rollouts.vllm.engine import ClientSettings, VllmEngine
from rollouts.vllm.sidecar import Sidecar, SidecarSettings


def named(pids: list[int], name: str) -> list[int]:
    """Those whose command line, which vLLM sets to VLLM::EngineCore and the like, holds the name."""
    return [pid for pid in pids if name.encode() in command_line(pid)]


def test_a_stopped_engine_is_noticed_and_replaced(model, tmp_path, monkeypatch):  # noqa: F811
    """The server itself still answers /health; its engine computes nothing."""
    monkeypatch.setattr("rollouts.vllm.server.PROBE_S", 1.0)
    monkeypatch.setattr("rollouts.vllm.server.PROBE_TIMEOUT_S", 2.0)
    monkeypatch.setattr("rollouts.vllm.pulse.HANG_S", 4.0)
    config, _, params = load_model(model, dtype=np.float32)
    settings = SidecarSettings(
        model=model, python=ENVIRONMENT / "bin/python", dtype="float32", max_length=96, dummy_weights=True, key="k"
    )
    sidecar = Sidecar(settings, tmp_path)
    said: list[str] = []
    client = ClientSettings(key="k")
    engine = VllmEngine(config, sidecar=sidecar, max_length=64, settings=client, say=said.append)
    try:
        engine.load_weights(params, 1)
        greedy = SamplingParams(max_new_tokens=12, temperature=0.0)
        expected = [c.tokens.tolist() for (c,) in generate(engine, PROMPTS, greedy)]
        (core,) = named(sidecar.pids(0), "EngineCore")
        os.kill(core, signal.SIGSTOP)
        assert [c.tokens.tolist() for (c,) in generate(engine, PROMPTS, greedy)] == expected
        assert engine.restarts == 1
        assert any("it hangs: no answer, no token" in line for line in said), said
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("program", "phase", "number"),
    [
        ("evaluate", "start", signal.SIGTERM),
        ("evaluate", "start", signal.SIGKILL),
        ("evaluate", "sampling", signal.SIGTERM),
        ("evaluate", "sampling", signal.SIGKILL),
        ("train", "sampling", signal.SIGKILL),
        ("traces", "start", signal.SIGTERM),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else value,
)
def test_a_command_that_is_killed_leaves_no_process(tmp_path, program, phase, number):
    many = ["--config.evaluation.samples=500", "--config.traces.samples=500", "--config.sft.steps=1"]
    command = [sys.executable, "-m", f"jaxrl.{program}", *TINY, *VLLM, *many, f"--config.runs_dir={tmp_path}"]
    with open(tmp_path / "output", "w") as output:
        owner = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=output, stderr=output
        )
    logs = tmp_path / "scramble" / "sidecar"

    def there() -> bool:
        assert owner.poll() is None, (tmp_path / "output").read_text()
        if phase == "start":
            return bool(named(descendants(owner.pid), "EngineCore"))
        return any("/inference/v1/generate" in log.read_text() for log in logs.glob("*.log"))

    below: list[int] = []
    try:
        wait_for(there, 300, "it did not get so far")
        below = descendants(owner.pid)
        assert named(below, "EngineCore")
        owner.send_signal(number)
        owner.wait(timeout=60)  # training ends after its step
        assert owner.returncode != 0
        wait_for(lambda: not left(below), 20, f"of {below} some outlived their owner")
    finally:
        owner.kill()
        for pid in left(below):
            os.kill(pid, signal.SIGKILL)


def left(pids: list[int]) -> list[int]:
    """Those of these processes that still run, and what runs in a session that one of them has started."""
    found = []
    for pid, entry in processes().items():
        try:
            if entry.state != "Z" and (pid in pids or os.getsid(pid) in pids):
                found.append(pid)
        except ProcessLookupError:
            continue
    return found
