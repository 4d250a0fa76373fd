"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_beside(path: Path, content: str | bytes) -> None:
    """Writes the file beside its place and renames it. Lone surrogates, which models write, become escapes."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
