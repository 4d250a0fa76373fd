"""LoRA: low-rank adapters beside the frozen matrices of a layer (Hu et al., arXiv 2106.09685).

y = x W + scale (x A) B, with A [in, r] random and B [r, out] zero at the start. Like all parameters of a Block, those
of an adapter are stacked over the L layers: NAME_lora_a [L, in, r], NAME_lora_b [L, r, out] beside NAME [L, in, out].
They are f32 whatever the frozen parameters are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from models.config import Lora, ModelConfig

Params = Any  # nnx.State of a Decoder


class LoraParam(nnx.Param):
    """A parameter of an adapter. A model with adapters trains only these."""


class Adapter(NamedTuple):
    """The adapter of one matrix in one layer."""

    a: nnx.Variable  # [in, r]
    b: nnx.Variable  # [r, out]
    scale: float


def add_adapters(block: nnx.Module, lora: Lora | None) -> None:
    """Adds adapters of zeros to the block, sharded like their matrices; the rank is never sharded."""
    if lora is None:
        return
    for name in lora.targets:
        matrix = getattr(block, name)
        L, inputs, outputs = matrix.shape
        metadata = matrix.get_metadata()
        axes, pieces = metadata["out_sharding"], metadata["pieces"]
        for part, shape, place in (("a", (L, inputs, lora.rank), 1), ("b", (L, lora.rank, outputs), 2)):
            cut = [a if i in (0, place) else None for i, a in enumerate(axes)]
            whole = [p if i in (0, place) else lora.rank for i, p in enumerate(pieces)]
            zeros, settings = jnp.zeros(shape), {"out_sharding": tuple(cut), "pieces": tuple(whole)}
            setattr(block, f"{name}_lora_{part}", LoraParam(zeros, eager_sharding=False, **settings))


def adapter(block: Any, name: str) -> Adapter | None:
    """The adapter of a matrix in a block of one layer; None if it has none."""
    lora = block.config.lora
    if lora is None or name not in lora.targets:
        return None
    return Adapter(getattr(block, f"{name}_lora_a"), getattr(block, f"{name}_lora_b"), lora.scale)


def initial_adapters(adapters: nnx.State, key: jax.Array) -> nnx.State:
    """A uniform in +-1 / sqrt(in), as in PEFT; B zero, so that the model starts as it is without adapters."""

    def initial(index: int, path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        shape = variable.shape
        if str(path[-1]).endswith("_lora_b"):
            return variable.replace(jnp.zeros(shape))
        bound = shape[1] ** -0.5
        return variable.replace(jax.random.uniform(jax.random.fold_in(key, index), shape, jnp.float32, -bound, bound))

    key = jax.random.fold_in(key, 0x4C6F5241)  # separate from the keys of other parameters
    flat = nnx.to_flat_state(adapters)
    return nnx.from_flat_state([(path, initial(i, path, variable)) for i, (path, variable) in enumerate(flat)])


def split_params(params: Params) -> tuple[Params, Params]:
    """(trained, frozen): the adapters and the rest; without adapters, all parameters and an empty state."""
    adapted = any(isinstance(variable, LoraParam) for _, variable in nnx.to_flat_state(params))
    trained, frozen = nnx.split_state(params, LoraParam if adapted else nnx.Param, ...)
    return trained, frozen


def join_params(trained: Params, frozen: Params) -> Params:
    """The inverse of `split_params`."""
    return nnx.merge_state(trained, frozen)


def copy_trained(params: Params) -> Params:
    """Parameters that survive the next update, which donates them: the trained ones copied, the frozen ones shared."""
    trained, frozen = split_params(params)
    return join_params(_copied(trained), frozen)


@jax.jit  # one executable for all shapes together
def _copied(params: Params) -> Params:
    return jax.tree.map(jnp.copy, params)


def merged_parameters(
    params: Params, config: ModelConfig, dtype: Any = None
) -> Iterator[tuple[tuple[Any, ...], jax.Array]]:
    """Path and value of each parameter with the adapters merged into it, one at a time.

    Where there is an adapter, that is W + scale A B, computed in f32 and rounded once, to `dtype` (None: W's).
    """
    flat = dict(nnx.to_flat_state(params))
    for path, variable in flat.items():
        if isinstance(variable, LoraParam):
            continue
        value, (*block, name) = variable[...], path
        if config.lora is not None and block == ["blocks"] and name in config.lora.targets:
            a, b = flat["blocks", f"{name}_lora_a"][...], flat["blocks", f"{name}_lora_b"][...]
            value = merge(value, a, b, scale=config.lora.scale, dtype=dtype and jnp.dtype(dtype))
        yield path, value


def merge_values(params: Params, values: Mapping[str, Any], lora: Lora, dtype: jnp.dtype, what: str) -> Params:
    """Merges adapters into `params`, which have none: W + scale A B, rounded to `dtype` once; others are cast to it.

    In place, one parameter after another, so that at most one of them is in memory twice. Warns where rounding removes
    much of what the adapters change, and where `dtype` is narrower than the parameters'.

    Args:
        values: of the adapters, by their names in a block.
        what: names the adapters in the warning.
    """
    lost, change, narrower = 0.0, 0.0, False
    for *block, name in [path for path, _ in nnx.to_flat_state(params)]:
        holder = params
        for part in block:
            holder = holder[part]
        w = holder[name][...]
        if block == ["blocks"] and name in lora.targets:
            a, b = values[f"{name}_lora_a"], values[f"{name}_lora_b"]
            merged = jax.device_put(merge(w, a, b, scale=lora.scale, dtype=dtype), w.sharding)
            if dtype != jnp.float32:
                narrower |= dtype.itemsize < w.dtype.itemsize
                squares = _rounding(w, a, b, merged, scale=lora.scale)
                lost, change = (float(total + part) for total, part in zip((lost, change), squares))
        else:
            merged = w.astype(dtype)
        holder[name] = holder[name].replace(merged)
    share = (lost / change) ** 0.5 if change else 0.0
    if narrower or share > 0.5:
        warnings.warn(
            f"{what}: adapters were merged into {dtype} weights, and rounding amounts to {share:.0%} of their change; "
            "float32 would keep it",
            stacklevel=2,
        )
    return params


@partial(jax.jit, static_argnames=("scale", "dtype"))
def merge(w: jax.Array, a: jax.Array, b: jax.Array, *, scale: float, dtype: Any = None) -> jax.Array:
    """W + scale A B [L, in, out] from A [L, in, r] and B [L, r, out], in `dtype` or W's."""
    return (w.astype(jnp.float32) + scale * _product(a, b)).astype(dtype or w.dtype)


@partial(jax.jit, static_argnames="scale")
def _rounding(w: jax.Array, a: jax.Array, b: jax.Array, merged: jax.Array, *, scale: float) -> tuple[Any, Any]:
    """Sums of squares of the changes by rounding and of those by the adapters."""
    change = scale * _product(a, b)
    return jnp.sum((merged.astype(jnp.float32) - (w.astype(jnp.float32) + change)) ** 2), jnp.sum(change**2)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum("lir,lro->lio", a, b, precision="highest", preferred_element_type=jnp.float32)
