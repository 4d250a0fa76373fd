"""The JAX engine's programs with abstract arguments; jaxrl/aot/training.py has the learner's."""

from __future__ import annotations

import math
from typing import Any

from flax import nnx

from jaxrl.aot.program import Program
from jaxrl.config import Config
from jaxrl.costs.flops import forward_flops
from models.config import ModelConfig
from models.decoder import Compute
from rollouts.jax.programs import Sizes, make_programs, sampling_compute


def engine_programs(
    config: Config, model: ModelConfig, graphdef: nnx.GraphDef, params: Any, compute: Compute, *, training: bool
) -> tuple[list[Program], dict[str, Any]]:
    """Prefill of the longest prompts and decoding of one token in all slots; and what the engine keeps in memory.

    A GRPO step decodes the maximal number of tokens, in as many rounds as its episodes fill the slots. An engine that
    only evaluates (`training` false) does not run during steps.
    """
    rollout, grpo = config.rollout, config.grpo
    longest = rollout.max_prompt_length + rollout.max_new_tokens
    sizes = Sizes(rollout.slots, longest, rollout.max_new_tokens)
    made = make_programs(graphdef, params, sampling_compute(compute), sizes)
    arguments = made.abstract_arguments(rollout.max_prompt_length)
    slots, prefill_rows = made.sizes.slots, made.prefill_rows(made.bucket(rollout.max_prompt_length))
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
        resident = (0, 1) if training else ()
        runs = runs if training else 0
        program = Program(
            name, getattr(made, name), positional, runs, flops, flops, resident, sampler=True, static=static
        )
        programs.append(program)
    weights, state = arguments["decode"][0][:2]
    kept = {"sampler's weights": weights, "sampler's cache": state}
    if training and config.evaluation.beside:
        kept |= {f"{what}, of an evaluation beside training": arrays for what, arrays in kept.items()}
    return programs, kept
