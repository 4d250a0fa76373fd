"""Training of adapters, which leaves the rest of the model alone; whole runs with them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import on_eight_devices
from flax import nnx
from safetensors.numpy import load_file, save_file
from test_learner import CONFIG, OBJECTIVE, batch
from test_lora import ALL, adapted, host_values, logits, merged_state, some_tokens
from test_train import run, same_run, without_times

from jaxrl.config import OptimizerConfig
from jaxrl.training.checkpoint import Checkpoints
from jaxrl.training.learner import Learner, TrainState
from jaxrl.training.optimizer import make_optimizer
from models.adapters import read_adapter
from models.config import LORA_TARGETS
from models.convert import check_model, export_model, load_model, main
from models.decoder import Compute, Decoder, initialize
from models.lora import LoraParam, split_params
from models.sharding import param_shardings


def learner_and_state(rows, mesh=None, dtype=jnp.float32, lora=ALL):
    _, plain = nnx.split(initialize(Decoder(CONFIG, jnp.dtype(dtype)), jax.random.key(0), scale=0.1))
    _, graphdef, params = adapted(CONFIG, plain, lora)
    if mesh is not None:
        params = jax.device_put(params, param_shardings(params, mesh))
    optimizer, _ = make_optimizer(OptimizerConfig(learning_rate=1e-2, weight_decay=0.1), 10)
    learner = Learner(graphdef, OBJECTIVE, optimizer, compute=Compute(mesh=mesh), microbatch_rows=rows)
    return learner, learner.init(params)


def updated(rows, **settings):
    learner, state = learner_and_state(rows, **settings)
    return learner.update(state, batch(rows))


def is_adapter(path) -> bool:
    return str(path[-1]).endswith(("_lora_a", "_lora_b"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_adapters_are_trained(dtype):
    learner, state = learner_and_state(8, dtype=dtype)
    before, copies = dict(nnx.to_flat_state(state.params)), jax.device_get(dict(nnx.to_flat_state(state.params)))
    shapes = sorted(v.shape for p, v in before.items() if is_adapter(p))
    moments = [x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sorted(moments) == sorted(2 * shapes)
    state, metrics = learner.update(state, batch(8))
    assert metrics["grad_norm"] > 0
    for path, variable in nnx.to_flat_state(state.params):
        if is_adapter(path):
            assert variable.dtype == jnp.float32 and isinstance(variable, LoraParam)
            assert np.abs(np.asarray(variable[...]) - copies[path][...]).max() > 1e-3, path
        else:
            assert variable[...] is before[path][...], path  # the same buffer: neither copied nor donated
            assert variable.dtype == dtype
            np.testing.assert_array_equal(np.asarray(variable[...]), copies[path][...])


def test_gradient_is_that_of_the_merged_weights():
    """dL/dA = s G B^T and dL/dB = s A^T G, with G the gradient of the merged matrix in the model without adapters."""
    learner, state = learner_and_state(16)
    whole = batch(16)
    trained, _ = split_params(state.params)
    zeros = jax.tree.map(jnp.zeros_like, trained)
    found = {str(p[-1]): v[...] for p, v in nnx.to_flat_state(learner._accumulate(state.params, zeros, whole)[0])}
    config = dataclasses.replace(CONFIG, lora=ALL)
    merged = merged_state(state.params, config)
    dense = Learner(nnx.split(Decoder(CONFIG))[0], OBJECTIVE, optax.sgd(1.0), microbatch_rows=16)
    gradient = dict(nnx.to_flat_state(dense._accumulate(merged, jax.tree.map(jnp.zeros_like, merged), whole)[0]))
    values = host_values(state.params)
    for name in LORA_TARGETS:
        G = np.asarray(gradient["blocks", name][...], np.float64)
        a, b = values[f"{name}_lora_a"], values[f"{name}_lora_b"]
        expected = {"a": 1.5 * G @ b.transpose(0, 2, 1), "b": 1.5 * a.transpose(0, 2, 1) @ G}
        for part, value in expected.items():
            error = np.linalg.norm(np.asarray(found[f"{name}_lora_{part}"]) - value)
            assert error <= 1e-4 * np.linalg.norm(value), (name, part)


MESHES = """
import chex, jax
from flax import nnx
from test_lora_training import updated
from models.sharding import make_mesh
expected, metrics = updated(8)
for sizes in ((2, 2, 1, 2), (1, 4, 2, 1)):
    state, measured = updated(8, mesh=make_mesh(*sizes))
    chex.assert_trees_all_close(jax.device_get(state.params), jax.device_get(expected.params), atol=2e-4)
    assert abs(measured["loss"] - metrics["loss"]) < 1e-5 and abs(measured["grad_norm"] - metrics["grad_norm"]) < 1e-4
    parts = dict(nnx.to_flat_state(state.params))
    for name in ("q_lora_a", "up_lora_b"):
        array = parts["blocks", name][...]
        assert (array.sharding.shard_shape(array.shape) != array.shape) == (sizes[1 if name == "q_lora_a" else 3] > 1)
