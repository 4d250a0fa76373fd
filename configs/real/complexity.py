"""How the cost of a program grows, predicted by a real model: the tiny sets of BigO(Bench), each solution ten times.

    python -m jaxrl.evaluate --config configs/real/complexity.py --config.model.path=MODEL \
        --config.task.path=tiny_time_test_set_with_notes.json
    python -m jaxrl.evaluate --config configs/real/complexity.py:space ... --config.task.path=tiny_space_....json
"""

from typing import Literal

from jaxrl.config import Config
from jaxrl.tasks import bigo


def get_config(resource: Literal["time", "space"] = "time") -> Config:
    config = Config(name=f"complexity_{resource}")
    config.task = bigo.Settings(kind="predict", held_out_problems=16)
    config.model.compute_dtype = "bfloat16"
    config.rollout.max_prompt_length = 1536
    config.rollout.max_new_tokens = 320
    config.evaluation.samples = 10
    config.evaluation.temperature = 0.8
    return config
