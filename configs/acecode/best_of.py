"""Best-of-8 of the demonstration's policy: by the reward model, by logprob, by public tests, at random, by an oracle.

The table for other sizes, from the samples that this has kept:
    python -m jaxrl.score runs/ace_best_of/scores.jsonl --best-of 1,2,4,8
"""

from configs.acecode.sft import get_config as sft_config
from jaxrl.config import Config


def get_config() -> Config:
    config = sft_config()
    config.name = "ace_best_of"
    config.model.path = "runs/ace_sft"
    config.sft.steps = 0
    config.reward.model = "runs/ace_reward"
    config.evaluation.best_of = "all"
    config.evaluation.samples = 8
    config.evaluation.k = (2, 4)
    return config
