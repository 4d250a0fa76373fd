"""Is a Python interpreter worth its tokens? A real model on multi-digit arithmetic in words, with and without one.

    python -m jaxrl.train --config configs/real/tool.py:tool --config.model.path=qwen2.5-coder-0.5b.gguf
    python -m jaxrl.train --config configs/real/tool.py:direct --config.model.path=qwen2.5-coder-0.5b.gguf

Both get the same prompt and train adapters alone, on two cores, for less than an hour each. The model often writes
Python and then what it believes to be the output; with the interpreter, the output is the true one. Before the first
step each is scored on 200 held-out problems, which have other constants: those are the scores of the model as it is.
Figures: docs/results/real_models.md.
"""

from jaxrl.config import Config
from jaxrl.tasks import compute
from rollouts.environments import interpreter

INSTRUCTION = "Give the result in \\boxed{}."


def get_config(arm: str = "tool") -> Config:
    config = Config(name=f"arithmetic_{arm}", label="GRPO + tool use" if arm == "tool" else "GRPO direct")
    config.task = compute.Settings(held_out_problems=200)
    config.model.compute_dtype = config.model.param_dtype = "bfloat16"
    config.model.lora.rank = 16
    config.rollout.instruction = INSTRUCTION
    if arm == "tool":
        # The model opens the output block itself, as in ToRL.
        config.rollout.environment = interpreter.Settings(max_calls=2, code_end="```output")
    config.rollout.max_prompt_length = 128
    config.rollout.max_new_tokens = 256
    config.batch.microbatch_rows = 1
    config.batch.row_length = 512  # two episodes
    config.grpo.steps = 20
    config.grpo.problems_per_step = 8
    config.grpo.group_size = 8
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5
    config.evaluation.temperature = 0.0
    config.checkpoint.every = 10
    config.checkpoint.keep = 1
    return config
