"""RLEF's ablation: one program, no second turn, no penalty for what is not a program."""

from configs.study.settings import ppo_config
from jaxrl.config import Config


def get_config(model: str = "") -> Config:
    config = ppo_config("ppo_single", "PPO, single turn", model)
    config.rollout.environment.max_turns = 1
    config.grpo.loss.invalid_penalty = config.rollout.environment.invalid_penalty = 0.0
    return config
