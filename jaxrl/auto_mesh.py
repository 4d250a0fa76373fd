"""How devices are shared out: data x fsdp x context x tensor, chosen from the sizes of the model and its microbatches.

Rows are divided over data x fsdp, the tokens of a row over context, parameters and optimizer state over fsdp x context
x tensor (models/sharding.py). Every device more along fsdp means more gathering of weights, every one along context
more gathering of keys and values, every one along tensor two reductions of activations a layer (Shoeybi et al., arXiv
1909.08053), so none is larger than it must be.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.chips import chip_of
from jaxrl.config import Config, row_length
from jaxrl.cost import parameters
from models.attention import LANES
from models.config import ModelConfig
from models.sharding import MeshSizes
from models.vocabulary import CHUNK_ELEMENTS, chunk_tokens

USABLE = 0.93  # of a device's memory; the rest is for the program itself, and for what does not pack
MOMENTS = {"float32": 8, "bfloat16": 4, "int8": 2.1}  # bytes a parameter of optimizer.state
ADAPTERS = 0.05  # of the parameters, with LoRA: more than the usual ranks have
LOGITS = 2 * 4 * CHUNK_ELEMENTS["tpu"]  # bytes of the logits of a chunk, and of their gradient
GATHERED = 3  # bf16 arrays of the decoder's output for a chunk: forward, again for the backward pass, its gradient


class Load(NamedTuple):
    """What the devices must hold."""

    rows: int  # of a microbatch
    row_length: int
    state_bytes: float = 22.0  # a parameter's, see `load_of`
    remat: str = "full"  # none | dots | full
    sampler_bytes: float = 0.0  # of a parameter in the JAX engine, where fsdp does not cut it
    cached_tokens: int = 0  # of the JAX engine


def choose_mesh(
    config: ModelConfig,
    devices: int,
    load: Load,
    hbm: float | None = None,
    wanted: MeshSizes = (0, 0, 1, 0),
    together: int | None = None,
) -> MeshSizes:
    """(data, fsdp, context, tensor) for so many devices with `hbm` bytes each (None: no limit).

    fsdp is the smallest number with which the state fits beside the activations, data takes the rest. tensor is 1 but
    where a microbatch has fewer rows than devices, or does not divide over them, or where no fsdp is enough: then it is
    the smallest number that divides heads and kv heads with which it is so. context, where it may be chosen, is larger
    before tensor is. Where nothing fits, what needs least is chosen.

    Args:
        wanted: sizes that are given: 0 is chosen, -1 takes what is left beside ones and the given sizes.
        together: devices of one process, over which tensor is kept where it is chosen; None: all.

    Raises ValueError, in one line, where there is no such mesh.
    """
    data, fsdp, context, tensor = (1 if -1 in wanted and size == 0 else size for size in wanted)
    if tensor > 0:
        check_tensor(config, tensor)
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    of_shape = [
        (d, devices // (d * c * t), c, t)
        for t, c, d in itertools.product(divisors, repeat=3)
        if devices % (d * c * t) == 0
        and data in (d, 0, -1)
        and fsdp in (devices // (d * c * t), 0, -1)
        and context in (c, 0, -1)
        and (t == tensor or (tensor in (0, -1) and math.gcd(config.num_heads, config.num_kv_heads) % t == 0))
        and (t == tensor or (together or devices) % t == 0)
    ]
    if not of_shape:
        raise ValueError(
            f"mesh data x fsdp x context x tensor = {' x '.join(map(str, wanted))} does not fit {devices} devices and "
            f"{config.num_kv_heads} kv heads"
        )
    of_length = [sizes for sizes in of_shape if load.row_length % sizes[2] == 0]
    if not of_length:
        raise ValueError(f"mesh.context = {context} must divide a row's {load.row_length} tokens")
    dividing = [(d, f, c, t) for d, f, c, t in of_length if load.rows % (d * f) == 0]
    if not dividing:
        shares, other = min(d * f for d, f, _, _ in of_length), ", or mesh.context = 0" if context else ""
        raise ValueError(
            f"batch.microbatch_rows = {load.rows} rows of {load.row_length} tokens cannot be shared out over "
            f"{devices} devices; choose a multiple of {shares} rows, another mesh{other}"
        )

    def order(sizes: MeshSizes) -> tuple[float, ...]:
        _, f, c, t = sizes
        if hbm is not None:
            needed = bytes_needed(config, sizes, load)
            if needed > USABLE * hbm:
                return 1, needed
        slow = c > 1 and load.row_length % (c * LANES) != 0
        return 0, slow, t, c, f

    return min(dividing, key=order)


def check_tensor(config: ModelConfig, tensor: int) -> None:
    """Raises ValueError where heads cannot be shared out over so many devices."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % tensor:
        raise ValueError(f"mesh.tensor = {tensor} must divide the model's {heads} attention heads")
    if kv_heads % tensor and tensor % kv_heads:
        raise ValueError(f"mesh.tensor = {tensor} must divide {kv_heads} kv heads or be a multiple of them")


