"""The program in a model's text."""

from __future__ import annotations

import re

_FENCED = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("python", "python3", "py")


def code_block(text: str) -> str:
    """The last fenced block marked as Python, else the last one without a language, else the whole text.

    A block that is never closed (the text was cut) ends with the text.
    """
    blocks = [(language.strip().lower(), code) for language, code in _FENCED.findall(text)]
    python = [code for language, code in blocks if language in _PYTHON]
    plain = [code for language, code in blocks if not language]
    return (python or plain or [text])[-1]
