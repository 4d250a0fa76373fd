"""Folders of safetensors: one file, or shards with an index. Reading by tensor or part, and writing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from models.files import ConversionError, read_json, reason_of

SHARD_BYTES = 5 * 2**30
_DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}


class SafetensorsFolder:
    """The tensors of a file, or of the shards that FILE.index.json names.

    A file is opened for each tensor, because the pages of a mapped file stay in memory while it is open.

    Raises ConversionError for a missing, truncated or broken file, and for a folder that has both a whole file and an
    index of other files, because either may be left over from an older model.
    """

    def __init__(self, folder: Path, file_name: str = "model.safetensors"):
        self.folder = folder
        path, index = folder / file_name, folder / f"{file_name}.index.json"
        placed = _read_index(index) if index.is_file() else {}
        names = sorted(set(placed.values())) or [file_name]
        if placed and path.is_file() and file_name not in names:
            newer = max(path, index, key=lambda p: p.stat().st_mtime).name
            raise ConversionError(
                f"{folder} has both {file_name} and {index.name}, which names other files ({names[0]}, ...): remove "
                f"the one that is left over from an older model ({newer} is newer)"
            )
        if not placed and not path.is_file():
            raise ConversionError(f"{folder} has neither {file_name} nor {index.name}")
        self._where: dict[str, tuple[str, tuple[int, ...], str]] = {}  # tensor -> file, shape, dtype
        for name in names:
            if not (folder / name).is_file():
                raise ConversionError(f"{folder / name}, named by {index.name}, does not exist")
            with self._open(name) as file:
                for tensor in file.keys():  # noqa: SIM118 (safe_open is not a mapping)
                    if tensor in self._where:
                        raise ConversionError(f"{folder}: tensor {tensor} is in {self._where[tensor][0]} and {name}")
                    piece = file.get_slice(tensor)
                    self._where[tensor] = name, tuple(piece.get_shape()), piece.get_dtype()

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        path = self.folder / name
        try:
            with safe_open(path, framework="np") as file:
                yield file
        except SafetensorError as error:
            raise ConversionError(f"{path} is truncated or not a safetensors file: {reason_of(error)}") from None
        except OSError as error:
            raise ConversionError(f"{path} cannot be read: {reason_of(error)}") from None

    def names(self) -> set[str]:
        return set(self._where)

    def own_name(self, name: str) -> str:
        """What the folder calls the tensor."""
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        return self._where[name][1]

    def dtype(self, name: str) -> np.dtype:
        """The tensor's dtype. Raises ConversionError for one that the decoder does not support."""
        file, _, kind = self._where[name]
        if kind not in _DTYPES:
            raise ConversionError(f"{self.folder / file}: tensor {name} is {kind}; supported: {', '.join(_DTYPES)}")
        return np.dtype(_DTYPES[kind])

    def common_dtype(self, names: Iterable[str]) -> np.dtype:
        """The type that holds all these tensors exactly: their own if they share it, else f32."""
        kinds = {self.dtype(name) for name in names}
        return kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)

    def read(self, name: str, part: tuple[slice, ...] = (), dtype: Any = None) -> np.ndarray:
        """The tensor, or a part of it, rounded by numpy to `dtype` (None: its own); the rest is not read."""
        with self._open(self._where[name][0]) as file:
            whole = all(s == slice(0, n) for s, n in zip(part, self.shape(name)))
            tensor = file.get_tensor(name) if whole else file.get_slice(name)[part]
            return tensor if dtype is None else tensor.astype(dtype, copy=False)


def _read_index(path: Path) -> dict[str, str]:
    """Tensor -> file, from a FILE.index.json."""
    placed = read_json(path).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ConversionError(f"{path}: weight_map must be an object that maps tensors to files, is {placed!r:.60}")
    for tensor, name in placed.items():
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise ConversionError(f"{path}: weight_map[{tensor!r}] must be the name of a file beside it, is {name!r}")
    return placed


def save_tensors(tensors: Iterable[tuple[str, np.ndarray]], folder: Path) -> dict[np.dtype, int]:
    """Writes model.safetensors, or shards and their index. Returns the bytes of each type that were written."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size, written = 0, dict[np.dtype, int]()
    for name, tensor in tensors:
        if size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
        written[tensor.dtype] = written.get(tensor.dtype, 0) + tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return written
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(written.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return written
