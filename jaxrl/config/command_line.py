"""`--config FILE --config.field=value ...` to a Config, with errors that name the nearest right field."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import io
import re
import sys
import textwrap
import tokenize
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl.config import Config
from jaxrl.config.plugins import built_in, settle, slots
from jaxrl.config.rules import check_settings, nearest, rules_of, settings_in
from jaxrl.errors import UserError


class Override(NamedTuple):
    """`--config.a.b=value`; value None: a switch, `--config.a.b` or `--noconfig.a.b`."""

    path: str
    value: str | None
    on: bool = True


def read_config(arguments: list[str]) -> Config:
    """The Config of `--config FILE`, with the overrides `--config.a.b=value` among the arguments.

    `FILE:TEXT` calls get_config(TEXT). With --help, prints the config's settings and ends the process.

    Raises UserError for a missing file and one that is not Python, an unknown field (naming the nearest), a value that
    is not allowed (`check_settings`), and an argument that is neither. What get_config() raises keeps its traceback.
    """
    file, overrides, wants_help = _parse(arguments)
    config = load_config(file) if file or not wants_help else Config()
    settle(config)
    chosen = [override for override in overrides if _plugin_name(config, override.path)]
    for override in chosen:  # first, because the plug-in decides which settings there are
        _choose(config, override)
    settle(config)
    for path, values in _grouped(o for o in overrides if o not in chosen).items():
        _set(config, path, values)
    if wants_help:
        print(describe(config), end="")
        sys.exit(0)
    _with_home(config)
    check_settings(config)
    return config


def load_config(file: str) -> Config:
    """What get_config() of the file returns; FILE:TEXT gives it the text. Raises UserError."""
    if not file:
        raise UserError("no config given; try --config configs/grpo.py")
    name, colon, text = (file, "", "") if Path(file).is_file() else file.partition(":")
    path = Path(name)
    if not path.is_file():
        raise UserError(f"config file {name!r} does not exist")
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {name!r} must be a Python file, NAME.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses of the file look for their annotations
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, UnicodeDecodeError) as error:
        where = f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) else str(path)
        raise UserError(f"{where}: not Python: {error.args[0]}") from None
    if not hasattr(module, "get_config"):
        raise UserError(f"config file {name!r} must define get_config() -> jaxrl.config.Config")
    config = module.get_config(text) if colon else module.get_config()
    if not isinstance(config, Config):
        raise UserError(f"get_config() returned a {type(config).__name__}, should return a jaxrl.config.Config")
    return config


def describe(config: Config) -> str:
    """The settings of a config, one a line, with their values and what the source says beside them."""
    lines = []
    for where, part in settings_in(config):
        comments = _comments(type(part))
        heading = inspect.getdoc(type(part)) or ""
        lines.append(f"\n{'.'.join(filter(None, ('config', where)))}: {heading.splitlines()[0] if heading else ''}")
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if not dataclasses.is_dataclass(value):
                setting = f"  --{'.'.join(filter(None, ('config', where, field.name)))}={value!r}"
                comment = comments.get(field.name, "")
                lines.append(f"{setting:<60}  {comment}".rstrip())
    return "\n".join(lines).lstrip("\n") + "\n"


def at_least(least: int) -> Callable[[str], int]:
    """The type of a whole number >= least among a command's own options, for argparse."""

    def whole_number(text: str) -> int:
        if not text.strip().lstrip("+-").isdigit() or int(text) < least:
            raise ArgumentTypeError(f"{text!r} must be a whole number >= {least}")
        return int(text)

    return whole_number


def _parse(arguments: list[str]) -> tuple[str, list[Override], bool]:
    """The config file, the overrides in order, and whether help is wanted."""
    file, overrides, rest = "", [], list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        name = re.sub("^--?", "", name)
        if argument in ("-h", "--help"):
            return file or _file_in(rest), overrides, True
        if name == "config":
            file = value if equals else rest.pop(0) if rest else ""
        elif name.startswith(("config.", "noconfig.")) and argument.startswith("-"):
            path = name.partition(".")[2]
            if not equals and rest and not rest[0].startswith(("--", "-config", "-h")):
                value, equals = rest.pop(0), " "
            overrides.append(Override(path, value if equals else None, on=name.startswith("config.")))
        else:
            raise UserError(
                f"unexpected argument {argument!r}; overrides look like --config.optimizer.learning_rate=1e-6"
            )
    return file, overrides, False


def _file_in(arguments: list[str]) -> str:
    pairs = zip(arguments, [*arguments[1:], ""])
    return next((a.partition("=")[2] or b for a, b in pairs if a.partition("=")[0] in ("--config", "-config")), "")


def _grouped(overrides: Iterator[Override]) -> dict[str, list[Override]]:
    """By path: a tuple may be given item by item."""
    groups: dict[str, list[Override]] = {}
    for override in overrides:
        groups.setdefault(override.path, []).append(override)
    return groups


