"""Repair of real bugs by a real model: whole programs against the line editor, at four samples a problem.

    python -m jaxrl.evaluate --config configs/real/repair.py:direct --config.model.path=MODEL \
        --config.task.source=quixbugs --config.task.path=quixbugs.jsonl
    python -m jaxrl.evaluate --config configs/real/repair.py:edits --config.model.path=MODEL \
        --config.task.source=humanevalfix --config.task.path=humanevalpack_python.jsonl
    python -m jaxrl.train --config configs/real/repair.py:edits --config.model.path=MODEL \
        --config.task.path=mbpp.jsonl

The last learns the editor from mistakes put into MBPP's training part (SFT, then GRPO, with LoRA).
"""

from typing import Literal

from jaxrl.algorithms import policy_gradient
from jaxrl.config import Config
from jaxrl.tasks import repair
from rollouts.environments import edits


def get_config(style: Literal["direct", "edits"] = "edits") -> Config:
    config = Config(name=f"real_repair_{style}", label="edits" if style == "edits" else "whole program")
    config.task = repair.Settings(source="mbpp", style=style, most_mistakes=2, failures=1, held_out_problems=164)
    config.model.compute_dtype = "bfloat16"
    config.model.lora.rank = 16
    config.rollout.max_prompt_length = 1024
    config.rollout.reject_long_prompts = True
    config.rollout.max_new_tokens = 320
    if style == "edits":
        config.rollout.environment = edits.Settings(max_turns=4, failures=1)
        config.rollout.max_new_tokens = 1280  # the program is shown after each command
        config.rollout.max_turn_tokens = 64
        config.grpo.loss = policy_gradient.Settings(credit="turn")
    config.batch.microbatch_rows = 1
    config.sft.steps = 200
    config.sft.batch_size = 8
    config.sft.optimizer.learning_rate = 2e-4
    config.sft.optimizer.schedule = "cosine"
    config.grpo.steps = 20
    config.grpo.problems_per_step = 4
    config.grpo.group_size = 4
    config.optimizer.learning_rate = 1e-4
    config.evaluation.samples = 4
    config.evaluation.k = (1, 4)
    config.evaluation.temperature = 0.8
    config.checkpoint.every = 20
    return config
