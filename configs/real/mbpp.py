"""GRPO of a real model on MBPP's training part (ids 511 to 974), on two cores.

    python -m jaxrl.train --config configs/real/mbpp.py --config.model.path=smollm2-135m.gguf \
        --config.task.path=mbpp.jsonl
    python -m jaxrl.train --config configs/real/mbpp.py:lora --config.model.path=qwen2.5-coder-0.5b.gguf \
        --config.task.path=mbpp.jsonl

The held-out problems are MBPP's test part. HumanEval before and after: python -m jaxrl.evaluate with the same config,
--config.task=humaneval and --config.task.path. Figures: docs/results/real_models.md.
"""

from jaxrl.config import Config
from jaxrl.tasks import mbpp


def get_config(trained: str = "all") -> Config:
    config = Config(name=f"mbpp_{trained}")
    config.task = mbpp.Settings(held_out_problems=500)
    config.model.compute_dtype = "bfloat16"
    config.rollout.max_prompt_length = 320
    config.rollout.max_new_tokens = 192
    config.rollout.reject_long_prompts = True
    config.batch.microbatch_rows = 1
    config.grpo.steps = 60
    config.grpo.problems_per_step = 8
    config.grpo.group_size = 8
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 5
    if trained == "lora":
        config.model.lora.rank = 16
        config.model.param_dtype = "bfloat16"
        config.optimizer.learning_rate = 2e-4
    config.evaluation.temperature = 0.0
    config.checkpoint.every = 10
    config.checkpoint.keep = 1
    return config
