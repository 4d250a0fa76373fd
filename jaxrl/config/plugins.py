"""Plug-ins: modules that a setting names, each with a class Settings of its own.

A task, an environment and an objective are plug-ins. The setting that chooses one holds its settings:

    config.task = functions.Settings(max_difficulty=3)      in a config file
    config.task.name = "functions"                          the same module by name; its settings follow
    --config.task=my_package.my_task                        on the command line: an import path
    --config.task=path/to/task.py --config.task.size=3      or a file, and a setting of its own
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from jaxrl.config.rules import nearest, rules_of, settings_in
from jaxrl.errors import UserError


@runtime_checkable
class Named(Protocol):
    """Settings of a plug-in, a dataclass; `name` is its module's, "" as long as that follows from the class."""

    name: str


@dataclass(frozen=True)
class Plugin:
    """In an annotation: the field holds the settings of a plug-in."""

    kind: str  # for messages: task
    package: str  # where the ones that come with jaxrl are: jaxrl.tasks
    factory: str  # what the module must have beside Settings: make_task


PLUGINS = {
    "task": Plugin("task", "jaxrl.tasks", "make_task"),
    "environment": Plugin("environment", "rollouts.environments", "make_environment"),
    "objective": Plugin("objective", "jaxrl.algorithms", "make_objective"),
}


def named(kind: str, name: str) -> Any:
    """A dataclass field whose default is the settings of the plug-in `name`."""
    return field(default_factory=lambda: make_settings(PLUGINS[kind], name))


def load_plugin(plugin: Plugin, name: str) -> ModuleType:
    """The module that `name` means: of the plug-in's package, an import path, or a .py file.

    Raises UserError where there is none, naming the nearest, or where it lacks Settings or the factory.
    """
    if name.endswith(".py"):
        module = _from_file(plugin, name)
    elif "." in name:
        module = _from_path(plugin, name)
    elif name in built_in(plugin):
        module = importlib.import_module(f"{plugin.package}.{name}")
    else:
        raise UserError(f"{plugin.kind} {name!r} does not exist{nearest(name, built_in(plugin))}")
    for needed in ("Settings", plugin.factory):
        if not hasattr(module, needed):
            raise UserError(f"{plugin.kind} {name!r}: {module.__file__} has no {needed}; see docs/extending.md")
    kind = module.Settings
    if not dataclasses.is_dataclass(kind) or "name" not in {f.name for f in dataclasses.fields(kind)}:
        raise UserError(f'{plugin.kind} {name!r}: Settings must be a dataclass with a field name: str = ""')
    return module


@cache
def built_in(plugin: Plugin) -> list[str]:
    """The names of the plug-ins that come with jaxrl: the modules of the package that define the factory."""
    package = importlib.import_module(plugin.package)
    found = []
    for module in pkgutil.iter_modules(package.__path__):
        source = Path(package.__path__[0], f"{module.name}.py")
        if source.is_file() and f"\ndef {plugin.factory}(" in source.read_text():
            found.append(module.name)
    return sorted(found)


def _from_file(plugin: Plugin, name: str) -> ModuleType:
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{plugin.kind} {name!r}: this file does not exist; the path is taken from {Path.cwd()}")
    module_name = f"plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    return sys.modules[module_name]


def _from_path(plugin: Plugin, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"{plugin.kind} {name!r} cannot be imported: module {error.name!r} is not on the path (PYTHONPATH?)"
            ) from None
        raise  # the plug-in's own import


def make_settings(plugin: Plugin, name: str, **values: Any) -> Any:
    """The settings of a plug-in with these values. Raises UserError for a value that is not one of its settings."""
    kind = load_plugin(plugin, name).Settings
    fields = {f.name for f in dataclasses.fields(kind)}
    for unknown in values.keys() - fields:
        raise UserError(f"{plugin.kind} {name!r} has no setting {unknown!r}{nearest(unknown, fields)}")
    return kind(**{**values, "name": name})


