"""Is a Python interpreter worth its tokens? A real model on multi-digit arithmetic in words, with and without one.

    python -m jaxrl.train --config configs/real/tool.py:tool --config.model.path=qwen2.5-coder-0.5b.gguf
    python -m jaxrl.train --config configs/real/tool.py:direct --config.model.path=qwen2.5-coder-0.5b.gguf

Both train adapters alone, on two cores, for an hour each. Before the first step each is scored on 200 held-out
problems, which have other constants: those are the scores of the model as it is. Figures: docs/results/real_models.md.
"""

from jaxrl.config import Config
from jaxrl.tasks import compute
from rollouts.environments import interpreter

ANSWER = "Give the result in \\boxed{}."
TOOL = "Write a fenced python block that prints the result. I will send you its output; then give it in \\boxed{}."


def get_config(arm: str = "tool") -> Config:
    config = Config(name=f"arithmetic_{arm}", label="GRPO + tool use" if arm == "tool" else "GRPO direct")
    config.task = compute.Settings(held_out_problems=200)
    config.model.compute_dtype = config.model.param_dtype = "bfloat16"
    config.model.lora.rank = 16
    config.rollout.instruction = ANSWER
    if arm == "tool":
        # As the next message: a chat model ends its own after a block.
        config.rollout.environment = interpreter.Settings(max_calls=2, output_to="user")
        config.rollout.instruction = TOOL
    config.rollout.max_prompt_length = 128
    config.rollout.max_new_tokens = 256
    config.batch.microbatch_rows = 1
    config.grpo.steps = 40
    config.grpo.problems_per_step = 8
    config.grpo.group_size = 8
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5
    config.evaluation.temperature = 0.0
    config.checkpoint.every = 10
    config.checkpoint.keep = 1
    return config
