"""Soft Policy Optimization (arXiv 2503.05453): the default model after a short SFT, on 512 fixed problems.

What to compare, each with the same number of updates; the second and third learn from the samples of the GRPO run:
    python -m jaxrl.train --config configs/spo.py --config.name=spo_grpo --config.grpo.loss.name=policy_gradient
    python -m jaxrl.train --config configs/spo.py
    python -m jaxrl.train --config configs/spo.py --config.name=spo_replay --config.grpo.replay.share=0.5
        --config.grpo.replay.folders=runs/spo_grpo
    python -m jaxrl.train --config configs/spo.py --config.name=spo_offline --config.grpo.replay.share=1
        --config.grpo.replay.folders=runs/spo_grpo
"""

from pathlib import Path
from runpy import run_path

from jaxrl.algorithms import spo
from jaxrl.config import Config


def get_config() -> Config:
    config = run_path(str(Path(__file__).with_name("grpo.py")))["get_config"]()
    config.name = "spo"
    config.task.train_problems = 512
    config.sft.steps = 700
    config.grpo.steps = 100
    config.grpo.problems_per_step = 8
    config.grpo.group_size = 8
    config.grpo.loss = spo.Settings(beta=0.2, q0="reference", q0_samples=32)
    config.log_samples_every = 1  # every episode can be replayed
    config.evaluation.samples = 16
    config.evaluation.k = (1, 2, 4, 8, 16)
    config.evaluation.temperature = 1.0
    return config
