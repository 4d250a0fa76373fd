"""RLEF's ablation: a value for each token."""

from configs.study.settings import ppo_config
from jaxrl.algorithms import ppo
from jaxrl.config import Config


def get_config(model: str = "") -> Config:
    return ppo_config("ppo_token", "PPO, token value", model, loss=ppo.Settings(value="token"))
