"""Every setting of a run, with its default and its unit.

A config file defines `get_config() -> Config`; the command line overrides single fields:
`python -m jaxrl.train --config configs/grpo.py --config.optimizer.learning_rate=1e-6`. With --help it lists them all.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Le

from jaxrl.config.evaluation import EvaluationConfig
from jaxrl.config.model import LoraConfig, MeshConfig, PolicyConfig, ShapeConfig
from jaxrl.config.plugins import PLUGINS, make_settings, named
from jaxrl.config.reward import RewardConfig
from jaxrl.config.rollout import RolloutConfig, SidecarConfig
from jaxrl.config.rules import Count
from jaxrl.config.runtime import LogConfig, ProcessesConfig, SandboxConfig
from jaxrl.config.task import DataSettings, TaskSettings
from jaxrl.config.training import (
    BatchConfig,
    CheckpointConfig,
    GRPOConfig,
    ObjectiveSettings,
    OptimizerConfig,
    SFTConfig,
    TracesConfig,
)
from jaxrl.errors import UserError

__all__ = [
    "BatchConfig", "CheckpointConfig", "Config", "DataSettings", "EvaluationConfig", "GRPOConfig", "LogConfig",
    "LoraConfig", "MeshConfig", "ObjectiveSettings", "OptimizerConfig", "PolicyConfig", "ProcessesConfig",
    "RewardConfig", "RolloutConfig", "SFTConfig", "SandboxConfig", "ShapeConfig", "SidecarConfig", "TaskConfig", "TaskSettings",
    "TracesConfig", "row_length",
]  # fmt: skip

# Where settings are now that config files of earlier versions import from here.
_MOVED = {
    "BASE_STOPS": ("jaxrl.tasks.extract", "BASE_STOPS"),
    "PolicyGradientConfig": ("jaxrl.algorithms.policy_gradient", "Settings"),
    "ExtractionConfig": ("jaxrl.tasks.extract", "ExtractionConfig"),
    "InterpreterConfig": ("rollouts.environments.interpreter", "Settings"),
    "FeedbackConfig": ("rollouts.environments.feedback", "Settings"),
}


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        module, attribute = _MOVED[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def TaskConfig(name: str = "functions", **settings: Any) -> Any:
    """The settings of a task by its name. Raises UserError for one that the task does not have."""
    return make_settings(PLUGINS["task"], name, **settings) if name else TaskSettings(**settings)


@dataclass
class Config:
    """One experiment. Its run lives in `runs_dir/name`."""

    name: str = "run"
    label: str = ""  # of its row in a comparison of runs; "": the name
    runs_dir: str = "runs"
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0
    model: PolicyConfig = field(default_factory=PolicyConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    processes: ProcessesConfig = field(default_factory=ProcessesConfig)
    task: Annotated[TaskSettings, PLUGINS["task"]] = named("task", "functions")
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)  # of the GRPO stage
    sft: SFTConfig = field(default_factory=SFTConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    traces: TracesConfig = field(default_factory=TracesConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log_samples_every: Count = 1  # steps; sampled episodes kept in samples/

    def check(self, where: str = "") -> None:
        """Raises UserError for settings of several parts that contradict each other."""
        optimizers = {"sft.optimizer": self.sft.optimizer, "reward.optimizer": self.reward.optimizer}
        for name, optimizer in (optimizers | {"optimizer": self.optimizer}).items():
            if optimizer.stochastic_rounding and self.model.param_dtype != "bfloat16":
                raise UserError(f"{name}.stochastic_rounding = True needs model.param_dtype = 'bfloat16'")
        self._check_reward()

    def _check_reward(self) -> None:
        """Raises UserError for settings of a reward model's training, or use, that do nothing."""
        reward, stages = self.reward, {"sft.steps": self.sft.steps, "grpo.steps": self.grpo.steps}
        other = next((name for name, steps in stages.items() if steps), "")
        if reward.steps and other:
            raise UserError(
                f"{other} = {stages[other]} must be 0 with reward.steps = {reward.steps}: a reward model is a run of its "
                "own, from model.path"
            )
        if reward.steps and self.rollout.engine != "jax":
            raise UserError(f"rollout.engine = {self.rollout.engine!r} must be 'jax' with reward.steps: nothing is sampled")
        if bool(reward.steps) != bool(reward.path):
            raise UserError(
                f"reward.path = {reward.path!r} must be a file of pairs with reward.steps = {reward.steps} above 0, and "
                "'' with 0"
            )


def row_length(config: Config) -> int:
    """Tokens of a packed row; that of a reward model's training has room for both members of a pair."""
    longest = config.rollout.max_prompt_length + config.rollout.max_new_tokens
    return config.batch.row_length or longest * (2 if config.reward.steps else 1)
