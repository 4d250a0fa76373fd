"""Code the transforms: a small model writes rules of rewriting in a line, by SFT and then by GRPO (arXiv 2410.08806).

    python -m jaxrl.train --config configs/transforms/small.py              # one answer
    python -m jaxrl.train --config configs/transforms/small.py:feedback     # up to three: it sees what went wrong
    python -m jaxrl.train --config configs/transforms/small.py:direct       # the model changes the program itself
    python -m jaxrl.report runs/transforms_single runs/transforms_feedback runs/transforms_direct

Half of the demonstrations have no guard, so that they change what must stay: precision is what is left to learn.
Held-out problems have rules that training never shows, of patterns, operators and guards that it shows apart.
"""

from typing import Literal

from jaxrl.config import Config
from jaxrl.tasks import transforms
from jaxrl.tasks.rewriting.swaps import HELD_OUT
from rollouts.environments import feedback


def get_config(arm: Literal["single", "feedback", "direct"] = "single") -> Config:
    config = Config(name=f"transforms_{arm}", label=arm)
    config.task = transforms.Settings(
        problems="swaps", held_out_rules=HELD_OUT, neutral=0, explain=False, held_out_problems=60
    )
    if arm == "direct":
        config.task.style = "rewrite"
    else:
        config.task.lazy_demonstrations = 0.5
    config.model.shape.hidden_size = 192
    config.model.shape.intermediate_size = 512
    config.model.shape.num_hidden_layers = 3
    config.model.unroll_layers = True
    config.model.tokenizer_size = 448

    config.rollout.slots = 128
    config.rollout.max_prompt_length = 224
    config.rollout.max_new_tokens = 56
    if arm == "feedback":
        config.rollout.environment = feedback.Settings(
            max_turns=3, failures=1, characters=120, header="Wrong:", request=""
        )
        config.rollout.max_new_tokens = 384
        config.rollout.max_turn_tokens = 56
    config.batch.microbatch_rows = 4

    config.sft.steps = 600
    config.sft.batch_size = 32
    config.sft.optimizer.learning_rate = 2e-3
    config.sft.optimizer.schedule = "cosine"
    config.grpo.steps = 80
    config.grpo.problems_per_step = 8
    config.grpo.group_size = 8
    config.optimizer.learning_rate = 2e-4
    config.evaluation.samples = 4
    return config
