"""config.json as published and as people edit it: the same logits as transformers, or one line that names the field."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import torch
from families import LLAMA3_ROPE, SHAPE
from flax import nnx
from transformers import AutoConfig, AutoModelForCausalLM

from models.config import UnsupportedModelError, from_hf, read_config
from models.convert import load_hf
from models.decoder import Decoder

OLD_ROPE = {name: value for name, value in LLAMA3_ROPE.items() if name != "rope_theta"}
BASE = {"rms_norm_eps": 1e-5, "rope_theta": 3000.0, "tie_word_embeddings": False}
# Fields on top of SHAPE and BASE; None leaves a field out, NULL writes null.
NULL = object()
VARIANTS = {
    "rope_scaling alone": ("llama", {"rope_scaling": OLD_ROPE}),
    "rope_scaling beside rope_parameters": (
        "llama", {"rope_scaling": OLD_ROPE, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "rope_parameters beside an empty rope_scaling": (
        "llama", {"rope_scaling": {}, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "rope_parameters with a theta, and another outside": ("qwen2", {"rope_parameters": {"rope_theta": 500.0}}),
    "rope_parameters without a theta": ("qwen3", {"rope_parameters": {"rope_type": "default"}}),
    "llama3 without the original length": (
        "llama", {"rope_scaling": {k: v for k, v in OLD_ROPE.items() if not k.startswith("original")}},
    ),
    "llama3 with the original length outside": (
        "llama", {"rope_scaling": OLD_ROPE, "original_max_position_embeddings": 16},
    ),
    "no theta": ("llama", {"rope_theta": None}),
    "llama with a window": ("llama", {"sliding_window": 5}),
    "llama with a window and its switches": (
        "llama", {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "llama with layer types": ("llama", {"sliding_window": 5, "layer_types": ["sliding_attention"] * 3}),
    "mistral with a window": ("mistral", {"sliding_window": 5}),
    "mistral without a window": ("mistral", {"sliding_window": NULL}),
    "mistral that says no window": ("mistral", {"sliding_window": None}),
    "mistral with attention_bias, which it has not": ("mistral", {"attention_bias": True}),
    "qwen2 with a window that is off": ("qwen2", {"sliding_window": 5, "use_sliding_window": False}),
    "qwen2 with a window from the second layer": (
        "qwen2", {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen2 with layer types": (
        "qwen2",
        {
            "sliding_window": 5, "use_sliding_window": True,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen2 with the window's default layers": ("qwen2", {"sliding_window": 5, "use_sliding_window": True}),
    "qwen2 with attention_bias off, which it ignores": ("qwen2", {"attention_bias": False}),
    "llama without kv heads": ("llama", {"num_key_value_heads": None}),
    "qwen2 with kv heads null": ("qwen2", {"num_key_value_heads": NULL}),
    "qwen2 without kv heads": ("qwen2", {"num_key_value_heads": None, "num_attention_heads": 32}),
    "qwen3 without kv heads": ("qwen3", {"num_key_value_heads": None, "num_attention_heads": 32, "head_dim": 4}),
    "mistral without kv heads": ("mistral", {"num_key_value_heads": None, "num_attention_heads": 16}),
    "qwen3 without head_dim": ("qwen3", {"head_dim": None}),
    "llama with head_dim null": ("llama", {"head_dim": NULL}),
    "mistral with a head_dim of its own": ("mistral", {"head_dim": 24}),
    "no epsilon": ("qwen2", {"rms_norm_eps": None}),
    "no length": ("mistral", {"max_position_embeddings": None}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "swish": ("llama", {"hidden_act": "swish"}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}),
}  # fmt: skip


def fields_of(family, changes):
    architecture = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
    fields = {"model_type": family, "architectures": [f"{architecture}ForCausalLM"], **SHAPE, **BASE} | changes
    return {k: None if v is NULL else v for k, v in fields.items() if v is not None}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(name, tmp_path):
    family, changes = VARIANTS[name]
    fields = fields_of(family, changes)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path)).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.2 * torch.randn_like(weight))
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(fields))  # not what transformers makes of it
    config, graphdef, params = load_hf(tmp_path)
    assert config.max_length == model.config.max_position_embeddings
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 40))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    positions = np.broadcast_to(np.arange(40), tokens.shape)

    @jax.jit
    def logits(params):
        decoder: Decoder = nnx.merge(graphdef, params)
        return decoder(tokens, positions) @ decoder.unembedding().T

    ours = np.asarray(logits(params))
    assert np.abs(ours - theirs).max() <= 2e-4 * np.abs(theirs).max(), name


SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
    "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 49152,
}  # fmt: skip


def test_smollm2_is_read():
    """The fields of HuggingFaceTB/SmolLM2-135M-Instruct's config.json on the hub."""
    config = from_hf(SMOLLM2)
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.rope_theta) == (9, 3, 64, 100_000)


def test_fields_without_effect_are_read():
    """All that transformers can write of generation into config.json, and null for what is not there."""
    from transformers import GenerationConfig

    plain = fields_of("llama", {})
    known = set(GenerationConfig().to_dict()) - {"transformers_version", "_from_model_config"}
    generation = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    assert set(generation) <= known
    nothing = dict.fromkeys(["quantization_config", "rope_scaling", "sliding_window", "layer_types", "mystery"])
    assert from_hf(plain | generation | nothing) == from_hf(plain)


