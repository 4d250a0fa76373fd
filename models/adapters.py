"""Adapters of a model: fresh ones, those of a run, and PEFT's (adapter_config.json, adapter_model.safetensors)."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors.numpy import save_file

from models.config import Lora, ModelConfig, lora_targets, read_description
from models.decoder import Decoder
from models.files import ConversionError, expanded, read_json, written_beside
from models.hf_names import hf_tensors
from models.loading import find_params
from models.lora import Params, initial_adapters, join_params, merge_values, split_params
from models.safetensors_folder import SafetensorsFolder
from models.sharding import make_mesh, param_shardings
from models.stored import base_of, check_base, fingerprint, load_params

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
Values = dict[str, np.ndarray]  # f32, by name in a block: q_lora_a [L, in, r], q_lora_b [L, r, out], ...

# Fields of an adapter_config.json that are read, or that do not change what a trained adapter computes. Any other must
# be off (null, false, empty): silently ignoring a field would give a silently wrong model.
_READ = {"r", "lora_alpha", "target_modules", "use_rslora"}
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules", "inference_mode",
    "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
}  # fmt: skip
# Values that mean plain LoRA. Other initializations (PiSSA, OLoRA, ...) change the matrices beside the adapters.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": (None, "CAUSAL_LM"),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}


def start_adapters(
    config: ModelConfig,
    graphdef: nnx.GraphDef,
    params: Params,
    lora: Lora | None,
    source: str,
    key: jax.Array,
    mesh: Mesh,
) -> tuple[ModelConfig, nnx.GraphDef, Params]:
    """The model with adapters: those of `source` (see `read_adapter`), or fresh ones where it is "".

    Those of `source` are merged where `lora` is None. Raises ConversionError where they do not match `lora`.
    """
    if not source:
        assert lora is not None
        return attach(config, params, lora, key, mesh)
    own, values = read_adapter(Path(source), config)
    description = find_params(expanded(source))[0]
    if description is not None:
        check_base(description, fingerprint(params), "the model")
    if lora is None:
        return config, graphdef, merge_values(params, values, own, params["embed"].dtype, source)
    for field in dataclasses.fields(Lora):
        wanted, found = getattr(lora, field.name), getattr(own, field.name)
        if wanted != found:
            raise ConversionError(f"{source} has {field.name} {found!r}, config.model.lora.{field.name} is {wanted!r}")
    return attach(config, params, own, values, mesh)


def attach(
    config: ModelConfig, params: Params, lora: Lora, start: jax.Array | Values, mesh: Mesh | None = None
) -> tuple[ModelConfig, nnx.GraphDef, Params]:
    """The model with adapters beside its (shared) parameters: random ones from a key, or these values."""
    config = dataclasses.replace(config, lora=lora)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config)))
    adapters, _ = split_params(abstract)
    shardings = param_shardings(adapters, mesh or make_mesh(devices=jax.devices()[:1]))
    if isinstance(start, dict):
        flat = [(path, v.replace(jnp.asarray(start[str(path[-1])]))) for path, v in nnx.to_flat_state(adapters)]
        made = jax.device_put(nnx.from_flat_state(flat), shardings)
    else:
        made = jax.jit(lambda key: initial_adapters(adapters, key), out_shardings=shardings)(start)
    return config, graphdef, join_params(made, params)


def read_adapter(folder: Path, config: ModelConfig) -> tuple[Lora, Values]:
    """The adapters in a PEFT folder, or in a run's newest checkpoint.

    Raises FileNotFoundError for a folder without adapters, ConversionError naming the field or tensor that is wrong.
    """
    folder = expanded(folder)
    if (folder / CONFIG_FILE).is_file():
        lora = read_peft_config(folder / CONFIG_FILE)
        return lora, _read_peft_tensors(folder, lora, config)
    description, params = find_params(folder)
    own = read_description(description) if description else None
    if own is None or own.lora is None or params is None or params == (description or folder) / "params":
        raise FileNotFoundError(f"{folder} holds no adapter: neither {CONFIG_FILE} nor a run with config.model.lora")
    _check_shapes(own, config, folder)
    here = make_mesh(devices=jax.local_devices()[:1])  # each process reads them for itself
    saved = load_params(params, own, here, None)[1]
    return own.lora, {str(path[-1]): np.asarray(v[...]) for path, v in nnx.to_flat_state(saved)}


def _check_shapes(own: ModelConfig, config: ModelConfig, folder: Path) -> None:
    for name in ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim"):
        if getattr(own, name) != getattr(config, name):
            wanted = getattr(config, name)
            raise ConversionError(f"{folder}: its adapters are for {name} {getattr(own, name)}, the model has {wanted}")


def read_peft_config(path: Path) -> Lora:
    """The settings in an adapter_config.json. Raises ConversionError naming the first field that is not plain LoRA."""
    fields = read_json(path)
    for name, value in fields.items():
        if name in _PLAIN:
            wanted = ", ".join(json.dumps(v) for v in _PLAIN[name])
            if value not in _PLAIN[name]:
                raise ConversionError(f"{path}: {name} = {value!r} is not supported; supported: {wanted}")
        elif name not in _READ | _WITHOUT_EFFECT and value:
            raise ConversionError(f"{path}: {name} = {value!r} is not supported; plain LoRA has none")
    for name in ("peft_type", "r", "target_modules"):
        if not fields.get(name):
            raise ConversionError(f"{path}: field {name!r} is missing")
    modules, rank, alpha = fields["target_modules"], fields["r"], fields.get("lora_alpha", 8)
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise ConversionError(f"{path}: target_modules = {modules!r} is not supported; supported: a list of names")
    if type(rank) is not int or rank < 1:
        raise ConversionError(f"{path}: r = {rank!r} must be a whole number > 0")
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise ConversionError(f"{path}: lora_alpha = {alpha!r} must be a number > 0")
    try:
        targets = lora_targets([name.removeprefix("self_attn.").removeprefix("mlp.") for name in modules])
    except ValueError as error:
        raise ConversionError(f"{path}: target_modules: {error}") from None
    return Lora(rank, float(alpha), targets, bool(fields.get("use_rslora")))


def _read_peft_tensors(folder: Path, lora: Lora, config: ModelConfig) -> Values:
    """The adapters' values. Raises ConversionError naming the missing, extra or mis-shaped tensor."""
    tensors = SafetensorsFolder(folder, WEIGHTS_FILE)
    names = peft_tensors(dataclasses.replace(config, lora=lora))
    wanted = {tensor: shape for shape, layers in names.values() for tensor in layers}
    missing, extra = wanted.keys() - tensors.names(), tensors.names() - wanted.keys()
    for problem, odd in (("is missing", missing), ("is unexpected", extra)):
        if odd:
            raise ConversionError(f"{folder / WEIGHTS_FILE}: tensor {min(odd)} {problem} ({len(odd)} in all)")
    for tensor, shape in wanted.items():
        if tensors.shape(tensor) != shape:
            found = tensors.shape(tensor)
            raise ConversionError(f"{folder / WEIGHTS_FILE}: tensor {tensor} has shape {found}, should be {shape}")
        tensors.dtype(tensor)
    return {
        name: np.stack([tensors.read(tensor).astype(np.float32).T for tensor in layers])
        for name, (_, layers) in names.items()
    }


