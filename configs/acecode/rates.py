"""Pass rates of the demonstration's policy on the synthesised questions, with filtered or unfiltered tests.

python -m jaxrl.rates --config configs/acecode/rates.py:filtered
python -m jaxrl.preferences runs/ace_rates_filtered/rates.jsonl runs/ace_rates_filtered/pairs.jsonl
"""

from typing import Literal

from configs.acecode.sft import get_config as sft_config
from jaxrl.config import Config
from jaxrl.tasks import acecode


def get_config(tests: Literal["filtered", "unfiltered"] = "filtered") -> Config:
    config = sft_config()
    config.name = f"ace_rates_{tests}"
    questions = {"filtered": "questions.jsonl", "unfiltered": "candidates.jsonl"}[tests]
    config.task = acecode.Settings(path=f"{config.runs_dir}/ace_questions/{questions}", prompt_style="question")
    config.model.path = f"{config.runs_dir}/ace_sft"
    config.sft.steps = 0
    config.rates.samples = 8
    return config
