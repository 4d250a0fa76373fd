"""AceCoder with real models on two cores: questions by the larger, answers and a reward model by the smaller.

    sed -n 511,974p mbpp.jsonl > seeds.jsonl                                     # MBPP's training part
    python -m jaxrl.synthesize --config configs/real/acecode.py:questions --config.model.path=LARGER \
        --config.synthesis.path=seeds.jsonl
    python -m jaxrl.rates --config configs/real/acecode.py:rates --config.model.path=SMALLER
    python -m jaxrl.preferences runs/real_rates/rates.jsonl runs/real_rates/pairs.jsonl
    python -m jaxrl.train --config configs/real/acecode.py:reward --config.model.path=SMALLER
    python -m jaxrl.evaluate --config configs/real/acecode.py:best_of --config.model.path=SMALLER \
        --config.task.path=mbpp.jsonl
    python -m jaxrl.score runs/real_best_of/scores.jsonl --best-of 1,8,16

Best of 16 on the first 100 problems of MBPP's test part.
"""

from typing import Literal

from jaxrl.config import Config
from jaxrl.tasks import acecode, mbpp

Part = Literal["questions", "rates", "reward", "best_of"]


def get_config(part: Part = "questions") -> Config:
    config = Config(name=f"real_{part}")
    config.model.compute_dtype = "bfloat16"
    config.rollout.reject_long_prompts = True
    config.rollout.max_prompt_length = 1024 if part == "questions" else 384
    config.rollout.max_new_tokens = 1024 if part == "questions" else 256
    if part == "questions":
        config.synthesis.seeds = 200
    elif part == "rates":
        config.task = acecode.Settings(path="runs/real_questions/questions.jsonl")
        config.rates.samples = 16
    elif part == "reward":
        config.task = acecode.Settings(path="runs/real_questions/questions.jsonl")
        config.model.lora.rank = 16
        config.model.param_dtype = "bfloat16"
        config.batch.microbatch_rows = 1
        config.reward.path = "runs/real_rates/pairs.jsonl"
        config.reward.steps = 60
        config.reward.batch_size = 8
        config.reward.held_out = 0.1
        config.reward.optimizer.learning_rate = 1e-4
    else:
        config.task = mbpp.Settings(held_out_problems=100)
        config.reward.model = "runs/real_reward"
        config.evaluation.best_of = "all"
        config.evaluation.samples = 16
        config.evaluation.k = (8,)
    return config
