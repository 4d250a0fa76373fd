"""Reward models: the head that a run has trained beside its decoder, and their folders for transformers."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from models.checksums import find_damage
from models.config import to_hf
from models.files import ConversionError, read_json, reason_of
from models.hf import save_hf
from models.loading import find_params, is_run, load_model
from models.stored import describe_model
from models.tokenizer_files import has_tokenizer

HEAD = "reward"
CAUSAL, CLASSIFIER = "ForCausalLM", "ForSequenceClassification"


def heads_folder(run: Path) -> Path | None:
    """The heads of a run's newest checkpoint; None where it has none, or `run` is not a run."""
    if not is_run(run):
        return None
    params = find_params(run)[1]
    folder = params.parent / "heads" if params else None
    return folder if folder and folder.is_dir() else None


def has_reward_head(run: Path) -> bool:
    """Whether it is the folder of a run that has trained a reward model. Raises ConversionError for a damaged one."""
    folder = heads_folder(run)
    return folder is not None and HEAD in _shapes(folder)


def load_reward_head(run: Path) -> np.ndarray:
    """f32[D]: an answer's score is this times the final hidden state of its last token.

    Raises ConversionError for a folder that is not a run's with a reward model, or is damaged.
    """
    if not run.is_dir():
        raise ConversionError(
            f"the folder {str(run)!r} does not exist; give the folder of a run that trained a reward model"
        )
    folder = heads_folder(run)
    if folder is None or HEAD not in _shapes(folder):
        raise ConversionError(f"{run} holds no reward model; give the folder of a run with reward.steps")
    if damage := find_damage(folder):
        raise ConversionError(f"the head in {folder} is damaged: {damage}")
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), _shapes(folder))
    try:
        with ocp.StandardCheckpointer() as reader:
            found: Any = reader.restore(folder.absolute(), target)
    except Exception as error:  # of many types: what orbax and its storage raise for missing files
        raise ConversionError(f"{folder} cannot be read: {reason_of(error)}") from error
    return np.asarray(found[HEAD]["weight"], np.float32)


def _shapes(folder: Path) -> Any:
    """What a heads/ folder holds, by name. Raises ConversionError where that is unreadable."""
    try:
        with ocp.StandardCheckpointer() as reader:
            return reader.metadata(folder.absolute()).item_metadata.tree
    except Exception as error:  # as above
        raise ConversionError(f"{folder} cannot be read: {reason_of(error)}") from error


def export_reward_model(run: Path, out: Path, dtype: Any = None) -> None:
    """A run with a reward model -> a folder for transformers' AutoModelForSequenceClassification, with one label.

    Its score is that of the last token that is not padding: the token that ends the answer, so leave out what a chat
    template puts after it. Where padding and end are one token, the folder names no padding token, and sequences are
    scored one by one. Raises ConversionError as `save_hf` and `load_reward_head` do.
    """
    head = load_reward_head(run)
    config, _, params = load_model(run, dtype=dtype)
    with TemporaryDirectory() as described:  # the run's model/, as a classifier's
        source = Path(described)
        describe_model(config, source, run)
        original = source / "hf_config.json"
        fields = read_json(original) if original.is_file() else to_hf(config)
        names = fields.get("architectures") or [""]
        if not names[0].endswith(CAUSAL):
            raise ConversionError(f"{run}: architectures = {names!r} must name a model {CAUSAL}")
        fields["architectures"] = [names[0].removesuffix(CAUSAL) + CLASSIFIER]
        padding = _padding(source / "tokenizer")
        fields |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, "pad_token_id": padding}
        original.write_text(json.dumps(fields, indent=2) + "\n")
        save_hf(params, config, out, source, score=head.astype(dtype or np.float32))


def _padding(folder: Path) -> int | None:
    """The token that transformers takes for padding; None if there is none, or an answer may end with it."""
    if not has_tokenizer(folder):
        return None
    from transformers import AutoTokenizer  # takes seconds to import

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return None if tokenizer.pad_token_id == tokenizer.eos_token_id else tokenizer.pad_token_id
