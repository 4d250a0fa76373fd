"""SFT; on the small task with demonstrations of all kinds (by head, with the interpreter, as a program)."""

from configs.study.settings import study_config
from jaxrl.config import Config
from jaxrl.tasks.compute import DIRECT


def get_config(model: str = "") -> Config:
    config = study_config("sft", model)
    config.label = "SFT"
    if not model:
        config.rollout.instruction = DIRECT  # of the evaluations; demonstrations have their own
        config.rollout.max_new_tokens = 16
        config.batch.row_length = 160
    return config
