"""What could lose the work of a run: two runs in a folder, names, damaged files, signals, nothing learned."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import reduce
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from conftest import ROOT
from flax import nnx

from jaxrl.config import Config, GRPOConfig, PolicyGradientConfig
from jaxrl.config.rules import check_settings
from jaxrl.errors import CheckpointError, UserError
from jaxrl.runs.folder import EARLIER, LOCK, only_user, open_run
from jaxrl.runs.prompts import check_problems
from jaxrl.tasks import Task
from jaxrl.train import main
from jaxrl.training.checkpoint import Checkpoints, saved_steps
from jaxrl.training.draws import SamplingAhead
from jaxrl.training.learner import TrainState
from jaxrl.training.watch import Watch, why_unjudged
from models.config import ModelConfig
from models.convert import ConversionError, find_model, import_model, load_params, save_params
from models.decoder import Decoder
from rollouts.episode import Episode, Group, Problem, Reward
from sandbox.verdict import Verdict

MODEL = ModelConfig("qwen2", 64, 16, 32, 1, 2, 1, 8, 64, qkv_bias=True, tied_embeddings=True)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def python(code: str, *arguments: str, **more) -> subprocess.Popen:
    line = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(line, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, **more)


# --- a folder is one run's ---

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom jaxrl.runs.folder import only_user\n"
    "with only_user(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
)


def test_a_folder_in_use_is_refused_and_names_the_process(tmp_path, capsys):
    folder = tmp_path / "taken"
    other = python(HOLD, str(folder))
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    arguments = ["--config", str(ROOT / "configs/scramble.py"), "--config.name=taken", f"--config.runs_dir={tmp_path}"]
    assert main(arguments) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"{folder} is in use by process {other.pid} on" in line
    assert [p.name for p in folder.iterdir()] == [LOCK]  # nothing of the other run was touched
    other.kill()  # SIGKILL
    other.wait()
    with only_user(folder):
        pass
    with only_user(folder):  # and again in the same process
        pass


# --- settings that came later ---


def test_a_setting_that_came_later_has_its_default(tmp_path):
    config = Config(name="old", runs_dir=str(tmp_path))
    config.grpo.steps = 7
    with open_run(config) as folder:
        path = folder / "config.json"
    settings = json.loads(path.read_text())
    del settings["grpo"]["patience"], settings["traces"], settings["sft"]["optimizer"]["offload"]
    path.write_text(json.dumps(settings))
    with open_run(config):
        pass
    changed = dataclasses.replace(config, grpo=GRPOConfig(steps=7, patience=3))
    with pytest.raises(UserError, match=r"config\.grpo\.patience was 50, is 3"), open_run(changed):
        pass
    with (
        pytest.raises(UserError, match=r"config\.grpo\.steps was 7, is 8"),
        open_run(dataclasses.replace(config, grpo=GRPOConfig(steps=8))),
    ):
        pass
    path.write_text('{"name": ')
    with pytest.raises(UserError, match=r"config\.json: not JSON"), open_run(config):
        pass


def test_a_setting_whose_default_has_changed_is_what_it_was(tmp_path, monkeypatch):
    """std_ddof was 0 before it was 1: a run that does not say had 0, whatever part of its settings is not there."""
    config = Config(name="old", runs_dir=str(tmp_path))
    with open_run(config) as folder:
        path = folder / "config.json"
    now = json.loads(path.read_text())
    loss = now["grpo"]["loss"]
    without = {name: value for name, value in loss.items() if name != "std_ddof"}
    for grpo in (now["grpo"] | {"loss": without | {"std_ddof": 0}}, now["grpo"] | {"loss": without}, None):
        settings = {name: value for name, value in now.items() if name != "grpo"} | ({"grpo": grpo} if grpo else {})
        path.write_text(json.dumps(settings))
        with (
            pytest.raises(
                UserError, match=r"loss\.std_ddof was 0, is 1\); --config\.grpo\.loss\.std_ddof=0 resumes it"
            ),
            open_run(config),
        ):
            pass
        with open_run(dataclasses.replace(config, grpo=GRPOConfig(loss=PolicyGradientConfig(std_ddof=0)))):
            pass
    assert json.loads(path.read_text()) == settings  # nothing was written


def test_every_setting_with_an_earlier_value_exists_and_has_another_default():
    for name, earlier in EARLIER.items():
        assert reduce(getattr, name.split(".")[1:], Config()) != earlier


def test_a_setting_that_is_gone_is_named_and_not_asked_for(tmp_path):
    config = Config(name="old", runs_dir=str(tmp_path))
    with open_run(config) as folder:
        path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gone": 3}))
    with pytest.raises(UserError, match=r"config\.gone was 3, is None\); choose another"), open_run(config):
        pass


# --- names ---


@pytest.mark.parametrize("name", ["a[b]", "a*", "what?"])
def test_names_that_are_patterns_are_refused_before_anything(name, tmp_path):
    with (
        pytest.raises(ConversionError, match=r"must not contain \*, \? or \["),
        open_run(Config(name=name, runs_dir=str(tmp_path))),
    ):
        pass
    with pytest.raises(ConversionError, match=r"must not contain"):
        import_model(tmp_path / "not looked at", tmp_path / name)
    assert not list(tmp_path.iterdir())


def state() -> TrainState:
    params = nnx.state(Decoder(MODEL))
    return TrainState(params, optax.adam(1e-3).init(params))


def test_a_checkpoint_that_cannot_be_read_is_no_checkpoint(tmp_path):
    """Without the check of the name: what orbax has written in such a folder is not found again."""
    checkpoints = Checkpoints(tmp_path / "a[b]", 2)
    with pytest.raises(CheckpointError, match=r"arrays cannot be found in"):
        checkpoints.save(1, state(), {})
        checkpoints.wait()
    assert not saved_steps(tmp_path / "a[b]")


# --- damaged checkpoints ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder, 2)
    for step in (3, 6):
        checkpoints.save(step, state(), {"lines": step})
    checkpoints.wait()
    checkpoints.close()
    return folder


def test_whole_checkpoints_are_read(saved):
    checkpoints, expected = Checkpoints(saved, 2), state()
    assert checkpoints.place(6) == {"lines": 6}
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(6, expected), expected)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.parent != folder)


def test_every_damaged_file_is_found_and_the_last_good_checkpoint_offered(saved, tmp_path):
    rng, names = random.Random(0), files(saved / "6")
    assert len(names) > 15
    for number, name in enumerate(names):
        for kind in ("flip", "cut", "gone"):
            folder = tmp_path / f"{number}{kind}"
            shutil.copytree(saved, folder)
            path = folder / "6" / name
            data = bytearray(path.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            if kind == "gone" and path.name != "checksums.json":
                path.unlink()
            else:
                path.write_bytes(data if kind != "cut" else data[: len(data) // 2])
            with pytest.raises(CheckpointError) as caught:
                Checkpoints(folder, 2).place(6)
            said = str(caught.value)
            assert str(folder / "6") in said and "the last good one is of step 3: delete that folder to resume" in said
    shutil.copytree(saved, tmp_path / "two")
    (tmp_path / "two/3/place/metadata").write_text("{")
    (tmp_path / "two/6/place/metadata").write_text("{")
    with pytest.raises(CheckpointError, match=r"no earlier one is intact: start again in another folder"):
        Checkpoints(tmp_path / "two", 2).place(6)


def test_an_empty_step_folder_is_named(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "c")
    (tmp_path / "c/9").mkdir()
    checkpoints = Checkpoints(tmp_path / "c", 2)
    with pytest.raises(CheckpointError, match=r"checkpoint .*/c/9 cannot be read: .*the last good one is of step 6"):
        checkpoints.place(checkpoints.latest() or 0)
    (tmp_path / "c/9").rmdir()
    assert Checkpoints(tmp_path / "c", 2).latest() == 6


def test_a_checkpoint_of_an_earlier_version_is_read_and_its_damage_named(saved, tmp_path):
    """Without checksums orbax's own errors are all there is."""
    shutil.copytree(saved, tmp_path / "c")
    for path in (tmp_path / "c").rglob("checksums.json"):
        path.unlink()
    assert Checkpoints(tmp_path / "c", 2).place(6) == {"lines": 6}
    (tmp_path / "c/6/params/manifest.ocdbt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint .*/c/6 cannot be read: .*the last good one is of step 3"):
        Checkpoints(tmp_path / "c", 2).restore(6, state())


