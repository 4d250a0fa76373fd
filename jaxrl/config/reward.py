"""Settings of reward models: how one is trained on pairs of answers, and which one judges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jaxrl.config.rules import Count, NonNegative, Positive, Share
from jaxrl.config.training import OptimizerConfig


@dataclass
class RewardConfig:
    """A reward model: trained on pairs (steps, path, ...), or used to judge answers (model)."""

    steps: Count = 0  # 0: no reward model is trained
    path: str = ""  # pairs, a file of {"id", "messages", "chosen", "rejected", ...}
    batch_size: Positive = 32  # pairs a step; questions with average = "question" or "answers"
    average: Literal["pair", "question", "answers"] = (
        "pair"  # what weighs the same: see jaxrl/algorithms/bradley_terry.py
    )
    held_out: Share = 0.05  # of the questions, whose pairs measure accuracy and margin
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-5, schedule="cosine", warmup_steps=10)
    )
    model: str = ""  # a run with a reward model: for evaluation.best_of = "reward" and grpo.reward
    weight: NonNegative = 1.0  # of its part with grpo.reward = "both"
