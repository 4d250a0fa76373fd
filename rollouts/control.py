"""Text to tokens and back: control tokens come only from a chat template, never from the contents of messages.

A control token is an added token that the tokenizer flags as special, or that is written in brackets like <tool_call>
or [INST]. Where a message's content spells one, it is escaped before the template is rendered, and its letters are
encoded like any other text. In the assistant's own messages, tags in angle brackets that are not flagged as special
(<think>, <tool_call>) are the model's to write and stay tokens.

Three Unicode noncharacters are used internally; in the content of a message they become U+FFFD.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BRACKETS = re.compile(r"\s*[<\[].+[>\]]\s*", re.DOTALL)
_OWN_TAG = re.compile(r"</?[a-z_]+>")
_CONTROL, _ESCAPED, MARK = "\ufdd0", "\ufdd1", "\ufdd2"
_FIRST = 0xF0000  # start of a private-use plane: the number of a control token as a character
_ANCHORS = ("\n", ".", "a")  # texts that tokenizers hardly ever merge with what follows


@dataclass(eq=False)
class Controls:
    """The control tokens of a tokenizer, and encoding with and without them."""

    tokenizer: Any
    ids: dict[str, int] = field(default_factory=dict)
    own: frozenset[str] = frozenset()  # those that assistant messages may contain

    def __post_init__(self) -> None:
        self._names = list(self.ids)
        longest_first = sorted(self._names, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._last = re.compile(rf"(?:{self.pattern.pattern})\Z")
        self._numbers = {name: chr(_FIRST + i) for i, name in enumerate(self._names)}

    def escape(self, text: str, by_model: bool = False) -> str:
        """The text with control tokens escaped, except the model's own tags in text by the model.

        Half a surrogate pair, which programs may print but tokenizers refuse, becomes a question mark.
        """
        text = text.encode("utf-8", "replace").decode()
        text = re.sub("[\ufdd0-\ufdd2]", "\ufffd", text)
        kept = self.own if by_model else ()
        return self.pattern.sub(lambda m: m[0] if m[0] in kept else _ESCAPED + self._numbers[m[0]], text)

    def unescape(self, text: str) -> str:
        """The inverse of `escape`."""
        return re.sub(f"{_ESCAPED}(.)", lambda m: self._names[ord(m[1]) - _FIRST], text)

    def last(self, text: str) -> str:
        """The control token at the end of a text; "" if there is none."""
        found = self._last.search(text)
        return found[0] if found else ""

    def encode(self, text: str, before: str = "") -> list[int]:
        """The tokens of an escaped text that follows the text `before`; "" is the beginning.

        Tokenizers made from SentencePiece put a blank before the first word, which text in the middle must not get.
        """
        if not self.prefixed or not before:
            return self._encode(text)
        if end := self.last(before):
            return self._encode(end + text)[1:]
        for anchor in _ANCHORS:
            known, both = self._encode(anchor), self._encode(anchor + text)
            if both[: len(known)] == known:
                return both[len(known) :]
        return self._encode(text)

    def decode(self, tokens: Sequence[int] | np.ndarray, special: bool = False) -> str:
        """The text of tokens that follow others, with their leading blank; with `special` also special tokens."""
        ids = [int(t) for t in tokens]
        if not self.prefixed:
            return self.tokenizer.decode(ids, skip_special_tokens=not special)
        anchor = self._encode("a")[-1:]
        before, both = (self.tokenizer.decode(t, skip_special_tokens=not special) for t in (anchor, anchor + ids))
        return both[len(before) :]

    @cached_property
    def prefixed(self) -> bool:
        """Whether the tokenizer puts a blank before the first word of a text."""
        if not hasattr(self.tokenizer, "convert_ids_to_tokens"):
            return False
        first = self.tokenizer.convert_ids_to_tokens(self._encode("a"))[:1]
        return bool(first) and str(first[0]).startswith(("\u2581", "\u0120"))  # SentencePiece's blank, byte-level BPE's

    def _encode(self, text: str) -> list[int]:
        if _ESCAPED not in text:
            return self.tokenizer.encode(text, add_special_tokens=False)
        if not hasattr(self.tokenizer, "backend_tokenizer"):
            raise ValueError(
                f"text that spells control tokens needs a fast tokenizer, not {type(self.tokenizer).__name__}"
            )
        renamed, ids = self._renamed
        text = self.pattern.sub(lambda m: _CONTROL + self._numbers[m[0]], text)
        return [ids.get(t, t) for t in renamed.encode(self.unescape(text), add_special_tokens=False).ids]

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[int, int]]:
        """The same tokenizer with control tokens that text cannot spell, and their ids there -> here.

        A copy without control tokens would not do, because it must find the template's own in the same text.
        """
        from tokenizers import Tokenizer

        described = json.loads(self.tokenizer.backend_tokenizer.to_str())
        described |= {"post_processor": None, "truncation": None, "padding": None}
        new = {name: _CONTROL + number for name, number in self._numbers.items()}
        for token in described["added_tokens"]:
            token["content"] = new.get(token["content"], token["content"])
        model = described["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {new.get(piece, piece): i for piece, i in model["vocab"].items()}
        else:  # Unigram
            model["vocab"] = [[new.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("merges"):  # some would merge the letters of a control token
            model["merges"] = [
                m for m in model["merges"] if "".join(m.split(" ") if isinstance(m, str) else m) not in new
            ]
        for name in ("unk_token", "unk"):
            if model.get(name) in new:
                model[name] = new[model[name]]
        copy = Tokenizer.from_str(json.dumps(described))
        added = {t.content: i for i, t in copy.get_added_tokens_decoder().items()}
        here = {new.get(t.content, t.content): i for i, t in self.tokenizer.added_tokens_decoder.items()}
        return copy, {i: here[content] for content, i in added.items() if content in here}


def controls_of(tokenizer: Any) -> Controls:
    """The tokenizer's control tokens, looked up once. One that has only `encode` and `decode` has none."""
    if not hasattr(type(tokenizer), "added_tokens_decoder"):
        return Controls(tokenizer)
    return _controls(tokenizer, len(tokenizer), tokenizer.eos_token)


@lru_cache(maxsize=8)
def _controls(tokenizer: Any, *changes: Any) -> Controls:
    """`changes` are part of the cache key: a tokenizer may have got other tokens since it was seen."""
    added = tokenizer.added_tokens_decoder
    ids = {t.content: i for i, t in added.items() if t.special or _BRACKETS.fullmatch(t.content)}
    own = {t.content for t in added.values() if not t.special and _OWN_TAG.fullmatch(t.content)}
    return Controls(tokenizer, ids, frozenset(own))


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """The tokens of text that follows other text; control tokens spelled in it are encoded as plain text."""
    controls = controls_of(tokenizer)
    return controls.encode(controls.escape(text), before=".")


def decode_text(tokenizer: Any, tokens: Sequence[int] | np.ndarray, special: bool = False) -> str:
    """The text of tokens that follow others, with its leading blank; with `special` also special tokens."""
    return controls_of(tokenizer).decode(tokens, special)
