"""The default run: a small Qwen2 model learns to write Python functions, by SFT and then by GRPO.

SFT shows it programs of up to two steps, and few longer ones; GRPO lets it try problems of two to four steps and
tells it only which programs pass. Held-out problems have pairs of steps and constants that neither stage has.
"""

from jaxrl.config import Config


def get_config() -> Config:
    config = Config(name="grpo")

    config.task.name = "functions"
    config.task.families = ("list",)
    config.task.max_difficulty = 4
    config.task.demonstration_difficulty = 2
    config.task.hard_demonstrations = 0.03

    config.model.shape.hidden_size = 192
    config.model.shape.intermediate_size = 512
    config.model.shape.num_hidden_layers = 3
    config.model.unroll_layers = True

    config.rollout.slots = 192
    config.rollout.max_prompt_length = 64
    config.rollout.max_new_tokens = 72
    config.batch.microbatch_rows = 8

    config.sft.steps = 420
    config.sft.batch_size = 48
    config.sft.optimizer.learning_rate = 2e-3
    config.sft.optimizer.schedule = "cosine"

    config.grpo.steps = 200
    config.grpo.problems_per_step = 24
    config.grpo.group_size = 8
    config.optimizer.learning_rate = 3e-4

    config.evaluation.samples = 2
    return config
