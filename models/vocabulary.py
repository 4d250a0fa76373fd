"""The two ends of the decoder, with a sharded vocabulary: token embedding, and logprobs of the next token.

Each device has the rows of its part of the vocabulary, in the tables [V, D] and in the logits. Devices exchange tokens,
not tables or logits: for a few tokens at a time every device computes its part, and a sum or reduce-scatter combines
them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from models.matmul import matmul_transposed
from models.sharding import mesh_size, partition_spec, platform

# f32 logits in memory at once on a device. The table's gradient is read and written once per chunk, so larger chunks
# are faster where there is memory. 128 MiB, 512 MiB, 1 GiB.
CHUNK_ELEMENTS = {"cpu": 2**25, "tpu": 2**27, "gpu": 2**28}
LOOKUP_ELEMENTS = 2**25  # elements of embeddings, before they are summed over the parts
GATHERED_ELEMENTS = 2**27  # elements of a chunk's decoder output, gathered from all devices
TILE = 128  # tokens of a chunk are a multiple of it: TPUs reduce-scatter only whole tiles


class _Parts(NamedTuple):
    """The mesh axes that vocabulary and tokens are sharded over."""

    vocabulary: tuple[str, ...] = ()  # of the vocabulary
    tokens: tuple[str, ...] = ()  # those of them that tokens are also sharded over

    def first(self, rows: int) -> jax.Array | int:
        """Index of the first of this device's `rows` rows of the table."""
        return jax.lax.axis_index(self.vocabulary) * rows if self.vocabulary else 0

    def gather(self, x: jax.Array) -> jax.Array:
        """[n, ...] of this device -> [f * n, ...] of all devices that have other tokens and other parts."""
        return jax.lax.all_gather(x, self.tokens, tiled=True) if self.tokens else x

    def own(self, x: jax.Array, n: int) -> jax.Array:
        """This device's n entries of x [f * n], which is in the order of `gather` and the same on all devices."""
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(self.tokens) * n, n) if self.tokens else x

    def sum(self, x: jax.Array) -> jax.Array:
        return jax.lax.psum(x, self.vocabulary) if self.vocabulary else x

    def max(self, x: jax.Array) -> jax.Array:
        return jax.lax.pmax(x, self.vocabulary) if self.vocabulary else x

    def sum_own(self, x: jax.Array) -> jax.Array:
        """Sums x [f * n, D] over the parts; each device gets its own tokens [n, D]."""
        others = tuple(a for a in self.vocabulary if a not in self.tokens)
        x = jax.lax.psum(x, others) if others else x
        return jax.lax.psum_scatter(x, self.tokens, tiled=True) if self.tokens else x


def embed(
    table: jax.Array,  # [V, D]
    tokens: jax.Array,  # i32[B, T]
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
) -> jax.Array:  # [B, T, D] in dtype
    """The rows of the table for the tokens."""
    if mesh is None or mesh.size == 1:
        by_bits = platform(mesh) == "cpu" and table.dtype == jnp.bfloat16
        return (_rows_by_bits(table, tokens) if by_bits else table[tokens]).astype(dtype)

    def local(parts: _Parts, table: jax.Array, tokens: jax.Array) -> jax.Array:
        rows, D = table.shape

        def lookup(tokens: jax.Array) -> jax.Array:
            here = parts.gather(tokens) - parts.first(rows)
            found = table[jnp.clip(here, 0, rows - 1)].astype(dtype)
            return parts.sum_own(jnp.where(((here >= 0) & (here < rows))[:, None], found, 0))

        chunk = LOOKUP_ELEMENTS // (D * mesh_size(mesh, parts.tokens))
        return _in_chunks(lookup, (tokens.reshape(-1),), chunk).reshape(*tokens.shape, D)

    return _over_parts(local, mesh, table, tokens)


@jax.custom_vjp
def _rows_by_bits(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """table[tokens] of a bf16 table. From its numbers, XLA on CPU would first convert the whole table to f32."""
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(table, jnp.uint16)[tokens], table.dtype)


