"""The optimizer of a stage, its learning rate, and where and in how many bits its state is kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl.algorithms.objective import Objective
from jaxrl.config import OptimizerConfig
from jaxrl.config.rules import check_settings
from jaxrl.errors import UserError
from jaxrl.training.quantization import EightBit, block_shape, dequantize, quantize, round_to_bfloat16, zeros
from models.heads import with_heads, without_heads

Params = Any  # nnx.State of the decoder, or a part of it
Moment = jax.Array | EightBit

SMALL = 4096  # a leaf of fewer parameters keeps f32 moments on the device (as in bitsandbytes)
_ROUNDING = 1  # stream of random numbers, beside those of the moments


class RoundingState(NamedTuple):
    """Of `round_stochastically`."""

    count: jax.Array  # i32[], updates so far


def stage_optimizer(
    config: OptimizerConfig, objective: Objective, steps: int, seed: int = 0, updates: int = 1
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """That of `make_optimizer`, beside one of the objective's heads where they have settings of their own."""
    optimizer, schedule = make_optimizer(config, steps, seed, updates)
    if objective.heads_optimizer is None:
        return optimizer, schedule
    of_heads = dataclasses.replace(objective.heads_optimizer, offload=config.offload)
    heads, _ = make_optimizer(of_heads, steps, seed + 1, updates)
    return heads_apart(optimizer, heads, objective.heads_first * updates), schedule


