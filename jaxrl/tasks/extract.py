"""The program in a model's text, where a reader of Markdown would find it.

Fences are those of CommonMark 0.31 (spec.commonmark.org/0.31.2, section 4.5), read by markdown-it-py. Models write more
than that: fences glued to words or to the code, a closing fence without an opening one, end-of-text tokens after it. So
a text in which CommonMark finds no program is read a second time, less strictly (`_loose_blocks`), and a block that is
not Python is cut at fences or words in it, or extended to a later fence, where that makes it Python (`_mended`).
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Literal

from markdown_it import MarkdownIt

from jaxrl.errors import UserError

USUAL_IMPORTS = (
    # typing first: it has a Counter and an OrderedDict of its own, which are not types of values.
    "from typing import *\nimport collections, functools, heapq, itertools, math, re, string\n"
    "from collections import Counter, OrderedDict, defaultdict, deque\nfrom functools import lru_cache, reduce\n"
)
MAX_BLOCKS, MAX_CUTS, MAX_DEPTH = 64, 16, 3  # bounds on the work that one text can cause
_BARE, _UNLABELLED, _PYTHON = range(3)  # how sure it is that a block is Python

# Readers of the block structure alone. The second knows fences only: no lists, quotes or indented code.
_STRICT = MarkdownIt("commonmark").disable(["normalize", "inline", "text_join", "html_block"])
_LOOSE = MarkdownIt("zero").enable("fence").disable(["normalize", "inline", "text_join"])
_PYTHON_INFO = re.compile(r"[{.\s]*i?(?:python|py)[-\d.]*(?![\w-])", re.IGNORECASE)
_WORD = re.compile(r"[\w.+#-]*$")
_FENCE = re.compile(r"`{3,}|~{3,}")
_FENCE_LINE = re.compile(r"[ \t]*(?:`{3,}|~{3,})[ \t]*$")
_PROSE = re.compile(r"^(?:\*\*|#+ )?[A-Z][\w'’]*(?:[,:]? [\w`'\"(*]|:$)", re.MULTILINE)
_CODE_LINE = re.compile(r"^(?:import |from \w[\w.]* import |(?:async )?def |class |@\w)", re.MULTILINE)
_END_TOKENS = re.compile(r"(?:\s*(?:<[|｜][^<>\n]{1,40}[|｜]>|</s>|<eos>|<end_of_turn>))+\s*$")
_TAIL = 1000  # characters in which the tokens that end a text are looked for
_BUILTINS = frozenset(dir(builtins))


# Where a base model's completion of a function is cut: the next top-level statement (arXiv 2107.03374, section 2.1).
BASE_STOPS = ("\ndef", "\nclass", "\nif", "\nprint", "\n#")


@dataclass
class ExtractionConfig:
    """How the program is found in a model's text, for tasks that ask for a function."""

    block: Literal["last", "first", "none"] = "last"  # which fenced block (that defines the function); none: no fences
    import_helper: bool = True  # the usual imports before the program, and those of the function's header
    prepend_header: bool = True  # signature and docstring before an answer that does not define the function
    stop_strings: tuple[str, ...] = ()  # cut before the first of these where no fenced block answers; see BASE_STOPS

    def check(self, where: str = "task.extraction") -> None:
        """Raises UserError for an empty stop string."""
        if not all(self.stop_strings):
            raise UserError(f"{where}.stop_strings = {self.stop_strings!r} must be a tuple of texts, none empty")


@dataclass(frozen=True)
class Block:
    """A piece of a text that may be a program.

    defines: the names it binds at the top level, and the methods of its class Solution.
    needs: the names it uses, but neither binds nor finds among Python's own.
    weight: 2 if it defines or imports something or reads an input, 1 if it does anything else, 0 if it is a value, an
        output, or not Python.
    """

    code: str
    label: int = _BARE
    defines: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    weight: int = 0
    only_calls: bool = True  # reads no input and defines no functions or classes except tests


def code_block(text: str, which: str = "last", names: Collection[str] = ()) -> str:
    """The text's program: a fenced block, or all of the text where there is none, or `which` is "none".

    Of several blocks those come first that define `names` (what the tests call), then those that are more than a use of
    another block or its output, then those marked as Python, and of these the last or the first. Blocks before it
    that define what it needs are put before it.
    """
    text = _normal(text)
    return text if which == "none" else _find(text, which, names)[0] or text


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
    """The same for programs that differ in layout, comments and quotes only.

    None for what is not Python, and for what nests too deeply to be written again.
    """
    try:
        return ast.unparse(ast.parse(code))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def function_program(text: str, entry_point: str, header: str = "", extraction: ExtractionConfig | None = None) -> str:
    """A program that defines `entry_point`, from a chat answer or a completion of `header`.

    In this order: the last fenced block that defines it; the text itself if it does; else `header` with a block or the
    text as its body (the signature and docstring of HumanEval). The imports of `header` and the usual ones come first.
    Each of these is a switch of `extraction`. Its stop strings cut a text where no fenced block defines the function.
    """
    switches = extraction or ExtractionConfig()
    text = _normal(text)
    cut = cut_at(text, switches.stop_strings)
    fenced, found = (None, False) if switches.block == "none" else _find(text, switches.block, {entry_point}, cut)
    code = fenced if found else None
    if code is None and switches.prepend_header:
        code = _with_body(header, cut, switches.block)
    if code is None and re.search(rf"^(?:async +)?def {re.escape(entry_point)}\b", cut, re.MULTILINE):
        code = cut
    if code is None:
        code = (header if switches.prepend_header else "") + (fenced or cut)
    if not switches.import_helper:
        return code
    imports = "\n".join(re.findall(r"^(?:import|from) .*$", header, re.MULTILINE))
    return with_imports(f"{USUAL_IMPORTS}{imports}\n", code)


