"""RLEF's ablation: the failures shown are those of another problem's tests."""

from configs.study.settings import ppo_config
from jaxrl.config import Config


def get_config(model: str = "") -> Config:
    config = ppo_config("ppo_random", "PPO, random feedback", model)
    config.rollout.environment.feedback = "random"
    return config
