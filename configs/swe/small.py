"""SWE-RL against more of the same SFT: a small model repairs functions in two files (arXiv 2502.18449).

    python -m jaxrl.train --config configs/swe/small.py          # SFT, then GRPO on the similarity of changes
    python -m jaxrl.train --config configs/swe/small.py:sft      # SFT for twice as long, no GRPO
    python -m jaxrl.report runs/swe_rl runs/swe_sft

Of the demonstrations 40 % edit the right place, and put in something wrong. Held-out functions have pairs of steps, and
constants, that never occur in training. Problems need no data; of commits: --config.task.path, see
docs/reference/swe_rl.md.
"""

from typing import Literal

from jaxrl.config import Config
from jaxrl.tasks import swe_rl

SFT_STEPS = 900


def get_config(arm: Literal["rl", "sft"] = "rl") -> Config:
    config = Config(name=f"swe_{arm}", label="SFT, then SWE-RL" if arm == "rl" else "SFT for twice as long")
    config.task = swe_rl.Settings(
        families=("list",), max_difficulty=3, files=2, careless_demonstrations=0.4, explain=False
    )
    config.model.shape.hidden_size = 192
    config.model.shape.intermediate_size = 512
    config.model.shape.num_hidden_layers = 3
    config.model.unroll_layers = True
    config.model.tokenizer_size = 448

    config.rollout.slots = 128
    config.rollout.max_prompt_length = 256
    config.rollout.max_new_tokens = 128
    config.batch.microbatch_rows = 8

    config.sft.steps = SFT_STEPS if arm == "rl" else 2 * SFT_STEPS
    config.sft.batch_size = 16
    config.sft.optimizer.learning_rate = 2e-3
    config.sft.optimizer.schedule = "cosine"
    config.grpo.steps = 80 if arm == "rl" else 0
    config.grpo.problems_per_step = 8
    config.grpo.group_size = 8
    config.optimizer.learning_rate = 2e-4
    config.evaluation.samples = 4
    return config
