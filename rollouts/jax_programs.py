"""The compiled programs of the JAX engine and the state that they work on.

The host (rollouts/jax_engine.py) decides which request gets which slot; everything here runs on the device and has
shapes that depend on the settings alone, so that it can be compiled without a device (`Programs.abstract_arguments`).

Axes: B slots, N new tokens, P prompts of a prefill, T their padded length, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from models.config import ModelConfig
from models.decoder import Cache, Compute, Decoder, insert, make_cache
from rollouts.sampling import sample_tokens

MAX_STOP_TOKENS = 8
SHORTEST_BUCKET = 16  # tokens that a prefill is padded to, at least
Weights = Any  # what `Programs.load` makes of a decoder's parameters


class Sizes(NamedTuple):
    """Of the engine's arrays."""

    slots: int  # rows decoded together, B
    max_length: int  # tokens of a prompt and its completion together, at most
    max_new_tokens: int  # N
    prefill_rows: int = 8  # P


class Rows(NamedTuple):
    """What each slot is doing."""

    token: jax.Array  # i32[B], to be fed next
    position: jax.Array  # i32[B], of that token
    active: jax.Array  # bool[B]
    count: jax.Array  # i32[B], tokens sampled so far
    limit: jax.Array  # i32[B], max_new_tokens
    stop_tokens: jax.Array  # i32[B, MAX_STOP_TOKENS], padded with -1
    key: jax.Array  # u32[B, 2]
    temperature: jax.Array  # f32[B]
    top_p: jax.Array  # f32[B]
    top_k: jax.Array  # i32[B]
    min_p: jax.Array  # f32[B]


class State(NamedTuple):
    """All that stays on the device between two calls. Every program uses up the state that it is given."""

    rows: Rows
    cache: Cache
    tokens: jax.Array  # i32[B, N], sampled
    logprobs: jax.Array  # f32[B, N]


@dataclass(frozen=True)
class Programs:
    """The engine's programs; each may be called, or lowered ahead of time from `abstract_arguments`.

    prefill(weights, state, tokens, lengths, source, fresh, rows) -> State
    extend(weights, state, tokens, positions, slots, fresh, rows) -> State
    decode(weights, state, steps, spare, filtered=False) -> State
    """

    sizes: Sizes
    config: ModelConfig
    params: Any  # ShapeDtypeStructs of the parameters that `load` expects
    load: Callable[[Any], Weights]
    empty_state: Callable[[], State]
    prefill: Any
    extend: Any
    decode: Any

    def bucket(self, tokens: int) -> int:
        """Padded length of so many tokens: the next power of two, from SHORTEST_BUCKET, at most max_length."""
        return min(max(SHORTEST_BUCKET, 1 << (tokens - 1).bit_length()), self.sizes.max_length)

    def compiled(self) -> int:
        """How many programs have been compiled so far."""
        return sum(program._cache_size() for program in (self.prefill, self.extend, self.decode))

    def most_compiled(self) -> int:
        """The most that can be: a prefill and an extend for each bucket, decoding with filters and without."""
        buckets = {self.bucket(tokens) for tokens in range(1, self.sizes.max_length + 1)}
        return 2 * len(buckets) + 2

    def abstract_arguments(self, prompt_length: int) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
        """By program, the (positional, static) arguments that it can be lowered with, as ShapeDtypeStructs.

        `prompt_length` is that of prefill and extend, padded as the engine does it:
        `args, static = programs.abstract_arguments(512)["decode"]; programs.decode.lower(*args, **static).compile()`.
        """
        sizes, T = self.sizes, self.bucket(prompt_length)
        weights, state = jax.eval_shape(self.load, self.params), jax.eval_shape(self.empty_state)
        B, P = sizes.slots, sizes.prefill_rows

        def integers(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.int32)

        fresh = jax.ShapeDtypeStruct((B,), jnp.bool_)
        return {
            "prefill": ((weights, state, integers(P, T), integers(P), integers(B), fresh, state.rows), {}),
            "extend": ((weights, state, integers(P, T), integers(P, T), integers(P), fresh, state.rows), {}),
            "decode": ((weights, state, integers(), integers()), {"filtered": False}),
        }


def make_programs(graphdef: nnx.GraphDef, params: Any, compute: Compute, sizes: Sizes) -> Programs:
    """The programs for a Decoder (`nnx.split(decoder)`), whose parameters may be ShapeDtypeStructs."""
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    config = jax.eval_shape(partial(nnx.merge, graphdef), abstract).config
    return Programs(
        sizes=sizes,
        config=config,
        params=abstract,
        load=lambda params: params,
        empty_state=partial(_empty_state, config, sizes, compute),
        prefill=jax.jit(partial(_prefill, graphdef, compute), donate_argnums=1),
        extend=jax.jit(partial(_extend, graphdef, compute), donate_argnums=1),
        decode=jax.jit(partial(_decode, graphdef, compute), donate_argnums=1, static_argnames="filtered"),
    )


