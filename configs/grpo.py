"""The default run: a small Qwen2 model learns to write Python functions, by SFT and then by GRPO.

SFT imitates a lazy programmer: two in five of its programs do the last step only, and few of them are long. GRPO
sees no demonstrations, only which of its programs pass hidden tests. Held-out problems have pairs of steps and
constants of steps that neither stage has.
"""

from jaxrl.config import Config
from jaxrl.tasks import functions


def get_config() -> Config:
    config = Config(name="grpo")

    config.task = functions.Settings(
        families=("list",), max_difficulty=3, hard_demonstrations=0.2, lazy_demonstrations=0.4
    )

    config.model.shape.hidden_size = 192
    config.model.shape.intermediate_size = 512
    config.model.shape.num_hidden_layers = 3
    config.model.unroll_layers = True

    config.rollout.slots = 128
    config.rollout.max_prompt_length = 56
    config.rollout.max_new_tokens = 56
    config.batch.microbatch_rows = 8

    config.sft.steps = 1100
    config.sft.batch_size = 32
    config.sft.optimizer.learning_rate = 2e-3
    config.sft.optimizer.schedule = "cosine"

    config.grpo.steps = 200
    config.grpo.problems_per_step = 16
    config.grpo.group_size = 8
    config.optimizer.learning_rate = 2e-4

    config.evaluation.samples = 2
    return config
