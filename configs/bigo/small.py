"""A small model learns complexity classes: to tell them, or to write programs that have them (arXiv 2503.15242).

    python -m jaxrl.train --config configs/bigo/small.py:predict
    python -m jaxrl.train --config configs/bigo/small.py:generate
    python -m jaxrl.report runs/bigo_predict runs/bigo_generate

The demonstrations are bad: of predict a third of the classes is wrong, of generate most programs are the slowest one,
with no class asked for. What is left to reinforcement learning is to tell the right class, and to obey it.
"""

from typing import Literal

from jaxrl.config import Config
from jaxrl.tasks import bigo


def get_config(kind: Literal["predict", "generate"] = "predict") -> Config:
    config = Config(name=f"bigo_{kind}", label=kind)
    config.task = bigo.Settings(kind=kind, wrong_demonstrations=0.3 if kind == "predict" else 0.7)
    config.model.shape.hidden_size = 192
    config.model.shape.intermediate_size = 512
    config.model.shape.num_hidden_layers = 3
    config.model.unroll_layers = True
    config.model.tokenizer_size = 384

    config.rollout.slots = 64
    config.rollout.max_prompt_length = 160
    config.rollout.max_new_tokens = 16 if kind == "predict" else 96
    config.batch.microbatch_rows = 8

    config.sft.steps = 300
    config.sft.batch_size = 16
    config.sft.optimizer.learning_rate = 2e-3
    config.sft.optimizer.schedule = "cosine"
    config.grpo.steps = 60
    config.grpo.problems_per_step = 8
    config.grpo.group_size = 8
    config.optimizer.learning_rate = 2e-4
    config.evaluation.samples = 4
    return config
