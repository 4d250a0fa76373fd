"""Slow servers are not hung ones, and no process outlives its owner: against tests/support/fake_vllm.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from fake_vllm import FakeServer, fake_environment
from processes import command_line, command_lines
from test_train import TINY
from vllm_clients import (
    CONFIG,
    PARAMS,
    PROMPTS,
    assert_same,
    connect,
    expected,  # noqa: F401
    impatient,
    make_params,
    model,  # noqa: F401
    new_events,
    settings,
)

from jaxrl.crosscheck import main as crosscheck
from models.convert import import_model
from rollouts import supervisor
from rollouts.collect import generate
from rollouts.vllm.engine import RESTARTS, ClientSettings, VllmEngine
from rollouts.vllm.pulse import SPIN_TIMES, Pulse, count_tokens
from rollouts.vllm.sidecar import Sidecar, SidecarError

# ---------------------------------------------------------------------- slow or dead


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_patience_doubles_within_bounds():
    pulse = Pulse(limit_s=30.0)
    limits = []
    for _ in range(5):
        pulse.be_patient()
        limits.append(pulse.limit_s)
    assert limits == [60, 120, 240, 240, 240]


@pytest.mark.parametrize(
    ("sign", "seconds"),
    [("none", 11), ("answer", None), ("tokens", None), ("cpu", 10 * SPIN_TIMES + 1), ("a little cpu", 11)],
)
def test_what_is_taken_for_hanging_and_when(sign, seconds):
    """A second-by-second record of what one server does, for ten minutes."""
    clock = Clock()
    pulse = Pulse(limit_s=10.0, clock=clock)
    pulse.begin(5.0)
    tokens, cpu_s = 7.0, 5.0
    pulse.see(False, tokens, cpu_s)
    found = None
    for second in range(1, 600):
        clock.now += 1
        tokens += sign == "tokens"
        cpu_s += {"cpu": 0.5, "a little cpu": 0.005}.get(sign, 0.0)
        pulse.see(sign == "answer", tokens, cpu_s)
        if found is None and pulse.hangs():
            found = second
    assert found == seconds


def test_counters_are_read_as_vllm_writes_them():
    text = """# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="policy"} 1.5e+03
vllm:prompt_tokens_by_source_total{engine="0",source="local"} 9.0
vllm:prompt_tokens_created{engine="0",model_name="policy"} 1.7e+09
vllm:generation_tokens_total{engine="0",model_name="policy"} 20.0
vllm:generation_tokens_total{engine="1",model_name="policy"} 4.0
"""
    assert count_tokens(text) == 1524
    assert count_tokens("nothing") is None


@pytest.fixture
def faulty(model, tmp_path, monkeypatch):  # noqa: F811
    """An engine with a server of its own, the file of the server's faults, and what the engine says."""
    monkeypatch.setattr("rollouts.vllm.server.PROBE_S", 1.0)
    monkeypatch.setattr("rollouts.vllm.server.PROBE_TIMEOUT_S", 0.3)
    monkeypatch.setattr("rollouts.vllm.pulse.HANG_S", 3.0)
    monkeypatch.setattr("rollouts.vllm.engine.SLOW_S", 1.0)
    monkeypatch.setenv("FAKE_FAULTS", str(tmp_path / "faults"))
    sidecar = Sidecar(settings(model, fake_environment(tmp_path / "env")), tmp_path / "log")
    said: list[str] = []
    engine = VllmEngine(CONFIG, sidecar=sidecar, max_length=48, settings=ClientSettings(key="k"), say=said.append)
    try:
        engine.load_weights(make_params(1)[1], 1)
        generate(engine, PROMPTS, PARAMS)  # compiles all that the tests need
        yield engine, tmp_path / "faults", said
    finally:
        engine.close()
    assert not sidecar.alive(0)


@pytest.mark.slow
@pytest.mark.parametrize("work", ["tokens", "cpu"])
def test_a_slow_server_is_left_alone_and_gets_fewer_requests(faulty, expected, work):  # noqa: F811
    """It answers nothing, its health included, for three times what a server that does nothing is given."""
    engine, faults, said = faulty
    (pid,) = engine.sidecar.pids(0)
    faults.write_text(f"mute 9 {work}\n")
    before = time.monotonic()
    assert_same(generate(engine, PROMPTS, PARAMS), expected)
    assert time.monotonic() - before > 8
    assert engine.restarts == 0
    assert engine.sidecar.pids(0) == [pid]
    assert any("slow: it is at work" in line for line in said), said
    (replica,) = engine.replicas
    assert replica.room < engine.settings.concurrency
    room = replica.room
    generate(engine, PROMPTS, PARAMS)
    assert replica.room == room + len(PROMPTS)  # each completion allows one more


