"""Loads models from Hugging Face folders, hub names, GGUF files, imported folders and runs."""

from __future__ import annotations

import dataclasses
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from models.config import ModelConfig, read_config, read_description
from models.decoder import ForSampling
from models.files import ConversionError, expanded, is_gguf, reason_of
from models.hf import load_hf, open_model
from models.lora import merge_values
from models.stored import base_of, check_base, fingerprint, load_params, run_dtype


def load_model(path: str | Path, mesh: Mesh | None = None, dtype: Any = None) -> tuple[ModelConfig, nnx.GraphDef, Any]:
    """(config, graphdef, params) of a Hugging Face folder, a hub name, a GGUF file, an imported folder or a run.

    `dtype` None keeps the dtype of each parameter; it may be ForSampling. A run with adapters, which are merged, keeps
    the run's, unless `dtype` is another dtype.

    Raises FileNotFoundError for a folder that does not exist or does not hold a model, ConversionError for a run whose
    frozen parameters are missing or differ from those that it was trained with, and what `load_hf` and `load_params`
    raise.
    """
    folder, config = find_model(path)
    description, params = find_params(folder)
    if description is None or params is None:
        return load_hf(folder, mesh, dtype)
    plain = dataclasses.replace(config, lora=None)
    if config.lora is None or params == description / "params":
        return plain, *load_params(params, plain, mesh, dtype)
    own = run_dtype(description)
    graphdef, base = load_base(description, mesh, own)
    adapters = load_params(params, config, mesh, None)[1]["blocks"]
    values = {name: adapters[name][...] for name in adapters}
    wanted = jnp.dtype(own if isinstance(dtype, ForSampling) else dtype or own)
    merged = merge_values(base, values, config.lora, wanted, str(path))
    return plain, graphdef, merged


def load_base(description: Path, mesh: Mesh | None, dtype: Any) -> tuple[nnx.GraphDef, Any]:
    """The frozen parameters of a model with adapters, given its description. Raises as `load_model` does."""
    source = base_of(description)
    try:
        _, graphdef, base = load_model(source, mesh, dtype)
    except FileNotFoundError as error:
        raise ConversionError(f"{description.parent} has adapters for {source}, which is unreadable: {error}") from None
    check_base(description, fingerprint(base), str(source))
    return graphdef, base


def find_model(path: str | Path) -> tuple[Path, ModelConfig]:
    """The model's folder, fetched where `path` is a hub name, or its GGUF file, and its architecture.

    Raises as `load_model` does.
    """
    folder = expanded(path)
    if is_gguf(folder):
        return folder, open_model(folder)[0]
    if not folder.exists() and str(path).count("/") == 1 and not str(path).startswith((".", "~", "/")):
        folder = _fetched(str(path))
    if not folder.is_dir():
        raise FileNotFoundError(f"model folder {str(path)!r} does not exist")
    description, params = find_params(folder)
    if description is None or params is None:
        return folder, read_config(folder)
    return folder, read_description(description)


def _fetched(name: str) -> Path:
    """A hub model's files. Raises ConversionError naming what was tried, and the nearest folder."""
    from huggingface_hub import snapshot_download

    parent = Path(name).parent
    tried = f"the folder {str(Path(name).absolute())!r} does not exist"
    if parent.is_dir():  # most likely a misspelt run, so the hub is not queried
        near = get_close_matches(Path(name).name, [p.name for p in parent.iterdir() if p.is_dir()], 1)
        raise ConversionError(f"model path {name!r}: {tried}" + (f"; did you mean {parent / near[0]}?" if near else ""))
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]))
    except Exception as error:  # of many types: no network, unknown name, no permission, broken cache
        raise ConversionError(
            f"model path {name!r}: {tried}, and the hub does not provide this model: {reason_of(error)}"
        ) from error


def is_run(folder: Path) -> bool:
    """Whether the folder is a run's."""
    return (folder / "model" / "model.json").is_file()


def find_params(folder: Path) -> tuple[Path | None, Path | None]:
    """Paths of the description and the parameters of an imported folder or of a run's newest checkpoint."""
    if (folder / "model.json").is_file():
        return folder, folder / "params"
    if is_run(folder):
        steps = [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
        if not steps:
            raise ConversionError(f"{folder} has no checkpoint yet")
        return folder / "model", folder / "checkpoints" / str(max(steps)) / "params"
    return None, None
