"""RLEF's ablation: one program, no second turn, no penalty for what is not a program."""

from configs.study.settings import ppo_config
from jaxrl.algorithms import ppo
from jaxrl.config import Config
from rollouts.environments import feedback


def get_config(model: str = "") -> Config:
    loss, environment = ppo.Settings(invalid_penalty=0), feedback.Settings(max_turns=1, invalid_penalty=0)
    return ppo_config("ppo_single", "PPO, single turn", model, loss, environment)