def peft_tensors(config: ModelConfig) -> dict[str, tuple[tuple[int, int], list[str]]]:
    """For each of our adapter parameters: the shape [out, in] of PEFT's tensors, and their names, one per layer."""
    adapters, _ = split_params(nnx.split(nnx.eval_shape(lambda: Decoder(config)))[1])
    found = {}
    for path, variable in nnx.to_flat_state(adapters):
        _, inputs, outputs = variable.shape
        matrix, _, part = str(path[-1]).partition("_lora_")
        layers, _, _ = hf_tensors(("blocks", matrix), config.num_layers)
        part = f"lora_{part.upper()}.weight"
        names = [f"base_model.model.{name.removesuffix('weight')}{part}" for name in layers]
        found[str(path[-1])] = (outputs, inputs), names
    return found


def peft_fields(lora: Lora, base: str = "") -> dict[str, Any]:
    """What an adapter_config.json says about adapters for the model `base`."""
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base or None, "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "target_modules": [f"{name}_proj" for name in lora.targets], "use_rslora": lora.rank_stabilized,
        "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
        "lora_dropout": 0.0, "modules_to_save": None,
    }  # fmt: skip


def save_peft(values: Values, config: ModelConfig, out: Path, base: str = "") -> None:
    """Writes a folder that PEFT and vLLM load. Raises ConversionError if `out` exists and is not empty.

    Args:
        base: the model that the adapters are for, a folder or a hub name, for AutoPeftModel to find.
    """
    assert config.lora is not None
    fields = peft_fields(config.lora, base)
    tensors = {
        tensor: np.ascontiguousarray(values[name][l].T)
        for name, (_, layers) in peft_tensors(config).items()
        for l, tensor in enumerate(layers)
    }
    with written_beside(out) as folder:
        (folder / CONFIG_FILE).write_text(json.dumps(fields, indent=2) + "\n")
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def export_adapter(run: Path, out: Path) -> None:
    """The adapters of a run's newest checkpoint -> a PEFT folder. Raises what `read_adapter` and `save_peft` do."""
    description, _ = find_params(run)
    if description is None:
        raise FileNotFoundError(f"{run} is not a run's folder")
    config = read_description(description)
    _, values = read_adapter(run, config)
    base = base_of(description)
    save_peft(values, config, out, "" if base == description else str(base))
