"""GRPO with execution feedback, with as many episodes as the other objectives have."""

from configs.study.settings import objective_config
from jaxrl.config import Config


def get_config(model: str = "") -> Config:
    config = objective_config("group", model)
    config.label = "GRPO"
    return config
