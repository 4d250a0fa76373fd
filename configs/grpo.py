"""The default run: a small Qwen2 model warmed up by SFT, then trained by GRPO to write small Python functions."""

from jaxrl.config import Config


def get_config() -> Config:
    config = Config(name="grpo")
    config.model.shape.hidden_size = 192
    config.model.shape.intermediate_size = 512
    config.model.shape.num_hidden_layers = 3
    config.model.unroll_layers = True
    config.rollout.slots = 128
    config.rollout.max_prompt_length = 72
    config.rollout.max_new_tokens = 72
    config.sft.steps = 500
    config.sft.batch_size = 32
    config.sft.optimizer.learning_rate = 2e-3
    config.sft.optimizer.schedule = "cosine"
    config.grpo.steps = 150
    config.grpo.problems_per_step = 16
    config.optimizer.learning_rate = 3e-4
    config.batch.microbatch_rows = 8
    return config
