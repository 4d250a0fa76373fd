"""The teacher of a distillation: another model of the same tokens, frozen, on the policy's devices."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from jaxrl.config import Config
from jaxrl.distributed.processes import Processes
from jaxrl.errors import UserError
from jaxrl.files import write_beside
from jaxrl.runs.tokenizer import tokenizer_of
from models.config import ModelConfig, UnsupportedModelError
from models.convert import find_model, load_model
from models.decoder import Compute, ForSampling, dtype_of
from models.files import ConversionError
from models.stored import fingerprint


class Teacher(NamedTuple):
    """A model of any size. Its matrices have the compute dtype, sharded over the policy's mesh."""

    config: ModelConfig
    graphdef: nnx.GraphDef
    params: Any


def find_teacher(config: Config, policy: ModelConfig, tokenizer: Any) -> ModelConfig | None:
    """The architecture of the teacher in config.grpo.loss; None without one. Its weights are not read.

    Raises UserError if the model does not exist, or lacks some of the policy's tokens, vocabulary rows or positions.
    """
    path = config.grpo.loss.teacher_path if config.grpo.steps else ""
    if not path:
        return None
    name = f"grpo.loss.teacher = {path!r}"
    try:
        teacher = dataclasses.replace(find_model(path)[1], lora=None)  # a run's adapters are merged
        check_tokens(tokenizer, tokenizer_of(path), name)
    except (ConversionError, FileNotFoundError, UnsupportedModelError) as error:
        raise UserError(f"{name}: {error}") from None
    if teacher.vocab_size < policy.vocab_size:
        raise UserError(
            f"{name} has a vocabulary of {teacher.vocab_size} rows, the policy one of {policy.vocab_size}: it must not "
            "be smaller, as the policy may sample every row"
        )
    longest = config.rollout.max_prompt_length + config.rollout.max_new_tokens
    if teacher.max_length < longest:
        raise UserError(
            f"{name} has {teacher.max_length} positions (max_position_embeddings), must have at least "
            f"rollout.max_prompt_length + max_new_tokens = {longest}"
        )
    return teacher


def check_tokens(own: Any, other: Any, name: str) -> None:
    """Raises UserError, as `name`, for the first token of the tokenizer `own` that is another one for `other`."""
    ours, theirs = ({i: token for token, i in t.get_vocab().items()} for t in (own, other))
    for i in sorted(ours):
        if theirs.get(i) != ours[i]:
            there = repr(theirs[i]) if i in theirs else "no token"
            raise UserError(f"{name} has another tokenizer: token {i} is {ours[i]!r} for the policy, {there} there")


def load_teacher(path: str, compute: Compute, folder: Path, processes: Processes = Processes()) -> Teacher:
    """The teacher with its weights. FOLDER/teacher.json identifies them.

    Raises UserError where a resumed run finds others in their place.
    """
    teacher = load_frozen(path, compute)
    found = {"path": path, "dtype": compute.dtype.name, "fingerprint": fingerprint(teacher.params)}
    with processes.after_first("teacher"):
        check_same(folder / "teacher.json", found, f"grpo.loss.teacher = {path!r}", processes.first)
    return teacher


def load_frozen(path: str, compute: Compute) -> Teacher:
    """A model that is not trained, with its weights in the compute dtype, sharded over the mesh."""
    dtype = ForSampling(compute.dtype)
    model, graphdef, params = load_model(path, compute.mesh, dtype)
    flat = nnx.to_flat_state(params)  # merged adapters leave the dtype of the run that they come from
    params = nnx.from_flat_state([(p, v.replace(v[...].astype(dtype_of(str(p[-1]), dtype)))) for p, v in flat])
    return Teacher(model, graphdef, params)


def check_same(kept: Path, found: dict[str, str], name: str, writes: bool) -> None:
    """Writes what identifies the weights of a model, or compares. Raises UserError, as `name`, for other weights."""
    if writes and not kept.exists():
        write_beside(kept, json.dumps(found) + "\n")
    before = json.loads(kept.read_text())
    if before["dtype"] == found["dtype"] and before["fingerprint"] != found["fingerprint"]:
        raise UserError(
            f"{name} has other weights than when {kept.parent} was begun; put those back, or choose another "
            "--config.name"
        )
