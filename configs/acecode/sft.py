"""The policy of the demonstration: the default small model, whose SFT ends early, so that it is often wrong.

The demonstration of reward models, in this order; the second takes pairs of the policy's own answers, in
runs/ace_pairs/pairs.jsonl (docs/reference/reward_models.md has their form):
    python -m jaxrl.train --config configs/acecode/sft.py
    python -m jaxrl.train --config configs/acecode/reward.py
    python -m jaxrl.evaluate --config configs/acecode/best_of.py
    python -m jaxrl.train --config configs/acecode/rl.py:task
    python -m jaxrl.train --config configs/acecode/rl.py:model
"""

from configs.grpo import get_config as grpo_config
from jaxrl.config import Config
from jaxrl.tasks import functions


def get_config() -> Config:
    config = grpo_config()
    config.name = "ace_sft"
    config.task = functions.Settings(
        families=("list",), max_difficulty=3, hard_demonstrations=0.2, lazy_demonstrations=0.4, held_out_problems=200
    )
    config.sft.steps = 500
    config.grpo.steps = 0
    return config
