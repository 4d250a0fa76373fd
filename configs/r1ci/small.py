"""When to compute: a small model answers by head or by a line of Python, whichever is rewarded (arXiv 2505.21668).

    python -m jaxrl.train --config configs/r1ci/small.py                # masked: no loss on what the code printed
    python -m jaxrl.train --config configs/r1ci/small.py:unmasked
    python -m jaxrl.train --config configs/r1ci/small.py:cold           # a third of the SFT steps
    python -m jaxrl.train --config configs/r1ci/small.py:pass_rate      # kinds that are half solved come more often
    python -m jaxrl.report runs/r1ci_masked runs/r1ci_unmasked runs/r1ci_cold runs/r1ci_pass_rate

Five kinds of questions have code that prints the answer, and SFT shows it for half of them; three have none, so that
code never helps. Rewards are 0 and 1.
"""

from jaxrl.config import Config
from jaxrl.tasks import reasoning
from rollouts.environments import interpreter

KINDS = (
    "native/number_multiply", "native/new_operator", "native/polynomial_value", "native/letters",
    "native/pattern_counting", "native/string_insertion", "native/letter_diagram", "native/logical_equation",
)  # fmt: skip


def get_config(arm: str = "masked") -> Config:
    config = Config(name=f"r1ci_{arm}", label=arm)
    config.task = reasoning.Settings(kinds=KINDS, held_out="questions", held_out_problems=160)
    config.model.shape.hidden_size = 192
    config.model.shape.intermediate_size = 512
    config.model.shape.num_hidden_layers = 3
    config.model.unroll_layers = True
    config.model.tokenizer_size = 448

    config.rollout.environment = interpreter.Settings(max_calls=2, code_end="```\n")
    config.rollout.instruction = ""
    config.rollout.slots = 128
    config.rollout.max_prompt_length = 160
    config.rollout.max_new_tokens = 96
    config.rollout.learn_inserted = arm == "unmasked"
    config.batch.microbatch_rows = 8

    config.sft.steps = 300 if arm == "cold" else 900
    config.sft.batch_size = 32
    config.sft.optimizer.learning_rate = 2e-3
    config.sft.optimizer.schedule = "cosine"
    config.grpo.steps = 80
    config.grpo.problems_per_step = 16
    config.grpo.group_size = 8
    if arm == "pass_rate":
        config.grpo.curriculum.order = "pass_rate"
        config.grpo.curriculum.slice = "kind"
    config.optimizer.learning_rate = 2e-4
    config.evaluation.samples = 2
    return config
