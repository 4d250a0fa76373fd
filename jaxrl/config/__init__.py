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
from jaxrl.config.sampled import RatesConfig, SynthesisConfig
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
    "RatesConfig", "RewardConfig", "RolloutConfig", "SFTConfig", "SandboxConfig", "ShapeConfig", "SidecarConfig",
    "SynthesisConfig", "TaskConfig", "TaskSettings", "TracesConfig", "row_length",
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
    rates: RatesConfig = field(default_factory=RatesConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
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
        if self.traces.strip_prompts and not getattr(self.rollout.environment, "prompted", False):
            raise UserError("traces.strip_prompts = True needs prompts: rollout.environment.reasoning or instruction")
        self._check_reward()

    def _check_reward(self) -> None:
        """Raises UserError for settings of a reward model's training, or use, that do nothing."""
        reward, stages = self.reward, {"sft.steps": self.sft.steps, "grpo.steps": self.grpo.steps}
        other = next((name for name, steps in stages.items() if steps), "")
        if reward.steps and other:
            raise UserError(
                f"{other} = {stages[other]} must be 0 with reward.steps = {reward.steps}: a reward model is a run of "
                "its own, from model.path"
            )
        if reward.steps and self.rollout.engine != "jax":
            raise UserError(
                f"rollout.engine = {self.rollout.engine!r} must be 'jax' with reward.steps: nothing is sampled"
            )
        judged = bool(self.grpo.steps) and self.grpo.reward != "task"
        if judged and not reward.model:
            raise UserError(f"grpo.reward = {self.grpo.reward!r} needs reward.model: a run that trained one")
        if reward.model and (reward.steps or not (judged or self.evaluation.best_of in ("reward", "all"))):
            raise UserError(
                f"reward.model = {reward.model!r} does nothing here; it judges with grpo.reward = 'model' or 'both', "
                "and with evaluation.best_of = 'reward' or 'all'"
            )
        if reward.weight != RewardConfig().weight and not (judged and self.grpo.reward == "both"):
            raise UserError(f"reward.weight = {reward.weight:g} needs grpo.reward = 'both'")
        if judged:
            self._check_judged()
        if self.evaluation.best_of == "reward" and not reward.model:
            raise UserError("evaluation.best_of = 'reward' needs reward.model: a run that trained a reward model")
        if bool(reward.steps) != bool(reward.path):
            raise UserError(
                f"reward.path = {reward.path!r} with reward.steps = {reward.steps}: both are needed to train a reward "
                "model, a file of pairs and a number of steps, or neither"
            )

    def _check_judged(self) -> None:
        """Raises UserError for what does not see the reward model's part of the reward."""
        where, loss = f"grpo.reward = {self.grpo.reward!r}", self.grpo.loss
        if loss.name != "policy_gradient":
            raise UserError(f"{where} needs grpo.loss.name = 'policy_gradient', is {loss.name!r}")
        if getattr(loss, "credit", "episode") != "episode":
            raise UserError(f"{where} needs grpo.loss.credit = 'episode': the model judges whole answers")
        if self.grpo.replay.share:
            raise UserError(f"{where} needs grpo.replay.share = 0: replayed episodes have the task's reward")


def row_length(config: Config) -> int:
    """Tokens of a packed row; that of a reward model's training has room for both members of a pair."""
    longest = config.rollout.max_prompt_length + config.rollout.max_new_tokens
    return config.batch.row_length or longest * (2 if config.reward.steps else 1)
