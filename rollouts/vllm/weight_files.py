"""Writes the trainer's parameters as a folder of HF-named safetensors, at memory speed, for a sampler to read.

Several threads transpose the tensors directly into the mapped file, in one pass over the bytes; most of the time is the
kernel's work for fresh pages of /dev/shm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import mmap
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from models.adapters import CONFIG_FILE, WEIGHTS_FILE, peft_fields, peft_tensors
from models.config import Lora, ModelConfig
from models.convert import hf_tensors
from models.lora import merged_parameters, split_params

CHECKED_ROWS = 64  # of each parameter, in the checksums; as in rollouts/vllm/extension.py
_JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}  # joined by vLLM
_DTYPES = {"float32": ("F32", np.float32), "bfloat16": ("BF16", ml_dtypes.bfloat16), "float16": ("F16", np.float16)}


def claim_folder(folder: Path) -> IO[str]:
    """Makes the folder for this process's weights; keep the returned file open as long as they are needed.

    Removes unlocked folders beside it, which killed processes have left, because they fill the machine's memory.
    """
    unclaimed = folder.with_name(f"claiming-{folder.name}")
    unclaimed.mkdir(parents=True)
    lock = open(unclaimed / "lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.replace(unclaimed, folder)
    for path in folder.parent.glob("jaxrl-*/lock"):
        with contextlib.suppress(OSError), open(path) as other:  # OSError: it is locked, or gone
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)
    return lock


def named_tensors(params: Any, config: ModelConfig, dtype: str) -> dict[str, np.ndarray]:
    """Hugging Face's names -> host arrays [out, in] in `dtype`, as views where the parameters are in host memory.

    Adapters are merged.
    """
    tensors = {}
    for path, value in merged_parameters(params, config, dtype):
        names, stacked, transposed = hf_tensors(path, config.num_layers)
        host = np.asarray(jax.device_get(value.astype(dtype) if value.dtype != dtype else value))
        for l, name in enumerate(names):
            tensor = host[l] if stacked else host
            tensors[name] = tensor.T if transposed else tensor
    return tensors


def adapter_tensors(params: Any, config: ModelConfig, dtype: str) -> dict[str, np.ndarray]:
    """PEFT's names -> the adapters' arrays [out, in] in `dtype`. The scale is in B, rounded once."""
    assert config.lora is not None
    adapters, _ = split_params(params)
    values = {str(path[-1]): np.asarray(jax.device_get(v[...])) for path, v in nnx.to_flat_state(adapters)}
    tensors = {}
    for name, (_, layers) in peft_tensors(config).items():
        scale = config.lora.scale if name.endswith("_lora_b") else 1.0
        for l, tensor in enumerate(layers):
            tensors[tensor] = (np.float32(scale) * values[name][l]).T.astype(_DTYPES[dtype][1])
    return tensors


def write_weights(
    tensors: dict[str, np.ndarray], dtype: str, folder: Path, adapters: Lora | None = None
) -> dict[str, np.ndarray]:
    """Writes FOLDER/model.safetensors (FOLDER must not exist) and returns the tensors as they are in the file.

    With `adapters` it is a PEFT folder, for the tensors of `adapter_tensors`. The folder is complete or absent.
    Raises OSError when the disk is full.
    """
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if adapters is not None:
            scaled = dataclasses.replace(adapters, alpha=float(adapters.rank), rank_stabilized=False)  # B is
            (partial / CONFIG_FILE).write_text(json.dumps(peft_fields(scaled)))
        name = WEIGHTS_FILE if adapters is not None else "model.safetensors"
        written = _write_file(tensors, dtype, partial / name)
        os.replace(partial, folder)
        return written
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_file(tensors: dict[str, np.ndarray], dtype: str, path: Path) -> dict[str, np.ndarray]:
    """One safetensors file: 8 bytes with the header's length, the header in JSON, the tensors one after another."""
    kind, numpy_dtype = _DTYPES[dtype]
    entries, end = {}, 0
    for name, tensor in tensors.items():
        entries[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    header += b" " * (-len(header) % 8)
    start = 8 + len(header)
    with open(path, "w+b") as file:
        os.posix_fallocate(file.fileno(), 0, start + end)  # a full disk gives an error here instead of a SIGBUS below
        mapped = mmap.mmap(file.fileno(), start + end)
    mapped[:start] = len(header).to_bytes(8, "little") + header
    written = {
        name: np.ndarray(tensor.shape, numpy_dtype, mapped, start + entries[name]["data_offsets"][0])
        for name, tensor in tensors.items()
    }
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        copies = [threads.submit(np.copyto, written[n][rows], tensors[n][rows]) for n, rows in _pieces(tensors)]
    for copy in copies:
        copy.result()
    return written


def _pieces(tensors: dict[str, np.ndarray], size: int = 16 << 20) -> Iterator[tuple[str, slice]]:
    """Every tensor in pieces of about `size` bytes, so that the threads finish together."""
    for name, tensor in tensors.items():
        rows = max(1, size * len(tensor) // max(tensor.nbytes, 1))
        for first in range(0, len(tensor), rows):
            yield name, slice(first, first + rows)


def expected_checksum(tensors: dict[str, np.ndarray], name: str, shape: list[int], rank: int, size: int) -> int | None:
    """CRC-32 of the first CHECKED_ROWS rows of vLLM's parameter `name` of `shape` on worker `rank` of `size`.

    vLLM shards rows of the embeddings, of q, k, v, gate and up over the workers, and columns of o and down; it joins
    q, k, v and gate, up. None for an unknown parameter.
    """
    joined = next((j for j in _JOINED if j in name), "")
    sources = [name.replace(joined, part) for part in _JOINED[joined]] if joined else [name]
    if any(source not in tensors for source in sources):
        return None
    rows = []
    for tensor in (tensors[source] for source in sources):
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor = tensor[:, rank * shape[1] : (rank + 1) * shape[1]]
        elif "norm" not in name and not name.endswith("o_proj.bias"):
            share = len(tensor) // size if joined else shape[0]  # embeddings may be padded
            tensor = tensor[rank * share : (rank + 1) * share]
        rows.append(tensor[:CHECKED_ROWS])
    return zlib.crc32(np.concatenate(rows)[:CHECKED_ROWS].tobytes())


def expected_adapters(tensors: dict[str, np.ndarray]) -> dict[str, list[list[int | None]]]:
    """What WorkerExtension.jaxrl_load_adapters returns for the tensors of `adapter_tensors`."""
    found: dict[str, list[list[int | None]]] = {}
    parts = {part: (joined, i) for joined, all_parts in _JOINED.items() for i, part in enumerate(all_parts)}
    for name, tensor in tensors.items():
        module, _, which = name.removeprefix("base_model.model.").rpartition(".lora_")
        block, _, matrix = module.rpartition(".")
        joined, place = parts.get(matrix, (matrix, 0))
        size = len(_JOINED.get(joined, (matrix,)))
        sums = found.setdefault(f"{block}.{joined}", [[None] * size, [None] * size])
        sums[which == "B.weight"][place] = zlib.crc32(np.ascontiguousarray(tensor).tobytes())
    return found
