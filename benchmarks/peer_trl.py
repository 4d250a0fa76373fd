"""TRL's side of grpo_step.py: its GRPOTrainer with transformers' generate, beta 0, one update a batch."""

from __future__ import annotations

import argparse
import os
import tempfile
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import trl
import workload as w
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words t0 ... t319, so that text and tokens are the same thing."""
    vocabulary = {f"t{i}": i for i in range(w.SHAPE["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="t0", eos_token="t1", unk_token="t0")


class Clock(TrainerCallback):
    """Wall time from the begin to the end of each optimizer step, the rollout included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_, **__) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    model = Qwen2ForCausalLM(Qwen2Config(**w.SHAPE)).to(getattr(torch, options.dtype))
    steps = options.steps + w.WARM_UP
    rows = [" ".join(f"t{t}" for t in prompt) for step in range(steps) for prompt in w.prompts(step)]
    tokenizer, clock = make_tokenizer(), Clock()
    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=w.PROMPTS * w.SAMPLES,
        num_generations=w.SAMPLES,
        max_completion_length=w.NEW_TOKENS,
        generation_kwargs={"min_new_tokens": w.NEW_TOKENS},
        max_steps=steps,
        learning_rate=1e-4,
        beta=0.0,
        temperature=1.0,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        logging_steps=10_000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=lambda completion_ids, **_: [w.reward(ids) for ids in completion_ids],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": rows}),
        callbacks=[clock],
    )
    trainer.train()
    w.report("trl", f"trl {trl.__version__}, torch {torch.__version__}", options.dtype, clock.seconds)


if __name__ == "__main__":
    main()
