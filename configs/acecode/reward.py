"""The reward model of the demonstration: the policy of sft.py, trained on pairs of its own answers (rates.py)."""

from typing import Literal

from configs.acecode.sft import get_config as sft_config
from jaxrl.config import Config


def get_config(tests: Literal["filtered", "unfiltered"] = "filtered") -> Config:
    config = sft_config()
    config.name = f"ace_reward_{tests}"
    config.model.path = "runs/ace_sft"
    config.sft.steps = 0
    config.reward.path = f"runs/ace_rates_{tests}/pairs.jsonl"
    config.reward.steps = 200
    config.reward.batch_size = 32
    config.reward.held_out = 0.1
    config.reward.optimizer.learning_rate = 3e-4
    config.evaluation.every = 50
    return config