def _find(config: Any, path: str) -> tuple[Any, str]:
    """The settings that hold the field a.b[0].c of the config, and its name. Raises UserError unless there is one."""
    holder, parts = config, re.findall(r"[^.\[\]]+", path)
    for depth, part in enumerate(parts):
        where = ".".join(["config", *parts[:depth]])
        if isinstance(holder, (tuple, list)) and part.isdigit() and int(part) < len(holder):
            holder = holder[int(part)]
            continue
        if not dataclasses.is_dataclass(holder):
            raise UserError(f"{where} is a plain value and has no field {part!r}")
        if (inside := _inside(holder, part)) is not None:
            holder = inside
            continue
        names = [f.name for f in dataclasses.fields(holder)]
        if part not in names:
            raise UserError(f"{where} has no field {part!r}{nearest(part, names, f'{where}.')}")
        if depth == len(parts) - 1:
            return holder, part
        holder = getattr(holder, part)
    raise UserError(f"config.{path} is not a setting")


def _inside(holder: Any, part: str) -> Any:
    """What rollout.interpreter means in rollout.interpreter.max_calls: the chosen environment, or one that is not."""
    for name, plugin in slots(type(holder)).items():
        if part in built_in(plugin) and part not in rules_of(type(holder)):
            current = getattr(holder, name)
            return current if getattr(current, "name", "") == part else getattr(holder, part, None)
    return None


def _plugin_name(config: Any, path: str) -> bool:
    """Whether the path names a plug-in: config.task, or config.task.name."""
    parent, _, last = path.rpartition(".")
    try:
        holder, name = _find(config, parent if last == "name" and parent else path)
    except UserError:
        return False  # of the plug-in that is not chosen yet
    return name in slots(type(holder))


def _choose(config: Any, override: Override) -> None:
    holder, name = _find(config, override.path.removesuffix(".name"))
    value, current = override.value or "", getattr(holder, name)
    if not value:
        usual = next(f for f in dataclasses.fields(holder) if f.name == name).default_factory
        if not callable(usual) or usual().name:
            raise UserError(f"config.{override.path} needs a name")
        setattr(holder, name, usual())  # evaluation.task: the run's own
    elif not dataclasses.is_dataclass(current):
        setattr(holder, name, value)
    else:
        vars(current)["name"] = value


def _set(config: Any, path: str, overrides: list[Override]) -> None:
    """Sets a field by the type that it is declared with. Raises UserError for a text that is not of that type."""
    holder, name = _find(config, path)
    rule, last = rules_of(type(holder))[name], overrides[-1]
    kind = type(rule.choices[0]) if rule.choices else rule.kind
    if dataclasses.is_dataclass(getattr(holder, name)):
        raise UserError(f"config.{path} has fields of its own; set one of them, such as config.{path}."
                        f"{dataclasses.fields(getattr(holder, name))[0].name}")  # fmt: skip
    if last.value is None:
        if kind is not bool or rule.is_tuple:
            raise UserError(f"config.{path} needs a value: --config.{path}=VALUE")
        setattr(holder, name, last.on)
    elif rule.is_tuple:
        items = [item for o in overrides for item in _items(o.value or "", kind)]
        setattr(holder, name, tuple(_typed(path, item, kind) for item in items))
    else:
        setattr(holder, name, _typed(path, last.value, kind))


def _items(text: str, kind: type) -> list[Any]:
    """The items of a tuple: "(1, 2)", "('a', 'b')", "1,2" or one item."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        is_list = kind is not str and text.startswith("(") and text.endswith(")")
        value = [part.strip() for part in text[1:-1].split(",") if part.strip()] if is_list else text
    if isinstance(value, (tuple, list)):
        return list(value)
    return [text if kind is str else value]


def _typed(path: str, value: Any, kind: type) -> Any:
    words = {int: "a whole number", float: "a number", bool: "True or False"}
    if kind is str or not isinstance(value, str):
        return value
    try:
        if kind is bool:
            return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}[value.lower()]
        return kind(value)
    except (ValueError, KeyError):
        raise UserError(f"config.{path} = {value!r} must be {words.get(kind, kind.__name__)}") from None


def _with_home(config: Any) -> None:
    """~/ at the start of a text becomes the user's folder: shells leave it in --config.a.b=~/x.

    Raises UserError where the user's folder is not known.
    """
    for where, part in settings_in(config):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if isinstance(value, str) and value.startswith("~/"):
                try:
                    setattr(part, field.name, str(Path(value).expanduser()))
                except RuntimeError:
                    reason = "the user's folder is not known; set HOME, or give the whole path"
                    raise UserError(f"{where}.{field.name} = {value!r}: {reason}".lstrip(".")) from None


def _comments(kind: type) -> dict[str, str]:
    """What stands beside each field of a settings class and its base classes, or in the lines above it."""
    comments: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            source = textwrap.dedent(inspect.getsource(base))
            notes = _notes(source)
            [definition] = ast.parse(source).body
            for node in definition.body if isinstance(definition, ast.ClassDef) else ():
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    beside = [notes[n][1] for n in range(node.lineno, (node.end_lineno or 0) + 1) if n in notes]
                    above = node.lineno - 1
                    while not beside and notes.get(above, (False,))[0]:
                        above -= 1
                    text = beside or [notes[n][1] for n in range(above + 1, node.lineno)]
                    comments[node.target.id] = " ".join(text)
    return comments


def _notes(source: str) -> dict[int, tuple[bool, str]]:
    """By line: whether a comment is all that it holds, and the comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: (token.line.lstrip().startswith("#"), token.string.lstrip("# "))
        for token in tokens
        if token.type == tokenize.COMMENT and not token.string.startswith(("# fmt:", "# noqa", "# type:", "# pyright:"))
    }
