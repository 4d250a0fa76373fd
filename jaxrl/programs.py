"""The programs of a run with abstract arguments: shapes, dtypes and shardings on a mesh, nothing allocated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from jaxrl.algorithms.grpo import policy_gradient_loss
from jaxrl.algorithms.sft import sft_loss
from jaxrl.batch import Batch
from jaxrl.command_line import UserError
from jaxrl.config import Config, PolicyConfig, row_length
from jaxrl.cost import adapter_parameters, forward_flops, parameters, update_flops
from jaxrl.learner import Learner, TrainState
from jaxrl.optimizer import make_optimizer
from jaxrl.run import make_compute, shape_of
from models.config import ModelConfig, read_config
from models.decoder import Compute, Decoder
from models.lora import join_params, split_params
from models.shapes import known_shape, nearest_shape
from models.sharding import batch_sharding, param_shardings


@dataclass(frozen=True)
class Program:
    """One compiled program of a run."""

    name: str
    function: Any  # jitted
    arguments: tuple[Any, ...]  # ShapeDtypeStructs with shardings
    runs: float  # in one step of training
    flops: float  # the model's, of one execution, on all devices together
    executed: float  # with what is computed twice
    resident: tuple[int, ...] = ()  # arguments that stay in memory while other programs run
    static: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """What a stage of training compiles, and what it keeps in memory all the time."""

    name: str  # sft | grpo
    programs: list[Program]
    resident: dict[str, Any]  # what it is: ShapeDtypeStructs with shardings
    tokens: int  # that one step trains on


def model_of(config: Config) -> ModelConfig:
    """The architecture of config.model: of a folder's config.json, of a published shape's name, or config.model.shape;
    with its adapters.

    Raises UserError when it is none of them.
    """
    return replace(_base_model(config.model), lora=config.model.lora.adapters())


def _base_model(model: PolicyConfig) -> ModelConfig:
    if not model.path:
        return shape_of(model, model.tokenizer_size)
    for folder in (Path(model.path).expanduser(), Path(model.path).expanduser() / "model"):
        if (folder / "config.json").is_file():
            return read_config(folder)
    shape = known_shape(model.path)
    if shape is None:
        near = nearest_shape(model.path)
        raise UserError(f"no config.json in {model.path!r}, and no published shape of this name; {near}")
    return shape


def stages(config: Config, model: ModelConfig, mesh: Mesh) -> Iterator[Stage]:
    """The stages that have steps, on this mesh. Raises UserError if there are none."""
    if not config.sft.steps and not config.grpo.steps:
        raise UserError("nothing to compile: sft.steps and grpo.steps are both 0")
    compute = make_compute(config, mesh)
    graphdef, params = abstract_model(model, mesh, jnp.dtype(config.model.param_dtype))
    for name, steps in (("sft", config.sft.steps), ("grpo", config.grpo.steps)):
        if steps:
            yield _stage(config, model, name, graphdef, params, compute)


def abstract_model(model: ModelConfig, mesh: Mesh, dtype: jnp.dtype) -> tuple[nnx.GraphDef, Any]:
    """(graphdef, parameters as ShapeDtypeStructs in their shards)."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: Decoder(model, dtype)))
    if model.lora is not None:  # adapters are in f32 whatever the rest is
        adapters, _ = split_params(nnx.state(nnx.eval_shape(lambda: Decoder(model))))
        params = join_params(adapters, split_params(params)[1])
    return graphdef, sharded(params, param_shardings(params, mesh))


def _stage(config: Config, model: ModelConfig, name: str, graphdef: Any, params: Any, compute: Compute) -> Stage:
    rl, loss = name == "grpo", config.grpo.loss
    settings = config.optimizer if rl else config.sft.optimizer
    optimizer, _ = make_optimizer(settings, 1000)
    learner = Learner(
        graphdef,
        partial(policy_gradient_loss, config=loss) if rl else sft_loss,
        optimizer,
        compute=compute,
        temperature=config.rollout.temperature or 1.0 if rl else 1.0,
        microbatch_rows=config.batch.microbatch_rows,
        offload=settings.offload,
    )
    rows, T = config.batch.microbatch_rows, row_length(config)
    old = rl and loss.minibatches > 1 and loss.old_logprobs == "trainer"
    reference, offloaded = rl and loss.kl_coefficient > 0, config.model.offload_reference
    batch = abstract_batch(rows, T, compute, old, reference)
    trained, _ = split_params(params)
    moments = sharded(jax.eval_shape(optimizer.init, trained), learner.state_shardings(params))
    state = TrainState(params, moments)
    microbatches = microbatches_of(config, name, T)
    forward, update = forward_flops(model, rows * T, T / 2), update_flops(model, rows * T, T / 2)
    again = {"none": 0.0, "dots": forward - forward_flops(model, rows * T, 0), "full": forward}  # dots: attention
    executed = update + again[str(compute.remat)]
    stepped = adapter_parameters(model) or parameters(model)
    named = learner.programs(state, batch)
    programs = [
        Program("accumulate", *named["accumulate"], microbatches, update, executed, resident=(0,)),
        Program("apply", *named["apply"], loss.minibatches if rl else 1, 0.0, 10.0 * stepped, resident=(0,)),
    ]
    if old or reference:
        runs = microbatches * (old + reference)
        beside = () if reference and offloaded else (0,)  # an offloaded reference comes beside the policy
        programs.append(Program("logprobs", *named["logprobs"], runs, forward, forward, resident=beside))
    resident = {"parameters": state.params, "optimizer state": state.opt_state}
    if reference and not offloaded:
        resident["reference"] = trained
    if rl and config.rollout.engine == "jax":
        from jaxrl.engine_programs import engine_programs

        sampling, kept = engine_programs(config, model, graphdef, params, compute)
        programs += sampling
        resident |= kept
    return Stage(name, programs, resident, int(microbatches * rows * T))


def microbatches_of(config: Config, stage: str, row_length: int) -> int:
    """Microbatches of one step when every episode is as long as it may be."""
    longest = min(row_length, config.rollout.max_prompt_length + config.rollout.max_new_tokens)
    grpo = config.grpo
    episodes = grpo.problems_per_step * grpo.group_size if stage == "grpo" else config.sft.batch_size
    rows = math.ceil(episodes / max(1, row_length // longest))
    return math.ceil(rows / config.batch.microbatch_rows)


def abstract_batch(rows: int, row_length: int, compute: Compute, old: bool, reference: bool) -> Batch:
    """A microbatch [rows, row_length] in its shards."""
    assert compute.mesh is not None
    sharding = batch_sharding(compute.mesh)
    integers, floats = (
        cast(jax.Array, jax.ShapeDtypeStruct((rows, row_length), dtype, sharding=sharding))
        for dtype in (jnp.int32, jnp.float32)
    )
    optional = (floats if old else None, floats if reference else None)
    return Batch(integers, integers, integers, floats, floats, floats, floats, *optional)


def sharded(tree: Any, shardings: Any) -> Any:
    """The tree's shapes and dtypes with these shardings."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)


def bytes_per_device(tree: Any) -> float:
    """Of the tree's arrays in their shards, on the device that has most."""

    def size(leaf: Any) -> float:
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.memory_kind == "pinned_host":
            return 0.0
        shape = sharding.shard_shape(leaf.shape) if sharding is not None else leaf.shape
        return math.prod(shape) * _itemsize(leaf.dtype)

    return float(sum(size(leaf) for leaf in jax.tree.leaves(tree)))


def _itemsize(dtype: Any) -> float:
    return jnp.dtype(dtype).itemsize if not jnp.issubdtype(dtype, jax.dtypes.prng_key) else 8.0
