"""Programs of lists: parsed, run and measured in bits. Pure and total: nothing is executed by Python.

    sequence_1 = range_func_up(0, 9)
    sequence_2 = reverse_list(sequence_1)
    sequence_3 = concatenate(sequence_1, sequence_2)
    output = sequence_3

Each line names a call of a function on numbers and earlier lines; the last line names the output, which must be the
line before it, since a code that could name any would have to say which. The functions are those of the KoLMogorov
Test; what they do was taken from its description, not its code.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from itertools import accumulate, zip_longest
from typing import Any, Literal, NamedTuple

LONGEST, MOST_LINES, LARGEST = 256, 64, 1 << 31  # values of a sequence, lines of a program, a value on the way
FUNCTIONS_OF_PRIOR = 24  # the functions and the three predicates
VALUE, SMALL, COUNT = 8.0, 3.0, math.log2(20)  # bits of a byte, of a step, of a number of repetitions


class ProgramError(ValueError):
    """It is not a program of the language, or it does not give a sequence of bytes; the message says where."""


class Line(NamedTuple):
    """A call: of which function, on numbers, lists of numbers, predicates' names, and earlier lines as Reference."""

    function: str
    arguments: tuple[Any, ...]


class Reference(NamedTuple):
    line: int  # from 0


Values = list[int]
PREDICATES: dict[str, Callable[[int], bool]] = {
    "is_even": lambda v: v % 2 == 0,
    "is_odd": lambda v: v % 2 == 1,
    "is_not_zero": lambda v: v != 0,
}


def _interleave(x: Values, y: Values) -> Values:
    return [v for pair in zip_longest(x, y) for v in pair if v is not None]


# What each function does, after the kinds of its arguments: list, byte, small (a step, or how often a list), count,
# values, predicate, lists (one or more).
FUNCTIONS: dict[str, tuple[tuple[str, ...], Callable[..., Values]]] = {
    "range_func_up": (("byte", "byte"), lambda a, b: [*range(a, min(b, a + LONGEST) + 1)]),
    "range_func_interval": (("byte", "byte", "small"), lambda a, b, step: [*range(a, b, step)]),
    "repeat_num": (("count", "byte"), lambda n, v: [v] * n),
    "set_list": (("values",), lambda values: list(values)),
    "reverse_list": (("list",), lambda x: x[::-1]),
    "repeat_list": (("small", "list"), lambda n, x: x * n),
    "substitute": (("list", "byte", "byte"), lambda x, a, b: [b if v == a else v for v in x]),
    "get_subsequence_with_jumps": (("list", "small"), lambda x, k: x[::k]),
    "get_subsequence_between_indices": (("list", "byte", "byte"), lambda x, i, j: x[i:j]),
    "max_n": (("list", "byte"), lambda x, n: sorted(x, reverse=True)[:n]),
    "min_n": (("list", "byte"), lambda x, n: sorted(x)[:n]),
    "add_item_list": (("list", "byte"), lambda x, a: [v + a for v in x]),
    "subtract_item_list": (("list", "byte"), lambda x, a: [v - a for v in x]),
    "modulo_item_list": (("list", "byte"), lambda x, a: [v % a for v in x]),
    "scan_add": (("list",), lambda x: [*accumulate(x)]),
    "filter": (("predicate", "list"), lambda f, x: [v for v in x if PREDICATES[f](v)]),
    "add_two_lists": (("list", "list"), lambda x, y: [a + b for a, b in zip(x, y)]),
    "subtract_two_lists": (("list", "list"), lambda x, y: [a - b for a, b in zip(x, y)]),
    "modulo_two_lists": (("list", "list"), lambda x, y: [a % b for a, b in zip(x, y) if b]),
    "concatenate": (("lists",), lambda *lists: [v for x in lists for v in x]),
    "interleave": (("list", "list"), _interleave),
}


def parse(text: str, any_output: bool = False) -> list[Line]:
    """The lines of a program, without its output line. Raises ProgramError.

    With `any_output` the output may be any line; the lines after it are left out.
    """
    try:
        statements = ast.parse(text.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ProgramError(f"not a program: {error}") from None
    if not 2 <= len(statements) <= MOST_LINES + 1:
        raise ProgramError(
            f"a program has 1 to {MOST_LINES} lines and an output line, this has {len(statements)} in all"
        )
    lines: list[Line] = []
    names: dict[str, int] = {}
    for number, statement in enumerate(statements, 1):
        name, value = _assignment(statement, number)
        if name == "output":
            return _until_output(lines, value, names, number == len(statements), any_output)
        lines.append(_line(value, names, number))
        names[name] = len(lines) - 1
    raise ProgramError("the last line must be output = NAME")


def _assignment(statement: ast.stmt, number: int) -> tuple[str, ast.expr]:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id, statement.value
    raise ProgramError(f"line {number} must be NAME = FUNCTION(...)")


def _until_output(
    lines: list[Line], value: ast.expr, names: dict[str, int], last: bool, any_output: bool
) -> list[Line]:
    if not (isinstance(value, ast.Name) and value.id in names):
        raise ProgramError("output must be the name of a line")
    place = names[value.id]
    if any_output:
        return lines[: place + 1]
    if not last or place != len(lines) - 1:
        raise ProgramError("output must be the line before it, and the last line")
    return lines


def _line(value: ast.expr, names: dict[str, int], number: int) -> Line:
    if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and not value.keywords):
        raise ProgramError(f"line {number} must be NAME = FUNCTION(...)")
    function = value.func.id
    if function not in FUNCTIONS:
        raise ProgramError(f"line {number}: unknown function {function}")
    kinds, _ = FUNCTIONS[function]
    given = [_argument(node, names, number) for node in value.args]
    if kinds == ("lists",):
        kinds = ("list",) * max(len(given), 1)
    if function in ("repeat_list", "filter") and given and isinstance(given[0], Reference):
        given = given[::-1]  # written in the other order
    if len(given) != len(kinds) or not all(_fits(g, kind) for g, kind in zip(given, kinds)):
        raise ProgramError(f"line {number}: {function} takes {', '.join(kinds)}")
    return Line(function, tuple(given))


