"""Does an agent look at the picture? Tiny repositories whose issue says "see image 1" (arXiv 2410.03859, in small).

    python -m jaxrl.train --config configs/swe/visual.py            # with the image
    python -m jaxrl.train --config configs/swe/visual.py:blind      # without: chance is all that is left
    python -m jaxrl.report runs/visual_image runs/visual_blind

The image has what the program draws and what it should draw; one value is wrong. Held-out problems have pairs of a
wrong and a right value that training never has.
"""

from typing import Literal

from jaxrl.config import Config
from jaxrl.tasks import visual
from rollouts.environments import repository


def get_config(arm: Literal["image", "blind"] = "image") -> Config:
    config = Config(name=f"visual_{arm}", label="with the image" if arm == "image" else "without")
    config.task = visual.Settings(images=arm == "image", demonstrations=1_000, held_out_problems=96)
    config.model.shape.hidden_size = 192
    config.model.shape.intermediate_size = 512
    config.model.shape.num_hidden_layers = 3
    config.model.unroll_layers = True
    config.model.tokenizer_size = 384

    config.rollout.environment = repository.Settings(max_turns=4, trees=8)
    config.rollout.instruction = ""
    config.rollout.slots = 64
    config.rollout.max_prompt_length = 128
    config.rollout.max_new_tokens = 320
    config.rollout.max_turn_tokens = 96
    config.batch.microbatch_rows = 8

    config.sft.steps = 600
    config.sft.batch_size = 16
    config.sft.optimizer.learning_rate = 2e-3
    config.sft.optimizer.schedule = "cosine"
    config.grpo.steps = 60
    config.grpo.problems_per_step = 8
    config.grpo.group_size = 8
    config.optimizer.learning_rate = 2e-4
    config.evaluation.samples = 4
    return config
