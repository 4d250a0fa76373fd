"""Short programs for sequences: a small model learns to compress, by SFT and then by GRPO (arXiv 2503.13992).

    python -m jaxrl.train --config configs/kolmogorov/small.py
    python -m jaxrl.train --config configs/kolmogorov/small.py:sft      # SFT for twice as long, no GRPO
    python -m jaxrl.report runs/kolmogorov_rl runs/kolmogorov_sft

Up to 24 values from 0 to 31. Demonstrations have at most four lines, and a fifth of them list the values; other
problems have up to six. A right program is worth more the fewer bits it takes.
"""

from typing import Literal

from jaxrl.config import Config
from jaxrl.tasks import kolmogorov

SFT_STEPS = 900


def get_config(arm: Literal["rl", "sft"] = "rl") -> Config:
    config = Config(name=f"kolmogorov_{arm}", label="SFT, then GRPO" if arm == "rl" else "SFT for twice as long")
    config.task = kolmogorov.Settings(
        length=24, largest=31, base_length=6, lines=6, demonstration_lines=4, lazy_demonstrations=0.2, explain=False
    )
    config.model.shape.hidden_size = 192
    config.model.shape.intermediate_size = 512
    config.model.shape.num_hidden_layers = 3
    config.model.unroll_layers = True
    config.model.tokenizer_size = 384

    config.rollout.instruction = ""
    config.rollout.slots = 128
    config.rollout.max_prompt_length = 96
    config.rollout.max_new_tokens = 112
    config.batch.microbatch_rows = 8

    config.sft.steps = SFT_STEPS if arm == "rl" else 2 * SFT_STEPS
    config.sft.batch_size = 32
    config.sft.optimizer.learning_rate = 2e-3
    config.sft.optimizer.schedule = "cosine"
    config.grpo.steps = 100 if arm == "rl" else 0
    config.grpo.problems_per_step = 8
    config.grpo.group_size = 8
    config.optimizer.learning_rate = 2e-4
    config.evaluation.samples = 4
    return config
