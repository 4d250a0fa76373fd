"""In the process of a hostile program: makes the calls that a test consists of, and writes down their values.

The answers go to a file in memory, one for each call, which the judge reads (`AnswersReader` in sandbox/plain.py).
Nothing is decided here: this process has neither tests nor expected values.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import sys
from typing import Any

from sandbox.failure import failure
from sandbox.plain import ERROR, PRINTED, VALUE, answer_frame, decode, encode, written

PlainCall = tuple[int, str | int, Any, Any, bool]


def answer_calls(calls: list[PlainCall], namespace: dict[str, Any], fd: int, reported: list[int]) -> None:
    """Makes the calls in order; after one that raises, the rest of its test is left out.

    Args:
        calls: (number of the test, function, args, kwargs, whether these are encoded); see `Call` in
            sandbox/translate.py.
        fd: where the answers go.
        reported: the numbers of printed bytes that were last reported; see `report_printed`.
    """
    values: list[Any] = []  # of this test's calls
    test, failed = -1, False

    def stands_for(kind: str, content: Any) -> Any:
        if kind == "result":
            return values[content]
        return find(namespace, content) if kind == "name" else getattr(builtins, content)

    for number, function, args, kwargs, encoded in calls:
        if number != test:
            test, values, failed = number, [], False
        if failed:
            continue
        try:
            callee = values[function] if isinstance(function, int) else find(namespace, function)
            if encoded and args is not None:
                args = [decode(a, stands_for) for a in args]
                kwargs = {k: decode(v, stands_for) for k, v in kwargs.items()}
            value = callee if args is None else callee(*args, **kwargs)
            values.append(value)
            answer = VALUE, encoded_value(value)
        except BaseException as error:
            answer, failed = (ERROR, failure(error)), True
        reported = report_printed(fd, reported)
        write_answer(fd, *answer)


def report_printed(fd: int, reported: list[int]) -> list[int]:
    """Reports how many bytes went to stdout and stderr so far, if that differs from `reported`."""
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    if (so_far := written(1, 2)) != reported:
        write_answer(fd, PRINTED, so_far)
    return so_far


def encoded_value(value: Any) -> Any:
    try:
        return encode(value)
    except RecursionError:  # for example because it refers to itself, unlike plain data
        return ["object", type(value).__name__]


def find(namespace: dict[str, Any], name: str) -> Any:
    """What a test means by a name: a global of the program, or a method of its `class Solution`. Raises NameError."""
    if name in namespace:
        return namespace[name]
    solution = namespace.get("Solution")
    if isinstance(solution, type) and hasattr(solution, name):
        return getattr(solution(), name)
    raise NameError(f"name {name!r} is not defined")


def write_answer(fd: int, kind: bytes, content: Any) -> None:
    try:
        data = answer_frame(kind, content)
    except ValueError as error:
        data = answer_frame(ERROR, failure(error))
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