def bytes_needed(config: ModelConfig, sizes: MeshSizes, load: Load) -> float:
    """An estimate for one device: its part of the state and of the sampler, the activations kept, one layer's work and
    its weights, and the vocabulary's."""
    data, fsdp, context, tensor = sizes
    shards = fsdp * context
    D, F, Dh = config.hidden_size, config.intermediate_size, config.head_dim
    heads = (config.num_heads + 2 * config.num_kv_heads) * Dh
    tokens = load.rows * load.row_length / (data * shards)
    # bf16 numbers a token and layer: its input; also the matmuls' results; also norms, rotation and gates.
    kept = {"full": D, "dots": 3 * D + (heads + 2 * F) / tensor, "none": 8 * D + (3 * heads + 4 * F) / tensor}
    layer = 4 * tokens * (4 * D + (2 * heads + 2 * F) / tensor)
    # bf16, of this layer and the next, and the f32 gradient before it is shared out.
    weights = (2 * 2 + 4) * (D * heads + config.num_heads * Dh * D + 3 * D * F) / tensor
    chunk = shards * chunk_tokens(CHUNK_ELEMENTS["tpu"], -(-config.vocab_size // (shards * tensor)), D, shards)
    state = load.state_bytes * parameters(config) / (shards * tensor)
    cache = 2 * 2 * config.num_layers * config.num_kv_heads * Dh * load.cached_tokens / (data * shards * tensor)
    sampler = load.sampler_bytes * parameters(config) / tensor + cache
    activations = 2 * tokens * config.num_layers * kept[load.remat] + layer
    if context > 1:  # whole rows' keys and values in bf16, and their gradients in f32
        activations += 2 * (2 + 4) * tokens * context * config.num_kv_heads * Dh / tensor
    return state + sampler + activations + weights + LOGITS + GATHERED * 2 * chunk * D


def load_of(config: Config) -> Load:
    """What a run's devices must hold.

    For each parameter itself and its bf16 form for matmuls; the gradient so far, that of the microbatch and two
    moments (with LoRA of the adapters only); a reference policy where there is one. The JAX engine's weights, in bf16,
    and its cache.
    """
    rollout, itemsize = config.rollout, jnp.dtype(config.model.param_dtype).itemsize
    stages = ((config.sft.steps, config.sft.optimizer), (config.grpo.steps, config.optimizer))
    moments = max((MOMENTS[o.state] for steps, o in stages if steps and not o.offload), default=0)
    trained = ADAPTERS if config.model.lora.rank else 1
    state = itemsize + 2 + trained * (2 * itemsize + moments)
    if config.grpo.steps and config.grpo.loss.kl_coefficient and not config.model.offload_reference:
        state += trained * itemsize
    sampler, cached = 0, 0
    if config.grpo.steps and rollout.engine == "jax":
        sampler, cached = 2, rollout.slots * (rollout.max_prompt_length + rollout.max_new_tokens)
    return Load(config.batch.microbatch_rows, row_length(config), state, config.model.remat, sampler, cached)


def mesh_sizes(config: Config, model: ModelConfig, devices: list) -> MeshSizes:
    """The sizes of config.mesh for all processes' devices, with what is automatic in it chosen. Raises ValueError."""
    load, processes = load_of(config), jax.process_count()
    load = load._replace(cached_tokens=load.cached_tokens * processes)  # each has its own slots
    of_one = len(devices) // processes
    return choose_mesh(model, len(devices), load, memory_of(devices[0]), config.mesh.sizes, of_one)


def memory_of(device: object) -> float | None:
    """Bytes of a device's own memory that a program may have, if that is known."""
    if getattr(device, "platform", "") == "gpu":  # where JAX sets a part of it aside
        stats = jax.local_devices()[0].memory_stats() or {}
        if "bytes_limit" in stats:
            return float(stats["bytes_limit"])
    chip = chip_of(getattr(device, "device_kind", ""))
    return chip.hbm_bytes / chip.devices if chip is not None else None
