"""What is alive on the devices while a run trains: each parameter and moment once, whatever came before.

Buffers of the shape of the embedding table are counted, which parameters and Adam's moments have one each of. No
checkpoint is written between two updates: on a CPU orbax reads a state where it is, which then cannot be donated.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, UNOPTIMIZED
from jax.sharding import Mesh

from jaxrl.config import Config
from jaxrl.runs.log import read_metrics
from jaxrl.runs.policy import turns_of
from jaxrl.train import main
from jaxrl.training.checkpoint import Checkpoints
from jaxrl.training.learner import Learner
from models.sharding import make_mesh

WIDTH, TOKENS = 48, 304  # as no other test has them
TINY = [
    "--config", "configs/scramble.py", f"--config.model.shape.hidden_size={WIDTH}",
    "--config.model.shape.intermediate_size=64", "--config.model.shape.num_hidden_layers=1",
    f"--config.model.tokenizer_size={TOKENS}", "--config.task.held_out_problems=8", "--config.sft.batch_size=8",
    "--config.grpo.problems_per_step=2", "--config.grpo.group_size=4", "--config.rollout.slots=8",
    "--config.batch.microbatch_rows=4", "--config.checkpoint.every=0",
]  # fmt: skip
STATE = {"float32": 3}  # the parameters and two moments
WITH_REFERENCE = {"float32": 4}
# For a process of its own with four devices. XLA ends one whose devices have waited 40 s for each other, which a busy
# machine does without a deadlock. Here a process that hangs ends after 500 s, and shows where its threads were.
FOUR_DEVICES = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_cpu_collective_call_terminate_timeout_seconds=600 "
    + UNOPTIMIZED,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
}
DUMPING = """import faulthandler, runpy, sys
faulthandler.dump_traceback_later(500, exit=True)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")"""


