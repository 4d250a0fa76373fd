"""Short programs for sequences by a real model, beside gzip and beside its own prediction of the numbers.

    python -m jaxrl.evaluate --config configs/real/sequences.py:python --config.model.path=MODEL
    python -m jaxrl.kolmogorov drawn --length 32 --pieces 100 --model MODEL \
        --samples runs/sequences_python/samples/evaluation.jsonl

The first 100 sequences that the task holds out, greedy; :language asks for the test's own small language. For other
lengths give both commands theirs (--config.task.length=64).
"""

from typing import Literal

from jaxrl.config import Config
from jaxrl.tasks import kolmogorov


def get_config(program: Literal["python", "language"] = "python") -> Config:
    config = Config(name=f"sequences_{program}")
    config.task = kolmogorov.Settings(program=program, length=32, held_out_problems=100)
    config.model.compute_dtype = "bfloat16"
    config.rollout.max_prompt_length = 640
    config.rollout.max_new_tokens = 320
    config.evaluation.temperature = 0.0
    return config
