"""What training and sampling cost in floating-point operations, and how many a device can do a second.

A matmul of [a, b] and [b, c] is 2abc operations; norms, activations and softmax are not counted. N is the number of
parameters without the embedding table but with the output projection (which a tied model shares with the table).
With attention left out a token costs 2N forward and 6N in training (Kaplan et al., arXiv 2001.08361, section 2.1);
with adapters of A parameters, 2N + 2A and 4N + 6A, since the N are frozen and have no gradient.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrl.costs.chips import chip_of
from models.config import ModelConfig
from rollouts.episode import Episode, Group

if TYPE_CHECKING:
    import jax.numpy as jnp


def matmul_parameters(config: ModelConfig) -> int:
    """N: weights that a token is multiplied with, the output projection included, the embedding table not."""
    D, F, Dh = config.hidden_size, config.intermediate_size, config.head_dim
    attention = D * Dh * (2 * config.num_heads + 2 * config.num_kv_heads)
    return config.num_layers * (attention + 3 * D * F) + config.vocab_size * D


def adapter_parameters(config: ModelConfig) -> int:
    """A: weights of the adapters, rank x (in + out) for each matrix."""
    if config.lora is None:
        return 0
    D, F, Dh = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_heads * Dh, config.num_kv_heads * Dh
    other = {"q": queries, "k": keys, "v": keys, "o": queries, "gate": F, "up": F, "down": F}  # the dimension beside D
    return config.num_layers * config.lora.rank * sum(D + other[name] for name in config.lora.targets)


def parameters(config: ModelConfig) -> int:
    """All parameters: matrices, embedding table, norms, biases and adapters."""
    D, Dh, H, K = config.hidden_size, config.head_dim, config.num_heads, config.num_kv_heads
    small = 2 * D + (config.qkv_bias * (H + 2 * K) * Dh) + config.output_bias * D + config.qk_norm * 2 * Dh
    table = 0 if config.tied_embeddings else config.vocab_size * D
    return matmul_parameters(config) + table + config.num_layers * small + D + adapter_parameters(config)


def forward_flops(config: ModelConfig, tokens: int, mean_context: float) -> float:
    """Forward pass of `tokens` tokens that attend to `mean_context` tokens each: 2N + 2A + 4 L H Dh T a token.

    The last term is the scores and the mixing of values, each 2 H Dh T.
    """
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * mean_context
    return tokens * (2 * matmul_parameters(config) + 2 * adapter_parameters(config) + attention)


def update_flops(config: ModelConfig, tokens: int, mean_context: float) -> float:
    """Forward and backward pass: three times the forward pass (6N a token where attention is small).

    With adapters it is 2N a token less: the frozen matrices' own gradients.
    """
    frozen = matmul_parameters(config) if config.lora is not None else 0
    return 3 * forward_flops(config, tokens, mean_context) - 2.0 * tokens * frozen


def without_vocabulary(config: ModelConfig) -> ModelConfig:
    """The decoder of a critic: hidden states go into a head, not into the output projection."""
    return dataclasses.replace(config, vocab_size=0)


def sampling_flops(config: ModelConfig, prompt: int, new_tokens: int, samples: int = 1) -> float:
    """`samples` completions of one prompt with a KV cache; the prompt is computed once."""
    first = forward_flops(config, prompt, (prompt + 1) / 2)
    return first + samples * forward_flops(config, new_tokens, prompt + (new_tokens + 1) / 2)


def pretraining_flops(config: ModelConfig, tokens: float) -> float:
    """6 N D for pretraining on D tokens, attention left out as usual: 5.1e22 for Qwen2.5-Coder-1.5B, D = 5.5e12."""
    return 6.0 * matmul_parameters(config) * tokens


def episode_flops(config: ModelConfig, episode: Episode, prompt_known: bool = False) -> float:
    """Sampling of one episode: for each turn of the model, the tokens that were not cached yet and the new ones.

    Args:
        prompt_known: the prompt was computed for another episode of the group.
    """
    flops, place = 0.0, len(episode.prompt)
    known = place if prompt_known else 0  # at the first turn; later turns record what was cached
    for turn in episode.turns:
        if turn.sampled:
            flops += _span(config, max(known, turn.cached), place)
            flops += _span(config, place, place + len(turn.tokens))
            known = 0
        place += len(turn.tokens)
    return flops


def _span(config: ModelConfig, start: int, end: int) -> float:
    """The forward pass of the tokens start .. end - 1 of a sequence."""
    return forward_flops(config, end - start, (start + end + 1) / 2) if end > start else 0.0


def group_flops(config: ModelConfig, groups: Sequence[Group]) -> float:
    """Sampling of groups whose episodes share the computation of their prompt."""
    return sum(episode_flops(config, e, prompt_known=i > 0) for g in groups for i, e in enumerate(g.episodes))


def step_flops(
    config: ModelConfig,
    drawn: Sequence[Group],
    counts: Sequence[tuple[int, float]],
    *,
    old: bool,
    reference: bool,
    critics: int = 0,
    teacher: ModelConfig | None = None,
    epochs: int = 1,
) -> dict[str, float]:
    """Flops of an RL step: flops/sampling, flops/old and flops/reference (logprobs), flops/update; their sum as flops.

    With a teacher there is flops/teacher too, of its logprobs. Those of critics are in flops/old, where their values
    before the update are computed, and in flops/update.

    Args:
        drawn: all groups that were sampled.
        counts: tokens and mean context of each batch that was trained on.
        old, reference: whether logprobs were computed before the first update, and with a reference policy.
        critics: decoders beside the policy's that are trained.
        teacher: another model whose logprobs were computed.
        epochs: passes over the batches.
    """
    alone = without_vocabulary(config)
    forward = sum(forward_flops(config, *count) for count in counts)
    values = critics * sum(forward_flops(alone, *count) for count in counts)
    once = sum(update_flops(config, *count) + critics * update_flops(alone, *count) for count in counts)
    parts = {
        "flops/sampling": group_flops(config, drawn),
        "flops/old": (forward + values) * old,
        "flops/reference": forward * reference,
        "flops/update": once * epochs,
    }
    if teacher is not None:
        parts["flops/teacher"] = sum(forward_flops(teacher, *count) for count in counts)
    parts = {name: float(flops) for name, flops in parts.items()}
    return parts | {"flops": sum(parts.values())}


def question_cost(config: ModelConfig | None, episodes: Sequence[Episode], answers: int) -> dict[str, float]:
    """Mean cost of one answer, sampled on its own: operations, sampled tokens, turns, tool calls and failed ones.

    Args:
        config: of the model; None: operations are left out.
        episodes: all that were sampled for `answers` answers (more than those where some were repeated).
    """
    calls = [status for e in episodes for status in e.calls]
    totals = {"flops": sum(episode_flops(config, e) for e in episodes)} if config else {}
    totals |= {
        "tokens": sum(e.sampled_length for e in episodes),
        "turns": sum(t.sampled for e in episodes for t in e.turns),
        "calls": len(calls),
        "failed_calls": sum(status != "passed" for status in calls),
    }
    return {name: float(total) / max(answers, 1) for name, total in totals.items()}


def device_peak(device: Any, dtype: jnp.dtype) -> tuple[float, str]:
    """Operations a second of one device, and "published" or "measured" (by a large matmul on it)."""
    import jax  # here alone: reports count operations on machines without it
    import jax.numpy as jnp

    chip = chip_of(device.device_kind)
    if chip is not None:
        return chip.flops / chip.devices, "published"
    n = 1024
    a = jax.device_put(jnp.ones((n, n), dtype), device)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    multiply(a).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / float(np.min(seconds)), "measured"
