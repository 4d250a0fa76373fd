"""Edits against whole programs: a small model repairs functions, by SFT and then by GRPO (arXiv 2507.05065).

    python -m jaxrl.train --config configs/edits/small.py:edits
    python -m jaxrl.train --config configs/edits/small.py:direct
    python -m jaxrl.report runs/repair_edits runs/repair_direct

Both have the same model, problems and steps. With edits each turn is a command, and its advantage is that of its turn
among the group's episodes that have one; a whole program is one turn.
"""

from typing import Literal

from jaxrl.algorithms import policy_gradient
from jaxrl.config import Config
from jaxrl.tasks import repair
from rollouts.environments import edits


def get_config(style: Literal["edits", "direct"] = "edits") -> Config:
    config = Config(name=f"repair_{style}", label="edits" if style == "edits" else "whole program")
    config.task = repair.Settings(
        families=("list",), max_difficulty=3, most_mistakes=2, style=style, explain=False, failures=1, characters=60
    )
    config.model.shape.hidden_size = 192
    config.model.shape.intermediate_size = 512
    config.model.shape.num_hidden_layers = 3
    config.model.unroll_layers = True
    config.model.tokenizer_size = 448

    config.rollout.slots = 128
    config.rollout.max_prompt_length = 512
    config.rollout.max_new_tokens = 64
    if style == "edits":
        config.rollout.environment = edits.Settings(max_turns=4, failures=1, characters=60)
        config.rollout.max_new_tokens = 448
        config.rollout.max_turn_tokens = 48
        config.grpo.loss = policy_gradient.Settings(credit="turn")
    config.batch.microbatch_rows = 4

    config.sft.steps = 900
    config.sft.batch_size = 16
    config.sft.optimizer.learning_rate = 2e-3
    config.sft.optimizer.schedule = "cosine"
    config.grpo.steps = 60
    config.grpo.problems_per_step = 8
    config.grpo.group_size = 8
    config.optimizer.learning_rate = 2e-4
    config.evaluation.samples = 4
    return config
