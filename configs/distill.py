"""On-policy distillation: a small model learns from a larger one, on samples of its own.

The teacher has the four layers and the whole SFT of configs/scramble.py, the student two layers and a third of it:
    python -m jaxrl.train --config configs/scramble.py --config.name=teacher --config.grpo.steps=0
        --config.model.shape.num_hidden_layers=4
    python -m jaxrl.train --config configs/distill.py
What to compare: RL from the task's reward, and both together:
    python -m jaxrl.train --config configs/distill.py --config.name=rl --config.grpo.loss.name=policy_gradient
    python -m jaxrl.train --config configs/distill.py --config.name=both --config.grpo.loss.reward=task
"""

from pathlib import Path
from runpy import run_path

from jaxrl.algorithms import distillation
from jaxrl.config import Config


def get_config() -> Config:
    config = run_path(str(Path(__file__).with_name("scramble.py")))["get_config"]()
    config.name = "distill"
    config.sft.steps = 100
    config.grpo.steps = 150
    config.grpo.loss = distillation.Settings(teacher="runs/teacher")
    return config
