"""PPO with execution feedback and a value for each turn (RLEF, arXiv 2410.02089)."""

from configs.study.settings import ppo_config
from jaxrl.config import Config


def get_config(model: str = "") -> Config:
    return ppo_config("ppo_turn", "PPO, turn value", model)