def _argument(node: ast.expr, names: dict[str, int], number: int) -> Any:
    if isinstance(node, ast.Name):
        if node.id in PREDICATES:
            return node.id
        if node.id not in names:
            raise ProgramError(f"line {number}: {node.id} is not an earlier line")
        return Reference(names[node.id])
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ProgramError(f"line {number}: arguments are numbers, lists of numbers and names") from None
    return tuple(value) if isinstance(value, list) else value


def _fits(given: Any, kind: str) -> bool:
    if kind in ("list", "predicate"):
        return isinstance(given, Reference if kind == "list" else str)
    if kind == "values":
        is_list = isinstance(given, tuple) and not isinstance(given, Reference)
        return is_list and 0 < len(given) <= LONGEST and all(_fits(v, "byte") for v in given)
    least = {"byte": 0, "small": 1, "count": 1}[kind]
    return type(given) is int and least <= given <= 255


def run(lines: Sequence[Line]) -> Values:
    """The sequence. Raises ProgramError where it is empty, too long, or not of bytes, or a line divides by 0."""
    made: list[Values] = []
    for number, (function, arguments) in enumerate(lines, 1):
        given = [made[a.line] if isinstance(a, Reference) else a for a in arguments]
        try:
            values = FUNCTIONS[function][1](*given)
        except ZeroDivisionError:
            raise ProgramError(f"line {number}: modulo 0") from None
        if len(values) > LONGEST:
            raise ProgramError(f"line {number} gives more than {LONGEST} values")
        if any(abs(v) > LARGEST for v in values):
            raise ProgramError(f"line {number} gives values beyond {LARGEST}")
        made.append(values)
    if not made[-1] or not all(0 <= v <= 255 for v in made[-1]):
        raise ProgramError("the output must be values from 0 to 255, one at least")
    return made[-1]


def bits(lines: Sequence[Line], prior: Literal["uniform", "strict"] = "strict") -> float:
    """The length of a program in bits under a uniform prior over lines.

    uniform: as the benchmark counts: log2(25) for each line and the output, 8 for a byte, 3 for a step, log2(20) for a
    count, log2(i + 1) for a reference on line i (from 0). That is not a code which could be decoded: it does not say
    how long a list is, how many lists are joined, which predicate filters, or counts above 20. strict adds these.
    """
    total = math.log2(FUNCTIONS_OF_PRIOR + 1)  # of the output line
    for place, (function, arguments) in enumerate(lines):
        total += math.log2(FUNCTIONS_OF_PRIOR + 1)
        kinds, _ = FUNCTIONS[function]
        kinds = ("list",) * len(arguments) if kinds == ("lists",) else kinds
        for kind, given in zip(kinds, arguments):
            total += _bits(kind, given, place, prior == "strict")
        if prior == "strict" and function == "concatenate":
            total += SMALL
    return total


def _bits(kind: str, given: Any, place: int, strict: bool) -> float:
    if kind == "list":
        return math.log2(place + 1)
    if kind == "values":
        return VALUE * len(given) + (VALUE if strict else 0)
    if kind == "predicate":
        return math.log2(len(PREDICATES)) if strict else 0.0
    if kind == "count":
        return VALUE if strict else COUNT
    if kind == "small":
        return VALUE if strict and given > 8 else SMALL
    return VALUE


def literal(values: Sequence[int]) -> list[Line]:
    """The program that lists the values."""
    return [Line("set_list", (tuple(values),))]


def show(lines: Sequence[Line], name: str = "sequence_") -> str:
    """The text of a program."""
    texts = []
    for i, (function, arguments) in enumerate(lines, 1):
        given = (f"{name}{a.line + 1}" if isinstance(a, Reference) else _shown(a) for a in arguments)
        texts.append(f"{name}{i} = {function}({', '.join(given)})")
    return "\n".join([*texts, f"output = {name}{len(lines)}"])


def _shown(argument: Any) -> str:
    return str([*argument]) if isinstance(argument, tuple) else str(argument)
