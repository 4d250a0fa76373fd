"""Weights between Hugging Face folders and Flax, bit for bit.

    python -m models.convert import HF_DIR OUT          HF_DIR -> OUT, a folder with the parameters saved by orbax
    python -m models.convert export RUN_OR_DIR HF_DIR   a run's newest checkpoint, or OUT -> a folder for transformers;
                                                        a reward model's becomes a sequence classifier
    python -m models.convert check HF_DIR               logits here against transformers'

Each tensor keeps its dtype; a run is exported in the dtype of its parameters. `--dtype` casts all tensors.
`--check` with import and export also compares the result. Adapters of a run are merged; `export --adapter` writes them
as a PEFT folder instead.

A GGUF file may stand for HF_DIR or RUN_OR_DIR where they are read. Its block formats become float32. A head that is a
second quantization of the embedding is left out, unless `import --untie` keeps it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.config import UnsupportedModelError, read_description
from models.decoder import Compute, Decoder
from models.files import ConversionError, is_gguf, read_json, reason_of, written_beside
from models.hf import describe_hf, load_hf, save_hf, tensor_dtypes
from models.hf_names import hf_tensors
from models.loading import find_model, find_params, is_run, load_model
from models.reward import export_reward_model, has_reward_head
from models.safetensors_folder import SafetensorsFolder
from models.stored import base_of, check_folder_name, describe_model, load_params, save_params

__all__ = [
    "ConversionError", "SafetensorsFolder", "base_of", "check_folder_name", "describe_hf",
    "describe_model", "find_model", "find_params",
    "hf_tensors", "is_run", "load_hf", "load_model", "load_params", "read_description", "save_hf", "save_params",
    "written_beside",
]  # fmt: skip

DTYPES = ("float32", "bfloat16", "float16")


def import_model(source: Path, out: Path, dtype: Any = None, untie: bool = False) -> None:
    """A Hugging Face folder or GGUF file -> a folder with params/, model.json, hf_config.json and tokenizer/.

    `dtype` None gives each tensor its own; for `untie` see `models.gguf_config.open_gguf`.
    """
    check_folder_name(out)
    config, _, params = load_hf(source, dtype=dtype, untie=untie)
    dtypes = {} if dtype else tensor_dtypes(source, params, config)
    with written_beside(out) as folder:
        describe_model(config, folder, source, tensor_dtypes=dtypes)
        save_params(params, folder / "params")


def export_model(source: Path, out: Path, dtype: Any = None) -> None:
    """An imported folder, a run or a GGUF file -> a Hugging Face folder.

    `dtype` None gives each tensor the dtype that it had when it was imported, or the run's.
    """
    if is_gguf(source):
        with TemporaryDirectory() as folder:
            config, _, params = load_hf(source, dtype=dtype)
            describe_model(config, Path(folder), source)
            save_hf(params, config, out, Path(folder), {} if dtype else tensor_dtypes(source, params, config))
        return
    if not source.is_dir():
        raise FileNotFoundError(f"{source} does not exist")
    description, stored = find_params(source)
    config, _, params = load_model(source, dtype=dtype)
    if dtype or (description and stored != description / "params"):
        dtypes = {}
    elif description:
        dtypes = read_json(description / "model.json").get("tensor_dtypes", {})
    else:
        dtypes = tensor_dtypes(source, params, config)
    save_hf(params, config, out, description, dtypes)


def check_model(folder: Path, reference: Path, tokens: int = 64) -> float:
    """The largest |logit difference| in f32 between this model and transformers' on random tokens.

    `folder` is anything `load_model` reads, `reference` a Hugging Face folder or a GGUF file that transformers knows.
    Raises ConversionError without torch.
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
    where = {"gguf_file": reference.name} if is_gguf(reference) else {}
    with torch.no_grad():
        place = reference.parent if where else reference
        try:
            torch_model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **where)
        except Exception as error:  # of many types, where its reader lacks what this one has
            if not where:
                raise
            raise ConversionError(f"transformers does not read {reference}: {reason_of(error)}") from error
        if config.tied_embeddings and where:
            _tie(torch_model, np.asarray(model.embed[...]))
        theirs = torch_model(torch.tensor(ids)).logits.numpy()
    return float(np.abs(ours - theirs).max())


def _tie(torch_model: Any, embedding: np.ndarray) -> None:
    """Ties a model in place whose file holds two quantizations of one matrix, by the one that is the embedding here."""
    weights = [part.weight for part in (torch_model.get_input_embeddings(), torch_model.get_output_embeddings())]
    nearest = min(weights, key=lambda weight: np.abs(weight.numpy() - embedding).max())
    for weight in weights:
        weight.copy_(nearest)


def main(arguments: list[str]) -> int:
    """The command; an error is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m models.convert", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, places in (("import", ("HF_DIR", "OUT")), ("export", ("RUN_OR_DIR", "HF_DIR")), ("check", ("HF_DIR",))):
        command = commands.add_parser(name)
        for place in places:
            command.add_argument(place, type=Path)
        if name != "check":
            command.add_argument("--check", action="store_true", help="compare logits with transformers'")
            command.add_argument("--dtype", choices=DTYPES, help="of all tensors; without it they keep their own")
        if name == "import":
            command.add_argument("--untie", action="store_true", help="keep the head that a tied model's GGUF file has")
        if name == "export":
            command.add_argument("--adapter", action="store_true", help="a run's adapters, as a folder for PEFT")
    options = vars(parser.parse_args(arguments))
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs a traceback for each error that it also raises
    try:
        if options["command"] == "import":
            import_model(options["HF_DIR"], options["OUT"], options["dtype"], options["untie"])
            pair = (options["OUT"], options["HF_DIR"])
        elif options.get("adapter"):
            from models.adapters import export_adapter

            export_adapter(options["RUN_OR_DIR"], options["HF_DIR"])
            return 0
        elif options["command"] == "export":
            if has_reward_head(options["RUN_OR_DIR"]):
                if options["check"]:
                    raise ConversionError("--check compares logits, which a reward model does not have; leave it out")
                export_reward_model(options["RUN_OR_DIR"], options["HF_DIR"], options["dtype"])
                return 0
            export_model(options["RUN_OR_DIR"], options["HF_DIR"], options["dtype"])
            pair = (options["RUN_OR_DIR"], options["HF_DIR"])
        else:
            pair = (options["HF_DIR"], options["HF_DIR"])
        if options.get("check", True):
            print(f"largest |logit difference| to transformers: {check_model(*pair):.3g}")
    except (ConversionError, UnsupportedModelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
