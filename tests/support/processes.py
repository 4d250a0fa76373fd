"""The processes of this machine, which may end while one looks at them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def command_line(pid: int) -> bytes:
    """The words of a process, with zeros between them; nothing if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def command_lines() -> dict[int, bytes]:
    """Those of all processes, by number."""
    return {int(path.name): command_line(int(path.name)) for path in Path("/proc").glob("[0-9]*")}


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found
