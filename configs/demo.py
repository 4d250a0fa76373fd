"""A first look at a real model: 20 problems of HumanEval, three steps of GRPO on MBPP with LoRA, the 20 problems again.

`make demo`, or python -m jaxrl.train --config configs/demo.py --config.model.path=MODEL. Three steps teach it nothing
yet: they show what a run does, costs and reports. The model and the data are fetched from the hub; from files with
    --config.model.path=MODEL.gguf --config.task.path=mbpp.jsonl --config.evaluation.task.path=HumanEval.jsonl.gz
"""

from jaxrl.config import Config
from jaxrl.tasks import humaneval, mbpp


def get_config() -> Config:
    config = Config(name="demo")
    config.model.path = "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    config.model.lora.rank = 16
    config.model.compute_dtype = config.model.param_dtype = "bfloat16"
    config.task = mbpp.Settings(path="google-research-datasets/mbpp", split="train+test+validation+prompt")
    config.rollout.max_prompt_length = 512
    config.rollout.max_new_tokens = 256
    config.rollout.slots = 32
    config.rollout.reject_long_prompts = True
    config.optimizer.learning_rate = 2e-5
    config.sft.steps = 0
    config.grpo.steps = 3
    config.grpo.problems_per_step = 4
    config.grpo.group_size = 4
    config.batch.microbatch_rows = 2
    config.evaluation.task = humaneval.Settings(path="openai/openai_humaneval", split="test", held_out_problems=20)
    config.evaluation.temperature = 0.0
    return config
