"""Detects damage in a folder of arrays saved by orbax.

Orbax notices a damaged index, but loads a changed byte in the arrays themselves as another weight.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import tensorstore

CHECKSUMS = "checksums.json"  # in the folder: {file: [bytes, CRC-32]}
PART = 1 << 24  # bytes read at a time


def write_checksums(folder: Path) -> None:
    """Writes the checksums of all files of the folder into it. Raises OSError."""
    sums = {str(path.relative_to(folder)): [path.stat().st_size, _crc32(path)] for path in _files(folder)}
    partial = folder / f"{CHECKSUMS}.partial-{os.getpid()}"
    partial.write_text(json.dumps(sums))
    os.replace(partial, folder / CHECKSUMS)


def find_damage(folder: Path) -> str:
    """What is damaged in the folder, naming the file; "" if no damage is found.

    A folder of an earlier version has no checksums; only its absence or emptiness is found.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return f"{folder} {'is empty' if folder.is_dir() else 'does not exist'}"
    if not (folder / CHECKSUMS).is_file():
        return ""
    try:
        sums = json.loads((folder / CHECKSUMS).read_bytes())
        for name, (size, crc) in sums.items():
            path = folder / name
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != size:
                return f"{path} has {path.stat().st_size} bytes, {size} were written"
            if _crc32(path) != crc:
                return f"{path} has changed since it was written (its checksum differs)"
    except (ValueError, TypeError, AttributeError):
        return f"{folder / CHECKSUMS} cannot be read"
    return ""


def missing_arrays(folder: Path, count: int) -> int:
    """How many of the `count` arrays saved in the folder a reader cannot find."""
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder.absolute()}/"}}
    keys = tensorstore.KvStore.open(store).result().list().result()
    return max(count - sum(key.rpartition(b"/")[2] in (b".zarray", b"zarr.json") for key in keys), 0)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(CHECKSUMS))


def _crc32(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while part := file.read(PART):
            crc = zlib.crc32(part, crc)
    return crc