def settle(config: Any) -> None:
    """Makes the settings of each plug-in in the config an instance of that plug-in's own class, in place.

    What was set before the name was stays set, if both plug-ins have it. Raises UserError for what neither has.
    """
    for where, part in list(settings_in(config)):
        for name, plugin in slots(type(part)).items():
            settled = _settled(plugin, getattr(part, name), f"{where}.{name}".lstrip("."))
            blocks = blocks_of(part, plugin)
            setattr(part, name, blocks.pop(getattr(settled, "name", ""), settled))


def blocks_of(part: Any, plugin: Plugin | None = None) -> dict[str, Any]:
    """Settings by the names of plug-ins that are not chosen (yet): see RolloutConfig.__getattr__."""
    blocks: dict[str, Any] = vars(part).setdefault("_blocks", {})
    for name in vars(part).keys() & set(built_in(plugin)) - rules_of(type(part)).keys() if plugin else ():
        blocks[name] = vars(part).pop(name)  # assigned as a whole
    for name, block in blocks.items():
        block.name = name
    return blocks


def chosen(config: Any, kind: str) -> list[Any]:
    """The settings of all plug-ins of this kind ("environment") anywhere in the config."""
    plugin = PLUGINS[kind]
    held = [
        (part, name) for _, part in settings_in(config) for name, slot in slots(type(part)).items() if slot is plugin
    ]
    return [value for part, name in held if dataclasses.is_dataclass(value := getattr(part, name))]


def slots(kind: type) -> dict[str, Plugin]:
    """The fields of a settings class that hold the settings of a plug-in."""
    found = {
        name: next((b for b in rule.bounds if isinstance(b, Plugin)), None) for name, rule in rules_of(kind).items()
    }
    return {name: plugin for name, plugin in found.items() if plugin is not None}


def _settled(plugin: Plugin, value: Any, where: str) -> Any:
    if value is None or value == "":
        return value
    if isinstance(value, str):
        return make_settings(plugin, value)
    if not dataclasses.is_dataclass(value) or not isinstance(value, Named):
        raise UserError(f"{where} = {value!r} must be the settings of a {plugin.kind}: a dataclass with a name")
    own = plugin_name(plugin, type(value))
    name = value.name or own
    if not name and type(value).__name__ == "Settings":
        raise UserError(f"{where}: class Settings must be in the {plugin.kind}'s own module, beside {plugin.factory}")
    if not name or name == own or (own and load_plugin(plugin, name).Settings is type(value)):
        value.name = name
        return value
    kind = load_plugin(plugin, name).Settings
    values = {
        n: v for n, v in vars(value).items() if n != "name" and not n.startswith("_") and not _is_default(value, n, v)
    }
    fields, before = ({f.name for f in dataclasses.fields(k)} for k in (kind, type(value)))
    for unknown in sorted(values.keys() - fields - before):
        raise UserError(f"{where}.{unknown} is not a setting of {plugin.kind} {name!r}{nearest(unknown, fields)}")
    return kind(**{**{n: v for n, v in values.items() if n in fields}, "name": name})


def plugin_name(plugin: Plugin, kind: type) -> str:
    """The name by which a settings class is found again; "" for a class that is not a plug-in's own."""
    module = sys.modules.get(kind.__module__)
    if module is None or getattr(module, "Settings", None) is not kind:
        return ""
    if kind.__module__.startswith("plugin_"):
        return str(module.__file__)
    package, _, last = kind.__module__.rpartition(".")
    return last if package == plugin.package else kind.__module__


def _is_default(settings: Any, name: str, value: Any) -> bool:
    for f in dataclasses.fields(settings):
        if f.name == name:
            default: Callable[[], Any] | Any = f.default
            if default is dataclasses.MISSING and f.default_factory is not dataclasses.MISSING:
                default = f.default_factory()
            return value == default
    return False
