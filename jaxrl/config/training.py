"""Settings of the stages and what they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from jaxrl.config.plugins import PLUGINS, named
from jaxrl.config.rules import AboveZero, Count, NonNegative, Off, Positive, RewardValue, Share
from jaxrl.errors import UserError


@dataclass
class OptimizerConfig:
    """AdamW with a linear warm-up, then constant or cosine to zero."""

    learning_rate: AboveZero = 1e-6
    warmup_steps: Count = 0
    schedule: Literal["constant", "cosine"] = "constant"
    b1: Annotated[float, Ge(0), Lt(1)] = 0.9
    b2: Annotated[float, Ge(0), Lt(1)] = 0.95
    eps: AboveZero = 1e-8
    weight_decay: NonNegative = 0.0
    max_grad_norm: NonNegative = 1.0  # global norm; 0: no clipping
    state: Literal["float32", "bfloat16", "int8"] = "float32"  # of the two moments: 8, 4 or 2.1 B a parameter
    stochastic_rounding: bool = False  # of model.param_dtype = "bfloat16": small updates are not lost
    offload: bool = False  # keep the moments in host memory between updates


@dataclass
class ObjectiveSettings:
    """Settings that all objectives have; an objective's own class Settings inherits them."""

    name: str = ""  # a module of jaxrl.algorithms, an import path, or a file
    minibatches: Positive = 1  # updates a pass over a batch
    epochs: Positive = 1  # passes over a batch
    dynamic_sampling: bool = False  # replace groups whose episodes have no credit, as where rewards are equal
    dynamic_sampling_max_draws: Positive = 3  # batches drawn at most for one step

    @property
    def updates(self) -> int:
        """Updates a batch, at most: a batch of few problems has fewer minibatches."""
        return self.minibatches * self.epochs

    @property
    def draws(self) -> int:
        """Batches drawn for one step, at most."""
        return self.dynamic_sampling_max_draws if self.dynamic_sampling else 1

    @property
    def needs_reference(self) -> bool:
        """Whether the policy as it was at the start of the stage is kept, for a KL term."""
        return False

    @property
    def teacher_path(self) -> str:
        """The setting `teacher` of an objective that needs "teacher_logprobs": a model, as model.path; "": none."""
        return ""

    @property
    def decoders(self) -> int:
        """Decoders that are trained: 2 with a critic whose parameters are its own."""
        return 1


@dataclass
class SFTConfig:
    """Supervised warm-up on demonstrations."""

    steps: Count = 0  # 0: no SFT stage
    path: str = ""  # conversations: a file with "messages" or a hub name; "": the task's demonstrations
    split: str = "train"  # of a hub data set
    batch_size: Positive = 32  # demonstrations a step
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-3, warmup_steps=10))


@dataclass
class ReplayConfig:
    """Episodes that are not sampled by this run, for objectives that may learn from them (spo)."""

    share: Share = 0.0  # of the problems of a step; 1: nothing is sampled
    folders: tuple[str, ...] = ()  # of runs, whose samples/ are read
    demonstrations: Count = 0  # the first ones of the task, as episodes
    demonstration_reward: RewardValue = 1.0

    def check(self, where: str = "grpo.replay") -> None:
        """Raises UserError where there is a share of nothing, or something without a share."""
        if bool(self.share) != bool(self.folders or self.demonstrations):
            raise UserError(
                f"{where}.share = {self.share:g} must be above 0 with {where}.folders or {where}.demonstrations, and 0 "
                "without them"
            )


THRESHOLDS, CANDIDATES = (0.64, 0.48, 0.32, 0.0), 4


