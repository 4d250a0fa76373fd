"""How the devices are shared out: data x fsdp x tensor, chosen from the sizes of the model and of its microbatches.

Rows are divided over data x fsdp, parameters and optimizer state over fsdp x tensor (models/sharding.py). Every device
more along fsdp means more gathering of weights, every one along tensor two reductions of activations a layer
(Shoeybi et al., arXiv 1909.08053), so neither is larger than it must be.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.chips import chip_of
from jaxrl.config import Config, row_length
from jaxrl.cost import parameters
from models.config import ModelConfig
from models.vocabulary import CHUNK_ELEMENTS, chunk_tokens

USABLE = 0.9  # of a device's memory; the rest is for the program itself, and for what does not pack
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
    context: bool = False  # rows over data only, their tokens over fsdp
    sampler_bytes: float = 0.0  # of a parameter in the JAX engine, where fsdp does not cut it
    cached_tokens: int = 0  # of the JAX engine


def choose_mesh(
    config: ModelConfig, devices: int, load: Load, hbm: float | None = None, wanted: tuple[int, int, int] = (0, 0, 0)
) -> tuple[int, int, int]:
    """(data, fsdp, tensor) for so many devices with `hbm` bytes each (None: no limit).

    fsdp is the smallest number with which the state fits beside the activations (all devices where none is enough),
    data takes the rest. tensor is 1 but where a microbatch has fewer rows than devices, or does not divide over them:
    then it is the smallest number that divides heads and kv heads with which the rows do.

    Args:
        wanted: sizes that are given: 0 is chosen, -1 takes what is left beside ones and the given sizes.

    Raises ValueError, in one line, where there is no such mesh.
    """
    data, fsdp, tensor = (1 if -1 in wanted and size == 0 else size for size in wanted)
    if tensor > 0:
        check_tensor(config, tensor)
    of_shape = [
        (d, devices // d // t, t)
        for t in range(1, devices + 1)
        for d in range(1, devices + 1)
        if devices % (d * t) == 0
        and data in (d, 0, -1)
        and fsdp in (devices // d // t, 0, -1)
        and (t == tensor or (tensor in (0, -1) and config.num_heads % t == 0 and config.num_kv_heads % t == 0))
    ]
    if not of_shape:
        raise ValueError(
            f"mesh data x fsdp x tensor = {' x '.join(map(str, wanted))} does not fit {devices} devices and "
            f"{config.num_kv_heads} kv heads"
        )
    dividing = [sizes for sizes in of_shape if _divides(sizes, load)]
    if not dividing:
        shares = min(d if load.context else d * f for d, f, _ in of_shape)
        raise ValueError(
            f"batch.microbatch_rows = {load.rows} rows of {load.row_length} tokens cannot be shared out over "
            f"{devices} devices; choose a multiple of {shares} rows, another mesh, or mesh.context"
        )

    def order(sizes: tuple[int, int, int]) -> tuple[int, bool, int]:
        fits = hbm is None or bytes_needed(config, sizes, load) <= USABLE * hbm
        return sizes[2], not fits, sizes[1] if fits else -sizes[1]

    return min(dividing, key=order)


def check_tensor(config: ModelConfig, tensor: int) -> None:
    """Raises ValueError where heads cannot be shared out over so many devices."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % tensor:
        raise ValueError(f"mesh.tensor = {tensor} must divide the model's {heads} attention heads")
    if kv_heads % tensor and tensor % kv_heads:
        raise ValueError(f"mesh.tensor = {tensor} must divide {kv_heads} kv heads or be a multiple of them")


def bytes_needed(config: ModelConfig, sizes: tuple[int, int, int], load: Load) -> float:
    """An estimate for one device: its part of the state and of the sampler, the activations kept, one layer's work and
    its weights, and the vocabulary's."""
    data, fsdp, tensor = sizes
    D, F, Dh = config.hidden_size, config.intermediate_size, config.head_dim
    heads = (config.num_heads + 2 * config.num_kv_heads) * Dh
    tokens = load.rows * load.row_length / (data * fsdp)
    # bf16 numbers a token and layer: its input; also the matmuls' results; also norms, rotation and gates.
    kept = {"full": D, "dots": 3 * D + (heads + 2 * F) / tensor, "none": 8 * D + (3 * heads + 4 * F) / tensor}
    layer = 4 * tokens * (4 * D + (2 * heads + 4 * F) / tensor)
    # bf16, of this layer and the next, and the f32 gradient before it is shared out.
    weights = (2 * 2 + 4) * (D * heads + config.num_heads * Dh * D + 3 * D * F) / tensor
    chunk = fsdp * chunk_tokens(CHUNK_ELEMENTS["tpu"], config.vocab_size // (fsdp * tensor), D, fsdp)
    state = load.state_bytes * parameters(config) / (fsdp * tensor)
    cache = 2 * 2 * config.num_layers * config.num_kv_heads * Dh * load.cached_tokens / (data * fsdp * tensor)
    sampler = load.sampler_bytes * parameters(config) / tensor + cache
    activations = 2 * tokens * config.num_layers * kept[load.remat] + layer
    return state + sampler + activations + weights + LOGITS + GATHERED * 2 * chunk * D


def _divides(sizes: tuple[int, int, int], load: Load) -> bool:
    data, fsdp, _ = sizes
    if load.context:
        return load.rows % data == 0 and load.row_length % fsdp == 0
    return load.rows % (data * fsdp) == 0


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
    remat, context = config.model.remat, config.mesh.context
    return Load(config.batch.microbatch_rows, row_length(config), state, remat, context, sampler, cached)


def mesh_sizes(config: Config, model: ModelConfig, devices: list) -> tuple[int, int, int]:
    """The sizes of config.mesh for these devices, with what is automatic in it chosen. Raises ValueError."""
    wanted = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    return choose_mesh(model, len(devices), load_of(config), memory_of(devices[0]), wanted)


def memory_of(device: object) -> float | None:
    """Bytes of a device's own memory that a program may have, if that is known."""
    if getattr(device, "platform", "") == "gpu":  # where JAX sets a part of it aside
        stats = jax.local_devices()[0].memory_stats() or {}
        if "bytes_limit" in stats:
            return float(stats["bytes_limit"])
    chip = chip_of(getattr(device, "device_kind", ""))
    return chip.hbm_bytes / chip.devices if chip is not None else None
