"""Best-of-8 of the demonstration's policy: by the reward model, by logprob, by public tests, at random, by an oracle.

best_of.py:filtered and :unfiltered say whose reward model.

The table for other sizes, from the samples that this has kept:
    python -m jaxrl.score runs/ace_best_of_filtered/scores.jsonl --best-of 1,2,4,8
"""

from typing import Literal

from configs.acecode.sft import get_config as sft_config
from jaxrl.config import Config


def get_config(tests: Literal["filtered", "unfiltered"] = "filtered") -> Config:
    config = sft_config()
    config.name = f"ace_best_of_{tests}"
    config.model.path = "runs/ace_sft"
    config.sft.steps = 0
    config.reward.model = f"runs/ace_reward_{tests}"
    config.evaluation.best_of = "all"
    config.evaluation.samples = 8
    config.evaluation.k = (2, 4)
    return config