def block_program(text: str, extraction: ExtractionConfig | None = None, names: Collection[str] = ()) -> str:
    """The program of an answer to a problem that gives no header: a fenced block, or the text up to a stop string.

    The usual imports come first where it does not begin with imports of its own. `names`: what the tests call.
    """
    switches = extraction or ExtractionConfig()
    text = _normal(text)
    cut = cut_at(text, switches.stop_strings)
    code = (switches.block != "none" and _find(text, switches.block, names, cut)[0]) or cut
    helped = switches.import_helper and not re.match(r"\s*(from|import) ", code)
    return with_imports(USUAL_IMPORTS, code) if helped else code


def _normal(text: str) -> str:
    """With line ends as Python has them, and without the tokens that end a text."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text[:-_TAIL] + _END_TOKENS.sub("", text[-_TAIL:])


def _find(text: str, which: str, names: Collection[str], cut: str | None = None) -> tuple[str | None, bool]:
    """The best block, and whether it defines one of `names` (where there are none: whether it is a program).

    `cut` is the text without what follows a stop string; it is read where no fenced block will do.
    """
    cut = text if cut is None else cut
    best: Block | None = None
    for read in (
        lambda: [_block(cut)] if parses(text) else [],  # fences stand in its strings and comments only
        lambda: list(_blocks(_STRICT, text)),
        lambda: [_block(cut)] if cut != text and parses(cut) else [],
        lambda: _loose_blocks(cut),
    ):
        blocks = read()
        chosen = _choose(blocks, which, names)
        if chosen and (chosen.defines & set(names) if names else chosen.weight == 2):
            return _with_needed(chosen, blocks), True
        if chosen and (best is None or best.label == _BARE < chosen.label):
            best = chosen
    return best.code if best else None, False


def _choose(blocks: Sequence[Block], which: str, names: Collection[str]) -> Block | None:
    """The best block, see `code_block`."""
    others = {id(b): frozenset().union(*(o.defines for o in blocks if o is not b)) for b in blocks}

    def merit(block: Block) -> tuple[int, bool, int, int]:
        uses_others = block.only_calls and bool(block.needs & others[id(block)])
        weight = min(block.weight, 1) if uses_others else block.weight
        return len(block.defines & set(names)), weight == 2, block.label, weight

    return max(blocks if which == "first" else blocks[::-1], key=merit, default=None)


def _with_needed(block: Block, blocks: Sequence[Block]) -> str:
    """Its code, after the blocks before it that define what it needs."""
    parts, needs = [block.code], set(block.needs)
    before = next(i for i, b in enumerate(blocks) if b is block)
    for other in reversed(blocks[:before]):
        if needs & other.defines and parses(other.code):
            parts.insert(0, other.code if other.code.endswith("\n") else other.code + "\n")
            needs = needs - other.defines | other.needs
    return "".join(parts)


def _with_body(header: str, text: str, which: str) -> str | None:
    """The header and the first of the text's blocks, or of its beginnings, that is the body of a function."""
    blocks = [] if which == "none" else [*_blocks(_STRICT, text), *_loose_blocks(text)]
    bodies = [*(b.code for b in (blocks if which == "first" else blocks[::-1])), text, *_beginnings(text)]
    return next((header + b for b in bodies if _is_indented(b) and parses(header + b)), None)


def _loose_blocks(text: str) -> list[Block]:
    """Fences wherever they stand: after words, within a line, at any depth; and the text before the first of them.

    That text is a program if the fence closes what no other has opened, or there is none; words may be around it.
    """
    lines = [part for line in text.split("\n") for part in _apart(line)]
    before = list(takewhile(lambda line: not _FENCE.match(line.lstrip()), lines))
    bare = "\n".join(before)
    if not parses(bare) and not _is_indented(bare) and (begin := _CODE_LINE.search(bare)):
        bare = _mended(bare[begin.start() :])
    program = bare.strip() and (parses(bare) or _is_indented(bare))
    return [*([_block(bare)] if program else []), *_blocks(_LOOSE, "\n".join(lines))]


