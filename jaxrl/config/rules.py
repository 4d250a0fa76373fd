"""What a setting may be, written in its annotation, and the one walk that checks all settings of a config.

    q0_samples: Annotated[int, Ge(2)] = 32
    objective: Literal["clip", "cispo", "sapo"] = "clip"

The bounds are those of the package annotated_types. A settings class may also have check(where), for rules between its
fields; `where` is the name of the settings there, such as "sft.optimizer".
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Gt, Le, Lt

from jaxrl.errors import UserError

_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}


class Off:
    """Beside a range: 0 is allowed too, and switches the setting off."""


class Infinite:
    """Beside a range: infinity is allowed too."""


@dataclass(frozen=True)
class Words:
    """Beside a range: what error messages say instead of the bounds."""

    text: str


Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
NonNegative = Annotated[float, Ge(0)]
AboveZero = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
RewardValue = Annotated[float, Ge(-1e6), Le(1e6)]


class Rule(NamedTuple):
    """What one field may be: a type (the item's type for tuples), choices or bounds."""

    kind: Any  # int, float, bool, str, or a class
    is_tuple: bool
    choices: tuple[Any, ...]  # (): any value of the kind
    bounds: tuple[Any, ...]  # Ge, Gt, Le, Lt, Off, Infinite, Words

    def of(self, bound: type) -> Any:
        """The bound of this kind; None if there is none."""
        return next((b for b in self.bounds if isinstance(b, bound) or b is bound), None)

    def allows(self, number: float) -> bool:
        if math.isnan(number) or (math.isinf(number) and not self.of(Infinite)):
            return False
        if number == 0 and self.of(Off):
            return True
        ge, gt, le, lt = (self.of(bound) for bound in (Ge, Gt, Le, Lt))
        high = (not le or number <= le.le) and (not lt or number < lt.lt)
        return high and (not ge or number >= ge.ge) and (not gt or number > gt.gt)

    def __str__(self) -> str:
        """What comes after "must be"."""
        if words := self.of(Words):
            return words.text
        ge, gt, le, lt = (self.of(bound) for bound in (Ge, Gt, Le, Lt))
        text = f">= {ge.ge:g}" if ge else f"> {gt.gt:g}" if gt else ""
        if le or lt:
            first = f"({gt.gt:g}" if gt else f"[{ge.ge:g}" if ge else "(-inf"
            text = f"in {first}, {_plain(le.le)}]" if le else f"in {first}, {lt.lt:g})"
        return f"0 (off) or {text}" if self.of(Off) else text or "a finite number"


@cache
def rules_of(settings: type) -> dict[str, Rule]:
    """The rule of each field of a settings class, read from its annotations."""
    hints = typing.get_type_hints(settings, include_extras=True)
    return {field.name: _rule(hints[field.name]) for field in dataclasses.fields(settings)}


def _rule(hint: Any, bounds: tuple[Any, ...] = ()) -> Rule:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _rule(arguments[0], (*bounds, *arguments[1:]))
    if origin is Literal:
        return Rule(type(arguments[0]), False, arguments, bounds)
    if origin is tuple:
        return _rule(arguments[0], bounds)._replace(is_tuple=True)
    return Rule(hint, False, (), bounds)


def settings_in(settings: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The settings and all settings inside them, each with its name: ("", config), ("model", config.model), ..."""
    yield where, settings
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{where}.{field.name}".lstrip(".")
        if dataclasses.is_dataclass(value):
            yield from settings_in(value, name)
        elif isinstance(value, (tuple, list)):
            for i, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    yield from settings_in(item, f"{name}[{i}]")


def check_settings(settings: Any, where: str = "") -> None:
    """Raises UserError naming the first setting, however deep, whose value is not allowed, and what is."""
    for name, part in settings_in(settings, where):
        fields = {field.name for field in dataclasses.fields(part)}
        for unknown in sorted(n for n in vars(part).keys() - fields if not n.startswith("_")):
            raise UserError(f"{name}.{unknown} is not a setting".lstrip(".") + nearest(unknown, fields, f"{name}."))
        for field, rule in rules_of(type(part)).items():
            _check_value(f"{name}.{field}".lstrip("."), getattr(part, field), rule)
    for name, part in settings_in(settings, where):
        if hasattr(part, "check"):
            try:
                part.check(name)
            except ValueError as error:  # of packages that do not know UserError
                raise UserError(str(error)) from None


def nearest(name: str, known: typing.Iterable[str], before: str = "") -> str:
    """The end of a message: which known name may have been meant, else all of them."""
    known = sorted(known)
    near = get_close_matches(name, known, 1, cutoff=0.5)
    return f"; did you mean {before.lstrip('.')}{near[0]}?" if near else f"; there are: {', '.join(known)}"


def _check_value(name: str, value: Any, rule: Rule) -> None:
    items = value if rule.is_tuple and isinstance(value, (tuple, list)) else [value]
    if rule.kind not in _KINDS:
        wrong = next((v for v in items if isinstance(rule.kind, type) and not _is_settings(v, rule.kind)), None)
        if wrong is not None:
            raise UserError(f"{name} = {wrong!r} must be a {rule.kind.__name__}")
        return
    if rule.is_tuple and not (isinstance(value, (tuple, list)) and all(_is(v, rule.kind) for v in value)):
        raise UserError(f"{name} = {value!r} must be a tuple, each item {_KINDS[rule.kind]}")
    if rule.choices:
        return _check_choices(name, value, items, rule)
    if not rule.is_tuple and not _is(value, rule.kind):
        words = rule.of(Words)
        raise UserError(f"{name} = {value!r} must be {words.text if words else _KINDS[rule.kind]}")
    for item in items if rule.kind in (int, float) else ():
        if not rule.allows(item):
            finite = "" if math.isfinite(item) or not rule.bounds else "finite and "
            raise UserError(f"{name} = {value!r} must be {finite}{rule}")


def _check_choices(name: str, value: Any, items: Any, rule: Rule) -> None:
    for item in items:
        if not any(type(item) is type(choice) and item == choice for choice in rule.choices):
            allowed = ", ".join(str(choice) or '""' for choice in rule.choices)
            near = get_close_matches(str(item), [str(choice) for choice in rule.choices], 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            many = "a tuple with some of" if rule.is_tuple else "one of"
            raise UserError(f"{name} = {value!r} must be {many}: {allowed}{hint}")


def _is_settings(value: Any, kind: type) -> bool:
    """Whether it is an instance of the settings class, or of any where the annotation is a Protocol."""
    return dataclasses.is_dataclass(value) if getattr(kind, "_is_protocol", False) else isinstance(value, kind)


def _is(value: Any, kind: type) -> bool:
    """Whether a field of this type may hold it: a float takes whole numbers, but neither takes True."""
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _plain(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"
