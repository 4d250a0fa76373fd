"""What a kind of question is, and whether an answer is right."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from typing import Any, NamedTuple


class Question(NamedTuple):
    """A question, a right answer, and what else would be right."""

    text: str
    answer: str
    check: Callable[[str], bool] | None = None  # None: what `same` says
    code: str = ""  # a line of Python that prints the answer, of kinds for which there is one


UNREADABLE = (
    ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError, SyntaxError, StopIteration,
    RecursionError, MemoryError,
)  # fmt: skip
LONGEST = 2000  # characters of an answer that is read
Kind = Callable[[random.Random], Question]


def same(given: str, answer: str) -> bool:
    """Whether two answers say the same: as text without blanks and quotes around it, or as Python values."""
    given, answer = (text.strip().strip("'\"`").strip() for text in (given, answer))
    return given == answer or ((value := read(given)) is not None and value == read(answer))


def read(text: str) -> Any:
    """The value of a Python literal, with tuples as lists; None where it is not one."""
    try:
        return _lists(ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def is_right(question: Question, given: str) -> bool:
    """Whether an answer is right; one that a checker cannot read is not."""
    given = given[:LONGEST].strip()
    if question.check is None:
        return same(given, question.answer)
    try:
        return bool(question.check(given))
    except UNREADABLE:
        return False


def named(*functions: Kind) -> dict[str, Kind]:
    return {function.__name__: function for function in functions}
