"""The step that every peer takes: 8 prompts of 20 tokens x 8 samples of 64 new tokens, one AdamW update.

Qwen2 models of three sizes with random weights. Standard library only: peers import it in environments of their own.
"""

from __future__ import annotations

import argparse
import json
import random
from typing import Any

PROMPTS, SAMPLES, PROMPT_LENGTH, NEW_TOKENS = 8, 8, 20, 64
ROWS = PROMPTS * SAMPLES
COMMON = {"max_position_embeddings": 256, "tie_word_embeddings": True}
SIZES = {
    "small": COMMON | {  # 0.5M parameters
        "vocab_size": 320, "hidden_size": 128, "intermediate_size": 448, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "medium": COMMON | {  # 3M
        "vocab_size": 320, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "large": COMMON | {  # 50M
        "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16,
        "num_attention_heads": 8, "num_key_value_heads": 4,
    },
}  # fmt: skip
WARM_UP = 3  # steps that are not counted: compilation, first allocations


def arguments(description: str | None) -> argparse.Namespace:
    """Of every peer: size (and with it shape), dtype, steps, rows."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=10, help="counted ones")
    parser.add_argument("--rows", type=int, default=0, help="rows of a microbatch; 0: the peer's best")
    options = parser.parse_args()
    options.shape = SIZES[options.size]
    return options


def prompts(step: int, shape: dict[str, Any]) -> list[list[int]]:
    """Token ids of the step's prompts."""
    rng = random.Random(step)
    return [[rng.randrange(3, shape["vocab_size"]) for _ in range(PROMPT_LENGTH)] for _ in range(PROMPTS)]


def reward(tokens: list[int], shape: dict[str, Any]) -> float:
    """Share of tokens in the lower half of the vocabulary: something that can be learned, at no cost."""
    return sum(t < shape["vocab_size"] // 2 for t in tokens) / max(len(tokens), 1)


def report(
    peer: str,
    version: str,
    options: argparse.Namespace,
    seconds: list[float],
    work: dict[str, float],
    phases: dict[str, list[float]] | None = None,
) -> None:
    """One JSON line on stdout, of the counted steps.

    `work`: tokens sampled and optimizer updates in all steps, and the largest change of a weight.
    """
    counted = {name: values[WARM_UP:] for name, values in (phases or {}).items()}
    steps = options.steps + WARM_UP
    expected = {"tokens": ROWS * NEW_TOKENS * steps, "updates": steps}
    line = {
        "peer": peer, "version": version, "size": options.size, "dtype": options.dtype, "step_s": seconds[WARM_UP:],
        "phases": counted, "work": work, "expected": expected,
    }  # fmt: skip
    print(json.dumps(line), flush=True)


def gflop(shape: dict[str, Any]) -> dict[str, float]:
    """Arithmetic of a step in GFLOP, matmuls only: 2 operations for each weight and token, attention besides."""
    D, F, L, V = (shape[n] for n in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    kv_width = D * shape["num_key_value_heads"] // shape["num_attention_heads"]
    weights = L * (2 * D * D + 2 * D * kv_width + 3 * D * F) + V * D
    length = PROMPT_LENGTH + NEW_TOKENS
    per_context = 4 * L * D
    prefill = PROMPTS * PROMPT_LENGTH * (2 * weights + per_context * PROMPT_LENGTH / 2)
    decode = ROWS * NEW_TOKENS * (2 * weights + per_context * (PROMPT_LENGTH + NEW_TOKENS / 2))
    update = 3 * ROWS * length * (2 * weights + per_context * length / 2)
    return {"prefill": prefill / 1e9, "decode": decode / 1e9, "update": update / 1e9}
