"""Conversion: bit-exact there and back, and errors that name the tensor or the file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from families import FAMILIES, reference
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.config import UnsupportedModelError, from_hf, to_hf
from models.convert import (
    ConversionError,
    check_model,
    describe_model,
    export_model,
    import_model,
    load_hf,
    load_model,
    main,
    read_description,
)
from models.decoder import Compute, ForSampling
from rollouts.jax.programs import Sizes, make_programs


def bits(folder: Path) -> dict[str, bytes]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= {name: (str(t.dtype), t.tobytes()) for name, t in load_file(path).items()}
    return tensors


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "hf"
    reference("qwen2_tied").save_pretrained(out)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_import_then_export_is_bit_exact(family, dtype, tmp_path):
    reference(family).to(dtype).save_pretrained(tmp_path / "hf", max_shard_size="100KB")
    assert (tmp_path / "hf" / "model.safetensors.index.json").is_file()  # several shards
    import_model(tmp_path / "hf", tmp_path / "imported")
    export_model(tmp_path / "imported", tmp_path / "exported")
    assert bits(tmp_path / "exported") == bits(tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    assert check_model(tmp_path / "imported", tmp_path / "exported") <= 1e-4
    assert model.config.to_dict()["num_hidden_layers"] == 3


def test_tokenizer_and_template_come_along(folder, data, tmp_path):
    for path in (data / "qwen_tokenizer").glob("*"):
        shutil.copy(path, folder)
    import_model(folder, tmp_path / "imported")
    export_model(tmp_path / "imported", tmp_path / "exported")
    before, after = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tmp_path / "exported")
    messages = [{"role": "user", "content": "print('hi')"}]
    assert after.apply_chat_template(messages, tokenize=False) == before.apply_chat_template(messages, tokenize=False)
    assert after.encode("def f(x):\n    return 12") == before.encode("def f(x):\n    return 12")


def test_a_tokenizer_that_was_chosen_gets_no_files_of_the_models(folder, data, tmp_path):
    for path in (data / "qwen_tokenizer").glob("*"):
        shutil.copy(path, folder)
    kept = tmp_path / "model" / "tokenizer"
    kept.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (kept / name).write_text("{}")
    describe_model(from_hf(json.loads((folder / "config.json").read_text())), tmp_path / "model", folder)
    assert sorted(path.name for path in kept.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_a_run_that_starts_from_a_run_keeps_its_description(folder, tmp_path):
    import_model(folder, tmp_path / "imported")
    config = read_description(tmp_path / "imported")
    shutil.copytree(tmp_path / "imported", tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text('{"name": "the settings of the run"}')
    describe_model(config, tmp_path / "next" / "model", tmp_path / "run")
    described = json.loads((tmp_path / "next" / "model" / "hf_config.json").read_text())
    assert described == json.loads((folder / "config.json").read_text())


def test_command_line_with_check(folder, tmp_path, capsys):
    assert main(["import", str(folder), str(tmp_path / "out"), "--check"]) == 0
    printed = capsys.readouterr().out
    assert float(printed.split(":")[-1]) <= 1e-4
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "back"), "--check"]) == 0
    assert main(["check", str(folder)]) == 0


def edit(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


K = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(K), [K, "missing"]),
        (lambda t: t.update({"model.layers.9.extra": np.zeros(3, np.float32)}), ["model.layers.9.extra", "unexpected"]),
        (lambda t: t.update({K: np.zeros((3, 64), np.float32)}), [K, "(3, 64)", "(32, 64)"]),
        (lambda t: t.update({"lm_head.weight": np.ones((199, 64), np.float32)}), ["lm_head.weight", "tied"]),
    ],
)
def test_wrong_tensors_are_named(folder, change, words, tmp_path):
    edit(folder, change)
    with pytest.raises(ConversionError) as error:
        import_model(folder, tmp_path / "out")
    assert all(word in str(error.value) for word in words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]  # nothing half-written


def test_tied_head_that_is_stored_is_accepted(folder):
    edit(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert load_hf(folder)[0].tied_embeddings


def test_truncated_and_missing_files_are_named(folder, tmp_path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ConversionError, match=r"model\.safetensors is truncated"):
        load_hf(folder)
    path.unlink()
    with pytest.raises(ConversionError, match=r"neither model\.safetensors nor"):
        load_hf(folder)
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConversionError, match=r"model-00002-of-00002\.safetensors, named by"):
        load_hf(folder)


def test_missing_folder_and_full_target(folder, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_model(tmp_path / "nowhere")
    assert main(["import", str(folder), str(folder)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    assert "config.json" in capsys.readouterr().err


def test_dtype_setting(folder):
    _, _, params = load_hf(folder, dtype=ml_dtypes.bfloat16)
    assert {str(v.dtype) for v in __import__("jax").tree.leaves(params)} == {"bfloat16"}


@pytest.mark.parametrize("family", FAMILIES)
def test_config_goes_there_and_back(family):
    config = from_hf(FAMILIES[family]().config.to_dict())
    assert from_hf(to_hf(config)) == config


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, ["gpt2", "qwen2"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"rope_scaling": {"rope_type": "yarn"}}, ["yarn"]),
        ({"mystery": 3}, ["mystery"]),
        ({"num_attention_heads": 3}, ["num_attention_heads", "num_key_value_heads"]),
        ({"mlp_bias": True}, ["mlp_bias"]),
        ({"layer_types": ["linear_attention"] * 3}, ["linear_attention"]),
    ],
)
def test_unsupported_configs_are_named(fields, words):
    with pytest.raises(UnsupportedModelError) as error:
        from_hf(to_hf(from_hf(FAMILIES["llama3"]().config.to_dict())) | fields)
    assert all(word in str(error.value) for word in words)


PEAK = """
import re, sys
from models.convert import load_hf
import jax
jax.numpy.zeros(3)
# Not ru_maxrss, which a new process has from its parent.
peak_so_far = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = peak_so_far()
_, _, params = load_hf(sys.argv[1])
peak = peak_so_far()
print((peak - before) / sum(x.nbytes for x in jax.tree.leaves(params)))
"""


@pytest.mark.slow
def test_peak_memory_of_loading(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=32_000, hidden_size=768, intermediate_size=2048, num_hidden_layers=16, num_attention_heads=12,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path, max_shard_size="100MB")
    out = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(out.stdout.split()[-1]) <= 1.2


@pytest.mark.parametrize("source", ["hf", "imported"])
def test_weights_for_sampling_are_read_as_the_engine_has_them(folder, tmp_path, source):
    """Matrices in the engine's dtype, norms and biases in f32, to the bits that the engine makes of f32 parameters."""
    path = folder
    if source == "imported":
        path = tmp_path / "imported"
        import_model(folder, path)
    _, graphdef, params = load_model(path, dtype=jnp.float32)
    programs = make_programs(graphdef, params, Compute(jnp.dtype(jnp.bfloat16)), Sizes(2, 32, 16))
    narrow = load_model(path, dtype=ForSampling(jnp.dtype(jnp.bfloat16)))[2]
    chex.assert_trees_all_equal(programs.load(narrow), programs.load(params))
    kinds = {(str(name[-1]).endswith(("norm", "bias")), str(v.dtype)) for name, v in nnx.to_flat_state(narrow)}
    assert kinds == {(True, "float32"), (False, "bfloat16")}
