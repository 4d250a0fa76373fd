"""Errors for the user, and the wrapper around every command's main() that prints them as one line.

Any other exception, such as a ValueError in a new loss or environment, is a programming error and keeps its traceback.
JAXRL_TRACEBACK=1 shows the traceback of all errors.
"""

from __future__ import annotations

import functools
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from errno import EIO, EPIPE
from typing import Any, TextIO, TypeVar

Arguments = TypeVar("Arguments", bound=Sequence[str])


class UserError(ValueError):
    """A mistake in the settings, the data or a file; the message names it and says what is allowed."""


class TrainingError(RuntimeError):
    """Training must not continue (because the loss is not finite, for example)."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message names it and the last good one."""


class ChannelError(RuntimeError):
    """Processes cannot connect, or one is gone; the message says which."""


def for_user(error: BaseException) -> bool:
    """Whether the message is all that the user needs: our own errors, and those of the operating system."""
    if os.environ.get("JAXRL_TRACEBACK"):
        return False
    if isinstance(error, (UserError, TrainingError, CheckpointError, ChannelError, OSError)):
        return True
    # The packages below define their own, and take long to import: only now that something has failed.
    from models.config import UnsupportedModelError
    from models.convert import ConversionError
    from models.sharding import MeshError
    from rollouts.engine import UnsupportedError
    from rollouts.template import TemplateError
    from rollouts.vllm.sidecar import SidecarError
    from sandbox.launch import WorkerError
    from sandbox.layers import IsolationError

    lower = (UnsupportedModelError, ConversionError, MeshError, TemplateError, UnsupportedError, SidecarError)
    return isinstance(error, (*lower, IsolationError, WorkerError))


def one_line(error: BaseException) -> str:
    """The message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def command(failed: int = 1) -> Callable[[Callable[[Arguments], int]], Callable[[Arguments], int]]:
    """Decorates a command's main(arguments): errors for the user become one line on stderr and exit status `failed`.

    Ctrl-C gives status 130. A closed stdout or stderr does not end the command, see `outlive_readers`. What Python
    warns of in the programs that models write, which are parsed here, is not shown.
    """

    def decorate(main: Callable[[Arguments], int]) -> Callable[[Arguments], int]:
        @functools.wraps(main)
        def wrapped(arguments: Arguments) -> int:
            outlive_readers()
            warnings.simplefilter("ignore", SyntaxWarning)
            try:
                return main(arguments)
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                return 130
            except Exception as error:
                if not for_user(error):
                    raise
                print(f"error: {one_line(error)}", file=sys.stderr)
                return failed

        return wrapped

    return decorate


class _Output(io.FileIO):
    """A standard stream that stays writable after its reader has gone; later output is lost."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in (EPIPE, EIO):  # a closed pipe, a lost terminal
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # for the output of libraries and child processes too
        os.close(nowhere)
        return memoryview(data).nbytes


def outlive_readers() -> None:
    """From now on `| head -1`, or closing the terminal, ends the output but not the work."""
    sys.stdout, sys.stderr = _lasting(sys.stdout, sys.__stdout__), _lasting(sys.stderr, sys.__stderr__)


def _lasting(stream: TextIO, original: TextIO | None) -> TextIO:
    """Replaces only a stream that Python itself opened, not one that a test or a notebook has put in its place."""
    if original is None or stream is not original or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    raw = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(
        raw, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering or stream is sys.__stderr__
    )
