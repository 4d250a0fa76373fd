"""SFT. The small task's demonstrations are of all kinds (by head, with the interpreter, as a program), some careless."""

from configs.study.common import study_config
from jaxrl.config import Config
from jaxrl.tasks.compute import DIRECT


def get_config(model: str = "") -> Config:
    config = study_config("sft", model)
    config.label = "SFT"
    if not model:
        config.rollout.instruction = DIRECT  # of the evaluations; demonstrations have their own
        config.rollout.max_new_tokens = 16
        config.batch.row_length = 224
    return config
