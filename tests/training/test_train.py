"""Whole runs of a tiny model: learning, resuming, and what happens when something is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ROOT

from jaxrl.runs.log import read_metrics
from jaxrl.train import main

TINY = [
    "--config", "configs/scramble.py",
    "--config.model.shape.hidden_size=32", "--config.model.shape.intermediate_size=64",
    "--config.model.shape.num_hidden_layers=1", "--config.model.tokenizer_size=300",
    "--config.task.held_out_problems=16", "--config.sft.steps=6", "--config.sft.batch_size=8",
    "--config.grpo.steps=8", "--config.grpo.problems_per_step=2", "--config.grpo.group_size=4",
    "--config.rollout.slots=8", "--config.batch.microbatch_rows=4", "--config.checkpoint.every=3",
    "--config.sft.optimizer.warmup_steps=0", "--config.grpo.loss.kl_coefficient=0.01",
    "--config.grpo.loss.minibatches=2",
]  # fmt: skip


def command(folder: Path, *extra: str) -> list[str]:
    return [sys.executable, "-m", "jaxrl.train", *TINY, f"--config.runs_dir={folder}", *extra]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(folder: Path, *extra: str) -> Result:
    """The command in this process, which has imported everything already."""
    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGINT)
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command(folder, *extra)[3:])
    signal.signal(signal.SIGINT, before)
    return Result(code, out.getvalue(), err.getvalue())


def without_times(folder: Path) -> list[dict]:
    records = read_metrics(folder / "scramble" / "metrics.jsonl")
    return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in records]


def final_params(folder: Path) -> dict[str, np.ndarray]:
    from flax import nnx

    from models.convert import load_model

    _, _, params = load_model(folder / "scramble")
    return {"/".join(path): np.asarray(v[...]) for path, v in nnx.to_flat_state(params)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    result = run(folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_a_run_leaves_what_it_promises(whole):
    folder = whole / "scramble"
    records = read_metrics(folder / "metrics.jsonl")
    assert [r["step"] for r in records if r["stage"] != "evaluate"] == list(range(1, 15))
    assert [(r["step"], r["after"]) for r in records if r["stage"] == "evaluate"] == [
        (0, "start"),
        (6, "sft"),
        (14, "grpo"),
    ]
    assert all(np.isfinite(r["loss"]) for r in records if "loss" in r)
    assert "kl/reference" in records[-2]
    assert (folder / "report.html").stat().st_size > 10_000
    assert list((folder / "tensorboard").iterdir())
    samples = [json.loads(line) for line in (folder / "samples" / "00000007.jsonl").read_text().splitlines()]
    assert len(samples) == 8 and {"prompt", "text", "reward", "parts", "solved"} <= samples[0].keys()


def test_sft_learns(whole):
    losses = [r["loss"] for r in without_times(whole) if r["stage"] == "sft"]
    assert losses[-1] < losses[0] - 0.3


def same_run(one: Path, other: Path) -> None:
    assert without_times(one) == without_times(other)
    expected, params = final_params(one), final_params(other)
    assert expected.keys() == params.keys()
    for name, value in expected.items():
        assert value.tobytes() == params[name].tobytes(), name


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_it_ends_bit_by_bit_the_same(whole, tmp_path, times):
    rng, kills, runs = random.Random(0), 0, 0
    while kills < times:
        folder = tmp_path / str(runs)
        process = subprocess.Popen(command(folder), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
        metrics = folder / "scramble" / "metrics.jsonl"
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:  # until it has begun to write, then at any moment
            if metrics.exists() and metrics.stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:  # it ended first: the rest of the kills go to another run
            same_run(whole, folder)
            runs += 1
    assert run(tmp_path / str(runs)).returncode == 0
    same_run(whole, tmp_path / str(runs))


def test_ctrl_c_saves_and_the_same_command_goes_on(whole, tmp_path):
    process = subprocess.Popen(command(tmp_path), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "scramble" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command continues" in out
    result = run(tmp_path)
    assert result.returncode == 0 and "resuming" in result.stdout
    same_run(whole, tmp_path)


def test_export_of_a_run_loads_in_transformers(whole, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from models.convert import check_model, export_model

    export_model(whole / "scramble", tmp_path / "hf")
    AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a b"}], tokenize=False).startswith(
        "<|im_start|>"
    )
    assert check_model(whole / "scramble", tmp_path / "hf") <= 1e-4


def test_training_starts_from_a_hugging_face_folder(whole, tmp_path):
    from models.convert import export_model

    export_model(whole / "scramble", tmp_path / "hf")
    result = run(tmp_path, f"--config.model.path={tmp_path / 'hf'}", "--config.sft.steps=0", "--config.grpo.steps=1")
    assert result.returncode == 0, result.stderr
    (start, *_, end) = [r for r in read_metrics(tmp_path / "scramble" / "metrics.jsonl") if r["stage"] == "evaluate"]
    trained = [r for r in read_metrics(whole / "scramble" / "metrics.jsonl") if r["stage"] == "evaluate"][-1]
    assert start["held_out/pass@1"] == trained["held_out/pass@1"] and end["after"] == "grpo"


def test_no_evaluation_before_the_first_step(tmp_path):
    result = run(tmp_path, "--config.evaluation.at_start=False", "--config.sft.steps=1", "--config.grpo.steps=0")
    assert result.returncode == 0, result.stderr
    assert [r["stage"] for r in read_metrics(tmp_path / "scramble" / "metrics.jsonl")] == ["sft", "evaluate"]


@pytest.mark.slow
def test_training_starts_from_a_gguf_file(tmp_path):
    """With adapters, so that the file is read again for the export, which is a model for transformers."""
    from gguf_files import model_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from models.convert import check_model, export_model

    path, _ = model_file(tmp_path / "model.gguf", "llama")
    result = run(
        tmp_path, f"--config.model.path={path}", "--config.model.lora.rank=2", "--config.sft.steps=1",
        "--config.grpo.steps=0", "--config.rollout.max_prompt_length=64",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (start, _) = [r for r in read_metrics(tmp_path / "scramble" / "metrics.jsonl") if r["stage"] == "evaluate"]
    assert start["held_out/n"] == 16
    export_model(tmp_path / "scramble", tmp_path / "hf")
    assert check_model(tmp_path / "scramble", tmp_path / "hf") <= 1e-4
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "hf").config.model_type == "llama"
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.optimizer.learnin_rate=1"], ["learnin_rate", "did you mean config.optimizer.learning_rate"]),
        (["--config.mesh.data=many"], ["config.mesh.data", "many"]),
        (["--config.model.path=/no/such/folder"], ["/no/such/folder", "does not exist"]),
        (["--config.model.path=no/file.gguf"], ["model file 'no/file.gguf' does not exist"]),
        (["--config.task.name=scrambel"], ["scrambel", "did you mean scramble?"]),
        (["--config.grpo.loss.objective=clipp"], ["grpo.loss.objective", "clip, cispo"]),
        (["--config.rollout.max_prompt_length=5"], ["max_prompt_length", "problem scramble/"]),
        (["--config.task.name=mbpp", "--config.task.path=/no/mbpp.jsonl"], ["/no/mbpp.jsonl", "does not exist"]),
        (["--config.sft.steps=0", "--config.grpo.steps=0"], ["nothing to train"]),
        (["stray"], ["stray"]),
    ],
)
def test_mistakes_are_said_in_one_line(arguments, words, tmp_path):
    result = run(tmp_path, *arguments)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and all(word in last for word in words), last


def test_unknown_architecture_is_named(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}')
    result = run(tmp_path, f"--config.model.path={tmp_path / 'model'}")
    assert result.returncode == 1 and "'mamba'" in result.stderr and "qwen2" in result.stderr


def test_a_folder_of_other_settings_is_refused(whole):
    result = run(whole, "--config.seed=3")
    assert result.returncode == 1
    assert "config.seed was 0, is 3" in result.stderr


@pytest.mark.slow
def test_a_run_goes_on_with_another_mesh(whole, tmp_path):
    """Begun on one device, ended on two."""
    assert run(tmp_path, "--config.grpo.steps=0").returncode == 0
    path = tmp_path / "scramble" / "config.json"
    settings = json.loads(path.read_text())
    settings["grpo"]["steps"] = 8  # the same run, longer
    path.write_text(json.dumps(settings))
    two = command(tmp_path, "--config.processes.cpu_devices=2", "--config.mesh.fsdp=2")
    ended = subprocess.run(two, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    expected, found = without_times(whole), without_times(tmp_path)
    assert [r["step"] for r in found] == [r["step"] for r in expected]
    first = next(i for i, r in enumerate(expected) if r["stage"] == "grpo")
    assert found[:first] == expected[:first]
    assert found[first]["grad_norm"] == pytest.approx(expected[first]["grad_norm"], rel=1e-3, abs=1e-6)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_batch(tmp_path):
    result = run(tmp_path, "--config.sft.optimizer.learning_rate=1e30", "--config.sft.optimizer.max_grad_norm=0")
    assert result.returncode == 1
    line = result.stderr.strip().splitlines()[-1]
    assert "step " in line and ("nan" in line or "inf" in line)
    (path,) = (tmp_path / "scramble").glob("bad_batch_*.npz")
    assert np.load(path)["tokens"].ndim == 2


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(whole, tmp_path):
    """RLIMIT_FSIZE makes every larger write fail, as a full disk does."""
    from jaxrl.training.checkpoint import Checkpoints

    assert run(tmp_path, "--config.grpo.steps=0").returncode == 0
    good = Checkpoints(tmp_path / "scramble" / "checkpoints", 2).latest()
    config = json.loads((tmp_path / "scramble" / "config.json").read_text())
    config["grpo"]["steps"] = 8  # the same run, longer
    (tmp_path / "scramble" / "config.json").write_text(json.dumps(config))
    code = (
        "import resource, signal, sys\n"
        "from jaxrl.training import checkpoint\n"
        "save = checkpoint.Checkpoints.save\n"
        "def full(*a):\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "    save(*a)\n"
        "checkpoint.Checkpoints.save = full\n"
        "from jaxrl.train import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = command(tmp_path)[3:]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 1, result.stdout + result.stderr
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "last good" in said and f"of step {good}" in said and "too large" in said
    assert Checkpoints(tmp_path / "scramble" / "checkpoints", 2).latest() == good
    result = run(tmp_path)
    assert result.returncode == 0, result.stderr
    same_run(whole, tmp_path)


def test_config_has_no_field_without_a_plain_type():
    from jaxrl.config import Config

    def check(value, where):
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if dataclasses.is_dataclass(item):
                check(item, f"{where}.{field.name}")
            else:
                assert isinstance(item, (int, float, str, bool, tuple)), f"{where}.{field.name}"

    check(Config(), "config")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_is_read(path):
    from jaxrl.config.command_line import read_config

    with contextlib.chdir(ROOT):
        config = read_config(["--config", f"configs/{path.name}", "--config.seed=5", "--config.optimizer.b1=0.5"])
    assert (config.seed, config.optimizer.b1) == (5, 0.5)
