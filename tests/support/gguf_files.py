"""Small GGUF files, written by the gguf package from models and tokenizers of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from families import randomized
from gguf import GGMLQuantizationType as Kind
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "qwen2_untied": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=False)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=128)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)),
    "llama_bias": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True)),
    "llama3": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE)),
}
ARCHITECTURES = {"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3, "llama": gguf.MODEL_ARCH.LLAMA}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of q or k as in Llama's files, the two halves of a head shuffled like cards."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def contents(model: torch.nn.Module, kind: Kind = Kind.F32) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors of a model's file; in place, the model gets the values that the file's tensors stand for."""
    c: Any = model.config
    name = c.model_type
    names = gguf.get_tensor_name_map(ARCHITECTURES[name], c.num_hidden_layers)
    metadata: dict[str, Any] = {
        "general.architecture": name, f"{name}.block_count": c.num_hidden_layers,
        f"{name}.context_length": c.max_position_embeddings, f"{name}.embedding_length": c.hidden_size,
        f"{name}.feed_forward_length": c.intermediate_size, f"{name}.attention.head_count": c.num_attention_heads,
        f"{name}.attention.head_count_kv": c.num_key_value_heads,
        f"{name}.attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        f"{name}.rope.freq_base": float(c.rope_parameters["rope_theta"]),
    }  # fmt: skip
    if name == "qwen3":
        metadata |= {f"{name}.attention.key_length": c.head_dim, f"{name}.attention.value_length": c.head_dim}
    if name == "llama":
        metadata[f"{name}.rope.dimension_count"] = c.hidden_size // c.num_attention_heads
    tensors: dict[str, np.ndarray] = {}
    for theirs, parameter in model.named_parameters():
        stem, end = theirs.rsplit(".", 1)
        value, own = parameter.detach().numpy(), f"{names.get_name(stem)}.{end}"
        if name == "llama" and ("q_proj" in stem or "k_proj" in stem):
            value = interleaved(value, c.num_attention_heads if "q_proj" in stem else c.num_key_value_heads)
        tensors[own] = quantized(value, kind)
        if value.ndim == 2 and kind != Kind.F32:
            rounded = gguf.quants.dequantize(tensors[own], kind)
            if value.shape[0] and name == "llama" and ("q_proj" in stem or "k_proj" in stem):
                heads = c.num_attention_heads if "q_proj" in stem else c.num_key_value_heads
                rounded = rounded.reshape(heads, -1, 2, c.hidden_size).swapaxes(1, 2).reshape(value.shape)
            with torch.no_grad():
                parameter.copy_(torch.tensor(rounded))
    if c.rope_parameters["rope_type"] == "llama3":
        tensors["rope_freqs.weight"] = llama3_factors(c.hidden_size // c.num_attention_heads, c.rope_parameters)
    return metadata, tensors


def quantized(value: np.ndarray, kind: Kind) -> np.ndarray:
    """A matrix in this format; vectors stay f32."""
    if value.ndim == 1 or kind == Kind.F32:
        return value.astype(np.float32)
    return value.astype(np.float16) if kind == Kind.F16 else Blocks.of(value, kind)


class Blocks(np.ndarray):
    """Bytes of a block format, which knows which."""

    kind: Kind

    @classmethod
    def of(cls, value: np.ndarray, kind: Kind) -> Blocks:
        blocks = gguf.quants.quantize(value.astype(np.float32), kind).view(cls)
        blocks.kind = kind
        return blocks


def llama3_factors(head_dim: int, rope: dict[str, Any]) -> np.ndarray:
    """By what llama.cpp divides each frequency, computed from wavelengths as Llama's own code does."""
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / head_dim)
        longest, shortest = (rope["original_max_position_embeddings"] / rope[n] for n in _ENDS)
        if wavelength < shortest or wavelength > longest:
            factors.append(1.0 if wavelength < shortest else rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / wavelength - rope[_ENDS[0]]) / (
                rope[_ENDS[1]] - rope[_ENDS[0]]
            )
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


_ENDS = ("low_freq_factor", "high_freq_factor")


def write_gguf(path: Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray], **options: Any) -> Path:
    """Writes a file; in 2 or more parts with `split_max_tensors`."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"], **options)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for name, value in metadata.items():
        if name != "general.architecture":
            adders.get(type(value), writer.add_array)(name, value)
    for name, tensor in tensors.items():
        kind = tensor.kind if isinstance(tensor, Blocks) else None
        writer.add_tensor(name, np.asarray(tensor), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def model_file(path: Path, family: str = "qwen2", kind: Kind = Kind.F32, **options: Any) -> tuple[Path, Any]:
    """A file of a random model with a tokenizer, and the model with the values that the file's tensors stand for."""
    model = randomized(MODELS[family])
    metadata, tensors = contents(model, kind)
    return write_gguf(path, metadata | vocabulary(small_bpe()), tensors, **options), model


def small_bpe(pieces: Any = None, size: int = 300, special_first: bool = True) -> Tokenizer:
    """A byte-level BPE tokenizer of Python text, trained with this pre-tokenizer, ChatML's tokens at the ids 0 to 2."""
    pieces = pieces or pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pieces, decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    text = Path(json.__file__).read_text() + "Don't you'll 1234 été  naïve 日本語\n\n\n\tx = 10_000\r\n" * 20
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def vocabulary(tokenizer: Tokenizer, pre: str = "smollm") -> dict[str, Any]:
    """The metadata of a byte-level BPE tokenizer, with words that fill up the vocabulary to 320."""
    described = json.loads(tokenizer.to_str())
    tokens = sorted(described["model"]["vocab"], key=described["model"]["vocab"].__getitem__)
    special = {token["content"] for token in described["added_tokens"]}
    kinds = [3 if token in special else 1 for token in tokens]
    padding = [f"[PAD{i}]" for i in range(len(tokens), SHAPE["vocab_size"])]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens + padding,
        "tokenizer.ggml.token_type": kinds + [5] * len(padding),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in described["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": tokens.index("<|im_start|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.chat_template": CHATML,
    }  # fmt: skip


def split_by(pattern: str) -> Any:
    """The pre-tokenizer of a tokenizer.json: words by an expression, then bytes."""
    words = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