def _empty_state(config: ModelConfig, sizes: Sizes, compute: Compute) -> State:
    slots = sizes.slots

    def full(value: float, dtype: Any) -> jax.Array:
        return jnp.full(slots, value, dtype)

    rows = Rows(
        token=full(0, jnp.int32), position=full(0, jnp.int32), active=full(False, jnp.bool_), count=full(0, jnp.int32),
        limit=full(1, jnp.int32), stop_tokens=jnp.full((slots, MAX_STOP_TOKENS), -1, jnp.int32),
        key=jnp.zeros((slots, 2), jnp.uint32), temperature=full(1, jnp.float32), top_p=full(1, jnp.float32),
        top_k=full(0, jnp.int32), min_p=full(0, jnp.float32),
    )  # fmt: skip
    # XLA on CPU takes a whole bf16 cache to f32 and back to write one token.
    cache_dtype = jnp.dtype(jnp.float32) if jax.default_backend() == "cpu" else compute.dtype
    cache = make_cache(config, slots, sizes.max_length, cache_dtype, compute.unroll)
    shape = (slots, sizes.max_new_tokens)
    return State(rows, cache, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))


def _prefill(
    graphdef: nnx.GraphDef,
    compute: Compute,
    params: Any,
    state: State,
    tokens: jax.Array,  # i32[P, T]
    lengths: jax.Array,  # i32[P]
    source: jax.Array,  # i32[B], the prompt of each fresh slot
    fresh: jax.Array,  # bool[B]
    rows: Rows,  # of the fresh slots; anything elsewhere
) -> State:
    """Puts the prompts' keys and values, and the rows' settings, into the fresh slots."""
    model: Decoder = nnx.merge(graphdef, params)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    _, k, v = model.prefill(tokens, positions, segments, compute)
    B = fresh.shape[0]
    cache = insert(state.cache, jnp.where(fresh, jnp.arange(B), B), k[:, source], v[:, source])
    return state._replace(rows=_chosen(fresh, rows, state.rows), cache=cache)


def _chosen(fresh: jax.Array, new: Rows, old: Rows) -> Rows:
    choose = lambda a, b: jnp.where(fresh.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
    return jax.tree.map(choose, new, old)


def _extend(
    graphdef: nnx.GraphDef,
    compute: Compute,
    params: Any,
    state: State,
    tokens: jax.Array,  # i32[P, T], new tokens of P slots
    positions: jax.Array,  # i32[P, T]
    slots: jax.Array,  # i32[P]
    fresh: jax.Array,  # bool[B], the same slots
    rows: Rows,  # of the fresh slots; anything elsewhere
) -> State:
    """Adds keys and values of new tokens to what the slots have, and puts in the rows' settings."""
    model: Decoder = nnx.merge(graphdef, params)
    layers = model.unstack() if compute.unroll else None
    _, cache = model.extend(tokens, positions, slots, state.cache, layers, compute)
    return state._replace(rows=_chosen(fresh, rows, state.rows), cache=cache)


def _decode(
    graphdef: nnx.GraphDef,
    compute: Compute,
    params: Any,
    state: State,
    steps: jax.Array,  # i32, at most so many
    spare: jax.Array,  # i32, go on while more rows than this are active
    *,
    filtered: bool,  # whether any row uses top-p, top-k or min-p
) -> State:
    """Decodes all rows together, on the device, until `steps` are done or only `spare` rows are active."""
    params = jax.tree.map(lambda p: p.astype(compute.dtype), params)  # once, not in every step
    model: Decoder = nnx.merge(graphdef, params)
    layers = model.unstack() if compute.unroll else None
    unembedding, index = model.unembedding(), jnp.arange(state.tokens.shape[0])

    def step(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        done, (rows, cache, tokens, logprobs) = carry
        hidden, cache = model.decode(rows.token, rows.position, cache, layers, compute)
        logits = jnp.einsum("bd,vd->bv", hidden, unembedding, preferred_element_type=jnp.float32)
        keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(rows.key), rows.count)
        token, logprob = sample_tokens(
            logits, keys, rows.temperature, (rows.top_p, rows.top_k, rows.min_p) if filtered else None
        )
        slot = jnp.where(rows.active, rows.count, tokens.shape[1])  # an inactive row writes nowhere
        tokens = tokens.at[index, slot].set(token, mode="drop")
        logprobs = logprobs.at[index, slot].set(logprob, mode="drop")
        advance = rows.active.astype(jnp.int32)
        count = rows.count + advance
        stopped = jnp.any(token[:, None] == rows.stop_tokens, axis=1) | (count >= rows.limit)
        rows = rows._replace(
            token=jnp.where(rows.active, token, rows.token),
            position=rows.position + advance,
            active=rows.active & ~stopped,
            count=count,
        )
        return done + 1, State(rows, cache, tokens, logprobs)

    def go_on(carry: tuple[jax.Array, State]) -> jax.Array:
        done, state = carry
        return (done < steps) & (jnp.sum(state.rows.active) > spare)

    return jax.lax.while_loop(go_on, step, (jnp.int32(0), state))[1]
