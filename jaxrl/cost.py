"""What training and sampling cost, in floating-point operations.

A matmul of [a, b] and [b, c] is 2abc operations; norms, activations and softmax are not counted. N is the number of
parameters without the embedding table but with the output projection (which a tied model shares with the table).
"""

from __future__ import annotations

from models.config import ModelConfig


def matmul_parameters(config: ModelConfig) -> int:
    """N: weights that a token is multiplied with, the output projection among them, the embedding table not."""
    D, F, Dh = config.hidden_size, config.intermediate_size, config.head_dim
    attention = D * Dh * (2 * config.num_heads + 2 * config.num_kv_heads)
    return config.num_layers * (attention + 3 * D * F) + config.vocab_size * D


def parameters(config: ModelConfig) -> int:
    """All parameters: matrices, embedding table, norms and biases."""
    D, Dh, H, K = config.hidden_size, config.head_dim, config.num_heads, config.num_kv_heads
    small = 2 * D + (config.qkv_bias * (H + 2 * K) * Dh) + config.output_bias * D + config.qk_norm * 2 * Dh
    table = 0 if config.tied_embeddings else config.vocab_size * D
    return matmul_parameters(config) + table + config.num_layers * small + D


def forward_flops(config: ModelConfig, tokens: int, mean_context: float) -> float:
    """Forward pass of `tokens` tokens that attend to `mean_context` tokens each: 2N + 4 L H Dh T a token.

    The second term is the scores and the mixing of values, each 2 H Dh T.
    """
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * mean_context
    return tokens * (2 * matmul_parameters(config) + attention)


def update_flops(config: ModelConfig, tokens: int, mean_context: float) -> float:
    """Forward and backward pass: three times the forward pass (6N a token where attention is small)."""
    return 3 * forward_flops(config, tokens, mean_context)


def sampling_flops(config: ModelConfig, prompt: int, new_tokens: int, samples: int = 1) -> float:
    """`samples` completions of one prompt with a KV cache; the prompt is computed once."""
    first = forward_flops(config, prompt, (prompt + 1) / 2)
    return first + samples * forward_flops(config, new_tokens, prompt + (new_tokens + 1) / 2)
