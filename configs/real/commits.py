"""A real model makes the changes that commits of a repository have made (SWE-RL's task, evaluated only).

    python -m jaxrl.swe_data --repository DIR --suffix .py rows.jsonl
    python -m jaxrl.evaluate --config configs/real/commits.py --config.model.path=MODEL --config.task.path=rows.jsonl

Forty of the newest commits, greedy: the shares that apply and that are exact, and the similarity.
"""

from jaxrl.config import Config
from jaxrl.tasks import swe_rl


def get_config() -> Config:
    config = Config(name="commits")
    config.task = swe_rl.Settings(held_out_share=0.5, held_out_problems=40, context_characters=8000)
    config.model.compute_dtype = "bfloat16"
    config.rollout.slots = 16
    config.rollout.max_prompt_length = 3072
    config.rollout.reject_long_prompts = True
    config.rollout.max_new_tokens = 768
    config.evaluation.temperature = 0.0
    return config
