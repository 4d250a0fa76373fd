"""Adapters: the numbers against PEFT and against merged weights, in files, in decoding and in the engine."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from families import FAMILIES, reference
from flax import nnx
from safetensors.numpy import load_file, save_file
from test_learner import CONFIG

from jaxrl.config import LoraConfig
from jaxrl.config.rules import check_settings
from models.adapters import attach, read_adapter, save_peft, start_adapters
from models.cache import insert, make_cache
from models.config import LORA_TARGETS, Lora
from models.convert import ConversionError, load_hf, save_hf
from models.decoder import Decoder, initialize
from models.lora import merged_parameters, split_params
from models.sharding import make_mesh
from rollouts.collect import generate
from rollouts.engine import SamplingParams
from rollouts.jax.engine import JaxEngine
from rollouts.vllm.nccl import device_tensors
from rollouts.vllm.weight_files import named_tensors

ALL = Lora(4, 6.0, LORA_TARGETS)
SETTINGS = {"q and v": Lora(3, 8.0, ("q", "v")), "stabilized": dataclasses.replace(ALL, rank_stabilized=True)}


def adapted(config, params, lora=ALL, seed=0, size=0.3):
    """The model with random adapters, both of whose matrices matter."""
    config, graphdef, params = attach(config, params, lora, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    trained, frozen = split_params(params)
    random = lambda x: jnp.asarray(rng.normal(0, size, x.shape), jnp.float32)  # noqa: E731
    return config, graphdef, nnx.merge_state(jax.tree.map(random, trained), frozen)


def merged_state(params, config):
    variables = dict(nnx.to_flat_state(params))
    return nnx.from_flat_state([(p, variables[p].replace(v)) for p, v in merged_parameters(params, config)])


def host_values(params):
    return {str(path[-1]): np.asarray(v[...]) for path, v in nnx.to_flat_state(split_params(params)[0])}


def logits(graphdef, params, tokens):
    @jax.jit
    def forward(params):
        model = nnx.merge(graphdef, params)
        return model(tokens, np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)) @ model.unembedding().T

    return np.asarray(forward(params))


def some_tokens(config, rows=2, length=24):
    return np.random.default_rng(1).integers(0, config.vocab_size, (rows, length))


@pytest.fixture
def family(request, tmp_path):
    """A torch model, its folder, and the decoder with the same weights."""
    model = reference(request.param)
    model.save_pretrained(tmp_path / "hf")
    return model, tmp_path / "hf", *load_hf(tmp_path / "hf")


one_family = pytest.mark.parametrize("family", ["qwen2_tied"], indirect=True)


# ---------------------------------------------------------------------- PEFT


@pytest.mark.parametrize(
    ("family", "lora"),
    [*((name, ALL) for name in FAMILIES), *(("qwen2_tied", lora) for lora in SETTINGS.values())],
    indirect=["family"],
    ids=str,
)
def test_peft_loads_our_adapters_and_gives_the_same_logits(family, lora, tmp_path):
    peft = pytest.importorskip("peft")
    torch_model, _, config, plain_graphdef, plain = family
    config, graphdef, params = adapted(config, plain, lora)
    save_peft(host_values(params), config, tmp_path / "adapter")
    tokens = some_tokens(config)
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(torch_model, tmp_path / "adapter")(torch.tensor(tokens)).logits.numpy()
    assert np.abs(logits(graphdef, params, tokens) - theirs).max() <= 1e-4
    assert np.abs(logits(plain_graphdef, plain, tokens) - theirs).max() > 0.1  # the adapters say something


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((name, torch.float32) for name in FAMILIES), ("llama_bias", torch.bfloat16)],
    indirect=["family"],
    ids=str,
)
def test_we_load_peft_adapters_and_give_the_same_logits(family, dtype, tmp_path):
    peft = pytest.importorskip("peft")
    torch_model, _, config, graphdef, params = family
    torch.manual_seed(3)
    settings = peft.LoraConfig(
        r=5, lora_alpha=9, target_modules=["q_proj", "o_proj", "up_proj", "down_proj"], init_lora_weights=False,
        task_type="CAUSAL_LM", use_rslora=dtype == torch.bfloat16, lora_dropout=0.1,
    )  # fmt: skip
    theirs = peft.get_peft_model(torch_model, settings).eval()
    for name, p in theirs.named_parameters():
        if "lora_" in name:
            p.data = p.data.to(dtype)
    theirs.save_pretrained(tmp_path / "adapter")
    tokens = some_tokens(config)
    with torch.no_grad():
        expected = theirs.float()(torch.tensor(tokens)).logits.numpy()
    lora, values = read_adapter(tmp_path / "adapter", config)
    assert lora == Lora(5, 9.0, ("q", "o", "up", "down"), dtype == torch.bfloat16)
    _, with_adapters, adapted_params = attach(config, params, lora, values)
    assert np.abs(logits(with_adapters, adapted_params, tokens) - expected).max() <= 1e-4
    start = partial(start_adapters, config, graphdef, params, key=jax.random.key(0), mesh=make_mesh())
    _, merged_graphdef, merged = start(None, str(tmp_path / "adapter"))  # without config.model.lora: merged
    assert np.abs(logits(merged_graphdef, merged, tokens) - expected).max() <= 1e-4


@one_family
def test_peft_folders_go_there_and_back(family, tmp_path):
    config, _, params = adapted(*family[2:3], family[4], SETTINGS["q and v"])
    save_peft(host_values(params), config, tmp_path / "adapter", "Qwen/Qwen2.5-Coder-1.5B")
    lora, values = read_adapter(tmp_path / "adapter", config)
    assert lora == config.lora
    chex.assert_trees_all_equal(values, host_values(params))
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == "Qwen/Qwen2.5-Coder-1.5B" and fields["lora_alpha"] == 8
    with pytest.raises(ConversionError, match="not empty"):
        save_peft(host_values(params), config, tmp_path / "adapter")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Adapters of rank 4 as a PEFT folder."""
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    config, _, params = adapted(CONFIG, nnx.split(initialize(Decoder(CONFIG), jax.random.key(0)))[1])
    save_peft(host_values(params), config, folder)
    return folder


Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("fields", "tensors", "words"),
    [
        ({"bias": "lora_only"}, {}, ["bias", "lora_only", "none"]),
        ({"use_dora": True}, {}, ["use_dora"]),
        ({"modules_to_save": ["lm_head"]}, {}, ["modules_to_save", "lm_head"]),
        ({"rank_pattern": {"q_proj": 2}}, {}, ["rank_pattern"]),
        ({"layers_to_transform": [1]}, {}, ["layers_to_transform"]),
        ({"init_lora_weights": "pissa"}, {}, ["init_lora_weights", "pissa"]),
        ({"peft_type": "LOHA"}, {}, ["peft_type", "LOHA"]),
        ({"target_modules": "all-linear"}, {}, ["target_modules", "a list"]),
        ({"target_modules": ["q_proj", "lm_head"]}, {}, ["target_modules", "lm_head"]),
        ({"target_modules": None}, {}, ["target_modules", "missing"]),
        ({"something_new": 3}, {}, ["something_new"]),
        ({"r": 8}, {}, ["has shape (4, ", "should be (8, "]),
        ({}, {Q: None}, [Q, "missing"]),
        ({}, {"base_model.model.lm_head.lora_A.weight": np.zeros(3, np.float32)}, ["lm_head", "unexpected"]),
        ({}, {Q: np.zeros((4, 9), np.float32)}, [Q, "(4, 9)", "(4, 32)"]),
        ({}, {Q: np.zeros((4, 32), np.int32)}, [Q, "I32"]),
    ],
)
def test_adapters_that_do_not_fit_are_named(saved, fields, tensors, words, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "adapter"))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    found = load_file(folder / "adapter_model.safetensors") | tensors
    save_file({n: t for n, t in found.items() if t is not None}, folder / "adapter_model.safetensors")
    with pytest.raises(ConversionError) as error:
        read_adapter(folder, CONFIG)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_adapters_of_other_settings_or_nowhere_are_refused(saved, tmp_path):
    graphdef, params = nnx.split(Decoder(CONFIG))
    start = partial(start_adapters, CONFIG, graphdef, params, key=jax.random.key(0), mesh=make_mesh())
    with pytest.raises(ConversionError, match=r"adapter has rank 4, config\.model\.lora\.rank is 8"):
        start(dataclasses.replace(ALL, rank=8), str(saved))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no adapter: neither adapter_config\.json nor"):
        start(ALL, str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": -1}, ["model.lora.rank = -1", ">= 0"]),
        ({"alpha": 0.0}, ["model.lora.alpha = 0.0", "> 0"]),
        ({"targets": ()}, ["model.lora.targets", "one at least"]),
        ({"targets": "q_proj"}, ["model.lora.targets", "tuple"]),
        ({"targets": ("q_proj", "gate_porj")}, ["'gate_porj'", "did you mean 'gate_proj'"]),
        ({"targets": ("embed_tokens",)}, ["'embed_tokens'", "known: q_proj, k_proj"]),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(ValueError) as error:
        check_settings(LoraConfig(**settings), "model.lora")
    assert all(word in str(error.value) for word in words), error.value


def test_targets_are_ours_or_pefts():
    settings = LoraConfig(rank=2, targets=("up_proj", "v", "q_proj"))
    assert settings.adapters() == Lora(2, 16.0, ("q", "v", "up"))
    assert LoraConfig().adapters() is None
    assert LoraConfig(rank=1).adapters().targets == LORA_TARGETS


# ---------------------------------------------------------------------- the decoder and its weights elsewhere


@pytest.mark.parametrize("family", ["qwen3", "mistral_window"], indirect=True)
def test_decoding_with_adapters_equals_the_full_pass(family):
    """By `decode` and `extend`, unrolled and scanned, with no merged weights anywhere."""
    config, graphdef, params = adapted(*family[2:3], family[4])
    model, tokens = nnx.merge(graphdef, params), some_tokens(config)
    B, T = tokens.shape
    positions = np.broadcast_to(np.arange(T), tokens.shape)
    full = np.asarray(model(tokens, positions))
    for unrolled in (True, False):
        layers = model.unstack() if unrolled else None
        _, k, v = model.prefill(tokens[:, :5], positions[:, :5])
        cache = insert(
            make_cache(config, B, T, jnp.dtype(jnp.float32), unrolled), jnp.ones(B, bool), jnp.arange(B), k, v
        )
        extend = jax.jit(lambda *a, layers=layers: model.extend(*a, layers))
        hidden, cache = extend(tokens[:, 5:12], positions[:, 5:12], jnp.arange(B), cache)
        np.testing.assert_allclose(hidden, full[:, 5:12], atol=5e-5)
        decode = jax.jit(lambda *a, layers=layers: model.decode(*a, layers))
        for t in range(12, 15):
            hidden, cache = decode(tokens[:, t], jnp.full(B, t), cache)
            np.testing.assert_allclose(hidden, full[:, t], atol=5e-5)


@one_family
def test_fresh_adapters_change_nothing(family):
    _, _, config, graphdef, params = family
    config, with_adapters, adapted_params = attach(config, params, ALL, jax.random.key(0))
    tokens = some_tokens(config)
    np.testing.assert_array_equal(logits(with_adapters, adapted_params, tokens), logits(graphdef, params, tokens))
    a = host_values(adapted_params)["q_lora_a"]
    assert abs(a).max() <= 64**-0.5 < 1.05 * abs(a).max()  # PEFT's: uniform in +-1 / sqrt(in)


@one_family
def test_merged_weights_are_w_plus_the_product(family, tmp_path):
    """In f64, wherever weights go: vLLM by files and by NCCL, and a folder for transformers."""
    config, graphdef, params = adapted(*family[2:3], family[4], SETTINGS["q and v"])
    values, frozen = host_values(params), dict(nnx.to_flat_state(family[4]))
    files = named_tensors(params, config, "float32")
    nccl = {name: np.asarray(tensor) for name, tensor in device_tensors(params, config, "float32")}
    save_hf(params, config, tmp_path / "exported")
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert files.keys() == nccl.keys() == exported.keys() == dict(family[0].named_parameters()).keys()
    for name, ours in (("q_proj", "q"), ("v_proj", "v"), ("k_proj", "k")):
        for l in range(config.num_layers):
            expected = np.asarray(frozen["blocks", ours][...][l], np.float64)
            if ours != "k":
                a, b = (values[f"{ours}_lora_{part}"][l].astype(np.float64) for part in "ab")
                expected = expected + 8.0 / 3 * a @ b
            for tensors in (files, nccl, exported):
                found = tensors[f"model.layers.{l}.self_attn.{name}.weight"]
                np.testing.assert_allclose(found.T, expected, rtol=1e-5, atol=1e-6)
    tokens = some_tokens(config)
    _, merged_graphdef, merged = load_hf(tmp_path / "exported")
    assert np.abs(logits(merged_graphdef, merged, tokens) - logits(graphdef, params, tokens)).max() <= 1e-4


def test_the_engine_samples_with_adapters():
    """Greedy tokens of the adapters beside the weights, and of the merged weights."""
    _, plain = nnx.split(initialize(Decoder(CONFIG), jax.random.key(0), scale=0.1))
    config, graphdef, params = adapted(CONFIG, plain)
    merged = merged_state(params, config)
    prompts = [np.arange(3 + i, 9 + 2 * i, dtype=np.int32) for i in range(4)]
    greedy = SamplingParams(max_new_tokens=10, temperature=0.0)

    def tokens(graphdef, params, unroll):
        engine = JaxEngine(graphdef, params, slots=4, max_length=32, unroll=unroll)
        return [c.tokens.tolist() for (c,) in generate(engine, prompts, greedy)]

    expected = tokens(nnx.split(Decoder(CONFIG))[0], merged, True)
    assert tokens(graphdef, params, True) == tokens(graphdef, params, False) == expected
    assert expected != tokens(nnx.split(Decoder(CONFIG))[0], plain, True)
