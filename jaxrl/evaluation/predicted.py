"""How many bits a model needs for texts: as a compressor, its prediction of each token (LMiC, arXiv 2309.10668)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrl.errors import UserError
from jaxrl.runs.tokenizer import tokenizer_of
from models.decoder import Compute
from models.loading import load_model
from models.vocabulary import token_logprobs
from rollouts.control import encode_text

MULTIPLE = 64  # tokens that lengths are rounded up to, for fewer executables


def predicted_bits(model: str, texts: Sequence[str], dtype: str = "float32") -> Iterator[float]:
    """-log2 p(text) of each text, after the token that begins or ends a text: the ideal length of an arithmetic code.

    Raises UserError where a text is longer than the model's positions, and what `load_model` raises.
    """
    config, graphdef, params = load_model(model, dtype=jnp.dtype(dtype))
    tokenizer = tokenizer_of(model)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    program = jax.jit(partial(_logprobs, graphdef, Compute(jnp.dtype(dtype))))
    for number, text in enumerate(texts):
        tokens = [start if start is not None else 0, *encode_text(tokenizer, text)]
        if len(tokens) > config.max_length:
            raise UserError(
                f"text {number} has {len(tokens)} tokens, more than the model's {config.max_length} positions"
            )
        padded = np.zeros(-(-len(tokens) // MULTIPLE) * MULTIPLE, np.int32)
        padded[: len(tokens)] = tokens
        logprobs = np.asarray(program(params, padded, len(tokens)), np.float64)
        yield -logprobs[: len(tokens) - 1].sum() / math.log(2)


def _logprobs(
    graphdef: nnx.GraphDef, compute: Compute, params: nnx.State, tokens: jax.Array, length: jax.Array
) -> jax.Array:
    """f32[T]: of the token after each, given it and those before; of the last ones, anything."""
    model = nnx.merge(graphdef, params)
    places = jnp.arange(len(tokens))
    segments = (places < length).astype(jnp.int32)
    hidden = model(tokens[None], places[None], segments[None], compute)
    return token_logprobs(hidden[0], jnp.roll(tokens, -1), model.unembedding())[0]