def on_four_devices(*command: str | Path) -> str:
    """What a program of this repository prints; fails if it does."""
    started = [sys.executable, "-c", DUMPING, *map(str, command)]
    ended = subprocess.run(started, cwd=ROOT, env=FOUR_DEVICES, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout


def live() -> Counter[str]:
    """Buffers of the table's shape by dtype; arrays that share one count once."""
    gc.collect()
    tables = [a for a in jax.live_arrays() if a.ndim == 2 and a.shape[1] == WIDTH and a.shape[0] >= TOKENS - 16]
    return Counter({a.unsafe_buffer_pointer(): a.dtype.name for a in tables}.values())


def settled(wanted: dict[str, int]) -> Counter[str]:
    """What stays alive: `wanted`, as soon as there is no more than that, or what there is after 20 s.

    Other threads hold for a moment what is about to go: a sampler that works ahead the weights that it is given, orbax
    and its storage the arrays that they have written.
    """
    deadline = time.monotonic() + 20
    while not (found := live()) <= Counter(wanted) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


class Watch:
    """Counts what is alive before and after each update and at each restore; stops the run after update `stop`."""

    def __init__(self, monkeypatch, wanted: dict[str, int], stop: int = 0):
        self.around: list[Counter[str]] = []
        self.restored: list[tuple[Counter[str], Counter[str]]] = []
        update, restore = Learner.update, Checkpoints.restore

        def watched_update(learner, state, batch):
            self.around.append(settled(wanted))
            state, metrics = update(learner, state, batch)
            self.around.append(settled(wanted))
            if len(self.around) == 2 * stop:
                os.kill(os.getpid(), signal.SIGINT)
            return state, metrics

        def watched_restore(checkpoints, step, like):
            before = live()
            state = restore(checkpoints, step, like)
            self.restored.append((before, live()))
            return state

        monkeypatch.setattr(Learner, "update", watched_update)
        monkeypatch.setattr(Checkpoints, "restore", watched_restore)


def run(folder: Path, *settings: str) -> int:
    assert not settled({}), "an earlier run holds arrays of this shape"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.chdir(ROOT):
            return main([*TINY, f"--config.runs_dir={folder}", *settings])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.slow
def test_fresh_and_after_sft(tmp_path, monkeypatch):
    watch = Watch(monkeypatch, STATE)
    assert run(tmp_path, "--config.sft.steps=2", "--config.grpo.steps=2", "--config.evaluation.every=1") == 0
    assert watch.around == [STATE] * 8
    assert not settled({})


@pytest.mark.parametrize(
    "sft, grpo",
    [
        (2, 3),
        pytest.param(0, 4, marks=pytest.mark.slow),
        pytest.param(4, 0, marks=pytest.mark.slow),
    ],
)
def test_resumed(tmp_path, monkeypatch, sft, grpo):
    """In the middle of a stage: parameters and moments are read into place, nothing is initialised for them."""
    steps = [f"--config.sft.steps={sft}", f"--config.grpo.steps={grpo}"]
    with monkeypatch.context() as patch:
        Watch(patch, STATE, stop=sft + 1 if sft and grpo else 2)
        assert run(tmp_path, *steps) == 130
    watch = Watch(monkeypatch, STATE)
    assert run(tmp_path, *steps) == 0
    assert watch.restored == [({}, STATE)]
    assert watch.around == [STATE] * 4


@pytest.mark.slow
def test_resumed_between_stages(tmp_path, monkeypatch):
    steps = ["--config.sft.steps=2", "--config.grpo.steps=2"]
    with monkeypatch.context() as patch:
        Watch(patch, STATE, stop=2)
        assert run(tmp_path, *steps) == 130
    watch = Watch(monkeypatch, STATE)
    assert run(tmp_path, *steps) == 0
    assert watch.around == [STATE] * 4


@pytest.mark.slow
@pytest.mark.parametrize("sft", [0, 1])
def test_a_reference_policy_is_one_more(tmp_path, monkeypatch, sft):
    settings = [f"--config.sft.steps={sft}", "--config.grpo.steps=4", "--config.grpo.loss.kl_coefficient=0.01"]
    with monkeypatch.context() as patch:
        fresh = Watch(patch, WITH_REFERENCE, stop=sft + 2)
        assert run(tmp_path, *settings) == 130
    assert fresh.around[2 * sft :] == [WITH_REFERENCE] * 4
    watch = Watch(monkeypatch, WITH_REFERENCE)
    assert run(tmp_path, *settings) == 0
    assert watch.restored == [({}, STATE)]
    assert watch.around == [WITH_REFERENCE] * 4


@pytest.mark.slow
def test_a_sampler_ahead_keeps_its_own_weights_and_no_others(tmp_path, monkeypatch):
    """In bf16, as on accelerators: once the sampler has taken them, the f32 copy that was published is gone."""
    watch = Watch(monkeypatch, STATE | {"bfloat16": 1})
    settings = ["--config.sft.steps=1", "--config.grpo.steps=5", "--config.evaluation.every=2"]
    settings += ["--config.rollout.max_staleness=1", "--config.model.compute_dtype=bfloat16"]
    assert run(tmp_path, *settings, "--config.rollout.mismatch_limit=0") == 0
    sft, grpo = watch.around[:2], watch.around[2:]
    assert sft == [STATE] * 2  # the engine that has evaluated holds nothing during SFT
    assert grpo == [STATE | {"bfloat16": 1}] * 10


@pytest.mark.slow
def test_frozen_parameters_are_there_once(tmp_path, monkeypatch):
    """Of a model with adapters the table has no moments; policy, reference and sampler share it."""
    settings = ["--config.model.lora.rank=4", "--config.sft.steps=1", "--config.grpo.steps=3"]
    settings += ["--config.grpo.loss.kl_coefficient=0.01"]
    with monkeypatch.context() as patch:
        fresh = Watch(patch, {"float32": 1}, stop=2)
        assert run(tmp_path, *settings) == 130
    assert fresh.around == [{"float32": 1}] * 4
    watch = Watch(monkeypatch, {"float32": 1})
    assert run(tmp_path, *settings) == 0
    assert watch.around == [{"float32": 1}] * 4


def test_log_and_report_have_one_device_peak(tmp_path):
    """On a CPU it is measured, and another number each time: a resumed run keeps the first one."""
    assert run(tmp_path, "--config.sft.steps=2", "--config.grpo.steps=0") == 0
    folder = tmp_path / "scramble"
    said = json.loads((folder / "devices.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    config["sft"]["steps"] = 4  # the same run, longer
    (folder / "config.json").write_text(json.dumps(config))
    assert run(tmp_path, "--config.sft.steps=4", "--config.grpo.steps=0") == 0
    assert json.loads((folder / "devices.json").read_text()) == said
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [r for r in records if r["stage"] == "sft"]
    assert [r["step"] for r in trained] == [1, 2, 3, 4]
    for r in trained:
        peak = r["flops/update"] / (r["time/mfu"] * r["time/step_s"])
        assert peak == pytest.approx(said["peak_flops"] * said["count"], rel=1e-6)


def test_an_engine_without_weights_says_so():
    from flax import nnx

    from models.config import from_hf
    from models.decoder import Decoder, abstract_decoder, initialize
    from rollouts.collect import generate
    from rollouts.engine import SamplingParams
    from rollouts.jax.engine import JaxEngine

    fields = {"model_type": "qwen2", "vocab_size": TOKENS, "hidden_size": WIDTH, "intermediate_size": 64,
              "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    config = from_hf(fields)
    mesh = make_mesh(devices=jax.devices()[:1])
    graphdef, shapes = abstract_decoder(config, mesh, jnp.dtype(jnp.float32))
    engine = JaxEngine(graphdef, shapes, slots=2, max_length=32)
    asked = [np.array([1, 2, 3], np.int32)], SamplingParams(max_new_tokens=4)
    with pytest.raises(RuntimeError, match="call load_weights before sample"):
        generate(engine, *asked)
    params = nnx.state(initialize(Decoder(config), jax.random.key(0)))
    ours = live()
    engine.load_weights(params, 1)
    first = generate(engine, *asked)[0][0]
    engine.unload()
    assert live() == ours
    with pytest.raises(RuntimeError, match="call load_weights before sample"):
        generate(engine, *asked)
    engine.load_weights(params, 2)
    again = generate(engine, *asked)[0][0]
    assert again.tokens.tolist() == first.tokens.tolist() and (first.weight_version, again.weight_version) == (1, 2)


@pytest.mark.slow
def test_two_threads_share_several_devices():
    """Collectives of the trainer and of the sampler, started at the same time on four devices, do not lock up.

    Without taking turns they do, sooner or later.
    """
    assert "both threads have ended" in on_four_devices(ROOT / "tests" / "support" / "two_threads.py", "turns", "40")


@pytest.mark.slow
def test_a_run_that_samples_ahead_on_several_devices(tmp_path):
    """Twice, to the same numbers: whose turn it is depends on timing, what comes out does not."""
    settings = ["--config.sft.steps=1", "--config.grpo.steps=4", "--config.evaluation.every=2"]
    settings += ["--config.rollout.max_staleness=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    logs = []
    for name in ("one", "two"):
        on_four_devices(ROOT / "jaxrl" / "train.py", *TINY, f"--config.runs_dir={tmp_path / name}", *settings)
        records = read_metrics(tmp_path / name / "scramble" / "metrics.jsonl")
        logs.append([{k: v for k, v in r.items() if not k.startswith("time/")} for r in records])
    assert logs[0] == logs[1]
    assert [r["staleness"] for r in logs[0] if r["stage"] == "grpo"] == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("engine, staleness, devices, locked", [
    ("jax", 1, 2, True), ("jax", 0, 2, False), ("jax", 1, 1, False), ("vllm", 1, 2, False),
])  # fmt: skip
def test_turns_are_taken_where_two_threads_run_programs(engine, staleness, devices, locked):
    config, mesh = Config(), make_mesh(devices=jax.devices()[:1])
    config.rollout.engine, config.rollout.max_staleness = engine, staleness
    several = SimpleNamespace(local_devices=list(mesh.devices.flat) * devices)
    assert isinstance(turns_of(config, cast(Mesh, several)), nullcontext) is not locked
