"""A stage's programs with abstract arguments, as they are handed to the compiler, and the size of such arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding


@dataclass(frozen=True)
class Program:
    """A jitted function of a run with its arguments."""

    name: str
    function: Any  # jitted
    arguments: tuple[Any, ...]  # ShapeDtypeStructs with shardings
    runs: float  # in one step of training
    flops: float  # of the model, in one execution, on all devices together
    executed: float  # flops, recomputation included
    resident: tuple[int, ...] = ()  # arguments that stay in memory while other programs run
    sampler: bool = False  # belongs to the JAX engine
    static: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """The programs of a training stage, and what the stage keeps in memory all the time."""

    name: str  # sft | reward | grpo
    programs: list[Program]
    resident: dict[str, Any]  # by name: ShapeDtypeStructs with shardings
    tokens: int  # that one step trains on
    ahead: bool = False  # the sampler's programs run during the trainer's
    gathered: Any = None  # ShapeDtypeStructs: where there are several processes, the copy that each one samples with


def bytes_per_device(tree: Any) -> float:
    """Bytes of the tree's shards on the device that holds most of them."""

    def size(leaf: Any) -> float:
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.memory_kind == "pinned_host":
            return 0.0
        shape = sharding.shard_shape(leaf.shape) if sharding is not None else leaf.shape
        return math.prod(shape) * _itemsize(leaf.dtype)

    return float(sum(size(leaf) for leaf in jax.tree.leaves(tree)))


def _itemsize(dtype: Any) -> float:
    return jnp.dtype(dtype).itemsize if not jnp.issubdtype(dtype, jax.dtypes.prng_key) else 8.0
