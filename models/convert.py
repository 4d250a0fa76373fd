"""Weights between Hugging Face folders and Flax, without a change of a bit.

    python -m models.convert import HF_DIR OUT          HF_DIR -> OUT, a folder with the parameters saved by orbax
    python -m models.convert export RUN_OR_DIR HF_DIR   a run's newest checkpoint, or OUT -> a folder for transformers
    python -m models.convert check HF_DIR               logits here against transformers'

`--check` with import and export compares the result as well. Adapters of a run are merged; `export --adapter` writes
them as a folder for PEFT instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from models.config import Llama3RopeScaling, Lora, ModelConfig, from_hf, read_config, to_hf
from models.decoder import Compute, Decoder
from models.lora import merge, merged_parameters, split_params
from models.sharding import make_mesh, param_shardings

SHARD_BYTES = 5 * 2**30
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip

# Our name in a block -> Hugging Face's name in a layer, and whether the matrix is transposed ([in, out] here).
_BLOCK_TENSORS = {
    "attention_norm": ("input_layernorm.weight", False),
    "q": ("self_attn.q_proj.weight", True),
    "k": ("self_attn.k_proj.weight", True),
    "v": ("self_attn.v_proj.weight", True),
    "o": ("self_attn.o_proj.weight", True),
    "q_bias": ("self_attn.q_proj.bias", False),
    "k_bias": ("self_attn.k_proj.bias", False),
    "v_bias": ("self_attn.v_proj.bias", False),
    "o_bias": ("self_attn.o_proj.bias", False),
    "q_norm": ("self_attn.q_norm.weight", False),
    "k_norm": ("self_attn.k_norm.weight", False),
    "mlp_norm": ("post_attention_layernorm.weight", False),
    "gate": ("mlp.gate_proj.weight", True),
    "up": ("mlp.up_proj.weight", True),
    "down": ("mlp.down_proj.weight", True),
}
_OTHER_TENSORS = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "unembed": "lm_head.weight",
}

LARGE = 32 << 20  # bytes of a parameter for which a collection, which may take a second, is worth its time


class ConversionError(ValueError):
    """A checkpoint that cannot be read; the message names the tensor or the file."""


def hf_tensors(path: Sequence[Any], layers: int) -> tuple[list[str], bool, bool]:
    """Names of the Hugging Face tensors of a parameter; whether they are stacked over layers, and transposed."""
    if path[0] == "blocks":
        name, transposed = _BLOCK_TENSORS[path[1]]
        return [f"model.layers.{l}.{name}" for l in range(layers)], True, transposed
    return [_OTHER_TENSORS[path[0]]], False, False


class SafetensorsFolder:
    """The tensors of a file, or of the shards that FILE.index.json names.

    A file is opened anew for each tensor, because the pages of a mapped file stay in memory as long as it is open.
    Raises ConversionError for a missing, truncated or broken file.
    """

    def __init__(self, folder: Path, file_name: str = "model.safetensors"):
        self.folder = folder
        index = folder / f"{file_name}.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        elif (folder / file_name).is_file():
            names = [file_name]
        else:
            raise ConversionError(f"{folder} has neither {file_name} nor {index.name}")
        self._where: dict[str, tuple[str, tuple[int, ...], str]] = {}  # tensor -> file, shape, dtype
        for name in names:
            if not (folder / name).is_file():
                raise ConversionError(f"{folder / name}, named by {index.name}, does not exist")
            with self._open(name) as file:
                for tensor in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    piece = file.get_slice(tensor)
                    self._where[tensor] = name, tuple(piece.get_shape()), piece.get_dtype()

    def _open(self, name: str) -> Any:
        try:
            return safe_open(self.folder / name, framework="np")
        except (SafetensorError, OSError) as error:
            raise ConversionError(f"{self.folder / name} is truncated or no safetensors file: {error}") from None

    def names(self) -> set[str]:
        return set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._where[name][1]

    def dtype(self, name: str) -> np.dtype:
        kinds = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}
        kind = self._where[name][2]
        if kind not in kinds:
            raise ConversionError(f"{self.folder}: tensor {name} is {kind}; supported: F32, BF16, F16")
        return np.dtype(kinds[kind])

    def read(self, name: str, part: tuple[slice, ...] = ()) -> np.ndarray:
        """The tensor, or a part of it; the rest is not read."""
        with self._open(self._where[name][0]) as file:
            whole = all(s == slice(0, n) for s, n in zip(part, self.shape(name)))
            return file.get_tensor(name) if whole else file.get_slice(name)[part]


def load_hf(folder: str | Path, mesh: Mesh | None = None, dtype: Any = None) -> tuple[ModelConfig, nnx.GraphDef, Any]:
    """A Hugging Face folder as (config, graphdef, params), tensor by tensor straight into the sharded arrays.

    Beside the parameters only one of them, stacked over the layers, is in host memory at a time, so that the peak
    is that of the parameters or of twice the largest. Of several processes each reads the shards of its own devices.
    `dtype` None keeps the checkpoint's own. Raises ConversionError
    naming the missing, extra or mis-shaped tensor, or the broken file; UnsupportedModelError and FileNotFoundError
    as `read_config` does.
    """
    folder = Path(folder)
    config, tensors = read_config(folder), SafetensorsFolder(folder)
    first = next(iter(sorted(tensors.names())), None)
    if first is None:
        raise ConversionError(f"{folder} holds no tensors")
    own = tensors.dtype("model.embed_tokens.weight") if "model.embed_tokens.weight" in tensors.names() else np.float32
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, jnp.dtype(dtype or own))))
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    shardings = dict(nnx.to_flat_state(param_shardings(abstract, mesh)))
    flat = nnx.to_flat_state(abstract)
    _check_names(config, tensors, [path for path, _ in flat])
    values = []
    # Largest first: the host's copy of the next one then never comes on top of all the others.
    for path, variable in sorted(flat, key=lambda item: -item[1].size):
        array = _load_parameter(tensors, variable, shardings[path].get_value(), *hf_tensors(path, config.num_layers))
        values.append((path, variable.replace(array)))
        if array.nbytes >= LARGE:
            gc.collect()  # jax lets go of the host's copy at the next collection
    return config, graphdef, nnx.from_flat_state(values)


def _load_parameter(
    tensors: SafetensorsFolder,
    variable: Any,
    sharding: NamedSharding,
    names: list[str],
    stacked: bool,
    transposed: bool,
) -> jax.Array:
    """The parameter of these tensors, with the shape and type of `variable`; each of its shards is read once."""
    shape = variable.shape[1:] if stacked else variable.shape
    wanted = shape[::-1] if transposed else shape
    for name in names:
        if tensors.shape(name) != wanted:
            raise ConversionError(
                f"{tensors.folder}: tensor {name} has shape {tensors.shape(name)}, should be {wanted}"
            )

    def read(name: str, part: tuple[slice, ...]) -> np.ndarray:
        return tensors.read(name, part[::-1]).T if transposed else tensors.read(name, part)

    def shard(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        part = tuple(slice(*b) for b in bounds)
        if not stacked:
            return read(names[0], part).astype(variable.dtype, copy=False)
        host = np.empty([end - start for start, end in bounds], variable.dtype)
        for l, name in enumerate(names[part[0]]):
            host[l] = read(name, part[1:])
        return host

    devices: dict[tuple[tuple[int, int], ...], list[Any]] = defaultdict(list)
    for device, part in sharding.addressable_devices_indices_map(variable.shape).items():
        devices[tuple(s.indices(n)[:2] for s, n in zip(part or (), variable.shape))].append(device)
    pieces = []
    for bounds, holders in devices.items():
        host = shard(bounds)
        pieces += [jax.device_put(host, device).block_until_ready() for device in holders]
    return jax.make_array_from_single_device_arrays(variable.shape, sharding, pieces)


def _check_names(config: ModelConfig, tensors: SafetensorsFolder, paths: list[Any]) -> None:
    expected = {name for path in paths for name in hf_tensors(path, config.num_layers)[0]}
    missing, extra = sorted(expected - tensors.names()), sorted(tensors.names() - expected)
    if config.tied_embeddings and "lm_head.weight" in extra:
        # Some tied checkpoints store the head as well; it must then be the embedding.
        head, embedding = tensors.read("lm_head.weight"), tensors.read("model.embed_tokens.weight")
        if not np.array_equal(head.view(np.uint8), embedding.view(np.uint8)):
            raise ConversionError(f"{tensors.folder}: lm_head.weight differs from the embedding it should be tied to")
        extra.remove("lm_head.weight")
    extra = [name for name in extra if not name.endswith("rotary_emb.inv_freq")]  # a buffer, made from the config
    if missing:
        raise ConversionError(f"{tensors.folder}: tensor {missing[0]} is missing ({len(missing)} in all)")
    if extra:
        raise ConversionError(f"{tensors.folder}: unexpected tensor {extra[0]} ({len(extra)} in all)")


def save_hf(params: Any, config: ModelConfig, out: Path, source: Path | None = None) -> None:
    """Writes a folder that transformers loads: config.json, safetensors, and the tokenizer's files of `source`.

    Adapters are merged.
    `source` is a folder with hf_config.json (the original config.json) and tokenizer/, as in an imported model or a
    run's model/. Raises ConversionError if `out` exists and is not empty.
    """
    with written_beside(out) as folder:
        describe_hf(config, folder, source or folder)
        fields = json.loads((folder / "config.json").read_text())
        shards: list[dict[str, np.ndarray]] = [{}]
        size, total = 0, 0
        for path, value in merged_parameters(params, config):
            names, stacked, transposed = hf_tensors(path, config.num_layers)
            host = np.asarray(jax.device_get(value))
            for l, name in enumerate(names):
                tensor = host[l] if stacked else host
                tensor = np.ascontiguousarray(tensor.T if transposed else tensor)
                if size + tensor.nbytes > SHARD_BYTES:
                    shards.append({})
                    size = 0
                shards[-1][name] = tensor
                size, total = size + tensor.nbytes, total + tensor.nbytes
        fields["torch_dtype" if "torch_dtype" in fields else "dtype"] = str(host.dtype)
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        _save_shards(shards, folder, total)


def _save_shards(shards: list[dict[str, np.ndarray]], folder: Path, total: int) -> None:
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


@contextmanager
def written_beside(out: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `out` at the end; removed if anything fails."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConversionError(f"{out} exists and is not empty; give a new folder")
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def describe_model(config: ModelConfig, folder: Path, source: Path | None) -> None:
    """Writes model.json (ModelConfig, source) into `folder`, and hf_config.json and tokenizer/ of the `source`.

    That is a Hugging Face folder, a folder that was described before, a run, or a hub name, which has no files yet;
    None writes model.json alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    where = str(source.resolve() if source and source.is_dir() else source or "")
    described = {**dataclasses.asdict(config), "source": where}
    (folder / "model.json").write_text(json.dumps(described, indent=2) + "\n")
    if source is None:
        return
    described = next((f for f in (source, source / "model") if (f / "model.json").is_file()), None)
    original = described / "hf_config.json" if described else source / "config.json"
    tokenizer = described / "tokenizer" if described else source
    if original.is_file():
        shutil.copy(original, folder / "hf_config.json")
    if original.is_file() or described:
        kept = folder / "tokenizer"
        kept.mkdir(exist_ok=True)
        present = {path.name for path in kept.iterdir()}  # of a tokenizer that was chosen instead of the model's
        present |= {"vocab.json", "merges.txt", "tokenizer.model"} if "tokenizer.json" in present else set()
        for name in _TOKENIZER_FILES:
            if (tokenizer / name).is_file() and name not in present:
                shutil.copy(tokenizer / name, kept)


