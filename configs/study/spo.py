"""Soft Policy Optimization with execution feedback (arXiv 2503.05453); grpo.replay says what it learns from."""

from configs.study.settings import objective_config
from jaxrl.algorithms import spo
from jaxrl.config import Config


def get_config(model: str = "") -> Config:
    config = objective_config("spo", model)
    config.label, config.grpo.loss = "SPO", spo.Settings(beta=0.2, q0="group")
    return config