def _apart(line: str) -> list[str]:
    """The line's words and its last fence with what is in it, each as a line of its own."""
    fences = list(_FENCE.finditer(line))
    end = len(line.rstrip())
    if len(fences) > 1 and fences[-1].end() == end and fences[-1].group() == fences[-2].group():
        fence, inside = fences[-1].group(), line[fences[-2].end() : fences[-1].start()]
        python = re.match(r"(?:python|py)\d?[ \t]+", inside, re.IGNORECASE)
        if inside.strip():
            code = inside[python.end() :] if python else inside
            return [line[: fences[-2].start()], fence + ("python" if python else ""), code, fence]
    if fences and line[: fences[-1].start()].strip():
        info = line[fences[-1].end() : end].strip()
        if not info or _PYTHON_INFO.fullmatch(info):
            return [line[: fences[-1].start()], line[fences[-1].start() :]]
    return [line]


def _blocks(reader: MarkdownIt, text: str, depth: int = 0) -> Iterator[Block]:
    """The fenced blocks that may be Python; of a block of another kind, those that it holds.

    A block that is never closed (the text was cut) ends with the text.
    """
    if not _FENCE.search(text):
        return
    lines = text.split("\n")
    fences = [token for token in reader.parse(text) if token.type == "fence"]
    if len(fences) > MAX_BLOCKS:
        fences = fences[: MAX_BLOCKS // 2] + fences[-MAX_BLOCKS // 2 :]
    for token in fences:
        info, content, (start, end) = token.info.strip(), token.content, token.map or (0, 0)
        python = _PYTHON_INFO.match(info)
        if not content.strip() and not python:
            continue  # a closing fence that no other has opened
        if python:
            later = [] if token.level else _extended(lines, start, end)
            yield _block(_mended(content, info[python.end() :].strip(" }"), later), _PYTHON)
            continue
        code = _mended(content if not info or _WORD.match(info) else f"{info}\n{content}")
        if info in ("", "code") or (code.startswith(info) and parses(code)):  # the code begins beside the fence
            yield _block(code, _UNLABELLED)
        if depth < MAX_DEPTH and _FENCE.search(content) and not parses(code):
            yield from _blocks(reader, content, depth + 1)


def _extended(lines: list[str], start: int, end: int) -> list[str]:
    """The lines of a block up to the fences that follow its end: a fence may stand in a docstring."""
    ends = islice((i for i in range(end, len(lines)) if _FENCE_LINE.match(lines[i])), MAX_CUTS)
    return ["\n".join(lines[start + 1 : i]) + "\n" for i in ends]


def _mended(content: str, rest: str = "", later: Sequence[str] = ()) -> str:
    """The first that is Python of: the block, the block up to a fence or words in it, both with code from the opening
    fence's line before them, and the block up to a later fence; else a function's body; else the block as it is.
    """
    cuts = [content, *_beginnings(content)]
    with_rest = [f"{rest}\n{c}" for c in cuts] if rest else []
    whole = next((c for c in (*cuts, *with_rest, *later) if parses(c)), None)
    return whole or next((c for c in cuts if _is_indented(c) and parses(f"def _():\n{c}")), content)


def _beginnings(content: str) -> list[str]:
    """The text up to the fences in it and to the lines that look like words, not like code."""
    ends = sorted(m.start() for pattern in (_FENCE, _PROSE) for m in islice(pattern.finditer(content), MAX_CUTS))
    return [content[:end] for end in ends if content[:end].strip()]


def _is_indented(code: str) -> bool:
    return code.lstrip("\n")[:1] in (" ", "\t")


def _block(code: str, label: int = _BARE) -> Block:
    """What a piece of code defines and needs; of what is not Python (cut, mostly) what it seems to define."""
    try:
        table = symtable.symtable(code, "answer", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        defined = frozenset(re.findall(r"^(?:async +)?(?:def|class) +(\w+)", code, re.MULTILINE))
        return Block(code, label, defined, weight=2 if defined else 0, only_calls=not defined)
    symbols = table.get_symbols()
    bound = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
    used = _used(table) - bound
    reads = bool(used & {"input", "open"})
    made = [s.get_name() for s in symbols if s.is_namespace()]
    weight = 2 if reads or made or any(s.is_imported() for s in symbols) else int(bool(bound or used & _BUILTINS))
    methods = {
        name.get_name()
        for child in table.get_children()
        if child.get_type() == "class" and child.get_name() == "Solution"
        for name in child.get_symbols()
        if name.is_namespace()
    }
    only_calls = not reads and all(name.lower().startswith("test") for name in made)
    return Block(code, label, frozenset(bound | methods), frozenset(used - _BUILTINS), weight, only_calls)


def _used(table: symtable.SymbolTable) -> set[str]:
    """The names of the module that its code uses, in functions and classes too."""
    module = table.get_type() == "module"
    used = {s.get_name() for s in table.get_symbols() if s.is_referenced() and (module or s.is_global())}
    return used.union(*map(_used, table.get_children()))


def with_imports(imports: str, code: str) -> str:
    """The code with imports before it, but after its own from __future__, which must come first."""
    ends = []
    if "__future__" in code and parses(code):
        tree = ast.parse(code)
        ends = [s.end_lineno or 0 for s in tree.body if isinstance(s, ast.ImportFrom) and s.module == "__future__"]
    if not ends:
        return imports + code
    lines = code.split("\n")
    return "\n".join(lines[: max(ends)]) + "\n" + imports + "\n".join(lines[max(ends) :])
