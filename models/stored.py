"""Models as this project stores them: parameters saved by orbax, and model.json, which describes them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from models.checksums import find_damage, write_checksums
from models.config import ModelConfig
from models.decoder import Decoder, dtype_of
from models.files import ConversionError, check_room, is_gguf, read_json, reason_of
from models.lora import split_params
from models.sharding import make_mesh, param_shardings
from models.tokenizer_files import copy_tokenizer, has_tokenizer


def describe_model(config: ModelConfig, folder: Path, source: Path | None, **more: Any) -> None:
    """Writes model.json (ModelConfig, source, `more`) into `folder`, and the source's hf_config.json and tokenizer/.

    `source` is a Hugging Face folder, a GGUF file (from whose metadata they are made), an already described folder, a
    run, or a hub name, which has no files yet; None writes only model.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    where = str(source.resolve() if source and source.exists() else source or "")
    described = {**dataclasses.asdict(config), "source": where, **more}
    (folder / "model.json").write_text(json.dumps(described, indent=2) + "\n")
    if source is None:
        return
    if is_gguf(source):
        _describe_gguf(config, folder, source)
        return
    described = next((f for f in (source, source / "model") if (f / "model.json").is_file()), None)
    original = described / "hf_config.json" if described else source / "config.json"
    tokenizer = described / "tokenizer" if described else source
    if original.is_file():
        shutil.copy(original, folder / "hf_config.json")
    kept = folder / "tokenizer"
    if (original.is_file() or described) and not has_tokenizer(kept):  # one that was chosen explicitly stays
        copy_tokenizer(tokenizer, kept)


def _describe_gguf(config: ModelConfig, folder: Path, source: Path) -> None:
    from models.gguf_config import open_gguf
    from models.gguf_tokenizer import write_tokenizer

    fields = open_gguf(source, untie=not config.tied_embeddings)[0]
    (folder / "hf_config.json").write_text(json.dumps(fields, indent=2) + "\n")
    if not has_tokenizer(folder / "tokenizer"):
        write_tokenizer(source, folder / "tokenizer")


def base_of(description: Path) -> Path | str:
    """Where the frozen parameters of a model with adapters are: in the folder of its description, or in its source."""
    if (description / "params").is_dir():
        return description
    source = read_json(description / "model.json").get("source", "")
    if not source:
        raise ConversionError(f"{description} has neither params/ nor a source, so the frozen parameters are missing")
    return source


def run_dtype(description: Path) -> jnp.dtype:
    """config.model.param_dtype of the run whose model/ folder this is."""
    path = description.parent / "config.json"
    model = read_json(path).get("model") if path.is_file() else None
    name = model.get("param_dtype") if isinstance(model, dict) else None
    if name not in (None, "float32", "bfloat16"):
        raise ConversionError(f"{path}: model.param_dtype must be float32 or bfloat16, is {name!r}")
    return jnp.dtype(name or "float32")


def fingerprint(params: Any) -> str:
    """Identifies parameters: their dtype, and a hash of names, shapes and all bits.

    The same on every mesh; where there are several processes, all must call it.
    """
    found = hashlib.sha256()
    flat = sorted(nnx.to_flat_state(params), key=lambda item: item[0])
    for path, variable in flat:
        found.update(f"{path} {variable.shape} {int(np.asarray(_checksum(variable[...])))}\n".encode())
    return f"{jnp.result_type(*(variable.dtype for _, variable in flat))} {found.hexdigest()[:32]}"


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """u32 sum over the f32 bits of x's values, each mixed and multiplied by a different odd number."""
    if x.dtype == jnp.bfloat16:  # the upper half of an f32; a cast may flush subnormal numbers
        bits = jax.lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) << 16
    else:
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size & 0xFFFFFFFF) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x2C1B3C6D)
    return jnp.sum((bits ^ (bits >> 12)) * (2 * place + 1), dtype=jnp.uint32)


def check_base(description: Path, found: str, what: str) -> None:
    """Raises ConversionError if the adapters of a description were trained beside other frozen parameters.

    Args:
        found: the fingerprint of the present ones; with another dtype it cannot be compared.
        what: names them in the message.
    """
    path = description / "model.json"
    known = read_json(path).get("base_fingerprint") if path.is_file() else None
    if known and known != found and known.split()[0] == found.split()[0]:
        raise ConversionError(
            f"the adapters of {description.parent} were trained beside other weights than those of {what}"
        )


def check_folder_name(folder: Path) -> None:
    """Raises ConversionError for a folder whose name orbax, which searches by patterns, would not find again."""
    if any(sign in str(folder.absolute()) for sign in "*?["):
        raise ConversionError(f"the name of folder {str(folder.absolute())!r} must not contain *, ? or [")


def save_params(params: Any, folder: Path) -> None:
    """Saves parameters by orbax in `folder`, which must not exist.

    Raises ConversionError where it cannot be written.
    """
    check_folder_name(folder)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            check_room(folder.parent, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
            checkpointer.save(folder.absolute(), nnx.to_pure_dict(params))
            checkpointer.wait_until_finished()
        except Exception as error:  # orbax raises what its storage raises: OSError, ValueError, ...
            raise ConversionError(f"{folder} cannot be written: {reason_of(error)}") from error
    if jax.process_index() == 0:
        write_checksums(folder)


def load_params(folder: Path, config: ModelConfig, mesh: Mesh | None, dtype: Any) -> tuple[nnx.GraphDef, Any]:
    """Parameters saved by orbax in `folder`, sharded over the mesh.

    `dtype` None keeps the saved ones; it may be ForSampling.

    For a model with adapters, only the adapters, always in f32. Raises ConversionError for a folder that is damaged,
    cannot be read, or does not hold the parameters of `config`.
    """
    check_folder_name(folder)
    if jax.process_index() == 0 and (damage := find_damage(folder)):
        raise ConversionError(f"the parameters in {folder} are damaged: {damage}")
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config)))
    abstract, _ = split_params(abstract)
    shardings = param_shardings(abstract, mesh or make_mesh(devices=jax.devices()[:1]))
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            metadata = checkpointer.metadata(folder.absolute()).item_metadata
            if metadata is None:
                raise FileNotFoundError("it does not hold parameters")
            target = jax.tree_util.tree_map_with_path(
                lambda path, x, s, saved: jax.ShapeDtypeStruct(
                    x.shape, dtype_of(path[-1].key, dtype) or saved.dtype, sharding=s
                ),
                nnx.to_pure_dict(abstract),
                nnx.to_pure_dict(shardings),
                metadata.tree,
            )
            nnx.replace_by_pure_dict(abstract, checkpointer.restore(folder.absolute(), target))
        except Exception as error:  # of many types: what orbax and its storage raise for missing files
            raise ConversionError(f"{folder} cannot be read: {reason_of(error)}") from error
    return graphdef, abstract
