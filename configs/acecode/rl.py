"""RL of the demonstration with the tests' reward or the reward model's: configs/acecode/rl.py:task, :model, :both."""

from typing import Literal

from configs.acecode.sft import get_config as sft_config
from jaxrl.config import Config


def get_config(reward: Literal["task", "model", "both"] = "task") -> Config:
    config = sft_config()
    config.name = f"ace_rl_{reward}"
    config.label = {"task": "the tests' reward", "model": "the model's reward"}.get(reward, reward)
    config.model.path = "runs/ace_sft"
    config.sft.steps = 0
    config.grpo.steps = 60
    config.grpo.reward = reward
    if reward != "task":
        config.reward.model = "runs/ace_reward_filtered"
    config.evaluation.every = 20
    return config