def make_optimizer(
    config: OptimizerConfig, steps: int, seed: int = 0, updates: int = 1
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW (arXiv 1711.05101) behind a clip of the global norm, and its learning rate as a function of the step.

    A step has `updates` updates, all with its learning rate.

    Norms and biases are not decayed. Everything is computed in f32. What is rounded at random (a state in 8 or 16 bits,
    bf16 parameters) is a function of (seed, update). Raises UserError for a setting that is not allowed.
    """
    check_settings(config, "optimizer")
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.learning_rate, max(1, steps - config.warmup_steps))
    else:
        after = optax.constant_schedule(config.learning_rate)
    warmup = optax.linear_schedule(
        config.learning_rate / (config.warmup_steps + 1), config.learning_rate, config.warmup_steps
    )
    schedule = optax.join_schedules([warmup, after], [config.warmup_steps]) if config.warmup_steps else after
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    if config.state == "float32" and not config.offload:
        adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    else:
        adam = scale_by_adam(config.b1, config.b2, config.eps, config.state, config.offload, seed)
    of_update = schedule if updates == 1 else lambda count: schedule(count // updates)
    decay = optax.add_decayed_weights(config.weight_decay, _decayed)
    optimizer = _in_float32(optax.chain(clip, optax.chain(adam, decay, optax.scale_by_learning_rate(of_update))))
    return optax.chain(optimizer, round_stochastically(seed)) if config.stochastic_rounding else optimizer, schedule


class ApartState(NamedTuple):
    """Of `heads_apart`."""

    decoder: optax.OptState
    heads: optax.OptState
    updates: optax.ScaleByScheduleState  # so far, which `at_update` sets


def heads_apart(
    decoder: optax.GradientTransformation, heads: optax.GradientTransformation, first: int = 0
) -> optax.GradientTransformation:
    """Separate optimizers, clipping included, of the decoder and of its heads.

    In the `first` updates the decoder is left as it is, and its moments stay 0. A head's own decoder is part of it.
    """

    def alone(state: Any) -> Params:  # with the paths that heads have in the weights, for `state_shardings`
        return with_heads(nnx.State({}), state)

    def init(params: Params) -> ApartState:
        weights, state = without_heads(params)
        counted = optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))
        return ApartState(decoder.init(weights), heads.init(alone(state)), counted)

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, ApartState]:
        (gradient, of_heads), (weights, head_weights) = without_heads(updates), without_heads(params)
        count: Any = state.updates.count
        masked = partial(jax.tree.map, lambda x: jnp.where(count >= first, x, 0)) if first else lambda x: x
        steps: Any
        head_steps: Any
        steps, of_decoder = decoder.update(masked(gradient), state.decoder, weights)
        head_steps, moments = heads.update(alone(of_heads), state.heads, alone(head_weights))
        counted = optax.ScaleByScheduleState(optax.safe_increment(count))
        return nnx.merge_state(masked(steps), head_steps), ApartState(of_decoder, moments, counted)

    return optax.GradientTransformation(init, update)


def at_update(opt_state: optax.OptState, count: int) -> optax.OptState:
    """The state with the learning rate's schedule at update `count`: a step may have had fewer updates than usual."""

    def moved(part: Any) -> Any:
        if not isinstance(part, optax.ScaleByScheduleState):
            return part
        before: Any = part.count
        return part._replace(count=jax.device_put(np.int32(count), before.sharding))

    return jax.tree.map(moved, opt_state, is_leaf=lambda part: isinstance(part, optax.ScaleByScheduleState))


def scale_by_adam(
    b1: float, b2: float, eps: float, kept: str = "float32", offload: bool = False, seed: int = 0
) -> optax.GradientTransformation:
    """Adam (arXiv 1412.6980) with moments in f32, bf16 or 8 bits, rounded at random (jaxrl/training/quantization.py).

    The step is computed from moments in f32, which are rounded when they are put away. Norms, biases, leaves of fewer
    than SMALL parameters, and in 8 bits those whose shape allows no block, keep f32.

    With `offload` the other leaves' moments are in host memory before and after (see `state_shardings`). The device
    holds those of a piece (one layer of a stacked leaf, some columns of a table) at a time; so it does of 8-bit ones in
    f32.
    """

    def init(params: Params) -> optax.ScaleByAdamState:
        def zero_moment(path: tuple[Any, ...], p: jax.Array, signed: bool) -> Moment:
            if not _large(path, p):
                return jnp.zeros(p.shape, jnp.float32)
            shape = _pieces(p.shape)
            block = block_shape(shape) if p.ndim > 2 else (1, shape[-1])
            if kept == "int8" and block:
                return zeros(shape, block, signed)
            return jnp.zeros(shape, jnp.bfloat16 if kept == "bfloat16" else jnp.float32)

        mu, nu = (jax.tree_util.tree_map_with_path(partial(zero_moment, signed=s), params) for s in (True, False))
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu, nu)

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, optax.ScaleByAdamState]:
        count = jnp.asarray(optax.safe_increment(state.count))
        key = jax.random.fold_in(jax.random.key(seed), count)

        def step(g: jax.Array, mu: Moment, nu: Moment, key: jax.Array, on_host: bool) -> Step:
            if on_host:
                mu, nu = (_moved(x, jax.memory.Space.Device) for x in (mu, nu))
            m = b1 * _widened(mu) + (1 - b1) * g
            v = b2 * _widened(nu) + (1 - b2) * g**2
            direction = (m / (1 - b1**count)) / (jnp.sqrt(v / (1 - b2**count)) + eps)
            bits = jax.random.bits(key, g.shape, jnp.uint32)
            mu, nu = _narrowed(m, mu, bits & 0xFFFF), _narrowed(v, nu, bits >> 16)
            if on_host:
                mu, nu = (_moved(x, jax.memory.Space.Host) for x in (mu, nu))
            return direction, mu, nu

        leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
        moments = zip(structure.flatten_up_to(state.mu), structure.flatten_up_to(state.nu))
        steps = []
        for i, ((path, g), (mu, nu)) in enumerate(zip(leaves, moments)):
            on_host = offload and _large(path, g)
            if on_host:  # where they are; the types of arrays that other programs put there do not always say so
                mu, nu = (_moved(x, jax.memory.Space.Host) for x in (mu, nu))
            apply = _in_pieces if _large(path, g) else lambda step, *leaf: step(*leaf)
            steps.append(apply(partial(step, on_host=on_host), g, mu, nu, jax.random.fold_in(key, i)))
        directions, mu, nu = (structure.unflatten(part) for part in zip(*steps))
        return directions, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def round_stochastically(seed: int) -> optax.GradientTransformation:
    """Updates u of bf16 parameters p such that p + u is a bf16 number whose mean is that of the u given.

    (p + u is computed in f32. Rounded to the nearest, it would be p again wherever |u| < 2^-9 |p|.)
    """

    def init(params: Params) -> RoundingState:
        return RoundingState(jnp.zeros([], jnp.int32))

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, RoundingState]:
        count = jnp.asarray(optax.safe_increment(state.count))
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _ROUNDING), count)
        leaves, structure = jax.tree.flatten(updates)

        def rounded(i: int, u: jax.Array, p: jax.Array) -> jax.Array:
            if p.dtype != jnp.bfloat16:
                return u
            old = p.astype(jnp.float32)
            bits = jax.random.bits(jax.random.fold_in(key, i), p.shape, jnp.uint32) & 0xFFFF
            return round_to_bfloat16(old + u, bits).astype(jnp.float32) - old

        new = [rounded(i, u, p) for i, (u, p) in enumerate(zip(leaves, jax.tree.leaves(params)))]
        return structure.unflatten(new), RoundingState(count)

    return optax.GradientTransformation(init, update)


