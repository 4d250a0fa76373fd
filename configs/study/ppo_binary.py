"""RLEF's ablation: the model sees that its program failed, not how."""

from configs.study.settings import ppo_config
from jaxrl.config import Config


def get_config(model: str = "") -> Config:
    config = ppo_config("ppo_binary", "PPO, no feedback but failure", model)
    config.rollout.environment.feedback = "binary"
    return config
