"""The step that every peer takes: 8 prompts of 20 tokens x 8 samples of 64 new tokens, one AdamW update.

A Qwen2 model of 4 layers, width 256, MLP 704, 4 heads, 2 kv heads, vocabulary 320, random weights. Standard library
only: peers import it in environments of their own.
"""

from __future__ import annotations

import json
import random

PROMPTS, SAMPLES, PROMPT_LENGTH, NEW_TOKENS = 8, 8, 20, 64
SHAPE = {
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
WARM_UP = 3  # steps that are not counted: compilation, first allocations


def prompts(step: int) -> list[list[int]]:
    """Token ids of the step's prompts."""
    rng = random.Random(step)
    return [[rng.randrange(3, 320) for _ in range(PROMPT_LENGTH)] for _ in range(PROMPTS)]


def reward(tokens: list[int]) -> float:
    """Share of small tokens: something that can be learned, at no cost."""
    return sum(t < 160 for t in tokens) / max(len(tokens), 1)


def report(
    peer: str, version: str, dtype: str, seconds: list[float], phases: dict[str, list[float]] | None = None
) -> None:
    """One JSON line on stdout, of the counted steps."""
    counted = {name: values[WARM_UP:] for name, values in (phases or {}).items()}
    line = {"peer": peer, "version": version, "dtype": dtype, "step_s": seconds[WARM_UP:], "phases": counted}
    print(json.dumps(line), flush=True)


def gflop() -> dict[str, float]:
    """Arithmetic of a step in GFLOP, matmuls only: 2 operations for each weight and token, attention besides."""
    D, F, L, V = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_hidden_layers"], SHAPE["vocab_size"]
    weights = L * (D * D * 2 + D * (D // 2) * 2 + 3 * D * F) + V * D
    length, rows = PROMPT_LENGTH + NEW_TOKENS, PROMPTS * SAMPLES
    per_context = 4 * L * D
    prefill = PROMPTS * PROMPT_LENGTH * (2 * weights + per_context * PROMPT_LENGTH / 2)
    decode = rows * NEW_TOKENS * (2 * weights + per_context * (PROMPT_LENGTH + NEW_TOKENS / 2))
    update = 3 * rows * length * (2 * weights + per_context * length / 2)
    return {"prefill": prefill / 1e9, "decode": decode / 1e9, "update": update / 1e9}
