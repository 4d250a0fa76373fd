"""The JAX engine's programs with abstract arguments, as jaxrl/programs.py has them for the learner."""

from __future__ import annotations

import math
from typing import Any

from flax import nnx

from jaxrl.config import Config
from jaxrl.cost import forward_flops
from jaxrl.programs import Program
from models.config import ModelConfig
from models.decoder import Compute
from rollouts.jax_programs import Sizes, make_programs


def engine_programs(
    config: Config, model: ModelConfig, graphdef: nnx.GraphDef, params: Any, compute: Compute
) -> tuple[list[Program], dict[str, Any]]:
    """Prefill of the longest prompts and decoding of one token by all slots; and what the engine keeps in memory.

    A GRPO step decodes as many tokens as an episode may have, for as many rounds of the slots as it has episodes.
    """
    rollout, grpo = config.rollout, config.grpo
    longest = rollout.max_prompt_length + rollout.max_new_tokens
    made = make_programs(graphdef, params, compute, Sizes(rollout.slots, longest, rollout.max_new_tokens))
    arguments = made.abstract_arguments(rollout.max_prompt_length)
    slots, prefill_rows = made.sizes.slots, made.sizes.prefill_rows
    rounds = math.ceil(grpo.problems_per_step * grpo.group_size / slots)
    prompt, new = rollout.max_prompt_length, rollout.max_new_tokens
    prefill = forward_flops(model, prefill_rows * prompt, prompt / 2)
    token = forward_flops(model, slots, prompt + new / 2)
    programs = []
    for name, runs, flops in (
        ("prefill", math.ceil(grpo.problems_per_step / prefill_rows), prefill),
        ("decode", rounds * new, token),
    ):
        positional, static = arguments[name]
        programs.append(
            Program(name, getattr(made, name), positional, runs, flops, flops, resident=(0, 1), static=static)
        )
    weights, state = arguments["decode"][0][:2]
    return programs, {"sampler's weights": weights, "sampler's cache": state}
