"""The config.json of a GGUF file, from its metadata, and its tensors as that configuration needs them.

Names of the metadata: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from models.config import ModelConfig, UnsupportedModelError, from_hf
from models.gguf import PLAIN, GgufFile, GgufTensors, Stored, read_gguf, read_rows

EMBEDDING, HEAD, FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
_CLASSES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}
_INTERLEAVED = ("llama", "mistral")  # architectures whose files have q and k in the order of the original Llama code
_COUNTS = {
    "block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}  # fmt: skip
_READ_APART = {
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.sliding_window",
    "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count",
    "rope.scaling.original_context_length",
}  # fmt: skip
# Settings whose other values switch on features that the decoder does not have.
_ONLY: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,), "expert_count": (0,), "expert_used_count": (0,), "rope.scale_linear": (1.0,),
    "rope.scaling.type": ("none",), "rope.scaling.factor": (1.0,), "rope.scaling.attn_factor": (1.0,),
    "use_parallel_residual": (False,),
}  # fmt: skip
_WITHOUT_EFFECT = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned"}
LLAMA3_FACTORS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # of all Llama 3.1, 3.2 and 3.3 models
LLAMA3_CONTEXT = 8192


def open_gguf(path: Path, untie: bool = False) -> tuple[dict[str, Any], ModelConfig, GgufTensors]:
    """(fields of its config.json, configuration, tensors) of a GGUF file.

    A model is tied if the file has no head, or one that is a second quantization of the embedding: the copy with more
    bits is then used for both. `untie` keeps such a head.

    Raises UnsupportedModelError naming what the decoder does not have, and as `read_gguf` does.
    """
    file = read_gguf(path)
    fields = _fields(file)
    embedding, tied = EMBEDDING, HEAD not in file.tensors
    if not tied and not untie and _same_matrix(file):
        embedding, tied = max(EMBEDDING, HEAD, key=lambda name: file.tensors[name].bits), True
    fields["tie_word_embeddings"] = tied
    config = from_hf(fields, str(path))
    heads = (config.num_heads, config.num_kv_heads) if _architecture(file) in _INTERLEAVED else ()
    return fields, config, GgufTensors(file, heads, embedding, tied)


def _architecture(file: GgufFile) -> str:
    name = file.metadata.get("general.architecture")
    if name not in _CLASSES:
        raise UnsupportedModelError(
            f"{file.path}: general.architecture {name!r} is not supported; supported: {', '.join(_CLASSES)}"
        )
    return name


def _fields(file: GgufFile) -> dict[str, Any]:
    """The fields of config.json, except whether it is tied."""
    name = _architecture(file)
    given = {key.removeprefix(f"{name}."): v for key, v in file.metadata.items() if key.startswith(f"{name}.")}

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise UnsupportedModelError(f"{file.path}: {message}")

    for key, value in sorted(given.items()):
        if key in _ONLY:
            require(value in _ONLY[key], f"{name}.{key} {value!r} is not supported; supported: {_ONLY[key][0]!r}")
        known = key in _COUNTS or key in _READ_APART or key in _ONLY or key in _WITHOUT_EFFECT
        require(known, f"{name}.{key} {value!r:.40} is not supported")
    for key in (*_COUNTS, "attention.layer_norm_rms_epsilon"):
        require(key in given, f"{name}.{key} is missing")
    for key in sorted(given.keys() & {*_COUNTS, *_READ_APART} - {"attention.head_count_kv"}):
        require(type(given[key]) in (int, float), f"{name}.{key} must be a number, is {given[key]!r:.40}")
    theta = _exact(given.get("rope.freq_base", 10_000.0))
    require(theta > 0, f"{name}.rope.freq_base must be more than 0, is {theta}")
    require(EMBEDDING in file.tensors, f"tensor {EMBEDDING} is missing")
    heads = given["attention.head_count"]
    head_dim = given.get("attention.key_length", given["embedding_length"] // max(1, heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        same = given.get(key, head_dim) == head_dim
        require(same, f"{name}.{key} {given.get(key)!r} differs from the size of a head, {head_dim}; not supported")
    window = given.get("attention.sliding_window", 0)
    window = window if window < given["context_length"] else 0
    require(not window or name in _INTERLEAVED, f"{name}.attention.sliding_window {window} is not supported")
    kind = "mistral" if window else name
    fields: dict[str, Any] = {"architectures": [_CLASSES[kind]], "model_type": kind}
    fields |= {theirs: given[ours] for ours, theirs in _COUNTS.items()}
    fields |= {
        "num_key_value_heads": given.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": file.tensors[EMBEDDING].shape[0],
        "rms_norm_eps": _exact(given["attention.layer_norm_rms_epsilon"]),
        "rope_theta": theta,
        "hidden_act": "silu",
    }
    if kind in ("llama", "qwen3"):
        fields["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    if kind == "mistral":
        fields["sliding_window"] = window or None
    scaling = _scaling(file, head_dim, theta, given.get("rope.scaling.original_context_length"))
    fields |= {"rope_scaling": scaling} if scaling else {}
    return fields | _special_tokens(file)


def _exact(value: float) -> float:
    """The shortest number that the f32 of the file stands for: 1e-06 for 9.999999974752427e-07."""
    return float(str(np.float32(value)))


def _special_tokens(file: GgufFile) -> dict[str, Any]:
    ids = {name: file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "padding")}
    named = {"bos_token_id": ids["bos"], "pad_token_id": ids["padding"], "eos_token_id": end_tokens(file.metadata)}
    return {name: value for name, value in named.items() if value not in (None, [])}


def end_tokens(metadata: dict[str, Any]) -> list[int]:
    """The tokens that end a text, a turn (eot) or a message to a tool (eom)."""
    found = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return list(dict.fromkeys(token for token in found if token is not None))


def _scaling(file: GgufFile, head_dim: int, theta: float, original: int | None) -> dict[str, Any] | None:
    """Llama 3.1's rope scaling, from the tensor of what each frequency is divided by; None if that is 1 for all.

    Raises UnsupportedModelError for other divisors.
    """
    if FACTORS not in file.tensors:
        return None
    stored = file.tensors[FACTORS]
    if stored.shape != (head_dim // 2,) or stored.kind not in PLAIN:
        raise UnsupportedModelError(
            f"{file.path}: tensor {FACTORS} has shape {stored.shape} and format {stored.kind.name}, should have "
            f"({head_dim // 2},) and F32"
        )
    factors = np.concatenate([v[0] for _, v in read_rows(stored, np.zeros(1, int))]).astype(np.float64)
    if np.all(factors == 1):
        return None
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    low, high = LLAMA3_FACTORS.values()
    factor = round(float(factors.max()), 4)
    for context in {original or LLAMA3_CONTEXT, LLAMA3_CONTEXT}:
        blend = np.clip((context * frequencies / (2 * np.pi) - low) / (high - low), 0, 1)
        if np.allclose(1 / ((1 - blend) / factor + blend), factors, rtol=1e-4):
            return {"rope_type": "llama3", "factor": factor, **LLAMA3_FACTORS} | {
                "original_max_position_embeddings": context
            }
    raise UnsupportedModelError(f"{file.path}: {FACTORS} is not Llama 3.1's rope scaling; no other is supported")


def _same_matrix(file: GgufFile, rows: int = 1024) -> bool:
    """Whether embedding and head are two encodings of one matrix, by these many of their rows.

    A format of b bits is off by about 1.6 / 2^b of the values, two different matrices by more than the values
    themselves; the limit is 4 / 2^b for the coarser format. Without a block format they must be equal, once rounded to
    the narrower.
    """
    one, other = sorted((file.tensors[EMBEDDING], file.tensors[HEAD]), key=lambda tensor: tensor.bits)
    if one.shape != other.shape or len(one.shape) != 2:
        return False
    sample = np.linspace(0, one.shape[0] - 1, min(rows, one.shape[0])).astype(int)
    a, b = _sampled(one, sample), _sampled(other, sample)
    if one.kind in PLAIN and other.kind in PLAIN:
        narrow = PLAIN[one.kind]
        return bool(np.array_equal(a.astype(narrow), b.astype(narrow)))
    difference = np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30)
    return bool(difference <= 4 * 2.0**-one.bits)


def _sampled(tensor: Stored, rows: np.ndarray) -> np.ndarray:
    """These rows, one by one, as f32."""
    found = [next(read_rows(tensor, rows[i : i + 1]))[1] for i in range(len(rows))]
    return np.concatenate(found).astype(np.float32)
