"""TRL's side of parity_trl.py: the loss of its trainers and its gradient with respect to given logits, in float64.

    python benchmarks/peer_trl_loss.py INPUTS.npz OUTPUTS.npz

The trainers are made without a model: what their loss reads is set here, and the logprobs come from the logits.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import trl
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer


class OneProcess:
    """Stands for accelerate's Accelerator."""

    num_processes, sync_gradients = 1, True

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def reduce(self, x: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
        return x


def trainer_of(case: dict[str, Any], inputs: dict[str, np.ndarray], logits: torch.Tensor) -> Any:
    """A trainer with the settings of the case, whose model gives these logits f64[E, C, V]."""
    kind, config = (RLOOTrainer, RLOOConfig) if case["trainer"] == "rloo" else (GRPOTrainer, GRPOConfig)
    E, C = inputs["mask"].shape
    args = config(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=E, num_generations=int(inputs["group_size"]),
        gradient_accumulation_steps=1, max_completion_length=C, use_cpu=True, bf16=False, report_to=[], **case["trl"],
    )  # fmt: skip
    trainer: Any = object.__new__(kind)
    for name in ("loss_type", "importance_sampling_level", "off_policy_mask_threshold", "top_entropy_quantile",
                 "use_vllm", "vllm_importance_sampling_correction", "beta", "max_completion_length"):  # fmt: skip
        setattr(trainer, name, getattr(args, name, None))
    trainer.args, trainer.accelerator, trainer.model = args, OneProcess(), SimpleNamespace(training=True)
    trainer.epsilon_low = args.epsilon
    trainer.epsilon_high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    trainer.current_gradient_accumulation_steps = 1
    trainer.aux_loss_enabled = trainer._entropy_bonus_enabled = False
    trainer._metrics = {"train": defaultdict(list)}

    def logps(*_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
        log_p = torch.log_softmax(logits, -1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return log_p.gather(-1, torch.tensor(inputs["ids"])[..., None])[..., 0], entropy.detach(), None

    trainer._get_per_token_logps_and_entropies = logps
    return trainer


def loss_and_gradient(case: dict[str, Any], inputs: dict[str, np.ndarray]) -> tuple[float, np.ndarray]:
    """TRL's loss of a case, and its gradient f64[E, C, V] with respect to the logits."""
    logits = torch.tensor(inputs["logits"], requires_grad=True)
    trainer = trainer_of(case, inputs, logits)
    tensors = {name: torch.tensor(inputs[name]) for name in ("ids", "mask", "written", "old", "reference")}
    E = len(tensors["ids"])
    nothing = torch.zeros((E, 1), dtype=torch.long)
    given = {
        "prompt_ids": nothing, "prompt_mask": nothing + 1,
        "completion_ids": tensors["ids"], "completion_mask": tensors["written"], "tool_mask": tensors["mask"],
        "advantages": torch.tensor(inputs[case["advantages"]]), "ref_per_token_logps": tensors["reference"],
        "num_items_in_batch": tensors["mask"].sum(),
    }  # fmt: skip
    if case["trainer"] == "rloo":  # it knows no tool mask, and wants the sum over the old policy's logprobs
        given["completion_mask"] = tensors["mask"]
        on_policy = trainer._get_per_token_logps_and_entropies()[0].detach()
        given["old_logps"] = (on_policy * tensors["mask"]).sum(1)
    elif not case["on_policy"]:
        given["old_per_token_logps"] = tensors["old"]
    loss = trainer._compute_loss(None, given)
    loss.backward()
    assert logits.grad is not None
    return loss.item(), logits.grad.numpy()


def main(inputs_path: str, outputs_path: str) -> None:
    inputs = dict(np.load(inputs_path))
    cases = json.loads(str(inputs.pop("cases")))
    outputs: dict[str, Any] = {"versions": f"trl {trl.__version__}, torch {torch.__version__}"}
    for i, case in enumerate(cases):
        outputs[f"loss_{i}"], outputs[f"gradient_{i}"] = loss_and_gradient(case, inputs)
    np.savez(outputs_path, **outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