def describe_hf(config: ModelConfig, folder: Path, source: Path) -> None:
    """Makes `folder` a Hugging Face folder without weights: config.json, and the tokenizer of `source` if it has one.

    `source` is a folder of `describe_model`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    original = source / "hf_config.json"
    fields = json.loads(original.read_text()) if original.is_file() else to_hf(config)
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    for path in (source / "tokenizer").glob("*"):
        shutil.copy(path, folder)


def read_description(folder: Path) -> ModelConfig:
    """The ModelConfig of a folder with model.json."""
    fields = json.loads((folder / "model.json").read_text())
    names = {f.name for f in dataclasses.fields(ModelConfig)}
    plain: dict[str, Any] = {name: value for name, value in fields.items() if name in names}
    scaling, windows, lora = plain.pop("rope_scaling"), tuple(plain.pop("windows")), plain.pop("lora", None)
    scaling = Llama3RopeScaling(**scaling) if scaling else None
    config = from_hf(to_hf(ModelConfig(**plain, rope_scaling=scaling, windows=windows)))
    lora = Lora(**lora | {"targets": tuple(lora["targets"])}) if lora else None
    return dataclasses.replace(config, lora=lora)


def base_of(description: Path) -> Path | str:
    """Where the frozen parameters of a described model with adapters are: in its folder, or in its source."""
    if (description / "params").is_dir():
        return description
    source = json.loads((description / "model.json").read_text()).get("source", "")
    if not source:
        raise ConversionError(f"{description} has no params/ and names no source: the frozen parameters are not there")
    return source


def save_params(params: Any, folder: Path) -> None:
    """Saves parameters by orbax in `folder`, which must not exist."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), nnx.to_pure_dict(params))


