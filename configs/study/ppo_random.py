"""RLEF's ablation: the failures shown are those of another problem's tests."""

from configs.study.settings import ppo_config
from jaxrl.config import Config
from rollouts.environments import feedback


def get_config(model: str = "") -> Config:
    return ppo_config("ppo_random", "PPO, random feedback", model, environment=feedback.Settings(feedback="random"))
