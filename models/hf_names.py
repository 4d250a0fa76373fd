"""Names of tensors in Hugging Face folders, and the parameters that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Our name in a block -> Hugging Face's name in a layer, and whether the matrix is transposed ([in, out] here).
_BLOCK_TENSORS = {
    "attention_norm": ("input_layernorm.weight", False),
    "q": ("self_attn.q_proj.weight", True),
    "k": ("self_attn.k_proj.weight", True),
    "v": ("self_attn.v_proj.weight", True),
    "o": ("self_attn.o_proj.weight", True),
    "q_bias": ("self_attn.q_proj.bias", False),
    "k_bias": ("self_attn.k_proj.bias", False),
    "v_bias": ("self_attn.v_proj.bias", False),
    "o_bias": ("self_attn.o_proj.bias", False),
    "q_norm": ("self_attn.q_norm.weight", False),
    "k_norm": ("self_attn.k_norm.weight", False),
    "mlp_norm": ("post_attention_layernorm.weight", False),
    "gate": ("mlp.gate_proj.weight", True),
    "up": ("mlp.up_proj.weight", True),
    "down": ("mlp.down_proj.weight", True),
}
_OTHER_TENSORS = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "unembed": "lm_head.weight",
}


def hf_tensors(path: Sequence[Any], layers: int) -> tuple[list[str], bool, bool]:
    """Names of the Hugging Face tensors of a parameter; whether they are stacked over layers, and transposed."""
    if path[0] == "blocks":
        name, transposed = _BLOCK_TENSORS[path[1]]
        return [f"model.layers.{l}.{name}" for l in range(layers)], True, transposed
    return [_OTHER_TENSORS[path[0]]], False, False
