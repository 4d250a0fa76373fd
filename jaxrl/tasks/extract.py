"""The program in a model's text."""

from __future__ import annotations

import re

_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def code_block(text: str) -> str:
    """The last fenced block of the text, or all of it where there is none."""
    blocks = _FENCED.findall(text)
    return blocks[-1] if blocks else text