@pytest.mark.slow
def test_a_server_whose_answers_are_late_is_used(model, expected, monkeypatch):  # noqa: F811
    """All of them come long after the time that a look waits; its CPU time cannot be seen, and it counts no tokens."""
    impatient(monkeypatch)
    monkeypatch.setattr("rollouts.vllm.pulse.HANG_S", 5.0)
    with FakeServer(model).start() as fake:
        fake.delay, fake.faults = 1.2, ["slow 10"]  # a look waits for 0.5 s
        engine = connect(fake)
        try:
            engine.load_weights(make_params(1)[1], 1)
            assert_same(generate(engine, PROMPTS, PARAMS), expected)
        finally:
            engine.close()
    said = new_events()
    assert any("slow: " in line for line in said), said
    assert not any("hangs" in line for line in said), said
    assert fake.served == len(PROMPTS) * PARAMS.n


@pytest.mark.parametrize("fault", [pytest.param("mute 600", marks=pytest.mark.slow), "hang"])
def test_a_hung_server_is_restarted(faulty, expected, fault):  # noqa: F811
    """It waits forever, or is stopped: no token, no CPU time."""
    engine, faults, said = faulty
    faults.write_text(f"{fault}\n")
    before = time.monotonic()
    assert_same(generate(engine, PROMPTS, PARAMS), expected)
    assert 3 < time.monotonic() - before < 120
    assert engine.restarts == 1
    assert any("it hangs: no answer, no token and no CPU time for 3 s" in line for line in said), said
    assert engine.replicas[0].pulse.limit_s == 6


def test_a_request_that_takes_long_is_waited_for_while_tokens_are_counted(faulty, expected):  # noqa: F811
    engine, faults, said = faulty
    object.__setattr__(engine.settings, "request_timeout_s", 4.0)
    faults.write_text("mute 10 tokens\n")
    assert_same(generate(engine, PROMPTS, PARAMS), expected)
    assert engine.restarts == 0
    assert not any("ReadTimeout" in line for line in said), said


@pytest.mark.parametrize(
    ("fault", "words"),
    [("die", "it has ended"), pytest.param("mute 600", "it hangs: no answer, no token", marks=pytest.mark.slow)],
)
def test_a_server_that_never_completes_anything_is_given_up(faulty, monkeypatch, fault, words):
    engine, faults, _ = faulty
    engine.replicas[0].pulse.limit_s = 0.7
    faults.write_text(f"{fault}\n" * 1000)
    with pytest.raises(
        SidecarError, match=f"restarted {RESTARTS} times without completing a request; http://.*{words}"
    ) as e:
        generate(engine, PROMPTS, PARAMS)
    assert "\n" not in str(e.value)
    assert engine.restarts == RESTARTS
    assert engine.replicas[0].pulse.limit_s == 0.7 * 2**RESTARTS


# ---------------------------------------------------------------------- nothing remains


