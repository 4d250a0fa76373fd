"""The jitted programs of the JAX engine and the state that they work on.

The host (rollouts/jax/engine.py) decides which request gets which slot; everything here runs on the device, with shapes
that depend only on the settings, so that it can be compiled without a device (`Programs.abstract_arguments`).

Axes: B slots, N new tokens, P prompts of a prefill, T their padded length, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models import row_cache
from models.cache import insert, make_cache, partition
from models.config import LORA_TARGETS, ModelConfig
from models.decoder import SMALL, Block, Compute, Decoder
from models.row_cache import Chunks, make_chunks
from models.sharding import MESH_AXES, SERVING, constrain, param_shardings, partition_spec, platform, serving_mesh
from rollouts.jax.sampling import sample_tokens

MAX_STOP_TOKENS = 8
SHORTEST_BUCKET = 16  # the fewest tokens that a prefill is padded to
NARROWEST = 8  # the fewest rows that are decoded together
# On one CPU, where padding costs as much as tokens do: lengths of a prefill are multiples of FINEST, or of an eighth of
# the next power of two, and about PREFILL_TOKENS are computed together. Which rows share a call changes none of them.
FINEST, PREFILL_TOKENS = 32, 512
# The decoder's parameters in the form for sampling, in the order of their leaves: in the compute dtype, sharded over
# the tensor axis only, and with one array per layer where the layers are unrolled.
Weights = tuple[Any, ...]


class Sizes(NamedTuple):
    """Sizes of the engine's arrays."""

    slots: int  # rows decoded together, B
    max_length: int  # tokens of a prompt and its completion together, at most
    max_new_tokens: int  # N
    prefill_rows: int = 8  # P, at most


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
    """All that stays on the device between two calls. Every program takes it as a donated argument."""

    rows: Rows
    cache: Any  # Cache, or tuple[Chunks, ...] where everything is on one CPU
    tokens: jax.Array  # i32[B, N], sampled
    logprobs: jax.Array  # f32[B, N]


