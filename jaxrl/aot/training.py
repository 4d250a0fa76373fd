"""The learner's programs with abstract arguments: shapes, dtypes and shardings on a mesh; nothing is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxrl.algorithms import sft
from jaxrl.algorithms.batch import Batch
from jaxrl.algorithms.bradley_terry import make_reward_objective
from jaxrl.aot.program import Program, Stage
from jaxrl.aot.sampling import engine_programs
from jaxrl.config import Config, row_length
from jaxrl.costs.flops import adapter_parameters, forward_flops, parameters, update_flops, without_vocabulary
from jaxrl.distributed.processes import local_mesh, processes_of
from jaxrl.errors import UserError
from jaxrl.runs.policy import make_compute, shape_of
from jaxrl.training.learner import Learner
from jaxrl.training.optimizer import stage_optimizer
from jaxrl.training.reinforce import objective_of
from models.config import ModelConfig, read_config
from models.decoder import Compute, ForSampling, abstract_decoder
from models.files import expanded, is_gguf
from models.loading import find_model, is_run
from models.lora import split_params
from models.shapes import known_shape, nearest_shape
from models.sharding import batch_sharding, param_shardings, sharded


def model_of(config: Config) -> ModelConfig:
    """The architecture of config.model, with its adapters: a folder's, a published model's, or config.model.shape.

    Raises UserError where config.model.path is neither a model's folder nor the name of a published shape.
    """
    model = config.model
    base = _shape_at(model.path, "model.path") if model.path else shape_of(model, model.tokenizer_size)
    return replace(base, lora=model.lora.adapters())


def teacher_of(config: Config) -> ModelConfig | None:
    """The architecture of the teacher in config.grpo.loss; None without one. Raises as `model_of` does."""
    path = config.grpo.loss.teacher_path if config.grpo.steps else ""
    return replace(_shape_at(path, "grpo.loss.teacher"), lora=None) if path else None


def _shape_at(name: str, setting: str) -> ModelConfig:
    path = expanded(name)
    if is_gguf(path) or is_run(path) or (path / "model.json").is_file():
        return find_model(path)[1]
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return read_config(folder)
    shape = known_shape(name)
    if shape is None:
        raise UserError(f"{setting} = {name!r} has no config.json and is not a published shape; {nearest_shape(name)}")
    return shape


def stages(config: Config, model: ModelConfig, mesh: Mesh) -> Iterator[Stage]:
    """The stages that have steps, on this mesh. Raises UserError if there are none."""
    if not config.sft.steps and not config.grpo.steps and not config.reward.steps:
        raise UserError("nothing to compile: sft.steps, reward.steps and grpo.steps are all 0")
    if config.grpo.steps and config.grpo.reward != "task":
        raise UserError(
            f"grpo.reward = {config.grpo.reward!r} cannot be compiled yet; 'task' leaves the reward model out"
        )
    compute = make_compute(config, mesh)
    graphdef, params = abstract_decoder(model, mesh, jnp.dtype(config.model.param_dtype))
    for name, steps in (("sft", config.sft.steps), ("reward", config.reward.steps), ("grpo", config.grpo.steps)):
        if steps:
            yield _stage(config, model, name, graphdef, params, compute)


def _stage(config: Config, model: ModelConfig, name: str, graphdef: Any, params: Any, compute: Compute) -> Stage:
    rl, loss = name == "grpo", config.grpo.loss
    settings = {"sft": config.sft.optimizer, "reward": config.reward.optimizer, "grpo": config.optimizer}[name]
    objective = objective_of(config) if rl else make_reward_objective() if name == "reward" else sft.make_objective()
    optimizer, _ = stage_optimizer(settings, objective, 1000)
    learner = Learner(
        graphdef,
        objective,
        optimizer,
        compute=compute,
        temperature=config.rollout.temperature or 1.0 if rl else 1.0,
        microbatch_rows=config.batch.microbatch_rows,
        offload=settings.offload,
    )
    rows, T = config.batch.microbatch_rows, row_length(config)
    old, outputs = "old_logprobs" in objective.needs, not objective.needs.isdisjoint({"heads", "old_entropy"})
    reference, offloaded = "reference_logprobs" in objective.needs, config.model.offload_reference
    batch = abstract_batch(rows, T, compute, old, reference, objective.extras)
    trained, _ = split_params(params)
    state = learner.abstract(params)
    microbatches, epochs = microbatches_of(config, name, T), loss.epochs if rl else 1
    forward, update = forward_flops(model, rows * T, T / 2), update_flops(model, rows * T, T / 2)
    if not objective.vocabulary:
        forward, update = (f(without_vocabulary(model), rows * T, T / 2) for f in (forward_flops, update_flops))
    own = sum(head.own for head in objective.heads)  # decoders beside the policy's
    critic, of_critic = (
        own * flops(without_vocabulary(model), rows * T, T / 2) for flops in (forward_flops, update_flops)
    )
    again = {"none": 0.0, "dots": forward - forward_flops(model, rows * T, 0), "full": forward}  # dots: attention
    executed = update + of_critic + again[str(compute.remat)] * (1 + own)
    stepped = (1 + own) * (adapter_parameters(model) or parameters(model))
    named = learner.programs(state, batch)
    programs = [
        Program("accumulate", *named["accumulate"], microbatches * epochs, update + of_critic, executed, resident=(0,)),
        Program("apply", *named["apply"], loss.updates if rl else 1, 0.0, 10.0 * stepped, resident=(0,)),
    ]
    if outputs:  # and the old logprobs with them
        programs.append(Program("outputs", *named["outputs"], microbatches, *2 * (forward + critic,), resident=(0,)))
    if runs := microbatches * ((old and not outputs) + reference):
        beside = () if reference and offloaded else (0,)  # an offloaded reference comes beside the policy
        programs.append(Program("logprobs", *named["logprobs"], runs, forward, forward, resident=beside))
    resident = {"parameters": state.params, "optimizer state": state.opt_state}
    if state.heads is not None:
        resident["heads"] = state.heads
    if reference and not offloaded:
        resident["reference"] = trained
    if rl and (teacher := teacher_of(config)) is not None:
        programs.append(_of_teacher(teacher, learner, batch, microbatches, offloaded))
        if not offloaded:
            resident["teacher"] = programs[-1].arguments[0]
    mesh, gathered, ahead = compute.mesh, None, rl and config.rollout.ahead
    if mesh is not None and len(processes_of(mesh)) > 1:
        gathered = sharded(params, param_shardings(params, local_mesh(mesh)))
    if ahead:  # until the sampler takes them, see jaxrl/training/draws.py
        resident["published parameters"] = trained if gathered is None else gathered
    if config.rollout.engine == "jax" and name != "reward":
        sampling, kept = engine_programs(config, model, graphdef, params, compute, training=rl)
        programs += sampling
        resident |= kept if rl else {}  # SFT holds them only during evaluations
    return Stage(name, programs, resident, int(microbatches * rows * T), ahead, gathered)


def _of_teacher(model: ModelConfig, learner: Learner, batch: Batch, runs: float, apart: bool) -> Program:
    """The teacher's logprobs of a microbatch, its parameters as jaxrl.runs.teacher loads them.

    Args:
        apart: they are in host memory between runs.
    """
    compute = learner.compute
    assert compute.mesh is not None
    graphdef, params = abstract_decoder(model, compute.mesh, ForSampling(compute.dtype))
    rows, T = batch.tokens.shape
    flops, resident = forward_flops(model, rows * T, T / 2), () if apart else (0,)
    return Program("teacher", learner.logprobs_program(graphdef), (params, batch), runs, flops, flops, resident)


def microbatches_of(config: Config, stage: str, row_length: int) -> int:
    """Microbatches of one step whose episodes all have the maximal length."""
    longest = config.rollout.max_prompt_length + config.rollout.max_new_tokens
    longest = min(row_length, longest * (2 if stage == "reward" else 1))  # a pair is two answers
    grpo = config.grpo
    sizes = {"sft": config.sft.batch_size, "reward": config.reward.batch_size}
    episodes = sizes.get(stage, grpo.problems_per_step * grpo.group_size)
    rows = math.ceil(episodes / max(1, row_length // longest))
    return math.ceil(rows / config.batch.microbatch_rows)


def abstract_batch(
    rows: int, row_length: int, compute: Compute, old: bool, reference: bool, extras: Sequence[str] = ()
) -> Batch:
    """A sharded microbatch [rows, row_length]."""
    assert compute.mesh is not None
    sharding = batch_sharding(compute.mesh)
    integers, floats = (
        cast(jax.Array, jax.ShapeDtypeStruct((rows, row_length), dtype, sharding=sharding))
        for dtype in (jnp.int32, jnp.float32)
    )
    optional = (floats if old else None, floats if reference else None)
    more = dict.fromkeys(extras, floats)
    return Batch(integers, integers, integers, floats, floats, floats, floats, *optional, extras=more)
