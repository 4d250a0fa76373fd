"""ModelConfig: what the decoder needs to know, read from the fields of a Hugging Face config.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class UnsupportedModelError(ValueError):
    """A config.json asks for something that the decoder does not have."""


@dataclass(frozen=True)
class Llama3RopeScaling:
    """Frequency-dependent RoPE scaling of Llama 3.1 and later (config.json's rope_type "llama3")."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")  # the matrices of a layer; PEFT's names end with _proj


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters: y = x W + scale (x A) B with A [in, rank], B [rank, out] (Hu et al., arXiv 2106.09685)."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # of LORA_TARGETS, in their order
    rank_stabilized: bool = False

    @property
    def scale(self) -> float:
        """alpha / rank, or alpha / sqrt(rank) where it is rank-stabilized (Kalajdzievski, arXiv 2312.03732)."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)


def lora_targets(names: Sequence[str]) -> tuple[str, ...]:
    """Our names of matrices, in order, from ours or PEFT's (q or q_proj). Raises ValueError naming the nearest."""
    known = {name: name for name in LORA_TARGETS} | {f"{name}_proj": name for name in LORA_TARGETS}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(f'{n}_proj' for n in LORA_TARGETS)}"
            raise ValueError(f"{name!r} is no matrix that can have an adapter; {hint}")
    return tuple(name for name in LORA_TARGETS if name in {known[n] for n in names})


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a Qwen2, Qwen3, Llama 3 or Mistral decoder. Families differ in these fields only."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_length: int
    norm_epsilon: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: Llama3RopeScaling | None = None
    qkv_bias: bool = False
    output_bias: bool = False  # bias of the attention's output projection
    qk_norm: bool = False
    tied_embeddings: bool = False
    windows: tuple[int, ...] = ()  # per layer: tokens that a token sees, itself included; 0: all. (): all, everywhere
    lora: Lora | None = None  # adapters beside some matrices, which a config.json knows nothing of


# Fields of config.json that the decoder reads, and those that do not change its numbers. Any other is an error,
# because a field that is silently ignored is a model that is silently wrong.
_READ = {
    "model_type", "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta",
    "rope_scaling", "rope_parameters", "attention_bias", "mlp_bias", "tie_word_embeddings", "sliding_window",
    "use_sliding_window", "max_window_layers", "layer_types", "hidden_act",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "_name_or_path", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id",
    "id2label", "initializer_range", "label2id", "output_attentions", "output_hidden_states", "pad_token_id",
    "pretraining_tp", "problem_type", "return_dict", "torch_dtype", "transformers_version", "use_cache",
    "is_encoder_decoder", "unsloth_version", "unsloth_fixed", "use_mrope", "tokenizer_class", "dtype_str",
    "_attn_implementation_autoset",
}  # fmt: skip
_FAMILIES = {
    "qwen2": ("Qwen2ForCausalLM", True),
    "qwen3": ("Qwen3ForCausalLM", False),
    "llama": ("LlamaForCausalLM", False),
    "mistral": ("MistralForCausalLM", False),
}


