"""Drawing tokens from logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sample_tokens(
    logits: jax.Array,  # f32[B, V]
    keys: jax.Array,  # PRNG key[B]
    temperature: jax.Array,  # f32[B]; 0: greedy
    filters: tuple[jax.Array, jax.Array, jax.Array] | None = None,  # top_p f32[B], top_k i32[B], min_p f32[B]
) -> tuple[jax.Array, jax.Array]:  # tokens i32[B], logprobs f32[B]
    """One token a row, by the Gumbel trick, each row with its own key.

    The logprob is that of softmax(logits / temperature), before the filters (temperature 0: of softmax(logits)).
    """
    greedy = temperature == 0
    scaled = logits / jnp.where(greedy, 1.0, temperature)[:, None]
    allowed = scaled if filters is None else jnp.where(filter_mask(scaled, *filters), scaled, -jnp.inf)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
    tokens = jnp.argmax(jnp.where(greedy[:, None], scaled, allowed + noise), axis=-1).astype(jnp.int32)
    chosen = jnp.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(scaled, axis=-1)


def filter_mask(
    logits: jax.Array,  # f32[B, V], temperature-scaled
    top_p: jax.Array,  # f32[B], 1: off
    top_k: jax.Array,  # i32[B], 0: off
    min_p: jax.Array,  # f32[B], 0: off
) -> jax.Array:  # bool[B, V]
    """The tokens that may be drawn: top-k, then top-p of what is left, then min-p relative to the likeliest.

    top-p (Holtzman et al., arXiv 1904.09751) keeps the fewest likeliest tokens that hold at least that probability;
    min-p (Nguyen et al., arXiv 2407.01082) keeps those of at least min_p times the largest probability. Equal logits
    rank by token id, the lower first.
    """
    B, V = logits.shape
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    kept = jnp.arange(V) < jnp.where(top_k > 0, top_k, V)[:, None]
    probabilities = jax.nn.softmax(jnp.where(kept, ranked, -jnp.inf), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept &= (before < top_p[:, None]) | (top_p >= 1)[:, None]
    kept &= probabilities >= min_p[:, None] * probabilities[:, :1]
    return jnp.zeros((B, V), bool).at[jnp.arange(B)[:, None], order].set(kept)
