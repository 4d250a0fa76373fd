"""Files that are written whole or not at all, and logs of one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jaxrl.errors import UserError


def write_beside(path: Path, content: str | bytes) -> None:
    """Writes a file under another name and renames it. Lone surrogates, which models write, become escapes."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that was cut off is left out.

    Raises UserError with file and line for any other line that is not JSON.
    """
    records, lines = [], path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{path}:{number}: not JSON: {error}") from None
    return records


def resume_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file that lines are appended to; a last line that was cut off is cut from the file.

    Raises UserError as `read_metrics`.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
    return read_metrics(path)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends a record. ASCII, so that lone surrogates, which models write, are escapes."""
    with open(path, "a") as file:
        file.write(json.dumps(record) + "\n")