@dataclass
class CurriculumConfig:
    """Which training problems come when (jaxrl/tasks/curriculum.py).

    uniform: each once a pass; potential: in stages, by a file of python -m jaxrl.potential; pass_rate: by the policy's
    own success so far.
    """

    order: Literal["uniform", "potential", "pass_rate"] = "uniform"
    path: str = ""  # of potential: the file
    thresholds: tuple[Share, ...] = THRESHOLDS  # of potential: the least of each stage's problems
    steps: tuple[Positive, ...] = ()  # of potential: of each stage, except the last, which stays
    slice: str = ""  # of pass_rate: what has a rate, such as "kind"; "": each problem
    candidates: Positive = CANDIDATES  # of pass_rate: problems that each one drawn is chosen from

    def check(self, where: str = "grpo.curriculum") -> None:
        """Raises UserError for stages that do not follow each other, and for settings of another order."""
        staged = self.order == "potential"
        if bool(self.path) != staged or bool(self.steps) != (staged and len(self.thresholds) > 1):
            raise UserError(f"{where}.path and {where}.steps belong to {where}.order = 'potential', which needs both")
        if staged and len(self.steps) != len(self.thresholds) - 1:
            raise UserError(
                f"{where}.steps must have {len(self.thresholds) - 1} numbers, one for each stage but the last"
            )
        if not self.thresholds or list(self.thresholds) != sorted(set(self.thresholds), reverse=True):
            raise UserError(f"{where}.thresholds = {self.thresholds} must fall from stage to stage")
        idle = {"thresholds": self.thresholds != THRESHOLDS and not staged}
        idle |= {"slice": self.slice and self.order != "pass_rate"}
        idle |= {"candidates": self.candidates != CANDIDATES and self.order != "pass_rate"}
        for name in (name for name, is_idle in idle.items() if is_idle):
            raise UserError(f"{where}.{name} has no effect with {where}.order = {self.order!r}")


@dataclass
class GRPOConfig:
    """The reinforcement learning stage."""

    steps: Count = 0  # 0: no GRPO stage
    problems_per_step: Positive = 8
    group_size: Positive = 8  # episodes a problem; from 2 where the objective compares them
    patience: Count = 50  # steps in a row without any gradient until the run stops; 0: no limit
    loss: Annotated[ObjectiveSettings, PLUGINS["objective"]] = named("objective", "policy_gradient")
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    # Of an episode: the task's, that of reward.model (normalized in the group), or the task's + reward.weight of it.
    reward: Literal["task", "model", "both"] = "task"


KEEP, LIKE = 2, 0.8


@dataclass
class TracesConfig:
    """Conversations to learn from, made by rejection sampling (python -m jaxrl.traces)."""

    problems: Positive = 1000  # training problems
    samples: Positive = 4  # episodes of each
    keep: Positive = KEEP  # at most, of each: the shortest
    max_solutions: Count = 0  # in place of keep: at most, of each, whichever come first; 0: off
    similarity: Annotated[float, Ge(0.5), Le(1), Off] = 0.0  # to a kept program, from which one is a duplicate; 0: no
    keep_share: Annotated[float, Gt(0), Le(1)] = 1.0  # of all that would be kept, drawn at random
    strip_prompts: bool = False  # conversations without the prompts of rollout.environment's strategy
    learn: Literal["all", "last"] = "all"  # which of the model's messages
    # Problems of a benchmark (as task.path, or with "messages"): training problems that are like one are left out.
    decontaminate: str = ""
    decontaminate_similarity: Annotated[float, Ge(0.5), Le(1)] = (
        LIKE  # of the problem's text, from which it is like one
    )

    def check(self, where: str = "traces") -> None:
        """Raises UserError for settings that contradict each other or do nothing."""
        if self.max_solutions and self.keep != KEEP:
            raise UserError(
                f"{where}.keep = {self.keep} must not be set with {where}.max_solutions, which takes its place"
            )
        if self.decontaminate_similarity != LIKE and not self.decontaminate:
            raise UserError(f"{where}.decontaminate_similarity needs {where}.decontaminate: a file of problems")


@dataclass
class BatchConfig:
    """How episodes are laid out on the device."""

    row_length: Count = 0  # tokens of a packed row; 0: the longest episode possible
    microbatch_rows: Positive = 16  # rows of one forward and backward pass


@dataclass
class CheckpointConfig:
    every: Count = 50  # steps; 0: at the end of each stage only
    keep: Positive = 2  # newest ones; the end of each stage is always kept