def _rows_forward(table: jax.Array, tokens: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rows_by_bits(table, tokens), (table, tokens)


def _rows_backward(inputs: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    table, tokens = inputs
    summed = jnp.zeros(table.shape, jnp.float32).at[tokens].add(gradient.astype(jnp.float32))
    return summed.astype(table.dtype), None


_rows_by_bits.defvjp(_rows_forward, _rows_backward)


def token_logprobs(
    hidden: jax.Array,  # [..., D], the decoder's output before each target; [B, T, D] with a mesh
    targets: jax.Array,  # i32[...]
    unembedding: jax.Array,  # [V, D]
    temperature: float = 1.0,
    chunk_elements: int | None = None,  # None: the platform's
    mesh: Mesh | None = None,
    frozen: bool = False,
    wanted: jax.Array | None = None,  # bool[...], targets whose results are used; None: all
    entropy_gradient: bool = False,
) -> tuple[jax.Array, jax.Array]:  # f32[...], f32[...]
    """log softmax(logits / temperature) at the targets, and the entropy of that distribution in nats.

    Logits are computed for one chunk of tokens at a time, and again in the backward pass.

    Args:
        frozen: the unembedding gets no gradient.
        entropy_gradient: the entropy has a gradient; otherwise none.
        wanted: on one device the others are left out, chunk by chunk; their results are 0 or right.
    """

    elements = chunk_elements or CHUNK_ELEMENTS.get(platform(mesh), CHUNK_ELEMENTS["cpu"])

    def local(parts: _Parts, unembedding: jax.Array, hidden: jax.Array, targets: jax.Array):
        if not frozen:
            unembedding = unembedding.astype(jnp.float32)  # so that its gradient is summed over chunks in f32
        flat = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
        rows, D = unembedding.shape
        chunk = chunk_tokens(elements, rows, D, mesh_size(mesh, parts.tokens))
        of_chunk = partial(_logprobs, parts, unembedding, temperature, entropy_gradient)
        if wanted is not None and not parts.vocabulary and not parts.tokens:
            out = _of_wanted(of_chunk, flat, chunk, wanted.reshape(-1))
        else:
            out = _in_chunks(of_chunk, flat, chunk)
        return jax.tree.map(lambda x: x.reshape(targets.shape), out)

    if mesh is None or mesh.size == 1:
        return local(_Parts(), unembedding, hidden, targets)
    return _over_parts(local, mesh, unembedding, hidden, targets)


def chunk_tokens(elements: int, rows: int, D: int, devices: int) -> int:
    """Tokens of a device whose logits are computed at once.

    Args:
        elements: logits in memory at once.
        rows, D: shape of the unembedding on a device.
        devices: number that have other tokens and other parts of the vocabulary.
    """
    return min(elements // (rows * devices), max(TILE, GATHERED_ELEMENTS // (D * devices)))


def _logprobs(parts, unembedding, temperature, entropy_gradient, hidden, targets):
    """Logprobs and entropies of n tokens of this device: hidden [n, D], targets i32[n]."""
    n, rows = len(targets), len(unembedding)
    logits = matmul_transposed(parts.gather(hidden), unembedding) / temperature  # [f * n, rows]
    here = parts.gather(targets) - parts.first(rows)
    highest = parts.max(jax.lax.stop_gradient(logits).max(axis=-1))
    below = logits - highest[:, None]
    weights = jnp.exp(below)
    total = parts.sum(weights.sum(axis=-1))
    log_z = highest + jnp.log(total)
    chosen = jnp.take_along_axis(logits, jnp.clip(here, 0, rows - 1)[:, None], axis=-1)[:, 0]
    chosen = parts.sum(jnp.where((here >= 0) & (here < rows), chosen, 0))
    seen = (lambda x: x) if entropy_gradient else jax.lax.stop_gradient
    # Of logits below the highest: where one token is nearly certain, the logits themselves would cancel badly.
    mean = parts.sum(seen((weights * below).sum(axis=-1))) / total
    entropy = seen(jnp.log(total) - mean)
    return parts.own(chosen - log_z, n), parts.own(entropy, n)


def _of_wanted(f: Callable, arrays: tuple[jax.Array, ...], size: int, wanted: jax.Array) -> Any:
    """f over the rows of the arrays in chunks, the wanted rows first; chunks without any give 0."""
    order = jnp.argsort(~wanted)

    def some(wanted: jax.Array, *chunk: jax.Array) -> Any:
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(f, *chunk))
        return jax.lax.cond(wanted.any(), f, lambda *_: nothing, *chunk)

    out = _in_chunks(some, (wanted[order], *(x[order] for x in arrays)), size)
    return jax.tree.map(lambda x: jnp.zeros_like(x).at[order].set(x, unique_indices=True), out)


def _in_chunks(f: Callable, arrays: tuple[jax.Array, ...], size: int):
    """f over `size` rows of the arrays at a time; its intermediates are recomputed in the backward pass."""
    n = len(arrays[0])
    size = max(1, size // TILE * TILE or size)
    if size >= n:
        return f(*arrays)
    chunks = -(-n // size)

    def cut(x: jax.Array) -> jax.Array:
        padding = [(0, chunks * size - n), *[(0, 0)] * (x.ndim - 1)]
        return jnp.pad(x, padding).reshape(chunks, size, *x.shape[1:])

    out = jax.lax.map(lambda c: jax.checkpoint(f)(*c), jax.tree.map(cut, arrays))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], out)


def _over_parts(local: Callable, mesh: Mesh, table: jax.Array, *arrays: jax.Array):
    """local(parts, table, *arrays) on each device, with its rows of the table and its tokens [B, T, ...]."""
    vocabulary = partition_spec(("vocab",), pieces=table.shape[:1], mesh=mesh)
    tokens = partition_spec(("batch", "time"), pieces=arrays[0].shape[:2], mesh=mesh)
    names = vocabulary[0] or ()
    names = (names,) if isinstance(names, str) else names
    cut = [name for axis in tokens for name in ((axis,) if isinstance(axis, str) else axis or ())]
    parts = _Parts(names, tuple(name for name in names if name in cut))

    def varying(table: jax.Array, *arrays: jax.Array):
        # Replicated from here on, so that gradients are summed over devices here: once, not for each chunk.
        table = jax.lax.pcast(table, tuple(n for n in cut if n not in names), to="varying")
        of_tokens = tuple(n for n in names if n not in cut)
        return local(parts, table, *(jax.lax.pcast(a, of_tokens, to="varying") for a in arrays))

    return jax.shard_map(varying, mesh=mesh, in_specs=(vocabulary, *[tokens] * len(arrays)), out_specs=tokens)(
        table, *arrays
    )
