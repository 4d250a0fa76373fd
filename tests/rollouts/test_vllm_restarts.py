"""Servers of our own: what they need, what they say when they end, and that they come back."""

from __future__ import annotations

import os
import signal

import pytest
from fake_vllm import fake_environment
from vllm_clients import (
    CONFIG,
    EVENTS,
    PARAMS,
    PROMPTS,
    assert_same,
    expected,  # noqa: F401
    impatient,
    make_params,
    model,  # noqa: F401
    new_events,
    settings,
)

from rollouts.collect import generate
from rollouts.sidecar import main
from rollouts.vllm.engine import ClientSettings, VllmEngine
from rollouts.vllm.server import Server
from rollouts.vllm.sidecar import Sidecar, SidecarError, SidecarSettings, is_loopback


def test_settings_that_cannot_be_started(model, tmp_path, capsys):  # noqa: F811
    environment = fake_environment(tmp_path / "env")
    for wrong, message in (
        ({"python": tmp_path / "none/bin/python"}, "make sidecar"),
        ({"model": tmp_path}, "config.json is missing"),
        ({"host": "0.0.0.0", "key": ""}, "set JAXRL_SIDECAR_KEY"),
        ({"replicas": 2, "tensor_parallel": 2, "devices": ("0", "1")}, "need 4 devices, but 2 are given"),
    ):
        values = {"model": model, "python": environment / "bin/python", "key": "k"} | wrong
        with pytest.raises(SidecarError, match=message):
            SidecarSettings(**values).check()
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")
    assert main(["--model", str(tmp_path), "--environment", str(environment)]) == 1
    assert "config.json is missing" in capsys.readouterr().err


def test_a_server_that_ends_says_why(model, tmp_path):  # noqa: F811
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho starting\necho 'ValueError: no GPU here' >&2\nexit 3\n")
    python.chmod(0o755)
    sidecar = Sidecar(settings(model, tmp_path), tmp_path / "log")
    sidecar.start(0)
    with pytest.raises(SidecarError, match=r"ended with code 3: ValueError: no GPU here \(log: .*replica_0\.log\)"):
        sidecar.wait_until_healthy(0)


@pytest.mark.parametrize("fault", ["die", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("hang", "oom"))])
def test_an_owned_server_is_restarted(model, tmp_path, expected, monkeypatch, fault):  # noqa: F811
    """Killed, stopped or out of memory in the middle of sampling: it comes back with the current weights."""
    impatient(monkeypatch)
    faults = tmp_path / "faults"
    monkeypatch.setenv("FAKE_FAULTS", str(faults))
    sidecar = Sidecar(settings(model, fake_environment(tmp_path / "env")), tmp_path / "log")
    client = ClientSettings(key="k", wait_s=60.0, request_timeout_s=60.0)
    engine = VllmEngine(CONFIG, sidecar=sidecar, max_length=48, settings=client)
    try:
        engine.load_weights(make_params(1)[1], 4)
        generate(engine, PROMPTS[:2], PARAMS)
        faults.write_text(f"\n\n\n{fault}\n")
        drawn = generate(engine, PROMPTS, PARAMS)
        assert_same(drawn, expected)
        assert {c.weight_version for cs in drawn for c in cs} == {4}
        assert engine.restarts == 1
    finally:
        engine.close()
    assert not sidecar.alive(0)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the weights", "after it was found well"])
def test_a_server_that_stops_while_it_takes_weights_is_restarted(model, tmp_path, expected, monkeypatch, when):  # noqa: F811
    """No request would notice it, and requests wait much longer than this test."""
    impatient(monkeypatch)
    monkeypatch.setenv("FAKE_FAULTS", str(tmp_path / "faults"))
    sidecar = Sidecar(settings(model, fake_environment(tmp_path / "env")), tmp_path / "log")
    engine = VllmEngine(CONFIG, sidecar=sidecar, max_length=48, settings=ClientSettings(key="k"))

    def stop() -> None:
        os.kill(sidecar.pids(0)[0], signal.SIGSTOP)

    async def answers_and_stops(server: Server) -> bool:
        monkeypatch.setattr(Server, "look", look)
        found = await look(server)
        stop()
        return found

    try:
        engine.load_weights(make_params(1)[1], 4)
        if when == "before the weights":
            stop()
            engine.load_weights(make_params(1)[1], 5)
        else:
            look = Server.look
            monkeypatch.setattr(Server, "look", answers_and_stops)
            (tmp_path / "faults").write_text("500\n")
        assert_same(generate(engine, PROMPTS, PARAMS), expected)
        assert engine.restarts == 1
    finally:
        engine.close()


def test_weights_that_are_gone_are_not_the_servers_fault(model, tmp_path, expected, monkeypatch):  # noqa: F811
    """Sent by NCCL they are in no file, and the next update uses them up: a server that comes back waits for it."""
    monkeypatch.setenv("FAKE_FAULTS", str(tmp_path / "faults"))
    sidecar = Sidecar(settings(model, fake_environment(tmp_path / "env")), tmp_path / "log")
    engine = VllmEngine(CONFIG, sidecar=sidecar, max_length=48, settings=ClientSettings(key="k"), say=EVENTS.append)
    tries = iter(range(5))

    def write(weights):
        if next(tries, None) is not None:
            raise RuntimeError("Array has been deleted")
        return original(weights)

    try:
        engine.load_weights(params := make_params(1)[1], 1)
        original = engine.sync.write
        monkeypatch.setattr(engine.sync, "write", write)
        engine.sync.newest.params, engine.sync.newest.tensors = params, None
        (tmp_path / "faults").write_text("500\n")
        new_events()
        assert_same(generate(engine, PROMPTS, PARAMS), expected)
        assert sum("WriteError: weights of version 1: Array has been deleted" in e for e in new_events()) == 5
        assert engine.restarts == 0
    finally:
        engine.close()


def test_one_server_that_is_lost_ends_nothing_while_another_works(model, tmp_path, expected, monkeypatch):  # noqa: F811
    sidecar = Sidecar(settings(model, fake_environment(tmp_path / "env"), replicas=2), tmp_path / "log")
    engine = VllmEngine(CONFIG, sidecar=sidecar, max_length=48, settings=ClientSettings(key="k"))
    command = sidecar._command
    try:
        engine.load_weights(make_params(1)[1], 1)
        monkeypatch.setattr(sidecar, "_command", lambda i: command(i) if i else ["/bin/false"])
        sidecar.kill(0)
        while not engine.replicas[0].lost:
            assert_same(generate(engine, PROMPTS, PARAMS), expected)
        for version in (2, 3):
            engine.load_weights(make_params(version)[1], version)
            assert {c.weight_version for cs in generate(engine, PROMPTS, PARAMS) for c in cs} == {version}
    finally:
        engine.close()


@pytest.mark.slow
def test_a_server_that_always_fails_ends_the_run(model, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "faults").write_text("oom\n" * 1000)
    monkeypatch.setenv("FAKE_FAULTS", str(tmp_path / "faults"))
    sidecar = Sidecar(settings(model, fake_environment(tmp_path / "env")), tmp_path / "log")
    engine = VllmEngine(CONFIG, sidecar=sidecar, max_length=48, settings=ClientSettings(key="k"))
    try:
        engine.load_weights(make_params(1)[1], 1)
        with pytest.raises(
            SidecarError,
            match=r"restarted 3 times without completing a request; http://127.*MemoryError: out of memory",
        ):
            generate(engine, PROMPTS, PARAMS)
        with pytest.raises(SidecarError, match="without completing a request"):
            engine.load_weights(make_params(1)[1], 2)
    finally:
        engine.close()
