"""Hugging Face folders to parameters and back, bit for bit, each tensor in its own dtype; GGUF files to parameters."""

from __future__ import annotations

import gc
import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from models.config import ModelConfig, read_config, to_hf
from models.decoder import Decoder, dtype_of
from models.files import ConversionError, is_gguf, read_json, written_beside
from models.hf_names import hf_tensors
from models.lora import merged_parameters
from models.safetensors_folder import SafetensorsFolder, save_tensors
from models.sharding import make_mesh, param_shardings
from models.tokenizer_files import copy_tokenizer

if TYPE_CHECKING:
    from models.gguf import GgufTensors

LARGE = 32 << 20  # bytes of a parameter above which a garbage collection, up to a second, is worthwhile


def open_model(path: Path, untie: bool = False) -> tuple[ModelConfig, SafetensorsFolder | GgufTensors]:
    """The configuration and the tensors of a Hugging Face folder or a GGUF file; for `untie` see `open_gguf`."""
    if is_gguf(path):
        from models.gguf_config import open_gguf

        return open_gguf(path, untie)[1:]
    config, tensors = read_config(path), SafetensorsFolder(path)
    if not tensors.names():
        raise ConversionError(f"{path} holds no tensors")
    return config, tensors


def load_hf(
    folder: str | Path, mesh: Mesh | None = None, dtype: Any = None, untie: bool = False
) -> tuple[ModelConfig, nnx.GraphDef, Any]:
    """A Hugging Face folder or a GGUF file as (config, graphdef, params), tensor by tensor into the sharded arrays.

    Host memory holds only one parameter at a time (stacked over the layers) beside the arrays, so that the peak is the
    parameters or twice the largest. Each of several processes reads the shards of its own devices. `dtype` None keeps
    each parameter's own; where that differs between layers, it is f32, which holds them all exactly. It may be
    ForSampling.

    Raises ConversionError naming the missing, extra or mis-shaped tensor, or the broken file; UnsupportedModelError and
    FileNotFoundError as `read_config` and `open_gguf` do.
    """
    config, tensors = open_model(Path(folder), untie)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config)))
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    shardings = dict(nnx.to_flat_state(param_shardings(abstract, mesh)))
    flat = nnx.to_flat_state(abstract)
    _check_names(config, tensors, [path for path, _ in flat])
    values = []
    # Largest first: otherwise its copy on the host would be added to all the others.
    for path, variable in sorted(flat, key=lambda item: -item[1].size):
        names, stacked, transposed = hf_tensors(path, config.num_layers)
        own = tensors.common_dtype(names)
        wanted = jax.ShapeDtypeStruct(variable.shape, jnp.dtype(dtype_of(str(path[-1]), dtype) or own))
        array = _load_parameter(tensors, wanted, shardings[path].get_value(), names, stacked, transposed)
        values.append((path, variable.replace(array)))
        if array.nbytes >= LARGE:
            gc.collect()  # JAX frees the host's copy at the next collection
    return config, graphdef, nnx.from_flat_state(values)


def tensor_dtypes(folder: Path, params: Any, config: ModelConfig) -> dict[str, str]:
    """The tensors of a Hugging Face folder or GGUF file whose dtype differs from that of their (stacked) parameter.

    `save_hf` needs them to restore each tensor's own dtype.
    """
    tensors = open_model(folder, untie=not config.tied_embeddings)[1]
    return {
        name: str(tensors.dtype(name))
        for path, variable in nnx.to_flat_state(params)
        for name in hf_tensors(path, config.num_layers)[0]
        if tensors.dtype(name) != variable.dtype
    }