def load_params(folder: Path, config: ModelConfig, mesh: Mesh | None, dtype: Any) -> tuple[nnx.GraphDef, Any]:
    """Parameters saved by orbax in `folder`, sharded over the mesh; `dtype` None keeps the saved one.

    Of a model with adapters those are the parameters, without the frozen ones, and always f32.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder.absolute()).item_metadata.tree
        dtype = dtype or jax.tree.leaves(saved)[0].dtype
        graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, jnp.dtype(dtype))))
        abstract, _ = split_params(abstract)
        shardings = param_shardings(abstract, mesh or make_mesh(devices=jax.devices()[:1]))
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            nnx.to_pure_dict(abstract),
            nnx.to_pure_dict(shardings),
        )
        nnx.replace_by_pure_dict(abstract, checkpointer.restore(folder.absolute(), target))
    return graphdef, abstract


def load_model(path: str | Path, mesh: Mesh | None = None, dtype: Any = None) -> tuple[ModelConfig, nnx.GraphDef, Any]:
    """(config, graphdef, params) of a Hugging Face folder, an imported folder, a run's folder or a hub name.

    Adapters of a run are merged.

    Raises FileNotFoundError for a folder that does not exist or holds no model, and what `load_hf` raises.
    """
    folder, config = find_model(path)
    description, params = find_params(folder)
    if description is None or params is None:
        return load_hf(folder, mesh, dtype)
    plain = dataclasses.replace(config, lora=None)
    if config.lora is None or params == description / "params":
        return plain, *load_params(params, plain, mesh, dtype)
    _, graphdef, base = load_model(base_of(description), mesh, dtype)
    adapters = load_params(params, config, mesh, None)[1]["blocks"]
    for name in config.lora.targets:
        matrix, a, b = base["blocks"][name], adapters[f"{name}_lora_a"][...], adapters[f"{name}_lora_b"][...]
        base["blocks"][name] = matrix.replace(merge(matrix[...], a, b, scale=config.lora.scale))
    return plain, graphdef, base


def find_model(path: str | Path) -> tuple[Path, ModelConfig]:
    """The model's folder, fetched where `path` is a hub name, and its architecture. Raises as `load_model` does."""
    folder = Path(path).expanduser()
    if not folder.exists() and str(path).count("/") == 1 and not str(path).startswith((".", "~", "/")):
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    if not folder.is_dir():
        raise FileNotFoundError(f"model folder {str(path)!r} does not exist")
    description, params = find_params(folder)
    if description is None or params is None:
        return folder, read_config(folder)
    return folder, read_description(description)


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a run."""
    return (folder / "model" / "model.json").is_file()


def find_params(folder: Path) -> tuple[Path | None, Path | None]:
    """Where the description and the parameters of an imported folder or of a run's newest checkpoint are."""
    if (folder / "model.json").is_file():
        return folder, folder / "params"
    if is_run(folder):
        steps = [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
        if not steps:
            raise ConversionError(f"{folder} has no checkpoint yet")
        return folder / "model", folder / "checkpoints" / str(max(steps)) / "params"
    return None, None


def import_model(source: Path, out: Path, dtype: Any = None) -> None:
    """A Hugging Face folder -> a folder with params/, model.json, hf_config.json and tokenizer/."""
    config, _, params = load_hf(source, dtype=dtype)
    with written_beside(out) as folder:
        describe_model(config, folder, source)
        save_params(params, folder / "params")


def export_model(source: Path, out: Path) -> None:
    """An imported folder or a run -> a Hugging Face folder."""
    if not source.is_dir():
        raise FileNotFoundError(f"{source} does not exist")
    description, _ = find_params(source)
    config, _, params = load_model(source)
    save_hf(params, config, out, description)


def check_model(folder: Path, reference: Path, tokens: int = 64) -> float:
    """The largest |logit difference| in f32 between the model here and transformers' on random tokens.

    `folder` is anything `load_model` reads, `reference` a Hugging Face folder. Raises ConversionError without torch.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise ConversionError("the check needs torch: pip install torch") from None
    config, graphdef, params = load_model(folder, dtype=jnp.float32)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, tokens))
    model: Decoder = nnx.merge(graphdef, params)
    positions = np.arange(tokens)[None]
    ours = np.asarray(model(jnp.asarray(ids), jnp.asarray(positions), compute=Compute()) @ model.unembedding().T)
    with torch.no_grad():
        torch_model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
        theirs = torch_model(torch.tensor(ids)).logits.numpy()
    return float(np.abs(ours - theirs).max())


def main(arguments: list[str]) -> int:
    """The command; errors in one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m models.convert", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, places in (("import", ("HF_DIR", "OUT")), ("export", ("RUN_OR_DIR", "HF_DIR")), ("check", ("HF_DIR",))):
        command = commands.add_parser(name)
        for place in places:
            command.add_argument(place, type=Path)
        if name != "check":
            command.add_argument("--check", action="store_true", help="compare logits with transformers'")
        if name == "export":
            command.add_argument("--adapter", action="store_true", help="a run's adapters, as a folder for PEFT")
    options = vars(parser.parse_args(arguments))
    try:
        if options["command"] == "import":
            import_model(options["HF_DIR"], options["OUT"])
            pair = (options["OUT"], options["HF_DIR"])
        elif options.get("adapter"):
            from models.adapters import export_adapter

            export_adapter(options["RUN_OR_DIR"], options["HF_DIR"])
            return 0
        elif options["command"] == "export":
            export_model(options["RUN_OR_DIR"], options["HF_DIR"])
            pair = (options["RUN_OR_DIR"], options["HF_DIR"])
        else:
            pair = (options["HF_DIR"], options["HF_DIR"])
        if options.get("check", True):
            print(f"largest |logit difference| to transformers: {check_model(*pair):.3g}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