def state_shardings(
    optimizer: optax.GradientTransformation, params: Params, shardings: Any, offload: bool = False
) -> optax.OptState:
    """The sharding of each leaf of the optimizer's state; `params` may be abstract, `shardings` are theirs.

    A leaf that belongs to a parameter (whose path is in its own) is cut along the same axes, where they divide it, and
    with `offload` it is in host memory.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    of_path = {path: (leaf, s) for (path, leaf), s in zip(leaves, jax.tree.leaves(shardings))}
    anywhere = jax.tree.leaves(shardings)[0]
    alone = NamedSharding(anywhere.mesh, PartitionSpec()) if isinstance(anywhere, NamedSharding) else anywhere

    def sharding(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
        inner = (path[i:j] for i in range(len(path)) for j in range(len(path), i, -1))
        found = next((p for p in inner if p in of_path), None)
        if found is None:
            return alone
        whole, like = of_path[found]
        if isinstance(like, NamedSharding):
            like = NamedSharding(like.mesh, _fitting(like, whole.ndim, leaf.shape))
        on_host = offload and _large(found, whole) and leaf.size == whole.size  # and so no exponents
        return like.with_memory_kind("pinned_host") if on_host else like

    return jax.tree_util.tree_map_with_path(sharding, jax.eval_shape(optimizer.init, params))


def to_host(params: Params, setting: str) -> Params:
    """The parameters in host memory, cut as they are. Raises UserError, naming the setting, if that cannot be."""
    check_host_memory(params, setting)
    return jax.device_put(params, jax.tree.map(lambda x: x.sharding.with_memory_kind("pinned_host"), params))


def to_device(params: Params) -> Params:
    """What is in host memory among the parameters on the devices, too; the rest as it is."""
    return jax.device_put(params, jax.tree.map(lambda x: x.sharding.with_memory_kind("device"), params))


def check_host_memory(params: Params, setting: str) -> None:
    """Raises UserError, naming the setting, if the devices of the parameters cannot reach host memory."""
    for device in {device for leaf in jax.tree.leaves(params) for device in leaf.sharding.addressable_devices}:
        kinds = sorted(memory.kind for memory in device.addressable_memories())
        if "pinned_host" not in kinds:
            raise UserError(f"{setting} = True needs devices with pinned_host memory: {device} has {', '.join(kinds)}")


Step = tuple[jax.Array, Moment, Moment]  # the direction, and the moments to put away


def _in_pieces(step: Callable[..., Step], g: jax.Array, mu: Moment, nu: Moment, key: jax.Array) -> Step:
    """The step of each layer of [L, ...], or of some columns of a table at a time (see `_pieces`), in place."""
    axis = 0 if g.ndim > 2 else 1
    size = g.shape[axis] // _pieces(g.shape)[0]

    def piece(i: jax.Array, whole: Step) -> Step:
        def cut(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, i, 1)

        def put(x: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(x, new, i, 0)

        g, mu, nu = whole
        part = jax.lax.dynamic_slice_in_dim(g, i * size, size, axis)
        old = jax.tree.map(cut, (mu, nu))
        direction, *new = step(part.reshape(1, *part.shape[-2:]), *old, jax.random.fold_in(key, i))
        g = jax.lax.dynamic_update_slice_in_dim(g, direction.reshape(part.shape), i * size, axis)
        return g, *jax.tree.map(put, (mu, nu), tuple(new))

    return jax.lax.fori_loop(0, _pieces(g.shape)[0], piece, (g, mu, nu))


def _pieces(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a large leaf's moments, pieces first: [L, n, k] as it is, a table [n, k] as [k / c, n, c].

    Host memory can be cut along a leading axis only.
    """
    if len(shape) == 2:
        n, k = shape
        c = next((c for c in (256, 128) if k % c == 0), k)  # whole tiles of a TPU, where they divide k
        return k // c, n, c
    return shape


def _moved(moment: Moment, space: Any) -> Moment:
    """A moment to host memory or back; exponents, a small part, stay on the device."""
    if isinstance(moment, EightBit):
        return EightBit(jax.device_put(moment.codes, space), moment.exponents)
    return jax.device_put(moment, space)


def _widened(moment: Moment) -> jax.Array:
    return dequantize(moment) if isinstance(moment, EightBit) else moment.astype(jnp.float32)


def _narrowed(x: jax.Array, like: Moment, bits: jax.Array) -> Moment:
    """x f32 stored as `like` is, rounded with 16 random bits."""
    if isinstance(like, EightBit):
        return quantize(x, like, bits)
    return round_to_bfloat16(x, bits) if like.dtype == jnp.bfloat16 else x


def _in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer as it is for f32 gradients and parameters, whatever theirs are."""

    def wide(tree: Params) -> Params:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, optax.OptState]:
        return optimizer.update(wide(updates), state, wide(params))

    return optax.GradientTransformation(lambda params: optimizer.init(wide(params)), update)


def _fitting(sharding: NamedSharding, ndim: int, shape: tuple[int, ...]) -> PartitionSpec:
    """The spec of a parameter of `ndim` axes for a leaf with the last of them; what it would not divide stays whole."""

    def parts(names: Any) -> int:
        return math.prod(sharding.mesh.shape[n] for n in ((names,) if isinstance(names, str) else names or ()))

    names = [None] * (len(shape) - ndim) + [*sharding.spec, *[None] * (ndim - len(sharding.spec))]
    return PartitionSpec(*(n if size % parts(n) == 0 else None for n, size in zip(names, shape)))


def _large(path: tuple[Any, ...], leaf: jax.Array) -> bool:
    """Whether the leaf is worth fewer bits, or host memory."""
    return leaf.ndim > 1 and leaf.size >= SMALL and not _is_norm_or_bias(path)


def _decayed(params: Params) -> Any:
    """True for matrices, False for norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not _is_norm_or_bias(path), params)


def _is_norm_or_bias(path: tuple[Any, ...]) -> bool:
    names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return names[-1].endswith(("norm", "bias"))
