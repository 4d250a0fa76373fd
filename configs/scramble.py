"""The run for debugging the loop: unscrambling words, where no programs are scored."""

from jaxrl.config import Config
from jaxrl.tasks import scramble


def get_config() -> Config:
    config = Config(name="scramble")
    config.task = scramble.Settings()
    config.model.shape.hidden_size = 128
    config.model.shape.intermediate_size = 352
    config.model.shape.num_hidden_layers = 2
    config.model.shape.num_attention_heads = 4
    config.model.tokenizer_size = 320
    config.model.unroll_layers = True
    config.rollout.slots = 128
    config.rollout.max_prompt_length = 32
    config.rollout.max_new_tokens = 12
    config.sft.steps = 300
    config.sft.batch_size = 64
    config.sft.optimizer.learning_rate = 3e-3
    config.sft.optimizer.schedule = "cosine"
    config.grpo.steps = 150
    config.grpo.problems_per_step = 16
    config.optimizer.learning_rate = 3e-4
    return config
