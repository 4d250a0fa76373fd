"""TRL's side of grpo_step.py: its GRPOTrainer with transformers' generate, beta 0, one update a batch."""

from __future__ import annotations

import os
import tempfile
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import trl
import workload as w
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


def make_tokenizer(tokens: int) -> PreTrainedTokenizerFast:
    """Words t0, t1, ..., so that text and tokens are the same thing."""
    vocabulary = {f"t{i}": i for i in range(tokens)}
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
    options = w.arguments(__doc__)
    work, dtype = options.work, getattr(torch, options.dtype)
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**work.shape)).to(dtype)
    steps, tokens = options.steps + w.WARM_UP, [0]
    rows = options.rows or work.rows
    texts = [" ".join(f"t{t}" for t in prompt) for step in range(steps) for prompt in w.prompts(step, work)]
    tokenizer, clock = make_tokenizer(work.shape["vocab_size"]), Clock()
    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=work.rows // rows,
        num_generations=work.samples,
        max_completion_length=work.new_tokens,
        generation_kwargs={"min_new_tokens": work.new_tokens},
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

    def reward(completion_ids: list[list[int]], **_: object) -> list[float]:
        tokens[0] += sum(map(len, completion_ids))
        return [w.reward(ids, work) for ids in completion_ids]

    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        callbacks=[clock],
        peft_config=LoraConfig(r=work.lora, lora_alpha=16, target_modules="all-linear") if work.lora else None,
    )
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    first = [p.detach().clone() for p in trained]
    trainer.train()
    moved = max(float((p.detach() - before).abs().max()) for p, before in zip(trained, first))
    done = {"tokens": tokens[0], "updates": trainer.state.global_step, "moved": moved}
    w.report("trl", f"trl {trl.__version__}, torch {torch.__version__}", options, clock.seconds, done)


if __name__ == "__main__":
    main()
