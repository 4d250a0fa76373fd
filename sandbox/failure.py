"""What was raised, as plain data: a claim of the process in which it happened."""

from __future__ import annotations

import contextlib
import os
import traceback
from typing import Any

MAX_NAME, MAX_MESSAGE, MAX_TRACEBACK = 100, 500, 4000  # characters
_SANDBOX = os.path.dirname(os.path.abspath(__file__))


def failure(error: BaseException) -> dict[str, Any]:
    """What was raised: a status, a message with the place, the traceback without the sandbox's own frames.

    "bases" are the names of its class and of those above it, nearest first.
    """
    kind = type(error)
    bases = [base.__name__[:MAX_NAME] for base in kind.__mro__[:20]]
    status = {"MemoryError": "memory", "AssertionError": "wrong_answer"}
    data: dict[str, Any] = {"type": bases[0], "bases": bases, "message": bases[0], "text": "", "traceback": ""}
    data["status"] = next((status[name] for name in bases if name in status), "runtime_error")
    if isinstance(error, SystemExit):
        code = error.code
        data["exit_code"] = 0 if code is None else code & 0xFF if isinstance(code, int) else None
    with contextlib.suppress(BaseException):
        data["text"] = str(error)[:MAX_MESSAGE]
        own = [f for f in traceback.extract_tb(error.__traceback__) if os.path.dirname(f.filename) != _SANDBOX]
        last = traceback.format_exception_only(error)
        where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        data["message"] = (last[-1].strip()[: MAX_MESSAGE - 100] or bases[0]) + where
        head = "Traceback (most recent call last):\n" if own else ""
        data["traceback"] = (head + "".join(traceback.format_list(own) + last))[-MAX_TRACEBACK:]
    return data
