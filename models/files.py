"""Files of models: JSON read with errors that name the file, folders that are complete or absent."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

DATA_FILE = 2**31  # approximate bytes of a file into which orbax writes arrays


class ConversionError(ValueError):
    """A model folder that cannot be read or written; the message names the file, or the tensor."""


def read_json(path: Path, error: type[ValueError] = ConversionError) -> dict[str, Any]:
    """The JSON object in a file. Raises `error` naming the file where it cannot be read or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as found:
        raise error(f"{path}:{found.lineno}: not JSON: {found.msg}") from None
    except (OSError, ValueError, RecursionError) as found:  # ValueError: not UTF-8, a number of 5,000 digits
        raise error(f"{path}: cannot be read: {reason_of(found)}") from None
    if not isinstance(value, dict):
        raise error(f"{path}: must hold a JSON object, holds a {type(value).__name__}")
    return value


def reason_of(error: BaseException) -> str:
    """The first line of an error's message, without the file names that the system adds."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def expanded(path: str | Path) -> Path:
    """The path with ~ expanded to the user's folder. Raises ConversionError where that is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConversionError(f"{path}: the user's folder is not known; set HOME, or give the whole path") from None


def is_gguf(path: Path) -> bool:
    """Whether a model's path is read as a GGUF file: one that is named so, or any file."""
    return not path.is_dir() and (path.suffix == ".gguf" or path.is_file())


def check_room(folder: Path, size: int) -> None:
    """Raises OSError where orbax cannot write `size` bytes: the disk is full, or the limit on file sizes is too low.

    Checked before, because each of orbax's threads would print its own traceback.
    """
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and min(size, DATA_FILE) > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    if size > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def written_beside(out: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `out` at the end; removed if anything fails.

    Raises ConversionError if `out` exists and is not empty, or cannot be written (because the disk is full).
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConversionError(f"{out} exists and is not empty; give a new folder")
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    except (OSError, SafetensorError) as error:
        files = [str(f) for f in (getattr(error, "filename", None), getattr(error, "filename2", None)) if f]
        if files and not any(str(partial) in file for file in files):
            raise  # of a file that is read meanwhile
        raise ConversionError(f"{out} cannot be written: {reason_of(error)}") from error
    finally:
        for _ in range(20):  # threads of a writer that failed may still write
            shutil.rmtree(partial, ignore_errors=True)
            if not partial.exists():
                break
            time.sleep(0.1)
