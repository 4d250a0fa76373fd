"""The optimizer of a stage, and its learning rate."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxrl.config import OptimizerConfig

Params = Any  # nnx.State of the decoder


def make_optimizer(config: OptimizerConfig, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW (arXiv 1711.05101) behind a clip of the global norm, and its learning rate as a function of the step.

    Norms and biases are not decayed. Raises ValueError for an unknown schedule.
    """
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.learning_rate, max(1, steps - config.warmup_steps))
    elif config.schedule == "constant":
        after = optax.constant_schedule(config.learning_rate)
    else:
        raise ValueError(f"optimizer.schedule = {config.schedule!r} must be one of: constant, cosine")
    warmup = optax.linear_schedule(
        config.learning_rate / (config.warmup_steps + 1), config.learning_rate, config.warmup_steps
    )
    schedule = optax.join_schedules([warmup, after], [config.warmup_steps]) if config.warmup_steps else after
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    adamw = optax.adamw(schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=_decayed)
    return optax.chain(clip, adamw), schedule


def _decayed(params: Params) -> Any:
    """True for matrices, False for norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not _is_norm_or_bias(path), params)


def _is_norm_or_bias(path: tuple[Any, ...]) -> bool:
    names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return names[-1].endswith(("norm", "bias"))
