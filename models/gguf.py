"""GGUF files: metadata, and tensors under Hugging Face's names, read part by part.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The gguf package decodes the block formats. The
header is read here: that package's reader makes objects of every word of the vocabulary (14 s and 0.5 GB for Qwen's)
and keeps the whole file mapped.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from models.files import ConversionError, reason_of

PLAIN = {
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}
CHUNK = 1 << 18  # values that are decoded at once, so that they stay in the processor's cache
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TYPES: dict[str, tuple[type, str]] = {  # of metadata; those that end with _token_id are whole numbers too
    **dict.fromkeys(("general.alignment", "split.count", "split.no"), (int, "a whole number")),
    **dict.fromkeys(("general.architecture", "tokenizer.chat_template"), (str, "a text")),
    **dict.fromkeys((f"tokenizer.ggml.{n}" for n in ("tokens", "scores", "token_type", "merges")), (list, "a list")),
}
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_FROM_HF = {theirs: ours for ours, theirs in (_OUTSIDE | _IN_LAYER).items()}


@dataclass(frozen=True)
class Stored:
    """Where a tensor is, and in which format."""

    file: Path
    offset: int
    shape: tuple[int, ...]  # as in Hugging Face's tensors: rows, columns; the file has them the other way round
    kind: GGMLQuantizationType

    @property
    def bits(self) -> float:
        """Bits per weight."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return 8 * size / block


