"""GRPO with an interpreter: Python in the answer, its output after it."""

from configs.study.settings import grpo_config
from jaxrl.config import Config
from jaxrl.tasks.compute import TOOL
from rollouts.environments import interpreter


def get_config(model: str = "") -> Config:
    config = grpo_config("tool", model)
    config.label = "GRPO + tool use"
    config.rollout.environment = interpreter.Settings(max_calls=2)
    if not model:
        config.rollout.instruction = TOOL
        config.rollout.max_new_tokens = 112
    return config
