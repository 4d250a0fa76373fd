"""GRPO without tools: the answer at once."""

from configs.study.common import grpo_config
from jaxrl.config import Config
from jaxrl.tasks.compute import DIRECT


def get_config() -> Config:
    config = grpo_config("direct")
    config.rollout.instruction = DIRECT
    return config