@dataclass(frozen=True)
class GgufFile:
    """What a file, or all parts of a split one, hold."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Stored]


def read_gguf(path: Path) -> GgufFile:
    """The metadata and the places of the tensors; of a split file, given its first part, those of all parts.

    Raises FileNotFoundError, and ConversionError for a file that is truncated, in another format or version, or split
    with a part missing.
    """
    if not path.exists():
        raise FileNotFoundError(f"model file {str(path)!r} does not exist")
    metadata, tensors = _read_part(path)
    parts = metadata.get("split.count", 1)
    if parts > 1:
        found = _PART.fullmatch(path.name)
        if not found or int(found[3]) != parts or int(found[2]) != metadata.get("split.no", 0) + 1:
            raise ConversionError(
                f"{path} is one of {parts} parts, so its name must end with -00001-of-{parts:05}.gguf"
            )
        if int(found[2]) != 1:
            raise ConversionError(
                f"{path} is part {int(found[2])} of {parts}: give the first, {found[1]}-00001-of-{found[3]}.gguf"
            )
        for number in range(2, parts + 1):
            other = path.with_name(f"{found[1]}-{number:05}-of-{found[3]}.gguf")
            if not other.is_file():
                raise ConversionError(f"{other}, a part of {path.name}, does not exist")
            more = _read_part(other)[1]
            for name in sorted(tensors.keys() & more.keys()):
                raise ConversionError(f"{path.parent}: tensor {name} is in {tensors[name].file.name} and {other.name}")
            tensors |= more
    return GgufFile(path, metadata, tensors)


def _read_part(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    try:
        with open(path, "rb") as file:
            return _parse(_Header(path, file, path.stat().st_size))
    except OSError as error:
        raise ConversionError(f"{path} cannot be read: {reason_of(error)}") from None


class _Header:
    """The bytes of a header from first to last. Raises ConversionError where the file ends too early."""

    def __init__(self, path: Path, file: BinaryIO, size: int):
        self.path, self.file, self.size, self.place = path, file, size, 0

    def take(self, count: int) -> bytes:
        if self.place + count > self.size:
            raise ConversionError(f"{self.path} is truncated: it ends inside its header, at byte {self.size}")
        self.place += count
        return self.file.read(count)

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))

    def text(self) -> str:
        (length,) = self.numbers("Q")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise ConversionError(f"{self.path}: the text at byte {self.place - length} is not UTF-8") from None

    def value(self) -> Any:
        """A metadata value with its type before it: a number, a truth value, a text, or a list of one of them."""
        (kind,) = self.numbers("I")
        kind, count = self.numbers("IQ") if kind == _ARRAY else (kind, None)
        if kind == _STRING:
            return self.text() if count is None else [self.text() for _ in range(count)]
        if kind not in _NUMBERS:
            raise ConversionError(f"{self.path}: metadata of the unknown type {kind} before byte {self.place}")
        if count is None:
            return self.numbers(_NUMBERS[kind])[0]
        return np.frombuffer(self.take(count * struct.calcsize(_NUMBERS[kind])), f"<{_NUMBERS[kind]}").tolist()


def _parse(header: _Header) -> tuple[dict[str, Any], dict[str, Stored]]:
    path = header.path
    start = header.file.read(4)
    header.place = len(start)
    if start != b"GGUF":
        raise ConversionError(f"{path} is not a GGUF file: it begins with {start!r}, not with b'GGUF'")
    (version,) = header.numbers("I")
    if version not in (2, 3):
        big = version & 0xFFFF == 0
        raise ConversionError(f"{path} is {'big-endian' if big else f'GGUF version {version}'}; supported: 2 and 3")
    count, fields = header.numbers("QQ")
    metadata: dict[str, Any] = {}
    for _ in range(fields):
        name = header.text()
        metadata[name] = header.value()
        wanted, words = _TYPES.get(name, (int, "a whole number") if name.endswith("_token_id") else (object, ""))
        if not isinstance(metadata[name], wanted):
            raise ConversionError(f"{path}: {name} must be {words}, is {metadata[name]!r:.40}")
    places = [_tensor(header) for _ in range(count)]
    alignment = metadata.get("general.alignment", 32)
    if alignment <= 0:
        raise ConversionError(f"{path}: general.alignment must be more than 0, is {alignment}")
    data = -(-header.place // alignment) * alignment
    tensors: dict[str, Stored] = {}
    for name, shape, kind, offset in places:
        if name in tensors:
            raise ConversionError(f"{path}: tensor {name} is there twice")
        tensors[name] = Stored(path, data + offset, shape, kind)
        end = data + offset + row_bytes(tensors[name]) * math.prod(shape[:-1])
        if end > header.size:
            raise ConversionError(f"{path} is truncated: tensor {name} ends at byte {end}, the file at {header.size}")
    return metadata, tensors


def _tensor(header: _Header) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    """Name, shape, format and offset of a tensor."""
    name = header.text()
    (rank,) = header.numbers("I")
    shape = header.numbers(f"{min(rank, 64)}Q")[::-1]
    number, offset = header.numbers("IQ")
    known = number in set(GGMLQuantizationType)
    kind = GGMLQuantizationType(number) if known else GGMLQuantizationType.I8
    if not _decodable(kind):
        which = f"{kind.name}, which is not a format of weights" if known else f"in the unknown format {number}"
        raise ConversionError(f"{header.path}: tensor {name} is {which}; supported: {_supported()}")
    block, _ = GGML_QUANT_SIZES[kind]
    if not 1 <= rank <= 4 or shape[-1] % block:
        raise ConversionError(f"{header.path}: tensor {name} has shape {shape}, which {kind.name} does not allow")
    return name, shape, kind, offset


def row_bytes(tensor: Stored) -> int:
    block, size = GGML_QUANT_SIZES[tensor.kind]
    return tensor.shape[-1] // block * size


def read_rows(tensor: Stored, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """These rows, a few at a time: (which of `rows`, their values [n, columns]); block formats as f32.

    A vector is one row. The rows between the first and the last of each piece are read too.
    """
    columns, width = tensor.shape[-1], row_bytes(tensor)
    step = max(1, CHUNK // columns)
    with open(tensor.file, "rb", buffering=0) as file:
        for begin in range(0, len(rows), step):
            wanted = rows[begin : begin + step]
            first, last = int(wanted.min()), int(wanted.max())
            file.seek(tensor.offset + first * width)
            raw = np.fromfile(file, np.uint8, (last + 1 - first) * width)
            if raw.size < (last + 1 - first) * width:
                raise ConversionError(f"{tensor.file} has become shorter while it was read")
            raw = raw.reshape(-1, width)[wanted - first]
            if tensor.kind in PLAIN:
                values = raw.view(PLAIN[tensor.kind])
            else:
                values = dequantize(raw.reshape(1, -1), tensor.kind).reshape(-1, columns)
            yield slice(begin, begin + len(wanted)), values


@cache
def _decodable(kind: GGMLQuantizationType) -> bool:
    """Whether the gguf package decodes this format."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _supported() -> str:
    return ", ".join(kind.name for kind in GGMLQuantizationType if _decodable(kind))


