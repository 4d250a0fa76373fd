"""SFT on demonstrations of all three kinds (by head, with the interpreter, as a program), some of them careless."""

from configs.study.common import study_config
from jaxrl.config import Config
from jaxrl.tasks.compute import DIRECT


def get_config() -> Config:
    config = study_config("sft")
    config.batch.row_length = 224
    config.sft.steps = 1200
    config.sft.batch_size = 32
    config.sft.optimizer.learning_rate = 2e-3
    config.sft.optimizer.schedule = "cosine"
    config.rollout.instruction = DIRECT  # of the evaluations; demonstrations have their own
    return config
