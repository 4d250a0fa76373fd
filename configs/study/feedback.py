"""GRPO with execution feedback: a program a turn, the failures of its public tests as the next message."""

from configs.study.settings import feedback_config
from jaxrl.config import Config


def get_config(model: str = "") -> Config:
    config = feedback_config("feedback", model)
    config.label = "GRPO + feedback"
    return config
