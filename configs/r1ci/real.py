"""A real model on 24 of the 144 kinds of questions: in words, by code, or as it likes; and what training makes of it.

    python -m jaxrl.evaluate --config configs/r1ci/real.py:text --config.model.path=MODEL --config.task.path=BBH_FOLDER
    python -m jaxrl.evaluate --config configs/r1ci/real.py:code ...
    python -m jaxrl.evaluate --config configs/r1ci/real.py:free ...
    python -m jaxrl.potential --config configs/r1ci/real.py --agents text,code,free ...
    python -m jaxrl.train --config configs/r1ci/real.py:free ... --config.grpo.curriculum.order=potential \
        --config.grpo.curriculum.path=runs/r1ci_text/potential.jsonl --config.grpo.curriculum.steps="(5,5,5)"

Twelve kinds are trained on; those of BIG-Bench Hard are only tested. Greedy, 10 questions of each. Needs
pip install 'jaxrl[reasoning]'.
"""

from jaxrl.config import Config
from jaxrl.tasks import reasoning
from rollouts.environments import interpreter

TRAINED = (
    "gym/basic_arithmetic", "gym/lcm", "gym/count_bits", "gym/letter_counting", "gym/simple_equations",
    "gym/number_sorting", "native/number_multiply", "native/new_operator", "native/polynomial_value", "native/letters",
    "native/shopping", "native/string_insertion",
)  # fmt: skip
TESTED = (
    "bbh/boolean_expressions", "bbh/date_understanding", "bbh/dyck_languages", "bbh/logical_deduction_three_objects",
    "bbh/multistep_arithmetic_two", "bbh/navigate", "bbh/object_counting", "bbh/penguins_in_a_table",
    "bbh/reasoning_about_colored_objects", "bbh/temporal_sequences", "bbh/web_of_lies", "bbh/word_sorting",
)  # fmt: skip
INSTRUCTIONS = {
    "text": "Think step by step in words. Do not write code.",
    "code": "Write a Python program that computes the answer and prints it. Its output will follow.",
    "free": "Think step by step. You may write Python; its output will follow.",
}


def get_config(agent: str = "free") -> Config:
    config = Config(name=f"r1ci_{agent}", label=agent)
    config.task = reasoning.Settings(kinds=TRAINED + TESTED, answer_form="boxed", held_out_problems=240)
    config.model.compute_dtype = config.model.param_dtype = "bfloat16"
    config.model.lora.rank = 16
    config.rollout.instruction = INSTRUCTIONS[agent]
    if agent != "text":
        config.rollout.environment = interpreter.Settings(max_calls=2, code_end="```output", stateful=False)
    config.rollout.max_prompt_length = 640
    config.rollout.max_new_tokens = 256
    config.rollout.reject_long_prompts = True
    config.batch.microbatch_rows = 1
    config.grpo.steps = 20
    config.grpo.problems_per_step = 8
    config.grpo.group_size = 8
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5
    config.traces.problems = 120
    config.evaluation.temperature = 0.0
    config.checkpoint.every = 10
    config.checkpoint.keep = 1
    return config
