"""Prompting over turns with a small model, and learning to do without the prompts (arXiv 2410.08105).

    python -m jaxrl.train --config configs/prompting/small.py:sft
    python -m jaxrl.grid --config configs/prompting/small.py:grid --reasoning none --reasoning "Plan first." \
        --instruction none --instruction "Comment each line." --feedback binary,failed,failed_and_passed --turns 1,3
    python -m jaxrl.traces --config configs/prompting/small.py:traces        with the plan, whose prompt is stripped
    python -m jaxrl.traces --config configs/prompting/small.py:traces_plain
    python -m jaxrl.train --config configs/prompting/small.py:tuned          evaluated without prompts
    python -m jaxrl.train --config configs/prompting/small.py:tuned_plain    the control

The model knows two control lines from its demonstrations. Its teacher plans problems of all lengths. Without a plan it
mostly writes programs for short problems, some of them carelessly: that is what there is to gain by the prompt.
"""

from typing import Literal

from jaxrl.config import Config
from jaxrl.tasks import compute
from rollouts.environments import feedback

Part = Literal["sft", "grid", "traces", "traces_plain", "tuned", "tuned_plain"]


def get_config(part: Part = "sft") -> Config:
    config = Config(name=part, runs_dir="runs/prompting")
    config.task = compute.Settings(
        max_difficulty=4,
        demonstration_kinds=("program", "plan", "program", "comment", "program", "plan"),
        hard_demonstrations=0.1,
        lazy_demonstrations=0.4,
        held_out_problems=128,
    )
    config.model.shape.hidden_size = 192
    config.model.shape.intermediate_size = 512
    config.model.shape.num_hidden_layers = 3
    config.model.tokenizer_size = 416
    config.model.unroll_layers = True

    config.rollout.environment = feedback.Settings(first_request=compute.PROGRAM)
    config.rollout.instruction = compute.PROGRAM
    config.rollout.slots = 128
    config.rollout.max_prompt_length = 96
    config.rollout.max_new_tokens = 320
    config.rollout.max_turn_tokens = 96
    config.batch.microbatch_rows = 8
    config.evaluation.samples = 4
    if part == "sft":
        _learn(config, steps=1000)
        return config
    config.model.path = "runs/prompting/sft"
    if part == "grid":
        config.evaluation.samples = 8
    elif part.startswith("traces"):
        config.traces.problems, config.traces.samples = 1500, 4
        config.traces.max_solutions, config.traces.similarity = 4, 0.95
        if part == "traces":
            config.rollout.environment = feedback.Settings(reasoning=compute.PLAN, first_request=compute.PROGRAM)
            config.traces.strip_prompts = True
    else:
        _learn(config, steps=200)
        config.sft.optimizer.learning_rate = 3e-4
        config.sft.path = f"runs/prompting/traces{part.removeprefix('tuned')}/traces.jsonl"
    return config


def _learn(config: Config, steps: int) -> None:
    config.sft.steps = steps
    config.sft.batch_size = 32
    config.sft.optimizer.learning_rate = 2e-3
    config.sft.optimizer.schedule = "cosine"
