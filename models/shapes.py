"""Published shapes by name, for work that needs no weights. Fields of each model's config.json on the Hugging Face hub.

Sources, read as huggingface.co/NAME/blob/main/config.json: Qwen/Qwen2.5-Coder-{0.5B,1.5B,3B,7B,14B,32B} (Hui et al.,
arXiv 2409.12186) and meta-llama/Llama-3.1-{8B,70B} (Grattafiori et al., arXiv 2407.21783). The dtype, token ids and
settings that do not affect the numbers are left out.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from models.config import ModelConfig, from_hf


def _qwen(width: int, mlp: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu",
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "tie_word_embeddings": tied,
        "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "use_sliding_window": False,
    }  # fmt: skip


def _llama(width: int, mlp: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": False,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }  # fmt: skip


SHAPES: dict[str, dict[str, Any]] = {
    "Qwen2.5-Coder-0.5B": _qwen(896, 4864, 24, 14, 2, 151_936, True),
    "Qwen2.5-Coder-1.5B": _qwen(1536, 8960, 28, 12, 2, 151_936, True),
    "Qwen2.5-Coder-3B": _qwen(2048, 11_008, 36, 16, 2, 151_936, True),
    "Qwen2.5-Coder-7B": _qwen(3584, 18_944, 28, 28, 4, 152_064, False),
    "Qwen2.5-Coder-14B": _qwen(5120, 13_824, 48, 40, 8, 152_064, False),
    "Qwen2.5-Coder-32B": _qwen(5120, 27_648, 64, 40, 8, 152_064, False),
    "Llama-3.1-8B": _llama(4096, 14_336, 32, 32),
    "Llama-3.1-70B": _llama(8192, 28_672, 80, 64),
}


def known_shape(name: str) -> ModelConfig | None:
    """The shape with this name, with or without its owner and "-Instruct"; None if it is not in the table."""
    short = name.rstrip("/").rsplit("/", 1)[-1].removesuffix("-Instruct")
    return from_hf(SHAPES[short], short) if short in SHAPES else None


def nearest_shape(name: str) -> str:
    """A hint for a name that is not in the table."""
    near = get_close_matches(name.rsplit("/", 1)[-1], SHAPES, 1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(SHAPES)}"