@dataclass(frozen=True)
class Programs:
    """The engine's programs; each may be called, or lowered ahead of time from `abstract_arguments`.

    prefill(weights, state, tokens, lengths, source, fresh, rows) -> State
    extend(weights, state, tokens, positions, slots, fresh, rows) -> State
    decode(weights, state, steps, spare, chosen=None, filtered=False, parts=1) -> State
    """

    sizes: Sizes
    config: ModelConfig
    lengths: list[int]  # tokens of a row that 1, 2, .. parts of the cache hold, up to max_length
    widths: list[int]  # numbers of rows that can be decoded, ascending; the last is all slots
    on_one_cpu: bool
    by_rows: bool  # the cache is read row by row, so that decoding fewer rows copies nothing
    serving: Serving
    empty_state: Callable[[], State]
    prefill: Any
    extend: Any
    decode: Any

    def load(self, params: Any) -> Weights:
        """The weights for sampling from parameters like those that the programs were made for. See Serving.load."""
        return self.serving.load(params)

    def bucket(self, tokens: int) -> int:
        """Padded length for `tokens` tokens, from SHORTEST_BUCKET up to max_length: the next power of two, or less."""
        length = max(SHORTEST_BUCKET, 1 << (tokens - 1).bit_length())
        if self.on_one_cpu and length > FINEST:
            step = max(FINEST, length // 8)
            length = -(-tokens // step) * step
        return min(length, self.sizes.max_length)

    def prefill_rows(self, length: int) -> int:
        """How many prompts of this padded length are computed together, P."""
        most = self.sizes.prefill_rows
        return min(most, max(1, PREFILL_TOKENS // length)) if self.on_one_cpu else most

    def compiled(self) -> int:
        """How many programs have been compiled so far."""
        return sum(program._cache_size() for program in (self.prefill, self.extend, self.decode))

    def most_compiled(self) -> int:
        """The largest possible number: prefill and extend per bucket, decode per length, width and use of filters."""
        buckets = {self.bucket(tokens) for tokens in range(1, self.sizes.max_length + 1)}
        return 2 * len(buckets) + 2 * len(self.lengths) * len(self.widths)

    def abstract_arguments(self, prompt_length: int) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
        """For each program, (positional, static) arguments to lower it with, as ShapeDtypeStructs.

        `prompt_length` is for prefill and extend, padded as in the engine; decode reads the whole cache:
        `args, static = programs.abstract_arguments(512)["decode"]; programs.decode.lower(*args, **static).compile()`.
        """
        sizes, T = self.sizes, self.bucket(prompt_length)
        weights, state = self.serving.abstract(), jax.eval_shape(self.empty_state)
        B, P = sizes.slots, self.prefill_rows(T)

        def integers(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.int32)

        fresh = jax.ShapeDtypeStruct((B,), jnp.bool_)
        return {
            "prefill": ((weights, state, integers(P, T), integers(P), integers(B), fresh, state.rows), {}),
            "extend": ((weights, state, integers(P, T), integers(P, T), integers(P), fresh, state.rows), {}),
            "decode": ((weights, state, integers(), integers()), {"filtered": False, "parts": len(self.lengths)}),
        }


def on_one_cpu(mesh: Mesh | None) -> bool:
    """Whether everything is on a single CPU device, where padding and copies cost as much as arithmetic does."""
    return platform(mesh) == "cpu" and (mesh is None or mesh.size == 1)


def sampling_compute(compute: Compute) -> Compute:
    """How a policy that trains by `compute` samples: on one CPU unrolled, since scanned layers are copied each step."""
    return compute._replace(unroll=compute.unroll or on_one_cpu(compute.mesh))


def make_programs(graphdef: nnx.GraphDef, params: Any, compute: Compute, sizes: Sizes) -> Programs:
    """The programs for a Decoder (`nnx.split(decoder)`), whose parameters may be ShapeDtypeStructs.

    On compute.mesh, slots and prefill rows are rounded up to multiples of the devices that they are sharded over.
    """
    if compute.mesh is not None:
        mesh = serving_mesh(compute.mesh)
        compute, over = compute._replace(mesh=mesh), mesh.shape["data"] * mesh.shape["fsdp"]
        rounded = {name: -(-getattr(sizes, name) // over) * over for name in ("slots", "prefill_rows")}
        sizes = sizes._replace(**rounded)
    mesh = compute.mesh
    one_cpu = on_one_cpu(mesh)
    # XLA on CPU multiplies few rows of bf16 two to three times as fast by [out, in] as by [in, out]; one row alone
    # takes ten times as long as two.
    compute = compute._replace(transposed=one_cpu and compute.unroll and compute.dtype == jnp.bfloat16)
    sizes = sizes._replace(slots=max(sizes.slots, 2 if compute.transposed else 1))
    serving = Serving(graphdef, params, compute)
    config = serving.config
    empty = partial(_empty_state, config, sizes, compute)
    state = jax.eval_shape(empty)
    by_rows = isinstance(state.cache[0], Chunks)
    lengths = [state.cache[0].length] if by_rows else accumulate(values.shape[-2] for _, values in state.cache[0])
    shardings = _state_shardings(state, config, compute.mesh)
    program = partial(jax.jit, donate_argnums=1, out_shardings=shardings)
    return Programs(
        sizes=sizes,
        config=config,
        lengths=list(lengths),
        widths=_widths(sizes.slots, one_cpu, by_rows),
        by_rows=by_rows,
        on_one_cpu=one_cpu,
        serving=serving,
        empty_state=jax.jit(empty, out_shardings=shardings),
        prefill=program(partial(_prefill, serving, compute)),
        extend=program(partial(_extend, serving, compute)),
        decode=program(partial(_decode, serving, compute), static_argnames=("filtered", "parts")),
    )


def _widths(slots: int, on_one_cpu: bool, by_rows: bool) -> list[int]:
    """Halves of the slots, down to NARROWEST, on one CPU, and three quarters `by_rows`; elsewhere only all slots.

    Rows that are sharded over devices stay where they are. On an accelerator a step with fewer rows is hardly faster,
    and the copy of their cache would take scarce memory.
    """
    widths = [slots]
    while on_one_cpu and widths[0] % 2 == 0 and widths[0] // 2 >= NARROWEST:
        if by_rows and widths[0] % 4 == 0 and widths[0] // 4 * 3 >= 2 * NARROWEST:
            widths.insert(0, widths[0] // 4 * 3)
            widths.insert(0, widths[1] // 2)
        else:
            widths.insert(0, widths[0] // 2)
    return widths


def _state_shardings(state: State, config: ModelConfig, mesh: Mesh | None) -> Any:
    """Rows of everything over data and fsdp, kv heads over tensor; None without a mesh."""
    if mesh is None or isinstance(state.cache[0], Chunks):
        return None
    rows, heads = partition(state.tokens.shape[0], config.num_kv_heads, mesh)

    def cache(part: jax.Array) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*[None] * (part.ndim - 4), rows, heads))

    by_rows = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec(rows)), state._replace(cache=()))
    return by_rows._replace(cache=jax.tree.map(cache, state.cache))


class Serving:
    """Converts a decoder's parameters to weights for sampling, and these back to a model inside a program."""

    def __init__(self, graphdef: nnx.GraphDef, params: Any, compute: Compute):
        abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
        self.graphdef, self.unroll, self.transposed = graphdef, compute.unroll, compute.transposed
        leaves, self._tree = jax.tree.flatten(abstract)
        self._indices = jax.tree.unflatten(self._tree, range(len(leaves)))
        self.config: ModelConfig = jax.eval_shape(partial(nnx.merge, graphdef), abstract).config
        names = [_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(abstract)[0]]
        layers = set(jax.tree.leaves(self._indices["blocks"])) if compute.unroll else set()
        self._split = [i in layers for i in range(len(leaves))]
        self._turned = [compute.transposed and name in LORA_TARGETS for name in names]
        # Norms and biases stay unchanged: they are small, and used in f32.
        dtypes = [a.dtype if name.endswith(SMALL) else compute.dtype for name, a in zip(names, leaves)]
        shardings: list[Any] = [None] * len(leaves)
        if compute.mesh is not None:
            shardings = jax.tree.leaves(param_shardings(abstract, compute.mesh, SERVING))
        self._wanted = [jax.ShapeDtypeStruct(a.shape, d, sharding=s) for a, d, s in zip(leaves, dtypes, shardings)]
        self._convert = cache(self._converter)

    def load(self, params: Any) -> Weights:
        """Shares what already has the right dtype and sharding with `params`; one program converts the rest.

        Unrolled layers are copied slices; decoding would otherwise slice them in each call.
        """
        leaves = jax.tree.leaves(params)
        changed = tuple(i for i, leaf in enumerate(leaves) if self._split[i] or not _is(leaf, self._wanted[i]))
        made = self._convert(changed)([leaves[i] for i in changed]) if changed else ()
        weights = dict(enumerate(leaves)) | dict(zip(changed, made))
        return tuple(weights[i] for i in range(len(leaves)))

    def abstract(self) -> Weights:
        """ShapeDtypeStructs of what `load` returns."""
        pairs = zip(self._wanted, self._split, self._turned)
        return tuple(_layers(wanted, turned) if split else wanted for wanted, split, turned in pairs)

    def _converter(self, changed: tuple[int, ...]) -> Any:
        """The program that converts the weights with these indices."""

        def convert(leaves: list[jax.Array]) -> list[Any]:
            cast = [leaf.astype(self._wanted[i].dtype) for i, leaf in zip(changed, leaves)]
            cast = [leaf.swapaxes(1, 2) if self._turned[i] else leaf for i, leaf in zip(changed, cast)]
            return [tuple(leaf) if self._split[i] else leaf for i, leaf in zip(changed, cast)]

        abstract = self.abstract()
        shardings = jax.tree.map(lambda a: a.sharding, [abstract[i] for i in changed])
        return jax.jit(convert, out_shardings=shardings)

    def model(self, weights: Weights) -> tuple[Decoder, list[Block] | None]:
        """The decoder and, if unrolled, its layers. Stacked blocks are computed only if they are used."""
        whole = [jnp.stack(w) if split else w for w, split in zip(weights, self._split)]
        model: Decoder = nnx.merge(self.graphdef, jax.tree.unflatten(self._tree, whole))
        if not self.unroll:
            return model, None
        block, of_blocks = nnx.split(model.blocks)[0], self._indices["blocks"]
        layers = [jax.tree.map(lambda i, l=l: weights[i][l], of_blocks) for l in range(self.config.num_layers)]
        return model, [nnx.merge(block, layer) for layer in layers]


def _name(path: tuple[Any, ...]) -> str:
    return [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)][-1]


def _is(leaf: jax.Array, wanted: jax.ShapeDtypeStruct) -> bool:
    placed = wanted.sharding is None or leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    return leaf.dtype == wanted.dtype and placed


def _layers(stacked: jax.ShapeDtypeStruct, turned: bool) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The shapes of the L layers' slices; `turned`: of their transposes, on one device."""
    shape, sharding = stacked.shape[1:], stacked.sharding
    if sharding is not None:
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    layer = jax.ShapeDtypeStruct(shape[::-1] if turned else shape, stacked.dtype, sharding=sharding)
    return (layer,) * stacked.shape[0]


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
    if compute.transposed:
        cache: Any = make_chunks(config, slots, sizes.max_length)
    else:  # XLA on CPU converts a whole bf16 cache to f32 and back to write one token
        cache_dtype = jnp.dtype(jnp.float32) if platform(compute.mesh) == "cpu" else compute.dtype
        cache = make_cache(config, slots, sizes.max_length, cache_dtype, compute.unroll)
    shape = (slots, sizes.max_new_tokens)
    return State(rows, cache, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))


def _prefill(
    serving: Serving,
    compute: Compute,
    weights: Weights,
    state: State,
    tokens: jax.Array,  # i32[P, T]
    lengths: jax.Array,  # i32[P]
    source: jax.Array,  # i32[B], the prompt of each fresh slot
    fresh: jax.Array,  # bool[B]
    rows: Rows,  # of the fresh slots; anything elsewhere
) -> State:
    """Puts the prompts' keys and values, and the rows' settings, into the fresh slots."""
    model, _ = serving.model(weights)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    _, k, v = model.prefill(tokens, positions, segments, compute)
    if isinstance(state.cache[0], Chunks):
        cache = row_cache.insert(state.cache, fresh, source, k, v)
    else:
        cache = insert(state.cache, fresh, source, k, v, compute.mesh)
    return state._replace(rows=_chosen(fresh, rows, state.rows), cache=cache)


def _chosen(fresh: jax.Array, new: Rows, old: Rows) -> Rows:
    choose = lambda a, b: jnp.where(fresh.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
    return jax.tree.map(choose, new, old)


def _extend(
    serving: Serving,
    compute: Compute,
    weights: Weights,
    state: State,
    tokens: jax.Array,  # i32[P, T], new tokens of P slots
    positions: jax.Array,  # i32[P, T]
    slots: jax.Array,  # i32[P]
    fresh: jax.Array,  # bool[B], the same slots
    rows: Rows,  # of the fresh slots; anything elsewhere
) -> State:
    """Adds keys and values of new tokens to the slots' own, and sets the rows' settings."""
    model, layers = serving.model(weights)
    _, cache = model.extend(tokens, positions, slots, state.cache, layers, compute)
    return state._replace(rows=_chosen(fresh, rows, state.rows), cache=cache)


def _decode(
    serving: Serving,
    compute: Compute,
    weights: Weights,
    state: State,
    steps: jax.Array,  # i32, the largest number of steps
    spare: jax.Array,  # i32, continues while more rows than this are active
    chosen: jax.Array | None = None,  # i32[b], the slots to decode, which include all active ones; None: all
    *,
    filtered: bool,  # whether any row uses top-p, top-k or min-p
    parts: int,  # parts of the cache that are read; every active row must stay within them
) -> State:
    """Decodes rows together, on the device, until `steps` are done or only `spare` rows are active."""
    whole, by_rows = state, isinstance(state.cache[0], Chunks)
    if chosen is not None:
        state = _take(whole, chosen, parts)
    in_cache = chosen if by_rows else None
    model, layers = serving.model(weights)
    unembedding, index = model.unembedding(), jnp.arange(state.tokens.shape[0])

    def step(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        done, (rows, cache, tokens, logprobs) = carry
        position = jnp.where(rows.active, rows.position, -1) if by_rows else rows.position  # nothing is read for -1
        hidden, cache = model.decode(rows.token, position, cache, layers, compute, parts, in_cache)
        logits = _logits(hidden, unembedding, compute)
        keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(rows.key), rows.count)
        token, logprob = sample_tokens(
            logits, keys, rows.temperature, (rows.top_p, rows.top_k, rows.min_p) if filtered else None
        )
        slot = jnp.where(rows.active, rows.count, tokens.shape[1])  # an inactive row does not write
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

    state = jax.lax.while_loop(go_on, step, (jnp.int32(0), state))[1]
    return state if chosen is None else _put(whole, chosen, state)


def _take(state: State, slots: jax.Array, parts: int) -> State:
    """The state of some slots, with the first `parts` of the cache; all of one that is read row by row."""
    some = jax.tree.map(lambda x: jnp.take(x, slots, axis=0), state._replace(cache=()))
    if isinstance(state.cache[0], Chunks):
        return some._replace(cache=state.cache)
    cache = tuple(layer[:parts] for layer in state.cache)
    return some._replace(cache=jax.tree.map(lambda x: jnp.take(x, slots, axis=_row_axis(x)), cache))


def _put(state: State, slots: jax.Array, some: State) -> State:
    """The inverse of `_take`: the state with that of some slots replaced."""

    def put(x: jax.Array, new: jax.Array) -> jax.Array:
        return x.at[(slice(None),) * _row_axis(x) + (slots,)].set(new)

    if isinstance(state.cache[0], Chunks):
        written = jax.tree.map(put, state._replace(cache=()), some._replace(cache=()))
        return written._replace(cache=some.cache)
    used = tuple(layer[: len(new)] for layer, new in zip(state.cache, some.cache))
    written = jax.tree.map(put, state._replace(cache=used), some)
    rest = [layer[len(new) :] for layer, new in zip(state.cache, some.cache)]
    return written._replace(cache=tuple(new + old for new, old in zip(written.cache, rest)))


def _row_axis(x: jax.Array) -> int:
    """The row axis of an array of the state: the first, except in the cache of scanned layers."""
    return 1 if x.ndim == 5 else 0


def _logits(hidden: jax.Array, unembedding: jax.Array, compute: Compute) -> jax.Array:
    """Logits f32[B, V] from hidden [B, D]: each device computes its part of the vocabulary, then gets whole rows."""
    mesh, (B, V) = compute.mesh, (hidden.shape[0], unembedding.shape[0])
    if mesh is None or mesh.size == 1:
        return jnp.einsum("bd,vd->bv", hidden, unembedding, preferred_element_type=jnp.float32)
    (vocabulary,) = partition_spec(("vocab",), SERVING, (V,), mesh)
    hidden = constrain(hidden, mesh, PartitionSpec("data" if vocabulary else ("data", "fsdp")))
    logits = jnp.einsum("bd,vd->bv", hidden, unembedding, preferred_element_type=jnp.float32)
    logits = constrain(logits, mesh, PartitionSpec("data" if vocabulary else ("data", "fsdp"), vocabulary))
    return constrain(logits, mesh, PartitionSpec(MESH_AXES if B % mesh.size == 0 else ("data", "fsdp")))
