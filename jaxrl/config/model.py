"""Settings of the policy: its architecture, weights, numbers and devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge

from jaxrl.config.rules import AboveZero, Count, NonNegative, Positive, Words
from jaxrl.errors import UserError
from models.config import Lora, lora_targets


@dataclass
class ShapeConfig:
    """Architecture of a model that starts from random weights, in the words of a Hugging Face config.json."""

    model_type: str = "qwen2"
    vocab_size: Count = 0  # 0: the tokenizer's, rounded up to a multiple of 16
    hidden_size: Positive = 256
    intermediate_size: Positive = 704
    num_hidden_layers: Positive = 4
    num_attention_heads: Positive = 4
    num_key_value_heads: Positive = 2
    head_dim: Count = 0  # 0: hidden_size / num_attention_heads
    max_position_embeddings: Positive = 4096
    rope_theta: AboveZero = 10_000.0
    rms_norm_eps: NonNegative = 1e-6
    tie_word_embeddings: bool = True


@dataclass
class LoraConfig:
    """Adapters, which are then all that is trained (arXiv 2106.09685); the rest of the model is frozen."""

    rank: Count = 0  # 0: no adapters, everything is trained
    alpha: AboveZero = 16.0  # what they add is scaled by alpha / rank
    rank_stabilized: bool = False  # by alpha / sqrt(rank) instead (arXiv 2312.03732)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def check(self, where: str = "model.lora") -> None:
        """Raises UserError for targets that do not exist."""
        if not self.targets:
            raise UserError(f"{where}.targets = {self.targets!r} must be a tuple of names, one at least")
        try:
            lora_targets(self.targets)
        except ValueError as error:
            raise UserError(f"{where}.targets: {error}") from None

    def adapters(self) -> Lora | None:
        """These settings as the model has them; None without adapters. Raises what `check` raises."""
        self.check()
        return Lora(self.rank, self.alpha, lora_targets(self.targets), self.rank_stabilized) if self.rank else None


@dataclass
class PolicyConfig:
    """Where the policy comes from and how it computes."""

    path: str = ""  # Hugging Face folder, hub name, GGUF file, folder of `models.convert import` or a run; "": random
    shape: ShapeConfig = field(default_factory=ShapeConfig)  # used only without a path
    lora: LoraConfig = field(default_factory=LoraConfig)
    adapter: str = ""  # folder of a PEFT adapter or of a run with one, to start from; lora.rank 0: merged at the start
    pretraining_tokens: NonNegative = 0.0  # seen before, for the model's cost; 0: not known, not counted
    tokenizer: str = ""  # folder, hub name or GGUF file; "": the model's own, or one trained on the task's own text
    tokenizer_size: Positive = 576  # tokens of one trained on the task's own text
    tokenizer_digits: Positive = 1  # digits in a token of it, at most
    param_dtype: Literal["float32", "bfloat16"] = "float32"  # see optimizer.stochastic_rounding
    offload_reference: bool = False  # keep a KL term's reference policy, and a teacher, in host memory
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: float32 on CPU, bfloat16 on accelerators
    remat: Literal["none", "dots", "full"] = "none"  # computed again in the backward pass: dots is all but matmuls
    attention: Literal["auto", "splash", "cudnn", "blocked"] = "auto"  # see models/attention.py
    unroll_layers: bool = False  # of the scan: faster on CPU, slower to compile; always where one CPU computes in bf16


# What a number of devices may be.
DEVICES = "a number of devices, 0 (chosen) or -1 (what is left)"


@dataclass
class MeshConfig:
    """Devices along each axis: 0 is chosen (jaxrl/costs/mesh.py), -1 takes what the others leave."""

    data: Annotated[int, Ge(-1), Words(DEVICES)] = 0
    fsdp: Annotated[int, Ge(-1), Words(DEVICES)] = 0
    context: Annotated[int, Ge(-1), Words(DEVICES)] = 1  # share a row's tokens: for fewer rows than devices
    tensor: Annotated[int, Ge(-1), Words(DEVICES)] = 0

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.data, self.fsdp, self.context, self.tensor
