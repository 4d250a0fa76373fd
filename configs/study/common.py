"""What the runs of the small study share: a model of 1.3M parameters and problems of multi-digit arithmetic."""

from jaxrl.config import Config


def study_config(name: str) -> Config:
    """The run `runs/study/NAME`."""
    config = Config(name=name, runs_dir="runs/study")

    config.task.name = "compute"
    config.task.max_difficulty = 3
    config.task.lazy_demonstrations = 0.4
    config.task.held_out_problems = 200

    config.model.shape.hidden_size = 192
    config.model.shape.intermediate_size = 512
    config.model.shape.num_hidden_layers = 3
    config.model.tokenizer_size = 416
    config.model.unroll_layers = True

    config.rollout.slots = 128
    config.rollout.max_prompt_length = 64
    config.rollout.max_new_tokens = 16
    config.batch.microbatch_rows = 8
    config.evaluation.samples = 2
    return config


def grpo_config(name: str) -> Config:
    """GRPO from the model that SFT has made."""
    config = study_config(name)
    config.model.path = "runs/study/sft"
    config.grpo.steps = 100
    config.grpo.problems_per_step = 16
    config.grpo.group_size = 8
    config.optimizer.learning_rate = 2e-4
    return config