OK = {"llama": fields_of("llama", {}), "qwen2": fields_of("qwen2", {}), "mistral": fields_of("mistral", {})}


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"mystery": 1}, "field 'mystery'"),
        ("llama", {"quantization_config": {"bits": 4}}, "field 'quantization_config'"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved True is not supported; supported: false"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("llama", {"rope_parameters": {"mystery": 1}}, "rope_parameters has 'mystery'"),
        ("llama", {"rope_parameters": {"rope_theta": 1e6, "factor": 4.0}}, "rope_parameters has 'factor'"),
        ("llama", {"rope_scaling": {"type": "default", "mrope_section": [1, 2]}}, "rope_scaling has 'mrope_section'"),
        ("llama", {"rope_scaling": OLD_ROPE | {"beta_fast": 1}}, "rope_scaling has 'beta_fast'"),
        ("llama", {"rope_scaling": OLD_ROPE | {"factor": "8"}}, "rope_scaling.factor must be a number > 0, is '8'"),
        ("llama", {"rope_scaling": OLD_ROPE | {"factor": None}}, "rope_scaling has no 'factor'"),
        ("llama", {"rope_scaling": OLD_ROPE | {"high_freq_factor": 1.0}}, "low_freq_factor must be less"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor 0.5"),
        ("llama", {"rope_parameters": {"rope_type": ["llama3"]}}, "rope scaling ['llama3']"),
        ("llama", {"rope_parameters": [1]}, "rope_parameters must be an object, is [1]"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling must be an object, is 'linear'"),
        ("llama", {"rope_theta": "10000"}, "rope_theta must be a number > 0, is '10000'"),
        ("llama", {"rope_theta": float("nan")}, "rope_theta must be a number > 0, is nan"),
        ("llama", {"hidden_size": "64"}, "hidden_size must be a whole number > 0, is '64'"),
        ("llama", {"hidden_size": 64.0}, "hidden_size must be a whole number > 0, is 64.0"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads must be a whole number > 0, is 0"),
        ("llama", {"num_key_value_heads": -2}, "num_key_value_heads must be a whole number > 0, is -2"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers must be a whole number > 0, is True"),
        ("llama", {"hidden_size": 66}, "hidden_size 66 is not a multiple of num_attention_heads 4"),
        ("llama", {"head_dim": 15}, "head_dim 15 is odd"),
        ("llama", {"rms_norm_eps": -1.0}, "rms_norm_eps must be a number > 0, is -1.0"),
        ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, is 'false'"),
        ("llama", {"hidden_act": ["silu"]}, "hidden_act ['silu'] is not supported"),
        ("llama", {"model_type": ["llama"]}, "model_type ['llama']"),
        ("llama", {"model_type": None}, "model_type None"),
        ("llama", {"architectures": "LlamaForCausalLM"}, "architectures 'LlamaForCausalLM'"),
        ("llama", {"vocab_size": None}, "field 'vocab_size' is missing"),
        ("qwen2", {"layer_types": "full_attention"}, "layer_types must be a list of names"),
        ("qwen2", {"layer_types": [{}] * 3}, "layer_types must be a list of names"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 3 layers"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "no sliding_window is in use"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 0}, "sliding_window must be a whole number > 0"),
        ("mistral", {"sliding_window": "4096"}, "sliding_window must be a whole number > 0 or null, is '4096'"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(family, changes, words, tmp_path):
    assert from_hf(OK[family])
    (tmp_path / "config.json").write_text(json.dumps(OK[family] | changes))
    with pytest.raises(UnsupportedModelError) as error:
        read_config(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: ") and words in str(error.value)
    assert "\n" not in str(error.value)


NEAR, FAR = {"rope_type": "default", "rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 1e4}


def test_rope_parameters_by_kind_of_layer():
    """transformers 5's form for models whose layers differ; of these families it can load none that has it."""
    windows = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    assert from_hf(OK["qwen2"] | {"rope_parameters": {"full_attention": NEAR}}).rope_theta == 5e5
    assert from_hf(OK["llama"] | {"rope_parameters": {"full_attention": NEAR}}).rope_theta == 5e5
    both = {"full_attention": NEAR, "sliding_attention": NEAR}
    assert from_hf(OK["qwen2"] | windows | {"rope_parameters": both}).rope_theta == 5e5
    for changes, words in (
        (
            windows | {"rope_parameters": both | {"sliding_attention": FAR}},
            "differs between full_attention and sliding",
        ),
        (windows | {"rope_parameters": {"full_attention": NEAR}}, "sliding_attention"),
        ({"rope_parameters": {"full_attention": NEAR, "rope_theta": 1e4}}, "rope_theta"),
        (
            {"rope_parameters": {"full_attention": NEAR | {"mystery": 1}}},
            "rope_parameters.full_attention has 'mystery'",
        ),
        ({"rope_parameters": {"mystery": NEAR}}, "mystery"),
    ):
        with pytest.raises(UnsupportedModelError) as error:
            from_hf(OK["qwen2"] | changes)
        assert words in str(error.value)
