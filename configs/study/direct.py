"""GRPO without tools: the answer at once."""

from configs.study.settings import grpo_config
from jaxrl.config import Config
from jaxrl.tasks.compute import DIRECT


def get_config(model: str = "") -> Config:
    config = grpo_config("direct", model)
    config.label = "GRPO direct"
    if not model:
        config.rollout.instruction = DIRECT
        config.rollout.max_new_tokens = 16
    return config
