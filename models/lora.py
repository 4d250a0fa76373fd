"""LoRA: low-rank adapters beside the frozen matrices of a layer (Hu et al., arXiv 2106.09685).

y = x W + scale (x A) B, with A [in, r] random and B [r, out] zero at the start. Like all parameters of a Block, those
of an adapter are stacked over the L layers: NAME_lora_a [L, in, r], NAME_lora_b [L, r, out] beside NAME [L, in, out].
They are f32 whatever the frozen parameters are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from models.config import Lora, ModelConfig

Params = Any  # nnx.State of a Decoder


class LoraParam(nnx.Param):
    """A parameter of an adapter. A model that has any trains only these."""


class Adapter(NamedTuple):
    """Of one matrix in one layer."""

    a: nnx.Variable  # [in, r]
    b: nnx.Variable  # [r, out]
    scale: float


def add_adapters(block: nnx.Module, lora: Lora | None) -> None:
    """Gives the block adapters of zeros, sharded as their matrices are; the rank is never cut."""
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
    """The adapter of a matrix, in a block of one layer."""
    lora = block.config.lora
    if lora is None or name not in lora.targets:
        return None
    return Adapter(getattr(block, f"{name}_lora_a"), getattr(block, f"{name}_lora_b"), lora.scale)


def initial_adapters(adapters: nnx.State, key: jax.Array) -> nnx.State:
    """A uniform in +-1 / sqrt(in), as PEFT has it; B zero, so that the model is at first what it was without them."""

    def initial(index: int, path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        shape = variable.shape
        if str(path[-1]).endswith("_lora_b"):
            return variable.replace(jnp.zeros(shape))
        bound = shape[1] ** -0.5
        return variable.replace(jax.random.uniform(jax.random.fold_in(key, index), shape, jnp.float32, -bound, bound))

    key = jax.random.fold_in(key, 0x4C6F5241)  # apart from the keys of other parameters
    flat = nnx.to_flat_state(adapters)
    return nnx.from_flat_state([(path, initial(i, path, variable)) for i, (path, variable) in enumerate(flat)])


def split_params(params: Params) -> tuple[Params, Params]:
    """(trained, frozen): the adapters and all others; without adapters, all parameters and an empty state."""
    adapted = any(isinstance(variable, LoraParam) for _, variable in nnx.to_flat_state(params))
    trained, frozen = nnx.split_state(params, LoraParam if adapted else nnx.Param, ...)
    return trained, frozen


def join_params(trained: Params, frozen: Params) -> Params:
    """What `split_params` took apart."""
    return nnx.merge_state(trained, frozen)


def copy_trained(params: Params) -> Params:
    """Parameters that the next update will not use up: the trained ones copied, the frozen ones shared."""
    trained, frozen = split_params(params)
    return join_params(_copied(trained), frozen)


@jax.jit  # one program, not one for each shape
def _copied(params: Params) -> Params:
    return jax.tree.map(jnp.copy, params)


def merged_parameters(params: Params, config: ModelConfig) -> Iterator[tuple[tuple[Any, ...], jax.Array]]:
    """Path and value of each parameter of the same model without adapters, one at a time.

    Where there is an adapter that is W + scale A B, computed in f32 and rounded to W's dtype.
    """
    flat = dict(nnx.to_flat_state(params))
    for path, variable in flat.items():
        if isinstance(variable, LoraParam):
            continue
        value, (*block, name) = variable[...], path
        if config.lora is not None and block == ["blocks"] and name in config.lora.targets:
            a, b = flat["blocks", f"{name}_lora_a"][...], flat["blocks", f"{name}_lora_b"][...]
            value = merge(value, a, b, scale=config.lora.scale)
        yield path, value


@partial(jax.jit, static_argnames="scale")
def merge(w: jax.Array, a: jax.Array, b: jax.Array, *, scale: float) -> jax.Array:
    """W + scale A B in W's dtype: [L, in, out] of A [L, in, r] and B [L, r, out]."""
    product = jnp.einsum("lir,lro->lio", a, b, precision="highest", preferred_element_type=jnp.float32)
    return (w.astype(jnp.float32) + scale * product).astype(w.dtype)
