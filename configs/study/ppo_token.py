"""RLEF's ablation: a value for each token."""

from configs.study.settings import ppo_config
from jaxrl.config import Config


def get_config(model: str = "") -> Config:
    config = ppo_config("ppo_token", "PPO, token value", model)
    config.grpo.loss.value = "token"
    return config