print("same on all meshes")
"""


@pytest.mark.slow
def test_every_mesh_of_eight_devices_gives_the_same_update():
    assert "same on all meshes" in on_eight_devices(MESHES)


def test_checkpoints_hold_the_adapters_alone(tmp_path):
    state, _ = updated(16)
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    _, like = learner_and_state(16)
    restored = checkpoints.restore(1, like)
    chex.assert_trees_all_equal(restored, TrainState(state.params, state.opt_state))
    metadata = json.loads((tmp_path / "1" / "params" / "_METADATA").read_text())["tree_metadata"]
    assert len(metadata) == 2 * len(LORA_TARGETS) and all("_lora_" in name for name in metadata)


# ---------------------------------------------------------------------- runs

LORA = [
    "--config.model.lora.rank=4",
    "--config.optimizer.learning_rate=3e-3",
    "--config.sft.optimizer.learning_rate=1e-2",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of SFT and GRPO with adapters and a KL term, from random weights, that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    result = run(folder, *LORA)
    assert result.returncode == 0, result.stderr
    return folder


def final_params(folder: Path) -> dict[str, np.ndarray]:
    return host_values_of_run(folder / "scramble") | {
        "/".join(path): np.asarray(v[...]) for path, v in nnx.to_flat_state(load_model(folder / "scramble")[2])
    }


def host_values_of_run(folder: Path) -> dict[str, np.ndarray]:
    from models.convert import read_description

    return read_adapter(folder, read_description(folder / "model"))[1]


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_bit_by_bit_the_same(whole, tmp_path):
    """Stopped in each stage: in SFT, at its end, and in GRPO, whose reference policy is then made anew."""
    from jaxrl import train

    saved = train.Checkpoints.save
    for stop in (3, 6, 9):

        def stopping(self, step, state, place, stop=stop):
            saved(self, step, state, place)
            if step == stop:
                self.wait()
                raise OSError("stopped by the test")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train.Checkpoints, "save", stopping)
            assert "stopped by the test" in run(tmp_path, *LORA).stderr
    result = run(tmp_path, *LORA)
    assert result.returncode == 0 and "resuming" in result.stdout
    same_run(whole, tmp_path)
    for name, value in final_params(whole).items():
        assert value.tobytes() == final_params(tmp_path)[name].tobytes(), name


def test_the_run_learns_and_knows_its_reference(whole):
    records = without_times(whole)
    losses = [r["loss"] for r in records if r["stage"] == "sft"]
    assert losses[-1] < losses[0]
    drift = [r["kl/reference"] for r in records if r["stage"] == "grpo"]
    assert drift[0] == pytest.approx(0, abs=1e-6) and drift[-1] > 1e-5


def test_the_base_is_kept_once(whole):
    folder = whole / "scramble"
    size = lambda path: sum(f.stat().st_size for f in path.rglob("*") if f.is_file())  # noqa: E731
    base = load_model(folder / "model")[2]  # a model of its own
    assert not any(isinstance(v, LoraParam) for _, v in nnx.to_flat_state(base))
    assert size(folder / "model" / "params") > 50_000
    for step in (folder / "checkpoints").glob("*"):
        names = json.loads((step / "params" / "_METADATA").read_text())["tree_metadata"]
        assert names and all("_lora_" in name for name in names)


def test_export_of_a_run_is_merged(whole, tmp_path):
    assert main(["export", str(whole / "scramble"), str(tmp_path / "hf")]) == 0
    assert check_model(whole / "scramble", tmp_path / "hf") <= 1e-4
    merged, base = load_model(tmp_path / "hf")[2], load_model(whole / "scramble" / "model")[2]
    assert np.abs(merged["blocks"]["down"][...] - base["blocks"]["down"][...]).max() > 1e-3
    np.testing.assert_array_equal(merged["embed"][...], base["embed"][...])


def test_export_of_a_runs_adapters_loads_in_peft(whole, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    run_folder = whole / "scramble"
    assert main(["export", str(run_folder), str(tmp_path / "adapter"), "--adapter"]) == 0
    export_model(run_folder / "model", tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    config, graphdef, params = load_model(run_folder)
    tokens = some_tokens(config)
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")(torch.tensor(tokens)).logits.numpy()
    assert np.abs(logits(graphdef, params, tokens) - theirs).max() <= 1e-4


@pytest.mark.slow
def test_a_run_goes_on_from_adapters_and_from_a_folder(whole, tmp_path):
    """From a Hugging Face folder, which is not copied, and from the adapters of a run or of PEFT."""
    export_model(whole / "scramble" / "model", tmp_path / "base")
    assert main(["export", str(whole / "scramble"), str(tmp_path / "adapter"), "--adapter"]) == 0
    trained = [r for r in without_times(whole) if r["stage"] == "evaluate"][-1]
    steps = ["--config.sft.steps=0", "--config.grpo.steps=1", f"--config.model.path={tmp_path / 'base'}"]
    for name, source in (("peft", tmp_path / "adapter"), ("run", whole / "scramble")):
        result = run(tmp_path / name, *LORA, *steps, f"--config.model.adapter={source}")
        assert result.returncode == 0, result.stderr
        start = without_times(tmp_path / name)[0]
        assert start["held_out/length"] == trained["held_out/length"]
        assert not (tmp_path / name / "scramble" / "model" / "params").exists()
    same_run(tmp_path / "peft", tmp_path / "run")
    assert main(["export", str(tmp_path / "run" / "scramble"), str(tmp_path / "again"), "--adapter"]) == 0
    fields = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == str(tmp_path / "base")
    other = load_file(tmp_path / "base" / "model.safetensors")
    changed = {name: np.nextafter(t, np.float32(9)) if "down_proj" in name else t for name, t in other.items()}
    save_file(changed, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    refused = run(tmp_path / "peft", *LORA, *steps, f"--config.model.adapter={tmp_path / 'adapter'}")
    assert refused.returncode == 1 and "beside other weights than those of" in refused.stderr.strip().splitlines()[-1]
    save_file(other, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    merged = run(tmp_path / "merged", *steps, f"--config.model.adapter={whole / 'scramble'}")
    assert merged.returncode == 0, merged.stderr
    assert without_times(tmp_path / "merged")[0]["held_out/length"] == trained["held_out/length"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.model.lora.targets=('q_porj',)"], ["model.lora.targets", "'q_porj'", "did you mean 'q_proj'"]),
        (["--config.model.lora.rank=-2"], ["model.lora.rank = -2"]),
        (["--config.model.adapter=/no/such/folder"], ["/no/such/folder", "no adapter"]),
    ],
)
def test_mistakes_are_said_in_one_line(arguments, words, tmp_path):
    result = run(tmp_path, *arguments)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and all(word in last for word in words), last
