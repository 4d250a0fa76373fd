"""`--config FILE --config.field=value ...` to a Config, with errors that name the nearest right field."""

from __future__ import annotations

import dataclasses
import sys
import typing
from difflib import get_close_matches
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from jaxrl.config import Config


class UserError(ValueError):
    """A mistake of the user's, said in one line; entry points print it without a traceback."""


class TrainingError(RuntimeError):
    """Training cannot go on (a loss that is not finite, say); the message is for the user, without a traceback."""


def read_config(arguments: list[str]) -> Config:
    """The Config of `--config FILE`, with the overrides `--config.a.b=value` among the arguments.

    `FILE:TEXT` calls get_config(TEXT).

    Raises UserError for a missing or broken file, an unknown field (naming the nearest), a value of the wrong type,
    and an argument that is neither.
    """
    _check_file_and_fields(arguments)
    values, command = flags.FlagValues(), sys.argv
    sys.argv = ["jaxrl", *arguments]  # where ml_collections looks for the overrides
    try:
        config_flags.DEFINE_config_file("config", flag_values=values)
        rest = values(sys.argv)
    except flags.Error as error:
        raise UserError(str(error).splitlines()[0]) from None
    finally:
        sys.argv = command
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; overrides look like --config.optimizer.learning_rate=1e-6")
    if values.config is None:
        raise UserError("no config given; try --config configs/grpo.py")
    if not isinstance(values.config, Config):
        raise UserError(f"get_config() returned a {type(values.config).__name__}, should return a jaxrl.config.Config")
    return _with_home(values.config)


def _with_home(settings: typing.Any) -> typing.Any:
    """The settings with ~/ at the start of a text as the user's folder: shells leave it in --config.a.b=~/x."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            _with_home(value)
        elif isinstance(value, str) and value.startswith("~/"):
            setattr(settings, field.name, str(Path(value).expanduser()))
    return settings


def _check_file_and_fields(arguments: list[str]) -> None:
    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in ("--config", "-config"):
            path = Path(value or (arguments[i + 1] if i + 1 < len(arguments) else ""))
            if not path.is_file() and not Path(str(path).partition(":")[0]).is_file():  # FILE:ARGUMENT of get_config
                raise UserError(f"config file {str(path)!r} does not exist")
        elif name.startswith(("--config.", "-config.")):
            _check_field(name.lstrip("-").removeprefix("config."))


def _check_field(path: str) -> None:
    """Raises UserError unless a.b.c is a field of Config."""
    holder: typing.Any = Config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        names = [f.name for f in dataclasses.fields(holder)] if dataclasses.is_dataclass(holder) else []
        where = ".".join(["config", *parts[:depth]])
        if not names:
            raise UserError(f"{where} is a plain value and has no field {part!r}")
        if part not in names:
            near = get_close_matches(part, names, 1, cutoff=0.5)
            hint = f"did you mean {where}.{near[0]}?" if near else f"its fields: {', '.join(names)}"
            raise UserError(f"{where} has no field {part!r}; {hint}")
        holder = typing.get_type_hints(holder)[part]
