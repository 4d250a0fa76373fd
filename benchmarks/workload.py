"""The step that every peer takes: sample some answers to each prompt, then one AdamW update.

Models of several sizes with random weights: three small ones, all of whose parameters are trained, and two at the sizes
of published ones, SmolLM2-135M and Qwen2.5-Coder-0.5B, the latter with LoRA. Standard library only: peers import it in
environments of their own.
"""

from __future__ import annotations

import argparse
import json
import random
from typing import Any, NamedTuple


class Work(NamedTuple):
    """A model, as transformers names its shape, and the step that it takes."""

    shape: dict[str, Any]
    prompts: int = 8
    samples: int = 8  # of each prompt
    prompt_length: int = 20
    new_tokens: int = 64
    lora: int = 0  # rank of adapters on all matrices of a layer; 0: all parameters are trained

    @property
    def rows(self) -> int:
        """Episodes of a step."""
        return self.prompts * self.samples


QWEN2 = {"model_type": "qwen2", "max_position_embeddings": 256, "tie_word_embeddings": True}
SIZES = {
    "small": Work(QWEN2 | {  # 0.5M parameters
        "vocab_size": 320, "hidden_size": 128, "intermediate_size": 448, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }),
    "medium": Work(QWEN2 | {  # 3M
        "vocab_size": 320, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }),
    "large": Work(QWEN2 | {  # 50M
        "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16,
        "num_attention_heads": 8, "num_key_value_heads": 4,
    }),
    "smollm2": Work(QWEN2 | {  # 135M
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    }, prompts=2, prompt_length=64, new_tokens=128),
    "qwen": Work(QWEN2 | {  # 494M
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2,
    }, prompts=2, prompt_length=64, new_tokens=128, lora=16),
}  # fmt: skip
WARM_UP = 3  # steps that are not counted: compilation, first allocations


def arguments(description: str | None) -> argparse.Namespace:
    """Of every peer: size (and with it the work), dtype, steps, rows."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=10, help="counted ones")
    parser.add_argument("--rows", type=int, default=0, help="rows of a microbatch; 0: the peer's best")
    options = parser.parse_args()
    options.work = SIZES[options.size]
    return options


def prompts(step: int, work: Work) -> list[list[int]]:
    """Token ids of the step's prompts."""
    rng, tokens = random.Random(step), work.shape["vocab_size"]
    return [[rng.randrange(3, tokens) for _ in range(work.prompt_length)] for _ in range(work.prompts)]


def reward(tokens: list[int], work: Work) -> float:
    """Share of tokens in the lower half of the vocabulary: something that can be learned, at no cost."""
    return sum(t < work.shape["vocab_size"] // 2 for t in tokens) / max(len(tokens), 1)


def report(
    peer: str,
    version: str,
    options: argparse.Namespace,
    seconds: list[float],
    done: dict[str, float],
    phases: dict[str, list[float]] | None = None,
) -> None:
    """One JSON line on stdout, of the counted steps.

    `done`: tokens sampled and optimizer updates in all steps, and the largest change of a weight.
    """
    counted = {name: values[WARM_UP:] for name, values in (phases or {}).items()}
    steps, work = options.steps + WARM_UP, options.work
    expected = {"tokens": work.rows * work.new_tokens * steps, "updates": steps}
    line = {
        "peer": peer, "version": version, "size": options.size, "dtype": options.dtype, "step_s": seconds[WARM_UP:],
        "phases": counted, "work": done, "expected": expected,
    }  # fmt: skip
    print(json.dumps(line), flush=True)


def gflop(work: Work) -> dict[str, float]:
    """Arithmetic of a step in GFLOP, matmuls only: 2 operations for each weight and token, attention besides.

    Of the logits what is needed: in the update those of sampled tokens. Frozen matrices need no gradient of their own;
    adapters are left out.
    """
    shape, length = work.shape, work.prompt_length + work.new_tokens
    D, F, L, V = (shape[n] for n in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    kv_width = D * shape["num_key_value_heads"] // shape["num_attention_heads"]
    layers, head = L * (2 * D * D + 2 * D * kv_width + 3 * D * F), V * D
    per_context, passes = 4 * L * D, 2 if work.lora else 3
    prompts, sampled = work.prompts * work.prompt_length, work.rows * work.new_tokens
    prefill = prompts * (2 * layers + per_context * work.prompt_length / 2) + work.prompts * 2 * head
    decode = sampled * (2 * (layers + head) + per_context * (work.prompt_length + work.new_tokens / 2))
    update = work.rows * length * (passes * 2 * layers + 3 * per_context * length / 2) + passes * sampled * 2 * head
    return {"prefill": prefill / 1e9, "decode": decode / 1e9, "update": update / 1e9}
