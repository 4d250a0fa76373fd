"""The mesh data x fsdp x context x tensor, chosen from the sizes of the model and of its microbatches.

Rows are divided over data x fsdp, the tokens of a row over context, parameters and optimizer state over fsdp x context
x tensor (models/sharding.py). Each further device along fsdp costs more gathering of weights, along context more
gathering of keys and values, along tensor two reductions of activations a layer (Shoeybi et al., arXiv 1909.08053), so
no axis is larger than it must be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.config import Config, row_length
from jaxrl.costs.chips import chip_of
from jaxrl.costs.flops import parameters
from jaxrl.errors import UserError
from models.attention import LANES
from models.config import ModelConfig
from models.sharding import MeshSizes
from models.vocabulary import CHUNK_ELEMENTS, chunk_tokens

USABLE = 0.93  # of a device's memory; the rest is for the executable itself and for fragmentation
MOMENTS = {"float32": 8, "bfloat16": 4, "int8": 2.1}  # bytes a parameter of optimizer.state
ADAPTERS = 0.05  # trained share of the parameters with LoRA; more than the usual ranks need
LOGITS = 2 * 4 * CHUNK_ELEMENTS["tpu"]  # bytes of a chunk's logits and their gradient
GATHERED = 3  # bf16 copies of a chunk's decoder output: forward, recomputed for the backward pass, gradient


class Load(NamedTuple):
    """What the devices must hold; "of a parameter" means bytes for each parameter of the model."""

    rows: int  # of a microbatch
    row_length: int
    state_bytes: float = 22.0  # of a parameter, see `load_of`
    remat: str = "full"  # none | dots | full
    sampler_bytes: float = 0.0  # of a parameter in the JAX engine, not sharded over fsdp
    cached_tokens: int = 0  # in the JAX engine's KV cache
    apart: bool = False  # the engine is in memory only while no activations are
    gathered_bytes: float = 0.0  # of a parameter, where each of several processes gathers the weights for its sampler
    passing_bytes: float = 10.0  # the part of state_bytes that is free between two updates, when weights are gathered
    ahead: bool = False  # the gathered weights are in memory during updates too
    teacher: ModelConfig | None = None  # a model that only gives logprobs, sharded as the trained one is
    teacher_bytes: float = 2.0  # of a parameter of it
    teacher_apart: bool = False  # it is in memory only while it gives them


def choose_mesh(
    config: ModelConfig,
    devices: int,
    load: Load,
    hbm: float | None = None,
    wanted: MeshSizes = (0, 0, 1, 0),
    together: int | None = None,
) -> MeshSizes:
    """(data, fsdp, context, tensor) for `devices` devices with `hbm` bytes each (None: no limit).

    fsdp is the smallest size at which the state fits beside the activations; data takes the rest. tensor is 1, except
    where a microbatch has fewer rows than devices or does not divide over them, or where no fsdp is enough: then it is
    the smallest sufficient size that divides heads and kv heads. context, where it may be chosen, grows before tensor
    does. Where nothing fits, the mesh that needs least memory is chosen.

    Args:
        wanted: the sizes of config.mesh: 0 is chosen; -1 takes what the other sizes leave, and every 0 beside it is 1.
        together: devices of one process, over which tensor is kept where it is chosen; None: all.

    Raises UserError, in one line, where no mesh fits.
    """
    models = (config,) if load.teacher is None else (config, load.teacher)
    if wanted[3] > 0:
        for model, name in zip(models, ("model", "teacher")):
            check_tensor(model, wanted[3], name)
    of_shape = _possible_sizes(models, devices, wanted, together or devices)
    if not of_shape:
        raise UserError(
            f"mesh data x fsdp x context x tensor = {' x '.join(map(str, wanted))} does not fit {devices} devices and "
            f"{' and '.join(str(model.num_kv_heads) for model in models)} kv heads"
        )
    of_length = [sizes for sizes in of_shape if load.row_length % sizes[2] == 0]
    if not of_length:
        raise UserError(f"mesh.context = {wanted[2]} must divide a row's {load.row_length} tokens")
    dividing = [(d, f, c, t) for d, f, c, t in of_length if load.rows % (d * f) == 0]
    if not dividing:
        fewest = min(d * f for d, f, _, _ in of_length)
        other = ", or mesh.context = 0" if wanted[2] > 0 or -1 in wanted else ""
        raise UserError(
            f"batch.microbatch_rows = {load.rows} rows of {load.row_length} tokens cannot be divided over {devices} "
            f"devices; choose a multiple of {fewest} rows, another mesh{other}"
        )
    return min(dividing, key=lambda sizes: _preference(config, sizes, load, hbm))


def _possible_sizes(models: Sequence[ModelConfig], devices: int, wanted: MeshSizes, together: int) -> list[MeshSizes]:
    """The meshes of all `devices` with the wanted sizes; a chosen tensor divides all heads and `together`."""
    data, fsdp, context, tensor = (1 if -1 in wanted and size == 0 else size for size in wanted)
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    heads = math.gcd(*(n for model in models for n in (model.num_heads, model.num_kv_heads)))
    return [
        (d, devices // (d * c * t), c, t)
        for t, c, d in itertools.product(divisors, repeat=3)
        if devices % (d * c * t) == 0
        and data in (d, 0, -1)
        and fsdp in (devices // (d * c * t), 0, -1)
        and context in (c, 0, -1)
        and (t == tensor or (tensor in (0, -1) and heads % t == 0 and together % t == 0))
    ]


def _preference(config: ModelConfig, sizes: MeshSizes, load: Load, hbm: float | None) -> tuple[float, ...]:
    """Sorts meshes, the best one first: those that fit by their collectives, the others by their memory."""
    _, fsdp, context, tensor = sizes
    if hbm is not None:
        needed = bytes_needed(config, sizes, load)
        if needed > USABLE * hbm:  # of meshes that need the same, the one that needs less in updates
            return 1, needed, bytes_needed(config, sizes, load._replace(gathered_bytes=0.0))
    slow = context > 1 and load.row_length % (context * LANES) != 0
    return 0, slow, tensor, context, fsdp


def check_tensor(config: ModelConfig, tensor: int, name: str = "model") -> None:
    """Raises UserError where the heads of the model, or what its `name` is, cannot be sharded over `tensor` devices."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % tensor:
        raise UserError(f"mesh.tensor = {tensor} must divide the {name}'s {heads} attention heads")
    if kv_heads % tensor and tensor % kv_heads:
        raise UserError(f"mesh.tensor = {tensor} must divide the {name}'s {kv_heads} kv heads or be a multiple of them")


