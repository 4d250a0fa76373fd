"""The program in a model's text."""

from __future__ import annotations

import re

USUAL_IMPORTS = (
    "import collections, functools, heapq, itertools, math, re, string\n"
    "from collections import Counter, OrderedDict, defaultdict, deque\nfrom functools import lru_cache, reduce\n"
    "from typing import *\n"
)
_FENCED = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)


def code_blocks(text: str) -> list[str]:
    """The fenced blocks marked as Python, or if there are none, those without a language.

    A block that is never closed (the text was cut) ends with the text.
    """
    blocks = [(language.strip().lower(), code) for language, code in _FENCED.findall(text)]
    python = [code for language, code in blocks if language in ("python", "python3", "py")]
    return python or [code for language, code in blocks if not language]


def code_block(text: str) -> str:
    """The last of the text's code blocks, or all of it where there is none."""
    return (code_blocks(text) or [text])[-1]


def function_program(text: str, entry_point: str, header: str = "") -> str:
    """A program that defines `entry_point`, from a chat answer or a completion of `header`.

    In this order: the last fenced block that defines it; the whole text if it does; else `header` with the text as
    its body (the signature and docstring of HumanEval). The imports of `header` and the usual ones come first.
    """
    defines = re.compile(rf"^def {re.escape(entry_point)}\b", re.MULTILINE)
    candidates = [block for block in [*code_blocks(text)[::-1], text] if defines.search(block)]
    code = candidates[0] if candidates else header + code_block(text)
    imports = "\n".join(re.findall(r"^(?:import|from) .*$", header, re.MULTILINE))
    return f"{USUAL_IMPORTS}{imports}\n{code}"
