"""In the process of a session: a read-eval-print loop over the channel, whose variables live from call to call."""

from __future__ import annotations

import ast
import contextlib
import linecache
import signal
import sys
import types
from typing import Any

from sandbox.failure import failure
from sandbox.plain import TRUSTED_FRAME, read_frame, write_frame

MAX_VALUE = 1 << 20  # characters


def interpret(channel: int) -> None:
    """Answers {"code": ...} with {"value": ...} or {"failed": ...} until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    write_frame(channel, {"loaded": True})
    number = 0
    with contextlib.suppress(EOFError):
        while True:
            request = read_frame(channel, TRUSTED_FRAME)
            number += 1
            try:
                answer = _evaluate(request["code"], f"<call {number}>", module.__dict__)
            except BaseException as error:  # an interrupt that came late, between two statements of this loop
                answer = {"failed": failure(error)}
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
            write_frame(channel, answer)


def _evaluate(code: str, filename: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """{"value": repr of the last expression's value, or None} or {"failed": ...}."""
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    try:
        tree = ast.parse(code, filename)
        last = tree.body[-1] if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        tree.body = tree.body[:-1] if last else tree.body
        statements = compile(tree, filename, "exec", dont_inherit=True)
        expression = compile(ast.Expression(last.value), filename, "eval") if isinstance(last, ast.Expr) else None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return {"failed": failure(error) | {"status": "syntax_error"}}
    try:
        exec(statements, namespace)
        value = eval(expression, namespace) if expression else None
        if value is not None:
            namespace["_"] = value
        return {"value": None if value is None else _cut(repr(value))}
    except BaseException as error:
        return {"failed": failure(error)}


def _cut(text: str) -> str:
    """What is surely taken as an answer: the beginning and the end."""
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE // 2] + "..." + text[-MAX_VALUE // 2 :]