def marked(mark: str) -> list[int]:
    """Processes, of any session and parent, with this word in their command lines."""
    return [pid for pid, words in command_lines().items() if mark.encode() in words and pid != os.getpid()]


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def command_of(program: str, model: Path, environment: Path, folder: Path) -> list[str]:  # noqa: F811
    """A command that starts a server of its own."""
    if program == "crosscheck":
        more = ["--model", str(model), "--dtypes=float32", f"--environment={environment}", f"--log-folder={folder}"]
    else:
        sidecar = ["--config.rollout.engine=vllm", f"--config.rollout.sidecar.environment={environment}"]
        more = [*TINY, *sidecar, "--config.sft.steps=0", f"--config.runs_dir={folder}"]
    return [sys.executable, "-m", f"jaxrl.{program}", *more]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "phase", "number"),
    [
        pytest.param("evaluate", "starting", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("crosscheck", "starting", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("traces", "loading", signal.SIGTERM, marks=pytest.mark.slow),
        ("train", "loading", signal.SIGKILL),
        ("crosscheck", "sampling", signal.SIGTERM),
        pytest.param("evaluate", "sampling", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_nothing_of_a_server_outlives_its_owner(model, tmp_path, program, phase, number):  # noqa: F811
    """The server, a child that ignores SIGTERM in a session of its own, and a grandchild that has lost its parent."""
    phases, mark = tmp_path / "phases", f"family-of-{tmp_path}"
    (tmp_path / "faults").write_text("slow 600\n" * 100)
    variables = {"FAKE_FAMILY": mark, "FAKE_PHASES": str(phases), "FAKE_FAULTS": str(tmp_path / "faults")}
    variables |= {f"FAKE_{phase.upper()}_S": "600"} if phase != "sampling" else {}
    owner = subprocess.Popen(
        command_of(program, model, fake_environment(tmp_path / "env"), tmp_path / "runs"),
        cwd=ROOT, env=os.environ | variables | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: phases.exists() and phase in phases.read_text().split(), 120, "it did not get so far")
        below = supervisor.descendants(owner.pid)
        assert len(below) >= 4  # the supervisor, the server, its child and grandchild
        assert len(marked(mark)) == 2 and set(marked(mark)) < set(below)
        owner.send_signal(number)
        owner.wait(timeout=20)
        wait_for(lambda: not any(_runs(pid) for pid in below), 20, f"of {below} some outlived their owner")
    finally:
        owner.kill()


@pytest.mark.parametrize("end", ["kill", "the server dies", "a stopped supervisor", "a killed supervisor"])
def test_every_way_to_end_a_server_ends_its_family(model, tmp_path, monkeypatch, end):  # noqa: F811
    mark = f"family-of-{tmp_path}"
    monkeypatch.setenv("FAKE_FAMILY", mark)
    monkeypatch.setattr("rollouts.vllm.sidecar.KILL_S", 1.0)
    sidecar = Sidecar(settings(model, fake_environment(tmp_path / "env")), tmp_path / "log")
    try:
        sidecar.start(0)
        sidecar.wait_until_healthy(0)
        pids = sidecar.pids(0)
        held = sidecar.supervisors[0]
        assert held is not None and len(pids) == 3
        assert b"fake_vllm" not in command_line(held.pid)  # out of the way of a pkill -f
        if end == "the server dies":
            os.kill(pids[0], signal.SIGKILL)
            wait_for(lambda: not sidecar.alive(0), 20, "its end was not noticed")
            assert held.returncode == 128 + signal.SIGKILL
        elif end == "a stopped supervisor":
            os.kill(held.pid, signal.SIGSTOP)
        elif end == "a killed supervisor":
            os.kill(held.pid, signal.SIGKILL)
            wait_for(lambda: not _runs(pids[0]), 20, "the server outlived its supervisor")
            pids = pids[:1]  # the others have left its session: nobody knows them any more
        sidecar.kill(0)
        assert not any(_runs(pid) for pid in pids)
    finally:
        sidecar.stop()
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)


def test_a_study_ends_its_run(tmp_path):
    """Killed, it leaves no run behind: a run gets SIGTERM, on which it saves and stops."""
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('on', flush=True); time.sleep(600)"
    )
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
        mark = f"run-of-{tmp_path}-{number}"
        program = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it\n"
        program += "from jaxrl.study import run_command as run; sys.exit(run(sys.argv[1:]))"
        command = [sys.executable, "-c", program, sys.executable, "-c", code, mark]
        study = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert study.stdout is not None and study.stdout.readline() == b"on\n"
        run = [pid for pid in marked(mark) if pid != study.pid]
        assert len(run) == 1
        study.send_signal(number)
        assert study.wait(timeout=20) == (-number if number == signal.SIGKILL else 128 + number)
        wait_for(lambda run=run: not _runs(run[0]), 20, "the run outlived the study")


# ---------------------------------------------------------------------- the other implementations


def test_crosscheck_without_vllm_compares_the_others_and_says_so(model, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    few = ["--dtypes", "float32", "--prompts", "2", "--prompt-length", "8", "--new-tokens", "4"]
    assert crosscheck(["--model", str(model), *few]) == 0
    out = capsys.readouterr().out
    assert "vllm is left out: .venv-vllm does not have it; run `make sidecar`" in " ".join(out.split())
    assert out.count("agrees") == 3  # of JAX engine, decoder and transformers
    assert crosscheck(["--model", str(model), "--environment", "nowhere", *few]) == 2  # it was asked for by name
    assert "error: vLLM's environment has no nowhere/bin/python" in capsys.readouterr().err
    import_model(model, tmp_path / "imported")  # in a format of our own, which the others cannot read
    assert crosscheck(["--model", str(tmp_path / "imported"), "--no-vllm", *few]) == 0
    assert "imported, float32" in capsys.readouterr().out
    assert crosscheck(["--model", str(tmp_path / "nothing"), "--no-vllm", *few]) == 2
    assert "nothing does not exist" in capsys.readouterr().err


def _runs(pid: int) -> bool:
    found = supervisor.processes().get(pid)
    return found is not None and found.state != "Z"
