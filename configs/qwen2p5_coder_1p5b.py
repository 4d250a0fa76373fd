"""The real run: Qwen2.5-Coder-1.5B by GRPO on contest problems, tested on HumanEval, on a TPU slice or a few GPUs.

Give the model and the data as overrides where they are not the hub's:
    --config.model.path=/models/Qwen2.5-Coder-1.5B-Instruct --config.task.path=problems.parquet
    --config.evaluation.task.path=HumanEval.jsonl.gz
With adapters, on a single GPU say, the rates are ten times those of training everything:
    --config.model.lora.rank=32 --config.model.param_dtype=bfloat16 --config.optimizer.learning_rate=1e-5
"""

from jaxrl.algorithms import policy_gradient
from jaxrl.config import Config
from jaxrl.tasks import contest, humaneval


def get_config() -> Config:
    config = Config(name="qwen2p5_coder_1p5b")
    config.model.path = "Qwen/Qwen2.5-Coder-1.5B-Instruct"
    config.model.remat = "full"
    config.task = contest.Settings(
        path="open-r1/verifiable-coding-problems-python", max_tests=16, max_prompt_characters=6000
    )
    config.rollout.slots = 256
    config.rollout.max_prompt_length = 2048
    config.rollout.max_new_tokens = 2048
    config.rollout.reject_long_prompts = True
    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_steps = 10
    config.grpo.steps = 1000
    config.grpo.problems_per_step = 32
    config.grpo.group_size = 16
    config.grpo.loss = policy_gradient.Settings(clip_high=0.28, sampler_correction="truncate", dynamic_sampling=True)
    config.batch.microbatch_rows = 16
    config.evaluation.task = humaneval.Settings(path="openai/openai_humaneval", split="test", held_out_problems=164)
    config.evaluation.every = 100
    config.checkpoint.every = 50
    return config