def read_config(folder: str | Path) -> ModelConfig:
    """ModelConfig of a Hugging Face model folder.

    Raises FileNotFoundError without a config.json there, UnsupportedModelError as `from_hf` does.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a model folder has a config.json beside its weights")
    try:
        fields = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UnsupportedModelError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    return from_hf(fields, str(path))


def from_hf(fields: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """ModelConfig from the fields of a config.json, of transformers 4 or 5.

    Raises UnsupportedModelError naming the first field, or value, that the decoder does not have.
    """

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise UnsupportedModelError(f"{where}: {message}")

    family = fields.get("model_type")
    architectures = fields.get("architectures") or []
    require(
        family in _FAMILIES,
        f"model_type {family!r} (architectures {architectures}) is not supported; supported: {', '.join(_FAMILIES)}",
    )
    architecture, qkv_bias = _FAMILIES[str(family)]
    require(architectures in ([], [architecture]), f"architectures {architectures} is not supported for {family}")
    unknown = sorted(set(fields) - _READ - _WITHOUT_EFFECT)
    require(not unknown, f"field {unknown and unknown[0]!r} is not supported")
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        require(name in fields, f"field {name!r} is missing")
    activation = fields.get("hidden_act", "silu")
    require(activation == "silu", f"hidden_act {activation!r} is not supported; supported: silu")
    require(not fields.get("mlp_bias"), "mlp_bias true is not supported")
    if "attention_bias" in fields and family != "qwen2":
        qkv_bias = bool(fields["attention_bias"])
    heads = fields["num_attention_heads"]
    kv_heads = fields.get("num_key_value_heads") or heads
    require(heads % kv_heads == 0, f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    theta, scaling = _rope(fields, require)
    return ModelConfig(
        model_type=str(family),
        vocab_size=fields["vocab_size"],
        hidden_size=fields["hidden_size"],
        intermediate_size=fields["intermediate_size"],
        num_layers=fields["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=fields.get("head_dim") or fields["hidden_size"] // heads,
        max_length=fields.get("max_position_embeddings", 2048),
        norm_epsilon=fields.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=qkv_bias,
        output_bias=qkv_bias and family in ("llama", "qwen3"),
        qk_norm=family == "qwen3",
        tied_embeddings=fields.get("tie_word_embeddings", False),
        windows=_windows(fields, require),
    )


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json fields of a model that was not read from one: `from_hf(to_hf(c)) == c` but for adapters."""
    fields: dict[str, Any] = {
        "architectures": [_FAMILIES[config.model_type][0]],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_act": "silu",
    }
    if config.rope_scaling is not None:
        fields["rope_scaling"] = {"rope_type": "llama3"} | dataclasses.asdict(config.rope_scaling)
    if config.model_type in ("llama", "qwen3"):
        fields["attention_bias"] = config.qkv_bias
    if config.model_type == "mistral":
        fields["sliding_window"] = max(config.windows) if config.windows else None
    elif config.windows:
        fields |= {
            "use_sliding_window": True,
            "sliding_window": max(config.windows),
            "max_window_layers": sum(w == 0 for w in config.windows),
            "layer_types": ["sliding_attention" if w else "full_attention" for w in config.windows],
        }
    return fields


def _rope(fields: dict[str, Any], require: Any) -> tuple[float, Llama3RopeScaling | None]:
    """Base and scaling, from transformers 5's rope_parameters or version 4's rope_theta and rope_scaling."""
    parameters = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or fields.get("rope_theta") or 10_000.0)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    require(kind in ("default", "llama3"), f"rope scaling {kind!r} is not supported; supported: default, llama3")
    if kind == "default":
        return theta, None
    names = [f.name for f in dataclasses.fields(Llama3RopeScaling)]
    for name in names:
        require(name in parameters, f"rope scaling llama3 has no field {name!r}")
    return theta, Llama3RopeScaling(**{name: parameters[name] for name in names})


def _windows(fields: dict[str, Any], require: Any) -> tuple[int, ...]:
    """Sliding window of each layer. Qwen's is used only with use_sliding_window, in layers from max_window_layers."""
    window = fields.get("sliding_window") or 0
    layers = fields["num_hidden_layers"]
    types = fields.get("layer_types")
    if fields["model_type"] in ("qwen2", "qwen3") and not fields.get("use_sliding_window"):
        window = 0
    if types is None and fields["model_type"] in ("qwen2", "qwen3"):
        first = fields.get("max_window_layers", 28)
        types = ["sliding_attention" if window and i >= first else "full_attention" for i in range(layers)]
    if types is None:
        types = ["sliding_attention" if window else "full_attention"] * layers
    require(len(types) == layers, f"layer_types has {len(types)} entries for {layers} layers")
    unknown = set(types) - {"sliding_attention", "full_attention"}
    require(not unknown, f"layer type {unknown and min(unknown)!r} is not supported")
    windows = tuple(window if kind == "sliding_attention" else 0 for kind in types)
    return windows if any(windows) else ()