def test_damaged_parameters_of_a_model_are_named(tmp_path):
    params = nnx.state(Decoder(MODEL))
    save_params(params, tmp_path / "params")
    _, read = load_params(tmp_path / "params", MODEL, None, None)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    largest = max((p for p in (tmp_path / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(data)
    with pytest.raises(ConversionError, match=rf"are damaged: {largest} has changed since it was written"):
        load_params(tmp_path / "params", MODEL, None, None)


def test_damaged_samples_are_named(tmp_path):
    ahead = SamplingAhead(lambda step: step, lambda *_: None, staleness=1, last=9, folder=tmp_path)
    (tmp_path / "00000004.pickle").write_bytes(b"\x80\x05cut")
    with ahead, pytest.raises(CheckpointError, match=r"00000004\.pickle cannot be read"):
        ahead.restore(4)


# --- signals ---

SIGNALS = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from jaxrl.distributed import processes
processes.AT_ONCE_S, processes.TOGETHER_S = 0.5, float(sys.argv[2])
with processes.stop_on_signals(lambda text: print(text, flush=True)) as stop:
    print("ready", flush=True)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(time.sleep, 60)  # as a draw that is in flight
        while not (stop.requested and sys.argv[1] == "end"):
            time.sleep(0.01)
            if stop.requested and sys.argv[1] == "wait":
                future.result()
        import os; os._exit(7)
"""


def signalled(mode: str, *signals: int, together: float = 1, within: float = 10, **more) -> tuple[int | None, str]:
    process = python(SIGNALS, mode, str(together), **more)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for number in signals:
        process.send_signal(number)
        time.sleep(0.3)
    try:
        out, _ = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        return None, process.communicate()[0]
    return process.returncode, out


@pytest.fixture
def without_nohup():
    """The tests themselves may run under nohup, whose children inherit that they ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("without_nohup")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_lost_terminal_asks_for_a_stop_as_ctrl_c_does(number):
    code, out = signalled("end", number)
    assert code == 7 and out.startswith("stopping after this step")


@pytest.mark.slow
@pytest.mark.usefixtures("without_nohup")
def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signalled("end", signal.SIGHUP, signal.SIGTERM)[0] == 7
        code, out = signalled("wait", signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert code is None and out == ""


@pytest.mark.slow
@pytest.mark.usefixtures("without_nohup")
def test_a_second_ctrl_c_does_not_wait_for_what_is_in_flight():
    start = time.monotonic()
    code, _ = signalled("wait", signal.SIGINT, signal.SIGINT)
    assert code == 130 and time.monotonic() - start < 20
    assert signalled("wait", signal.SIGTERM, signal.SIGTERM, together=0.1)[0] == 130
    # A terminal and its shell both send one; `timeout` sends to a study and to its run, which the study tells too.
    for number in (signal.SIGHUP, signal.SIGTERM):
        code, out = signalled("wait", number, number, together=60, within=2)
        assert code is None and out.count("stopping after this step") == 1


# --- nothing learned ---


def test_a_run_without_gradients_stops():
    still = {"grad_norm": 0.0, "groups/zero_variance": 1.0}
    watch = Watch(GRPOConfig(patience=4), steps=100)
    reasons = [watch.look(m) for m in (still, still, still, {"grad_norm": 0.1}, still, still, still, {}, still)]
    assert [bool(r) for r in reasons] == [False] * 7 + [True] * 2
    assert "none of the last 4 steps had a gradient (grpo.patience = 4)" in reasons[7]
    assert not any(Watch(GRPOConfig(patience=0), steps=60).look(still) for _ in range(60))


def test_a_stage_without_any_gradient_is_said_at_its_end():
    watch = Watch(GRPOConfig(), steps=12)
    assert [bool(watch.look({"grad_norm": 0.0})) for _ in range(12)] == [False] * 11 + [True]
    watch = Watch(GRPOConfig(), steps=12, whole=False)  # of a resumed stage nobody knows
    assert not any(watch.look({"grad_norm": 0.0}) for _ in range(12))


def test_the_pull_to_the_reference_is_no_learning():
    pulled = {"grad_norm": 0.3, "groups/zero_variance": 1.0}
    for loss, stops in (
        (PolicyGradientConfig(kl_coefficient=0.1), True),
        (PolicyGradientConfig(kl_in_reward=0.1, overlong="penalty"), True),
        (PolicyGradientConfig(entropy_coefficient=0.1), True),
        (PolicyGradientConfig(), False),
    ):
        watch = Watch(GRPOConfig(patience=3, loss=loss), steps=50)
        assert any(watch.look(pulled) for _ in range(5)) == stops


def test_a_sandbox_that_judges_nothing_stops_the_run():
    good, bad = {"grad_norm": 1.0, "unjudged": 0.5}, {"grad_norm": 1.0, "unjudged": 0.6}
    watch = Watch(GRPOConfig(), steps=100)
    reasons = [watch.look(m) for m in (bad, bad, good, bad, bad, bad)]
    assert [bool(r) for r in reasons] == [False] * 5 + [True] and "could not be judged" in reasons[-1]


def episode(status: str, stderr: str = "") -> Episode:
    verdict = Verdict("sandbox_error", stderr=stderr) if stderr else None
    reward = Reward(0.0, False, {}, verdict)
    return Episode(Problem("p"), np.zeros(1, np.int32), [], reward, status, text="")  # pyright: ignore


def test_an_evaluation_that_judged_little_says_why():
    failed = [episode("sandbox_error", "old"), *[episode("sandbox_error", "no more\nprocesses")] * 2]
    assert why_unjudged([Group(Problem("p"), [*failed, *[episode("finished")] * 3])]) == ""
    assert why_unjudged([Group(Problem("p"), [*failed, episode("finished")])]) == (
        "3 of 4 episodes could not be judged (sandbox_error: processes)"
    )


def test_tasks_without_problems_are_refused():
    config = Config()
    config.sft.steps = config.grpo.steps = 1
    some = [Problem("p")]
    for fields, message in (
        ({}, "no held-out problems"),
        ({"held_out": some, "train": some}, "no demonstrations; set sft.steps to 0"),
        ({"held_out": some, "demonstrations": some}, "no training problems"),
    ):
        empty = {"train": [], "held_out": [], "demonstrations": []} | fields
        task = Task(name="t", judge=None, **empty)  # pyright: ignore[reportArgumentType]
        with pytest.raises(UserError, match=message):
            check_problems(config, task, task)


# --- smaller ones ---


def test_a_misspelt_setting_of_an_environment_is_refused():
    config = Config()
    config.rollout.environment = "feedback"
    config.rollout.feedback.maximum_turns = 3
    message = r"rollout\.environment\.maximum_turns is not a setting; did you mean rollout\.environment\.max_turns"
    with pytest.raises(UserError, match=message):
        check_settings(config)


class _Tokenizer:
    eos_token = "<|im_end|>"
    eos_token_id, chat_template = 0, None

    def get_vocab(self) -> dict[str, int]:
        return {self.eos_token: 0}


def test_a_misspelt_run_is_no_hub_name(tmp_path, monkeypatch):
    (tmp_path / "runs/first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConversionError, match=r"'runs/frist': .* does not exist; did you mean runs/first\?") as error:
        find_model("runs/frist")
    assert str(tmp_path / "runs/frist") in str(error.value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConversionError, match=r"'no-one/nothing': .* does not exist, and the hub does not provide"):
        find_model("no-one/nothing")
