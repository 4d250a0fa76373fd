"""GRPO with execution feedback: a program a turn, the failures of its public tests as the next message."""

from configs.study.settings import grpo_config
from jaxrl.config import Config
from jaxrl.tasks.compute import PROGRAM
from rollouts.environments import feedback


def get_config(model: str = "") -> Config:
    config = grpo_config("feedback", model)
    config.label = "GRPO + feedback"
    config.rollout.environment = feedback.Settings()
    config.rollout.max_turn_tokens = 1024
    if not model:
        config.rollout.instruction = PROGRAM
        config.rollout.max_new_tokens = 208
        config.rollout.max_turn_tokens = 64
    return config
