"""Test commands without what they say of hidden tests."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection

# Words as the shell reads them, with their quotes; operators; blanks.
_SHELL = re.compile(r"""(?:[^\s'"\\;&|<>()]|\\.|'[^']*'|"(?:\\.|[^"\\])*")+|[;&|<>()]+|\s+""", re.DOTALL)
_OPERATOR = re.compile(r"[;&|<>()]+")
_LONG = ("--grep", "--fgrep", "--testNamePattern", "--test-name-pattern")
# By a word of the command that runs the tests: the options that choose them by name.
_OF_MOCHA_OR_JEST = ("-g", "-f", "-t")
_SHORT = {"pytest": ("-k",)} | dict.fromkeys(("mocha", "jest", "npm", "npx", "yarn"), _OF_MOCHA_OR_JEST)


def without_hidden(command: str, new: Collection[str], old: Collection[str]) -> str:
    """A shell command without files that are new, and choices of tests by name; of files in `old` the names go.

    "" for a command that cannot be read, or that gives another one to a shell.
    """
    tokens = _SHELL.findall(command)
    if "".join(tokens) != command:
        return ""
    kept, options, value_is_next, values = [], _LONG, False, [_value(token) for token in tokens]
    for token, value in zip(tokens, values):
        if token.isspace():
            kept.append(token)
            continue
        if _OPERATOR.fullmatch(token):
            kept, options, value_is_next = [*kept, token], _LONG, False
            continue
        runner = value.rpartition("/")[2]
        options = (*options, *_SHORT.get(runner, ()))
        name = next((option for option in options if value.startswith(option)), "")
        path = value.partition("::")[0]
        if runner in ("sh", "bash"):
            return ""
        if value_is_next:
            value_is_next = False
        elif name and (value == name or not name.startswith("--") or value[len(name)] == "="):
            value_is_next = value == name
        elif path not in new:
            kept.append(path if path in old and path != value else token)
            continue
        if kept and kept[-1].isspace():
            kept.pop()
    return "".join(kept).strip()


def _value(token: str) -> str:
    """What the program gets of a word."""
    try:
        return "".join(shlex.split(token))
    except ValueError:
        return token
