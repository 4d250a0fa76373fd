"""SFT alone, on demonstrations of the default task that are right and of all lengths: what careful teaching gives."""

from configs.grpo import get_config as grpo_config
from jaxrl.config import Config


def get_config() -> Config:
    config = grpo_config()
    config.name = "sft"
    config.task.demonstration_difficulty = config.task.max_difficulty
    config.task.lazy_demonstrations = 0.0
    config.grpo.steps = 0
    return config
