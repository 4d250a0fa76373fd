"""PPO with turn values, and SPO with replay, of a real model on MBPP with execution feedback, on two cores.

    python -m jaxrl.train --config configs/real/feedback.py:ppo --config.model.path=qwen2.5-coder-0.5b.gguf \
        --config.task.path=mbpp.jsonl
    python -m jaxrl.train --config configs/real/feedback.py:spo --config.model.path=qwen2.5-coder-0.5b.gguf \
        --config.task.path=mbpp.jsonl

Ten steps each: what they cost in time and memory. The second replays what the first has sampled.
"""

from configs.real import mbpp
from jaxrl.algorithms import ppo, spo
from jaxrl.config import Config
from rollouts.environments import feedback


def get_config(objective: str = "ppo") -> Config:
    config = mbpp.get_config("lora")
    config.name = f"feedback_{objective}"
    config.rollout.environment = feedback.Settings(max_turns=2, failures=1)
    config.rollout.max_new_tokens = 352  # both programs, and the feedback between them
    config.rollout.max_turn_tokens = 128
    config.grpo.steps = 10
    config.grpo.problems_per_step, config.grpo.group_size = 4, 4
    if objective == "ppo":
        config.grpo.loss = ppo.Settings(minibatches=2, critic_warmup_steps=2)
    else:
        config.grpo.loss = spo.Settings(beta=0.2, q0="group")
        config.grpo.replay.share = 0.5
        config.grpo.replay.folders = (f"{config.runs_dir}/feedback_ppo",)
    config.task.held_out_problems = 16
    config.log_samples_every = 1  # every episode can be replayed
    return config
