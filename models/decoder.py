"""The one decoder: Qwen2, Qwen3, Llama 3 and Mistral are settings of it (models/config.py).

Axes: B batch rows, T tokens of this call, S tokens of the cache, D width, H heads, K kv heads, Dh head width,
F MLP width, L layers, V vocabulary. Parameters are stacked over layers, [L, ...], and the layers are scanned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name, checkpoint_policies
from jax.sharding import Mesh, NamedSharding

from models import row_cache
from models.attention import attention, decode_attention, extended_attention, kernel_of
from models.cache import Cache, over_rows_and_heads, write
from models.config import Llama3RopeScaling, ModelConfig
from models.lora import Adapter, LoraParam, adapter, add_adapters, initial_adapters
from models.matmul import WeightSharding, project
from models.row_cache import Chunks, decode_attention_by_rows
from models.sharding import LOGICAL_TO_MESH, SERVING, constrain, param_shardings, partition_spec, sharded
from models.vocabulary import embed

# What is kept for the backward pass: everything, the results of projections and attention, or only layers' inputs.
REMAT = {
    "none": None,
    "dots": checkpoint_policies.save_only_these_names("dots"),
    "full": checkpoint_policies.nothing_saveable,
}

SMALL = ("norm", "bias")  # how the names of small parameters end, which are used in f32


class Compute(NamedTuple):
    """How the forward pass runs. Changes numbers only by rounding."""

    dtype: jnp.dtype = jnp.dtype(jnp.float32)  # of activations and matmul operands
    remat: str = "none"  # none | dots | full: what is recomputed in the backward pass, see REMAT
    unroll: bool = False  # unroll the scan over layers
    mesh: Mesh | None = None  # of the parameters and rows
    attention: str = "auto"  # a kernel, see models/attention.py
    transposed: bool = False  # the matrices of the layers are stored as [out, in]; for sampling only

    def place(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """x, sharded by these logical axes."""
        if self.mesh is None or self.mesh.size == 1:
            return x
        return constrain(x, self.mesh, partition_spec(axes, pieces=x.shape, mesh=self.mesh))

    def project(
        self, x: jax.Array, weight: nnx.Variable, bias: nnx.Variable | None = None, adapter: Adapter | None = None
    ) -> jax.Array:
        """x [..., I] @ weight [I, O] + bias [O], plus an adapter's part, in x's dtype, accumulated in f32."""
        y = project(x, weight[...], self._sharding(weight), self.transposed)
        if adapter is not None:
            narrow = adapter.scale * project(x, adapter.a[...], self._sharding(adapter.a))
            y = y + project(narrow.astype(x.dtype), adapter.b[...], self._sharding(adapter.b))
        y = (y if bias is None else y + bias[...].astype(jnp.float32)).astype(x.dtype)
        return checkpoint_name(y, "dots")

    def _sharding(self, weight: nnx.Variable) -> WeightSharding | None:
        if self.mesh is None or self.mesh.size == 1:
            return None
        metadata = weight.get_metadata()
        axes, pieces = metadata["out_sharding"][-2:], metadata["pieces"][-2:]  # of one layer
        tables = LOGICAL_TO_MESH, SERVING
        return WeightSharding(*(NamedSharding(self.mesh, partition_spec(axes, t, pieces, self.mesh)) for t in tables))


def parameter(
    shape: tuple[int, ...], axes: tuple[str | None, ...], dtype: jnp.dtype, pieces: tuple[int, ...] | None = None
) -> nnx.Param:
    """A parameter of zeros with a logical name for each axis (models/sharding.py maps names to mesh axes).

    Args:
        pieces: number of indivisible parts of each axis (heads, for example); None: its length.
    """
    zeros = jnp.zeros(shape, dtype)
    return nnx.Param(zeros, out_sharding=axes, eager_sharding=False, pieces=pieces or shape)


class Block(nnx.Module):
    """L transformer layers' parameters; called with the slice of one layer."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        L, D, F = config.num_layers, config.hidden_size, config.intermediate_size
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.config = config

        # Replicated on every device.
        heads: dict[str | None, int] = {"heads": config.num_heads, "kv_heads": config.num_kv_heads}

        def stacked(*shape_and_axes: tuple[int, str | None]) -> nnx.Param:
            shape, axes = zip(*shape_and_axes)
            pieces = tuple(heads.get(axis, size) for size, axis in shape_and_axes)
            return parameter((L, *shape), ("layers", *axes), dtype, (L, *pieces))

        self.attention_norm = stacked((D, None))
        self.q = stacked((D, "embed"), (queries, "heads"))
        self.k = stacked((D, "embed"), (keys, "kv_heads"))
        self.v = stacked((D, "embed"), (keys, "kv_heads"))
        self.o = stacked((queries, "heads"), (D, "embed"))
        if config.qkv_bias:
            self.q_bias = stacked((queries, "heads"))
            self.k_bias = stacked((keys, "kv_heads"))
            self.v_bias = stacked((keys, "kv_heads"))
        if config.output_bias:
            self.o_bias = stacked((D, None))
        if config.qk_norm:
            self.q_norm = stacked((config.head_dim, None))
            self.k_norm = stacked((config.head_dim, None))
        self.mlp_norm = stacked((D, None))
        self.gate = stacked((D, "embed"), (F, "mlp"))
        self.up = stacked((D, "embed"), (F, "mlp"))
        self.down = stacked((F, "mlp"), (D, "embed"))
        add_adapters(self, config.lora)

    def __call__(self, x, rotation, attend, compute: Compute):
        """x [B, T, D] -> [B, T, D]. `attend(q, k, v)` mixes values over the visible tokens and stores k and v."""
        epsilon = self.config.norm_epsilon
        x = x + self.attention(rms_norm(x, self.attention_norm[...], epsilon), rotation, attend, compute)
        x = x + self.mlp(rms_norm(x, self.mlp_norm[...], epsilon), compute)
        return compute.place(x, "batch", "time", None)

    def attention(self, x, rotation, attend, compute):
        config, (B, T, _) = self.config, x.shape
        bias = (self.q_bias, self.k_bias, self.v_bias) if config.qkv_bias else (None, None, None)
        q, k, v = (self.project(x, name, compute, b) for name, b in zip("qkv", bias))
        q, k, v = (a.reshape(B, T, -1, config.head_dim) for a in (q, k, v))
        if config.qk_norm:
            q = rms_norm(q, self.q_norm[...], config.norm_epsilon)
            k = rms_norm(k, self.k_norm[...], config.norm_epsilon)
        mixed = checkpoint_name(attend(rotate(q, *rotation), rotate(k, *rotation), v), "dots")
        return self.project(mixed.reshape(B, T, -1), "o", compute, self.o_bias if config.output_bias else None)

    def mlp(self, x, compute):
        hidden = jax.nn.silu(self.project(x, "gate", compute)) * self.project(x, "up", compute)
        return self.project(compute.place(hidden, "batch", "time", "mlp"), "down", compute)

    def project(self, x, name, compute, bias=None):
        return compute.project(x, getattr(self, name), bias, adapter(self, name))