def _load_parameter(
    tensors: SafetensorsFolder | GgufTensors,
    wanted: jax.ShapeDtypeStruct,
    sharding: NamedSharding,
    names: list[str],
    stacked: bool,
    transposed: bool,
) -> jax.Array:
    """The parameter made of these tensors, with the shape and type of `wanted`; each of its shards is read once."""
    shape = wanted.shape[1:] if stacked else wanted.shape
    expected = shape[::-1] if transposed else shape
    for name in names:
        if tensors.shape(name) != expected:
            own, found = tensors.own_name(name), tensors.shape(name)
            raise ConversionError(f"{tensors.folder}: tensor {own} has shape {found}, should be {expected}")

    def read(name: str, part: tuple[slice, ...]) -> np.ndarray:
        own = part[::-1] if transposed else part
        return tensors.read(name, own, wanted.dtype).T if transposed else tensors.read(name, own, wanted.dtype)

    def shard(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        part = tuple(slice(*b) for b in bounds)
        if not stacked:
            return read(names[0], part)
        host = np.empty([end - start for start, end in bounds], wanted.dtype)
        for l, name in enumerate(names[part[0]]):
            host[l] = read(name, part[1:])
        return host

    devices: dict[tuple[tuple[int, int], ...], list[Any]] = defaultdict(list)
    for device, part in sharding.addressable_devices_indices_map(wanted.shape).items():
        devices[tuple(s.indices(n)[:2] for s, n in zip(part or (), wanted.shape))].append(device)
    pieces = []
    for bounds, holders in devices.items():
        host = shard(bounds)
        pieces += [jax.device_put(host, device).block_until_ready() for device in holders]
    return jax.make_array_from_single_device_arrays(wanted.shape, sharding, pieces)


def _check_names(config: ModelConfig, tensors: SafetensorsFolder | GgufTensors, paths: list[Any]) -> None:
    expected = {name for path in paths for name in hf_tensors(path, config.num_layers)[0]}
    missing, extra = sorted(expected - tensors.names()), sorted(tensors.names() - expected)
    if config.tied_embeddings and "lm_head.weight" in extra:
        # Some tied checkpoints store the head as well; it must then be the embedding.
        names = ("lm_head.weight", "model.embed_tokens.weight")
        kind = tensors.common_dtype(names)
        head, embedding = (tensors.read(name).astype(kind, copy=False) for name in names)
        if not np.array_equal(head.view(np.uint8), embedding.view(np.uint8)):
            raise ConversionError(f"{tensors.folder}: lm_head.weight differs from the embedding it should be tied to")
        extra.remove("lm_head.weight")
    extra = [name for name in extra if not name.endswith("rotary_emb.inv_freq")]  # a buffer, computed from the config
    if missing:
        raise ConversionError(
            f"{tensors.folder}: tensor {tensors.own_name(missing[0])} is missing ({len(missing)} in all)"
        )
    if extra:
        raise ConversionError(f"{tensors.folder}: unexpected tensor {tensors.own_name(extra[0])} ({len(extra)} in all)")


def save_hf(
    params: Any,
    config: ModelConfig,
    out: Path,
    source: Path | None = None,
    dtypes: dict[str, str] | None = None,
    score: np.ndarray | None = None,
) -> None:
    """Writes a folder that transformers loads: config.json, safetensors, and the tokenizer of `source`.

    Tensors have the dtypes of their parameters, or those of `dtypes`. Adapters are merged.
    `source` is a folder with hf_config.json (the original config.json) and tokenizer/, as in an imported model or a
    run's model/. `score`, f32[D], makes it a classifier with one label, see `models.reward`: the tensor score.weight
    takes the place of the output projection.

    Raises ConversionError if `out` exists and is not empty, or cannot be written.
    """
    with written_beside(out) as folder:
        describe_hf(config, folder, source or folder)
        fields = read_json(folder / "config.json")
        tensors = _tensors(params, config, dtypes or {})
        if score is not None:
            kept = ((name, tensor) for name, tensor in tensors if name != "lm_head.weight")
            tensors = chain(kept, [("score.weight", np.ascontiguousarray(score[None]))])
        written = save_tensors(tensors, folder)
        field = "torch_dtype" if "torch_dtype" in fields else "dtype"
        if len(written) == 1 or not fields.get(field):  # where there are several dtypes, the original's field is kept
            fields[field] = str(max(written, key=lambda dtype: written[dtype]))
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")


def _tensors(params: Any, config: ModelConfig, dtypes: dict[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors as in Hugging Face's folders. numpy casts them: XLA may flush subnormal numbers to zero."""
    for path, value in merged_parameters(params, config):
        names, stacked, transposed = hf_tensors(path, config.num_layers)
        host = np.asarray(jax.device_get(value))
        for l, name in enumerate(names):
            tensor = host[l] if stacked else host
            tensor = tensor.astype(jnp.dtype(dtypes.get(name, tensor.dtype)), copy=False)
            yield name, np.ascontiguousarray(tensor.T if transposed else tensor)


def describe_hf(config: ModelConfig, folder: Path, source: Path) -> None:
    """Writes a Hugging Face folder without weights: config.json, and the tokenizer of `source` if it has one.

    `source` is a folder that `describe_model` wrote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    original = source / "hf_config.json"
    fields = read_json(original) if original.is_file() else to_hf(config)
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    copy_tokenizer(source / "tokenizer", folder)
