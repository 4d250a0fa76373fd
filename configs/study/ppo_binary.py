"""RLEF's ablation: the model sees that its program failed, not how."""

from configs.study.settings import ppo_config
from jaxrl.config import Config
from rollouts.environments import feedback


def get_config(model: str = "") -> Config:
    return ppo_config(
        "ppo_binary", "PPO, no feedback but failure", model, environment=feedback.Settings(feedback="binary")
    )
