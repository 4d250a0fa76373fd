"""ModelConfig, the architecture of a decoder, from the fields of a Hugging Face config.json."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from models.files import ConversionError, read_json

Require = Callable[[bool, str], None]
_LAYER_TYPES = ("full_attention", "sliding_attention")


class UnsupportedModelError(ValueError):
    """A config.json needs something that the decoder does not have."""


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
    """Our names of matrices, in order, from ours or PEFT's (q or q_proj). Raises ValueError with the nearest name."""
    known = {name: name for name in LORA_TARGETS} | {f"{name}_proj": name for name in LORA_TARGETS}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(f'{n}_proj' for n in LORA_TARGETS)}"
            raise ValueError(f"{name!r} does not name a matrix that can have an adapter; {hint}")
    return tuple(name for name in LORA_TARGETS if name in {known[n] for n in names})


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a Qwen2, Qwen3, Llama 3 or Mistral decoder. The families differ only in these fields."""

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
    lora: Lora | None = None  # adapters beside some matrices; not part of a config.json


# Fields of config.json that the decoder reads; null means that the file does not define it. A field in none of these
# tables is an error: silently ignoring it would give a silently wrong model.
_COUNT = ("a whole number > 0", lambda v: type(v) is int and v > 0)
_INDEX = ("a whole number >= 0", lambda v: type(v) is int and v >= 0)
_NUMBER = ("a number > 0", lambda v: type(v) in (int, float) and 0 < v < math.inf)
_FLAG = ("true or false", lambda v: type(v) is bool)
_OBJECT = ("an object", lambda v: isinstance(v, dict))
_NAMES = ("a list of names", lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v))
_READ: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "architectures": _NAMES, "vocab_size": _COUNT, "hidden_size": _COUNT, "intermediate_size": _COUNT,
    "num_hidden_layers": _COUNT, "num_attention_heads": _COUNT, "num_key_value_heads": _COUNT, "head_dim": _COUNT,
    "max_position_embeddings": _COUNT, "original_max_position_embeddings": _COUNT, "rms_norm_eps": _NUMBER,
    "rope_theta": _NUMBER, "rope_scaling": _OBJECT, "rope_parameters": _OBJECT, "attention_bias": _FLAG,
    "tie_word_embeddings": _FLAG, "use_sliding_window": _FLAG, "max_window_layers": _INDEX, "layer_types": _NAMES,
}  # fmt: skip
_READ_APART = {"model_type", "sliding_window"}
# Fields whose other values switch on features that the decoder does not have.
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),  # two names of one function
    "mlp_bias": (False,),
    "partial_rotary_factor": (1,),
    "rope_interleaved": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "tie_encoder_decoder": (False,),
    "use_mrope": (False,),
}
# Fields that do not affect logits: how the model was trained or is run elsewhere, and the parts of GenerationConfig
# that transformers 4 wrote into config.json.
_WITHOUT_EFFECT = {
    "_name_or_path", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id",
    "id2label", "initializer_range", "label2id", "output_attentions", "output_hidden_states", "pad_token_id",
    "pretraining_tp", "problem_type", "return_dict", "torch_dtype", "transformers_version", "use_cache",
    "unsloth_version", "unsloth_fixed", "tokenizer_class", "dtype_str", "_attn_implementation_autoset",
    "_attn_implementation", "attn_implementation", "_commit_hash", "finetuning_task", "is_decoder", "is_llama_config",
    "prefix", "sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id", "decoder_start_token_id",
    "task_specific_params", "tf_legacy_loss", "torchscript", "transformers.js_config", "use_bfloat16",
    "use_flash_attn", "cross_attention_hidden_size", "hidden_dropout", "resid_pdrop", "embd_pdrop",
    "gradient_checkpointing", "model_max_length", "max_sequence_length",
    "bad_words_ids", "begin_suppress_tokens", "cache_implementation", "diversity_penalty", "do_sample",
    "early_stopping", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff",
    "exponential_decay_length_penalty", "force_words_ids", "forced_bos_token_id", "forced_eos_token_id",
    "generation_config", "length_penalty", "max_length", "max_new_tokens", "max_time", "min_length", "min_new_tokens",
    "min_p", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_logits",
    "output_scores", "penalty_alpha", "remove_invalid_values", "renormalize_logits", "repetition_penalty",
    "return_dict_in_generate", "stop_strings", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
}  # fmt: skip


class _Family(NamedTuple):
    """Defaults of a model_type for what its config.json may leave out, as in transformers' classes."""

    architecture: str
    defaults: dict[str, Any]
    qkv_bias: bool = False
    biases: bool = False  # whether attention_bias is read, for all four projections
    windows: bool = False  # whether use_sliding_window, max_window_layers and layer_types are read


_QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32_768, "sliding_window": 4096, "max_window_layers": 28}
_FAMILIES = {
    "qwen2": _Family("Qwen2ForCausalLM", _QWEN, qkv_bias=True, windows=True),
    "qwen3": _Family("Qwen3ForCausalLM", _QWEN | {"head_dim": 128}, biases=True, windows=True),
    "llama": _Family("LlamaForCausalLM", {"max_position_embeddings": 2048}, biases=True),
    "mistral": _Family(
        "MistralForCausalLM",
        {"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096},
    ),
}


def read_config(folder: str | Path) -> ModelConfig:
    """ModelConfig of a Hugging Face model folder.

    Raises FileNotFoundError if it has no config.json, UnsupportedModelError as `from_hf` does and for a file that is
    not a JSON object.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a model folder has a config.json beside its weights")
    return from_hf(read_json(path, UnsupportedModelError), str(path))


def from_hf(fields: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """ModelConfig from the fields of a config.json of transformers 4 or 5, with transformers' defaults.

    Raises UnsupportedModelError naming the first field, or value, that the decoder does not have.
    """

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise UnsupportedModelError(f"{where}: {message}")

    name = fields.get("model_type")
    known = isinstance(name, str) and name in _FAMILIES
    architectures = fields.get("architectures") or []
    require(
        known,
        f"model_type {name!r} (architectures {architectures}) is not supported; supported: {', '.join(_FAMILIES)}",
    )
    family = _FAMILIES[str(name)]
    require(
        architectures in ([], [family.architecture]), f"architectures {architectures!r} is not supported for {name}"
    )
    _check_fields(fields, require)
    given = family.defaults | fields  # null stays: it differs from a missing field
    heads, width = given["num_attention_heads"], given["hidden_size"]
    kv_heads = given.get("num_key_value_heads") or heads
    require(heads % kv_heads == 0, f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    head_dim = given.get("head_dim")
    if head_dim is None:
        require(width % heads == 0, f"hidden_size {width} is not a multiple of num_attention_heads {heads}")
        head_dim = width // heads
    require(head_dim % 2 == 0, f"head_dim {head_dim} is odd, but rotary positions need pairs")
    biases = family.biases and bool(given.get("attention_bias"))
    windows = _windows(given, family, require)
    theta, scaling = _rope(given, windows, require)
    return ModelConfig(
        model_type=str(name),
        vocab_size=given["vocab_size"],
        hidden_size=width,
        intermediate_size=given["intermediate_size"],
        num_layers=given["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_length=given["max_position_embeddings"] or family.defaults["max_position_embeddings"],
        norm_epsilon=given.get("rms_norm_eps") or 1e-6,
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=family.qkv_bias or biases,
        output_bias=biases,
        qk_norm=name == "qwen3",
        tied_embeddings=bool(given.get("tie_word_embeddings")),
        windows=windows,
    )


def _check_fields(fields: dict[str, Any], require: Require) -> None:
    """All fields are known, have the right type, and need nothing that the decoder does not have."""
    for name, value in sorted(fields.items()):
        if value is None or name in _WITHOUT_EFFECT | _READ_APART:
            continue
        if name in _ONLY:
            allowed = ", ".join(json.dumps(v) for v in _ONLY[name])
            require(value in _ONLY[name], f"{name} {value!r} is not supported; supported: {allowed}")
            continue
        require(name in _READ, f"field {name!r} is not supported")
        wanted, right = _READ[name]
        require(right(value), f"{name} must be {wanted}, is {value!r}")
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        require(fields.get(name) is not None, f"field {name!r} is missing")


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json fields of a model that was not read from one: `from_hf(to_hf(c)) == c`, except for adapters."""
    fields: dict[str, Any] = {
        "architectures": [_FAMILIES[config.model_type].architecture],
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


def read_description(folder: Path) -> ModelConfig:
    """The ModelConfig of a folder with model.json. Raises ConversionError for a file that does not hold one."""
    path = folder / "model.json"
    fields = read_json(path)
    names = {f.name for f in dataclasses.fields(ModelConfig)}
    plain: dict[str, Any] = {name: value for name, value in fields.items() if name in names}
    try:
        scaling, windows, lora = plain.pop("rope_scaling"), tuple(plain.pop("windows")), plain.pop("lora", None)
        scaling = Llama3RopeScaling(**scaling) if scaling else None
        config = from_hf(to_hf(ModelConfig(**plain, rope_scaling=scaling, windows=windows)), str(path))
        lora = Lora(**lora | {"targets": tuple(lora["targets"])}) if lora else None
    except (KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path} does not describe a model: {type(error).__name__}: {error}") from None
    return dataclasses.replace(config, lora=lora)


def _rope(fields: dict[str, Any], windows: tuple[int, ...], require: Require) -> tuple[float, Llama3RopeScaling | None]:
    """Base and scaling, from version 4's rope_theta and rope_scaling or transformers 5's rope_parameters.

    Where a file has both, rope_scaling wins, as in transformers 5. rope_parameters may hold an object for each kind of
    layer; those in use must be equal, because the decoder rotates all layers alike.
    """
    name = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    inside = fields.get(name) or {}
    kinds = {"sliding_attention" if w else "full_attention" for w in windows or (0,)}
    if not any(isinstance(part, dict) for part in inside.values()):
        return _rope_of(fields, inside, name, require)
    odd = sorted(set(inside) - set(_LAYER_TYPES)) + sorted(kinds - set(inside))
    require(not odd, f"{name} has objects for kinds of layers ({', '.join(inside)}); {odd[:1]} does not fit them")
    found = []
    for kind in sorted(kinds):
        require(isinstance(inside[kind], dict), f"{name}.{kind} must be an object, is {inside[kind]!r}")
        found.append(_rope_of(fields, inside[kind], f"{name}.{kind}", require))
    require(len(set(found)) == 1, f"{name} differs between {' and '.join(sorted(kinds))}, which is not supported")
    return found[0]


def _rope_of(
    fields: dict[str, Any], inside: dict[str, Any], name: str, require: Require
) -> tuple[float, Llama3RopeScaling | None]:
    inside = {key: value for key, value in inside.items() if value is not None}
    kind = inside.get("rope_type", inside.get("type", "default"))
    require(kind in ("default", "llama3"), f"rope scaling {kind!r} is not supported; supported: default, llama3")
    names = [f.name for f in dataclasses.fields(Llama3RopeScaling)] if kind == "llama3" else []
    unknown = sorted(set(inside) - {"rope_type", "type", "rope_theta", "partial_rotary_factor", *names})
    require(not unknown, f"{name} has {unknown and unknown[0]!r}, which is not supported with rope_type {kind!r}")
    share = inside.pop("partial_rotary_factor", 1)
    require(share == 1, f"{name}.partial_rotary_factor {share!r} is not supported; supported: 1")
    inside.setdefault("rope_theta", fields.get("rope_theta") or 10_000.0)
    original = fields.get("original_max_position_embeddings")
    if names and (original or "original_max_position_embeddings" not in inside):
        inside["original_max_position_embeddings"] = original or fields["max_position_embeddings"]
    for key in ("rope_theta", *names):
        require(key in inside, f"{name} has no {key!r}, which rope_type llama3 needs")
        require(_NUMBER[1](inside[key]), f"{name}.{key} must be {_NUMBER[0]}, is {inside[key]!r}")
    scaling = Llama3RopeScaling(**{key: inside[key] for key in names}) if names else None
    ordered = scaling is None or scaling.low_freq_factor < scaling.high_freq_factor
    require(ordered, f"{name}.low_freq_factor must be less than high_freq_factor")
    return float(inside["rope_theta"]), scaling


def _windows(fields: dict[str, Any], family: _Family, require: Require) -> tuple[int, ...]:
    """Sliding window of each layer.

    Qwen uses it only with use_sliding_window, in layers from max_window_layers on; Mistral in all layers; a Llama
    config may contain one, which Llama models do not use.
    """
    window, layers = fields.get("sliding_window"), fields["num_hidden_layers"]
    if "sliding_window" not in family.defaults or (family.windows and not fields.get("use_sliding_window")):
        window = None
    require(window is None or _COUNT[1](window), f"sliding_window must be {_COUNT[0]} or null, is {window!r}")
    types = fields.get("layer_types")
    if types is not None:
        require(len(types) == layers, f"layer_types has {len(types)} entries for {layers} layers")
        unknown = sorted(set(types) - set(_LAYER_TYPES))
        require(not unknown, f"layer type {unknown and unknown[0]!r} is not supported")
    if types is None or not family.windows:
        first = (fields.get("max_window_layers") or 0) if family.windows else 0
        types = ["sliding_attention" if window and i >= first else "full_attention" for i in range(layers)]
    sliding = "sliding_attention" in types
    require(not sliding or bool(window), "layer_types has sliding_attention, but no sliding_window is in use")
    return tuple((window or 0) if kind == "sliding_attention" else 0 for kind in types) if sliding else ()