class Decoder(nnx.Module):
    """Token embedding, L blocks, a final norm. Parameters start as zeros: see `initialize` and models/convert.py."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype = jnp.dtype(jnp.float32)):
        self.config = config
        self.embed = parameter((config.vocab_size, config.hidden_size), ("vocab", None), dtype)
        self.blocks = Block(config, dtype)
        self.final_norm = parameter((config.hidden_size,), (None,), dtype)
        if not config.tied_embeddings:
            self.unembed = parameter((config.vocab_size, config.hidden_size), ("vocab", None), dtype)

    def unembedding(self) -> jax.Array:
        """[V, D]; logits are hidden @ unembedding.T."""
        return self.embed[...] if self.config.tied_embeddings else self.unembed[...]

    def __call__(
        self,
        tokens: jax.Array,  # i32[B, T]
        positions: jax.Array,  # i32[B, T], each token's place in its own sequence
        segment_ids: jax.Array | None = None,  # i32[B, T], 0: padding; None: one sequence a row
        compute: Compute = Compute(),
    ) -> jax.Array:  # [B, T, D] after the final norm
        """The forward pass over whole rows. A token sees only the earlier tokens of its own segment."""
        return self._forward(tokens, positions, segment_ids, compute)[0]

    def prefill(
        self,
        tokens: jax.Array,  # i32[B, T]
        positions: jax.Array,  # i32[B, T]
        segment_ids: jax.Array | None = None,
        compute: Compute = Compute(),
    ) -> tuple[jax.Array, jax.Array, jax.Array]:  # hidden [B, T, D]; keys and values [L, B, T, K, Dh]
        """The forward pass that also returns the keys and values from which decoding continues."""
        hidden, (k, v) = self._forward(tokens, positions, segment_ids, compute, keep_keys=True)
        return hidden, k, v

    def _forward(self, tokens, positions, segment_ids, compute, keep_keys=False) -> tuple[jax.Array, Any]:
        config = self.config
        segments = jnp.ones_like(tokens) if segment_ids is None else segment_ids
        rotation = rotary(positions, config)
        windows = config.windows or (0,) * config.num_layers
        kinds = sorted(set(windows))
        kernel = kernel_of(compute.attention, compute.mesh, compute.dtype)
        kernels = [partial(attention, window=window, kernel=kernel, mesh=compute.mesh) for window in kinds]

        def layer(x, params_and_kind):
            params, kind = params_and_kind
            kept = None

            def attend(q, k, v):
                nonlocal kept
                kept = (k, v) if keep_keys else None
                if len(kernels) == 1:
                    return kernels[0](q, k, v, segments)
                return jax.lax.switch(kind, kernels, q, k, v, segments)

            x = nnx.merge(graphdef, params)(x, rotation, attend, compute)
            return x, kept

        graphdef, stacked = nnx.split(self.blocks)
        if compute.remat != "none":
            layer = jax.checkpoint(layer, prevent_cse=False, policy=REMAT[compute.remat])
        x = self._embed(tokens, compute)
        kind_of_layer = jnp.array([kinds.index(window) for window in windows], jnp.int32)
        unroll = config.num_layers if compute.unroll else 1
        x, kept = jax.lax.scan(layer, x, (stacked, kind_of_layer), unroll=unroll)
        return rms_norm(x, self.final_norm[...], config.norm_epsilon), kept

    def _embed(self, tokens: jax.Array, compute: Compute) -> jax.Array:
        x = embed(self.embed[...], tokens, compute.dtype, compute.mesh)
        return compute.place(x, "batch", "time", None)

    def decode(
        self,
        tokens: jax.Array,  # i32[B], one new token per row
        positions: jax.Array,  # i32[B], its place in its row
        cache: Cache | tuple[Chunks, ...],
        layers: list[Block] | None = None,  # from `unstack`: unrolled; None: scanned
        compute: Compute = Compute(),
        parts: int | None = None,  # of the cache that are read and written; None: all
        rows: jax.Array | None = None,  # i32[B], of a cache in Chunks; None: the first B
    ) -> tuple[jax.Array, Any]:  # hidden [B, D] after the final norm
        """One step of decoding: the new tokens' keys and values go into the cache at their positions.

        A row whose position is negative or lies after the first `parts` gets a meaningless result, and its keys are not
        written.
        """

        def attend(q, k, v, positions, window, used, l):
            # Otherwise XLA recomputes k for each part, with a rounding that depends on the number of parts.
            q, k, v = jax.lax.optimization_barrier((q, k, v))
            used = write(used, jnp.arange(q.shape[0]), positions, k, v, l)
            seen = used if l is None else tuple((k[l], v[l]) for k, v in used)
            return decode_attention(q, seen, positions, window), used

        def layer(q, k, v, window, layer_parts, l):
            if isinstance(layer_parts, Chunks):
                own = jnp.arange(q.shape[0]) if rows is None else rows
                kept = row_cache.write(layer_parts, own, positions, k[:, 0], v[:, 0])
                return decode_attention_by_rows(q[:, 0], kept, own, positions, window)[:, None], kept
            used, rest = layer_parts[:parts], layer_parts[parts:] if parts else ()
            mixed, used = over_rows_and_heads(
                attend, compute.mesh, q[:, 0], k[:, 0], v[:, 0], positions, window, used, l
            )
            return mixed[:, None], used + rest

        hidden, cache = self._with_cache(tokens[:, None], positions[:, None], layer, cache, layers, compute)
        return hidden[:, 0], cache

    def extend(
        self,
        tokens: jax.Array,  # i32[b, T], new tokens
        positions: jax.Array,  # i32[b, T], their places in their rows; S for padding
        rows: jax.Array,  # i32[b], of the cache
        cache: Cache | tuple[Chunks, ...],
        layers: list[Block] | None = None,
        compute: Compute = Compute(),
    ) -> tuple[jax.Array, Any]:  # hidden [b, T, D] after the final norm
        """Many new tokens of some rows at once, following their tokens in the cache."""

        def layer(q, k, v, window, layer_parts, l):
            if isinstance(layer_parts, Chunks):
                kept = row_cache.write(layer_parts, rows[:, None], positions, k, v)
                return extended_attention(q, *row_cache.of_rows(kept, rows), positions, window), kept
            layer_parts = write(layer_parts, rows[:, None], positions, k, v, l)
            index = rows if l is None else (l, rows)
            keys = jnp.concatenate([k[index].transpose(0, 3, 1, 2) for k, _ in layer_parts], axis=1)
            values = jnp.concatenate([v[index].transpose(0, 2, 1, 3) for _, v in layer_parts], axis=1)
            return extended_attention(q, keys, values, positions, window), layer_parts

        return self._with_cache(tokens, positions, layer, cache, layers, compute)

    def _with_cache(self, tokens, positions, attend, cache, layers, compute) -> tuple[jax.Array, Any]:
        """The forward pass with `attend(q, k, v, window, parts of the cache, layer in them) -> mixed, parts`."""
        config, rotation = self.config, rotary(positions, self.config)
        windows = config.windows or (0,) * config.num_layers
        x = self._embed(tokens, compute)

        def layer(block, x, window, parts, l):
            def attend_and_keep(q, k, v):
                nonlocal parts
                mixed, parts = attend(q, k, v, window, parts, l)
                return mixed

            return block(x, rotation, attend_and_keep, compute), parts

        if layers is not None:
            kept = []
            for block, window, parts in zip(layers, windows, cache):
                x, parts = layer(block, x, window, parts, None)
                kept.append(parts)
            return rms_norm(x, self.final_norm[...], config.norm_epsilon), tuple(kept)

        graphdef, stacked = nnx.split(self.blocks)

        def body(carry, inputs):
            params, window, l = inputs
            return layer(nnx.merge(graphdef, params), carry[0], window, carry[1], l), None

        inputs = (stacked, jnp.array(windows, jnp.int32), jnp.arange(config.num_layers))
        (x, parts), _ = jax.lax.scan(body, (x, cache[0]), inputs)
        return rms_norm(x, self.final_norm[...], config.norm_epsilon), (parts,)

    def unstack(self) -> list[Block]:
        """One Block per layer, for `decode` to unroll; call it outside the decoding loop."""
        graphdef, stacked = nnx.split(self.blocks)
        slices = [jax.tree.map(lambda p, l=l: p[l], stacked) for l in range(self.config.num_layers)]
        return [nnx.merge(graphdef, layer) for layer in slices]


def rms_norm(x: jax.Array, weight: jax.Array, epsilon: float) -> jax.Array:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis, in f32 (Zhang and Sennrich, arXiv 1910.07467)."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * scale * weight.astype(jnp.float32)).astype(x.dtype)


def rotary(positions: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """The rotary position embedding (Su et al., arXiv 2104.09864) at positions [B, T], for `rotate`: f32[B, T, Dh].

    Cosines, repeated for both halves, and sines, negated in the first half.
    """
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_scaling is not None:
        frequencies = _llama3_frequencies(frequencies, config.rope_scaling)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + Dh / 2) of x [B, T, H, Dh], the layout of Hugging Face checkpoints."""
    wide = x.astype(jnp.float32)
    swapped = jnp.roll(wide, x.shape[-1] // 2, axis=-1)
    return (wide * cos[:, :, None] + swapped * sin[:, :, None]).astype(x.dtype)


def _llama3_frequencies(frequencies: jax.Array, scaling: Llama3RopeScaling) -> jax.Array:
    """Llama 3.1's frequencies: slow ones divided by `factor`, fast ones kept, a linear blend between."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * jnp.pi)  # over the original context
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = jnp.clip(blend, 0.0, 1.0)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def initialize(model: Decoder, key: jax.Array, scale: float = 0.02) -> Decoder:
    """Random weights in place: norms 1, biases 0, matrices normal(0, scale) (GPT-2's and Hugging Face's default).

    Adapters start as in `models.lora.initial_adapters`.
    """
    graphdef, params = nnx.split(model)
    adapters, params = nnx.split_state(params, LoraParam, ...)
    flat = nnx.to_flat_state(params)
    keys = jax.random.split(key, len(flat))  # the same number as without adapters, so that the base is the same
    values = list(nnx.to_flat_state(initial_adapters(adapters, key)))
    for (path, variable), k in zip(flat, keys):
        name, value = str(path[-1]), variable[...]
        if name.endswith("norm"):
            values.append((path, variable.replace(jnp.ones_like(value))))
        elif name.endswith("bias"):
            values.append((path, variable.replace(jnp.zeros_like(value))))
        else:
            values.append((path, variable.replace(scale * jax.random.normal(k, value.shape, value.dtype))))
    return nnx.merge(graphdef, nnx.from_flat_state(values))


@dataclass(frozen=True)
class ForSampling:
    """In place of a dtype: matrices have `dtype`; norms and biases, which are small and used in f32, have f32."""

    dtype: jnp.dtype


def dtype_of(name: str, dtype: Any) -> Any:
    """The dtype of the parameter with this name where `dtype` is a dtype, None, or ForSampling."""
    if not isinstance(dtype, ForSampling):
        return dtype
    return jnp.dtype(jnp.float32) if name.endswith(SMALL) else dtype.dtype


def abstract_decoder(config: ModelConfig, mesh: Mesh, dtype: jnp.dtype | ForSampling) -> tuple[nnx.GraphDef, nnx.State]:
    """(graphdef, parameters as sharded ShapeDtypeStructs): adapters in f32, all others in `dtype`."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: Decoder(config)))

    def typed(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        own = jnp.float32 if isinstance(variable, LoraParam) else dtype_of(str(path[-1]), dtype)
        return variable.replace(jax.ShapeDtypeStruct(variable.shape, own))

    params = nnx.from_flat_state([(path, typed(path, v)) for path, v in nnx.to_flat_state(params)])
    return graphdef, sharded(params, param_shardings(params, mesh))
