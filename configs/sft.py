"""SFT alone, on all demonstrations of the default task."""

from configs.grpo import get_config as grpo_config
from jaxrl.config import Config


def get_config() -> Config:
    config = grpo_config()
    config.name = "sft"
    config.task.demonstration_difficulty = config.task.max_difficulty
    config.sft.steps = 800
    config.grpo.steps = 0
    return config
