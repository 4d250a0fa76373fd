"""What the runs of the study share: its small model and task, or with a model's folder the real ones.

`--config configs/study/tool.py` trains 1.3M parameters on multi-digit arithmetic; `--config
configs/study/tool.py:/models/Qwen2.5-Coder-1.5B` trains that model on contest problems and tests it on HumanEval.
"""

from jaxrl.algorithms import policy_gradient, ppo
from jaxrl.config import Config
from jaxrl.tasks import compute, contest, humaneval
from rollouts.environments import feedback


def study_config(name: str, model: str = "") -> Config:
    """The run NAME of the study."""
    config = Config(name=name, runs_dir="runs/study/seed_0")
    if model:
        _real(config, model)
    else:
        _small(config)
    return config


def grpo_config(name: str, model: str = "") -> Config:
    """GRPO from the model that SFT has made."""
    config = study_config(name, model)
    config.model.path = "runs/study/seed_0/sft"
    config.sft.steps = 0
    config.grpo.steps = 500 if model else 60
    config.grpo.problems_per_step = 128 if model else 16
    config.grpo.group_size = 16 if model else 8
    config.optimizer.learning_rate = 1e-6 if model else 2e-4
    return config


def feedback_config(name: str, model: str = "", environment: feedback.Settings | None = None) -> Config:
    """RL with execution feedback: a program a turn, the failures of its public tests as the next message."""
    config = grpo_config(name, model)
    config.rollout.environment = environment or feedback.Settings()
    config.rollout.max_turn_tokens = 1024
    if not model:
        config.rollout.instruction = compute.PROGRAM
        config.rollout.max_new_tokens = 208
        config.rollout.max_turn_tokens = 64
    return config


def objective_config(name: str, model: str = "", environment: feedback.Settings | None = None) -> Config:
    """RL with execution feedback, to compare objectives; with the small model a third of the episodes: PPO is slow."""
    config = feedback_config(name, model, environment)
    config.evaluation.at_start = False  # all start from the same model
    if model:
        config.grpo.group_size = 8  # as many episodes for all
    else:
        config.grpo.steps, config.grpo.problems_per_step = 40, 8
    return config


def ppo_config(
    name: str, label: str, model: str, loss: ppo.Settings | None = None, environment: feedback.Settings | None = None
) -> Config:
    """PPO with execution feedback, as RLEF (arXiv 2410.02089): 1024 episodes a step and 4 updates in the paper."""
    config, loss = objective_config(name, model, environment), loss or ppo.Settings()
    config.label, config.grpo.loss = label, loss
    if not model:
        loss.critic_warmup_steps = 5
        config.batch.microbatch_rows = 4  # a minibatch fills few rows
    config.optimizer.weight_decay = 0.1
    critic = loss.critic_optimizer
    critic.learning_rate = 2e-7 if model else 1e-3
    critic.weight_decay = 0.1
    if model:
        config.optimizer.learning_rate = 2e-7
        config.optimizer.warmup_steps = critic.warmup_steps = 50
    return config


def _small(config: Config) -> None:
    config.task = compute.Settings(
        max_difficulty=3,
        # Mostly short ones: copying numbers is learned from them several times sooner. Answers by head teach nothing.
        demonstration_kinds=("tool", "tool", "program", "tool", "direct"),
        hard_demonstrations=0.35,
        lazy_demonstrations=0.4,
        held_out_problems=200,
    )

    config.model.shape.hidden_size = 192
    config.model.shape.intermediate_size = 512
    config.model.shape.num_hidden_layers = 3
    config.model.tokenizer_size = 416
    config.model.unroll_layers = True

    config.sft.steps = 1200
    config.sft.batch_size = 32
    config.sft.optimizer.learning_rate = 2e-3
    config.sft.optimizer.schedule = "cosine"

    config.rollout.slots = 128
    config.rollout.max_prompt_length = 64
    config.batch.microbatch_rows = 8
    config.evaluation.samples = 2


def _real(config: Config, model: str) -> None:
    config.model.path = model
    config.model.pretraining_tokens = 5.5e12  # Qwen2.5-Coder (arXiv 2409.12186)
    config.model.remat = "full"
    config.task = contest.Settings(
        path="open-r1/verifiable-coding-problems-python", max_tests=16, max_prompt_characters=6000
    )
    config.evaluation.task = humaneval.Settings(path="openai/openai_humaneval", split="test", held_out_problems=164)
    config.evaluation.samples = 10
    config.evaluation.temperature = 0.2
    config.evaluation.every = 100

    config.sft.steps = 1000
    config.sft.batch_size = 64
    config.sft.optimizer.learning_rate = 1e-5
    config.sft.optimizer.warmup_steps = 50
    config.sft.optimizer.schedule = "cosine"

    config.optimizer.warmup_steps = 10
    config.rollout.slots = 512
    config.rollout.max_prompt_length = 2048
    config.rollout.reject_long_prompts = True
    config.rollout.max_new_tokens = 3072
    config.grpo.loss = policy_gradient.Settings(clip_high=0.28, sampler_correction="truncate")
    config.batch.microbatch_rows = 16
    config.sandbox.cpu_s = 5.0