def bytes_needed(config: ModelConfig, sizes: MeshSizes, load: Load) -> float:
    """An estimate of the bytes that one device needs.

    Its shard of the state and of the sampler, the activations that are kept, the intermediates and weights of one
    layer, and those of the vocabulary.
    """
    data, fsdp, context, tensor = sizes
    shards = fsdp * context
    D, F, Dh = config.hidden_size, config.intermediate_size, config.head_dim
    heads = (config.num_heads + 2 * config.num_kv_heads) * Dh
    tokens = load.rows * load.row_length / (data * shards)
    # bf16 numbers per token and layer: its input; with the matmuls' results; with norms, rotation and gates too.
    kept = {"full": D, "dots": 3 * D + (heads + 2 * F) / tensor, "none": 8 * D + (3 * heads + 4 * F) / tensor}
    layer, matrices = _of_layer(config, tokens, tensor)
    weights = (2 * 2 + 4) * matrices  # in bf16 of this layer and the next; the f32 gradient before it is scattered
    chunk = shards * chunk_tokens(CHUNK_ELEMENTS["tpu"], -(-config.vocab_size // (shards * tensor)), D, shards)
    state = load.state_bytes * parameters(config) / (shards * tensor)
    cache = 2 * 2 * config.num_layers * config.num_kv_heads * Dh * load.cached_tokens / (data * shards * tensor)
    sampler = load.sampler_bytes * parameters(config) / tensor + cache
    activations = 2 * tokens * config.num_layers * kept[load.remat] + layer
    if context > 1:  # whole rows' keys and values in bf16, and their gradients in f32
        activations += 2 * (2 + 4) * tokens * context * config.num_kv_heads * Dh / tensor
    work = activations + weights + LOGITS + GATHERED * 2 * chunk * D
    gathered = load.gathered_bytes * parameters(config)
    passing = load.passing_bytes * parameters(config) / (shards * tensor)
    work = work + gathered if load.ahead else max(work, gathered - passing)
    if load.teacher is not None:
        of_teacher = load.teacher_bytes * parameters(load.teacher) / (shards * tensor)
        layer, matrices = _of_layer(load.teacher, tokens, tensor)
        work = max(work, layer + 2 * 2 * matrices + LOGITS + of_teacher * load.teacher_apart)
        state += of_teacher * (not load.teacher_apart)
    return state + (max(sampler, work) if load.apart else sampler + work)


def _of_layer(config: ModelConfig, tokens: float, tensor: int) -> tuple[float, float]:
    """Of one layer on a device: bytes of its intermediates, and numbers in its gathered matrices."""
    D, F, queries = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
    heads = queries + 2 * config.num_kv_heads * config.head_dim
    return 4 * tokens * (4 * D + (2 * heads + 2 * F) / tensor), (D * heads + queries * D + 3 * D * F) / tensor


def load_of(config: Config, local: int = 0, teacher: ModelConfig | None = None) -> Load:
    """What a run's devices must hold.

    For each parameter: itself and its bf16 copy for matmuls; the accumulated gradient, that of the microbatch and two
    moments (with LoRA, of the adapters only); a reference policy where there is one; parameters that wait for a sampler
    that works ahead; what each of several processes gathers for its sampler. Also the JAX engine's weights, in bf16,
    and its cache. Decoding holds the cache twice, which counts where decoding runs during an update, and where there is
    only SFT, whose engine exists during evaluations alone.

    Args:
        local: devices of each process where there are several, else 0.
        teacher: the model that grpo.loss.teacher names.
    """
    rollout, itemsize = config.rollout, jnp.dtype(config.model.param_dtype).itemsize
    supervised = [(stage.steps, stage.optimizer) for stage in (config.sft, config.reward)]
    stages = [*supervised, (config.grpo.steps, config.optimizer)]
    moments = max((MOMENTS[o.state] for steps, o in stages if steps and not o.offload), default=0)
    trained = ADAPTERS if config.model.lora.rank else 1
    passing = 2 + trained * 2 * itemsize
    critics = config.grpo.loss.decoders - 1 if config.grpo.steps else 0  # weights, gradients and moments of their own
    state = itemsize + passing + trained * moments + critics * trained * (3 * itemsize + moments)
    if config.grpo.steps and config.grpo.loss.needs_reference and not config.model.offload_reference:
        state += trained * itemsize
    ahead = config.grpo.steps > 0 and rollout.ahead
    if ahead and not local:
        state += trained * itemsize
    gathered = itemsize / local if local else 0.0
    sampler, cached = 0, 0
    if rollout.engine == "jax" and not config.reward.steps:
        engines = 1 + config.evaluation.beside
        sampler, cached = 2 * engines, engines * rollout.slots * (rollout.max_prompt_length + rollout.max_new_tokens)
    rows, apart = config.batch.microbatch_rows, not config.grpo.steps
    if apart or ahead:
        cached *= 2
    T, remat = row_length(config), config.model.remat
    load = Load(rows, T, state, remat, sampler, cached, apart, gathered, passing, ahead)
    of_teacher = 4 if config.model.compute_dtype == "float32" else 2
    return load._replace(teacher=teacher, teacher_bytes=of_teacher, teacher_apart=config.model.offload_reference)


def mesh_sizes(config: Config, model: ModelConfig, devices: list, teacher: ModelConfig | None = None) -> MeshSizes:
    """The sizes of config.mesh for the devices of all processes, automatic ones chosen. Raises UserError."""
    local = local_count(devices)
    load = load_of(config, local, teacher)
    load = load._replace(cached_tokens=load.cached_tokens * jax.process_count())  # each has its own slots
    return choose_mesh(model, len(devices), load, memory_of(devices[0]), config.mesh.sizes, local or None)


def local_count(devices: list) -> int:
    """Devices of each process, or of each host of a slice that is compiled for; 0 where one process has them all."""
    processes = len({device.process_index for device in devices})
    return len(devices) // processes if processes > 1 else 0


def memory_of(device: object) -> float | None:
    """Bytes of a device's memory that a program may use; None where that is not known."""
    if getattr(device, "platform", "") == "gpu":  # JAX reserves only a part of it
        stats = jax.local_devices()[0].memory_stats() or {}
        if "bytes_limit" in stats:
            return float(stats["bytes_limit"])
    chip = chip_of(getattr(device, "device_kind", ""))
    return chip.hbm_bytes / chip.devices if chip is not None else None
