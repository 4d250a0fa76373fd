"""The policy of the demonstration: the default small model, whose SFT ends early, so that it is often wrong.

The demonstration of AceCoder, in this order (docs/reference/acecode.md; figures: docs/results/acecode.md). With
:unfiltered for :filtered it is as if nobody had dropped wrong tests:
    python -m jaxrl.train --config configs/acecode/sft.py
    python -m jaxrl.synthesize --config configs/acecode/synthesize.py
    python -m jaxrl.rates --config configs/acecode/rates.py:filtered
    python -m jaxrl.preferences runs/ace_rates_filtered/rates.jsonl runs/ace_rates_filtered/pairs.jsonl
    python -m jaxrl.train --config configs/acecode/reward.py:filtered
    python -m jaxrl.evaluate --config configs/acecode/best_of.py:filtered
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