def gguf_name(name: str) -> str:
    """The name in a GGUF file of a tensor with this Hugging Face name; one that is unknown stays as it is."""
    stem, _, end = name.rpartition(".")
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    if found and found[2] in _FROM_HF:
        return f"blk.{found[1]}.{_FROM_HF[found[2]]}.{end}"
    return f"{_FROM_HF[stem]}.{end}" if stem in _FROM_HF else name


def hf_name(name: str) -> str:
    """The inverse of `gguf_name`."""
    stem, _, end = name.rpartition(".")
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if found and found[2] in _IN_LAYER:
        return f"model.layers.{found[1]}.{_IN_LAYER[found[2]]}.{end}"
    return f"{_OUTSIDE[stem]}.{end}" if stem in _OUTSIDE else name


class GgufTensors:
    """Tensors of a GGUF file under Hugging Face's names, and in its order of rows; read like a SafetensorsFolder.

    Args:
        heads: the numbers of heads of q and k where their rows are interleaved, as in files of Llama models; () if not.
        embedding: the tensor that is the embedding; where it is "output.weight", that is not a head of its own.
        tied: whether the embedding is also the head.
    """

    def __init__(self, file: GgufFile, heads: tuple[int, ...], embedding: str, tied: bool):
        self.folder = file.path
        left_out = {"token_embd.weight", "rope_freqs.weight", *(("output.weight",) if tied else ())}
        self._stored = {hf_name(name): tensor for name, tensor in file.tensors.items() if name not in left_out}
        if embedding in file.tensors:
            self._stored["model.embed_tokens.weight"] = file.tensors[embedding]
        self._heads = dict(zip(("self_attn.q_proj", "self_attn.k_proj"), heads))

    def names(self) -> set[str]:
        return set(self._stored)

    def own_name(self, name: str) -> str:
        return gguf_name(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name].shape

    def dtype(self, name: str) -> np.dtype:
        """The tensor's dtype; f32 for block formats."""
        return PLAIN.get(self._stored[name].kind, np.dtype(np.float32))

    def common_dtype(self, names: Iterable[str]) -> np.dtype:
        """The type that holds all these tensors exactly: their own if they share it, else f32."""
        kinds = {self.dtype(name) for name in names}
        return kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)

    def read(self, name: str, part: tuple[slice, ...] = (), dtype: Any = None) -> np.ndarray:
        """The tensor, or a part of it, in `dtype` (None: its own). The rest of its rows is not read."""
        tensor, dtype = self._stored[name], np.dtype(dtype or self.dtype(name))
        order = np.arange(tensor.shape[0])
        heads = next((n for kind, n in self._heads.items() if kind in name), 0)
        if heads:  # the file has the pairs that are rotated together side by side, Hugging Face halves of a head
            order = order.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
        if len(tensor.shape) == 1:
            ((_, values),) = read_rows(tensor, np.zeros(1, int))
            return values[0, order][part].astype(dtype, copy=False)
        rows, columns = part or (slice(None), slice(None))
        wanted = order[rows]
        out = np.empty((len(wanted), len(range(tensor.shape[1])[columns])), dtype)
        for place, values in read_rows(tensor, wanted):
            out[place] = values[:, columns]
        return out
