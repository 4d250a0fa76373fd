"""The program in a model's text."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from jaxrl.config import ExtractionConfig

USUAL_IMPORTS = (
    "import collections, functools, heapq, itertools, math, re, string\n"
    "from collections import Counter, OrderedDict, defaultdict, deque\nfrom functools import lru_cache, reduce\n"
    "from typing import *\n"
)
_FENCED = re.compile(r"^([ \t]*)```([^\n`]*)\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)


def code_blocks(text: str) -> list[str]:
    """The fenced blocks marked as Python, or if there are none, those without a language.

    A block that is never closed (the text was cut) ends with the text. One that is indented as a whole, in a list, is
    as far to the left as its fence would be.
    """
    blocks = [
        (language.strip().lower(), re.sub(rf"^{indentation}", "", code, flags=re.MULTILINE) if indentation else code)
        for indentation, language, code in _FENCED.findall(text)
    ]
    python = [code for language, code in blocks if language in ("python", "python3", "py")]
    return python or [code for language, code in blocks if not language]


def code_block(text: str, which: str = "last") -> str:
    """The last or the first of the text's code blocks; all of it where there is none, or which is "none"."""
    blocks = code_blocks(text) if which != "none" else []
    return (blocks or [text])[0 if which == "first" else -1]


def cut_at(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first of these."""
    return text[: min((i for s in stop_strings if (i := text.find(s)) >= 0), default=len(text))]


def parses(code: str) -> bool:
    """Whether it is Python."""
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def normal_form(code: str) -> str | None:
    """The same for programs that differ in layout, comments and quotes only; None for what is not Python."""
    return ast.unparse(ast.parse(code)) if parses(code) else None


def function_program(text: str, entry_point: str, header: str = "", extraction: ExtractionConfig | None = None) -> str:
    """A program that defines `entry_point`, from a chat answer or a completion of `header`.

    In this order: the last fenced block that defines it; the whole text if it does; else `header` with the text as
    its body (the signature and docstring of HumanEval). The imports of `header` and the usual ones come first.
    Each of these is a switch of `extraction`. Its stop strings cut a text where no fenced block defines the function.
    """
    switches = extraction or ExtractionConfig()
    defines = re.compile(rf"^def {re.escape(entry_point)}\b", re.MULTILINE)
    blocks = {"last": code_blocks(text)[::-1], "first": code_blocks(text), "none": []}[switches.block]
    code = next(filter(defines.search, blocks), None)
    if code is None:
        text = cut_at(text, switches.stop_strings)
        code = text if defines.search(text) else None
    if code is None:
        code = (header if switches.prepend_header else "") + code_block(text, switches.block)
    if not switches.import_helper:
        return code
    imports = "\n".join(re.findall(r"^(?:import|from) .*$", header, re.MULTILINE))
    return _after(f"{USUAL_IMPORTS}{imports}\n", code)


def block_program(text: str, extraction: ExtractionConfig | None = None) -> str:
    """The program of an answer to a problem that gives no header: a fenced block, or the text up to a stop string.

    The usual imports come first where it does not begin with imports of its own.
    """
    switches = extraction or ExtractionConfig()
    fenced = switches.block != "none" and code_blocks(text)
    code = code_block(text if fenced else cut_at(text, switches.stop_strings), switches.block)
    helped = switches.import_helper and not re.match(r"\s*(from|import) ", code)
    return _after(USUAL_IMPORTS, code) if helped else code


def _after(imports: str, code: str) -> str:
    """The code after imports, but for its own from __future__, which must come first."""
    future = "".join(f"{line}\n" for line in _FUTURE.findall(code))
    return future + imports + (_FUTURE.sub("", code) if future else code)
