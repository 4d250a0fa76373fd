"""SFT alone, on demonstrations of the default task that are right and of all lengths: what careful teaching gives."""

from configs.grpo import get_config as grpo_config
from jaxrl.config import Config
from jaxrl.tasks import functions


def get_config() -> Config:
    config = grpo_config()
    config.name = "sft"
    config.task = functions.Settings(
        families=("list",), max_difficulty=3, demonstration_difficulty=3, hard_demonstrations=0.2
    )
    config.grpo.steps = 0
    return config
