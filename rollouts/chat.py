"""Chat messages as tokens, by a tokenizer's own template, in pieces: what was sampled is never rendered again.

A template is rendered with marks in place of the contents, cut at the marks, and encoded piece by piece: special
tokens that are written in a content stay text, and the tokens between two messages are known without the messages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rollouts.episode import Problem

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

Message = dict[str, str]  # "role" and "content"
OUTPUT = "output"  # the role of text that a tool puts into an answer, inside the model's own message
_MARK = re.compile("\ue000(\\d+)\ue001")


class TemplateError(ValueError):
    """Messages that the tokenizer's chat template cannot render."""


def chat_prompt(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> np.ndarray:
    """i32[n]: the problem's messages by the chat template, with the header of the answer; or its plain prompt.

    Messages that end with the assistant's are an answer begun, to be continued. Special tokens that are written in a
    message or prompt stay text. Raises ValueError for a problem with neither messages nor a prompt, and TemplateError
    for messages that the tokenizer cannot render.
    """
    if problem.messages:
        try:
            tokens = _encode_messages(tokenizer, problem.messages)
        except TemplateError as error:
            raise TemplateError(f"problem {problem.id}: {error}") from None
    elif problem.prompt:
        start = [t for t in tokenizer.encode("") if t == tokenizer.bos_token_id]  # for models that begin with one
        tokens = start + encode_text(tokenizer, problem.prompt)
    else:
        raise ValueError(f"problem {problem.id} has neither messages nor a prompt")
    return np.asarray(tokens, np.int32)


def following(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], last_token: int) -> np.ndarray:
    """i32[n]: what stands between an answer of the model and its next one, with these messages between them.

    Begins with the token that ends a message, unless that is the answer's `last_token`.
    Raises TemplateError for messages that the tokenizer cannot render.
    """
    before = [{"role": "user", "content": "."}, {"role": "assistant", "content": "."}]
    pieces = _pieces(tokenizer, [*before, *messages])
    after_answer = pieces[pieces.index(1) + 1 :]
    contents = [m["content"] for m in [*before, *messages]]
    tokens = _encode_pieces(tokenizer, after_answer, contents)
    return np.asarray(tokens[1:] if tokens[:1] == [last_token] else tokens, np.int32)


def conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], prompt: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """tokens i32[n] and learned bool[n] of a whole conversation, as an environment would have made it.

    Learned are the model's own messages with the tokens that end them. A message of role "output" is what a tool put
    into the answer before it, which then goes on in the next message. A plain `prompt` may stand before the messages.
    Raises ValueError for a conversation in which the model says nothing, and TemplateError as `chat_prompt` does.
    """
    first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), None)
    if first is None or messages[-1]["role"] != "assistant":
        raise ValueError("a conversation to learn from must end with a message of role 'assistant'")
    start = chat_prompt(tokenizer, Problem("conversation", tuple(messages[:first]), prompt or None))
    tokens, learned = start.tolist(), [False] * len(start)
    end, i = stop_tokens(tokenizer)[0], first
    while i < len(messages):
        answer = encode_text(tokenizer, messages[i]["content"])
        until = next((j for j in range(i + 1, len(messages)) if messages[j]["role"] == "assistant"), len(messages))
        between = messages[i + 1 : until]
        inline = bool(between) and all(m["role"] == OUTPUT for m in between)
        answer += [] if inline else [end]
        if inline:
            inserted = [t for m in between for t in encode_text(tokenizer, m["content"])]
        else:
            inserted = following(tokenizer, between, end).tolist() if between else []
        tokens += answer + inserted
        learned += [True] * len(answer) + [False] * len(inserted)
        i = until
    return np.asarray(tokens, np.int32), np.asarray(learned, bool)


def answer_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    """i32[n]: an answer as the model should give it, with the token that ends it."""
    return np.asarray([*encode_text(tokenizer, text), stop_tokens(tokenizer)[0]], np.int32)


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end an answer; the first is the one to train on. Raises ValueError if there is none."""
    vocabulary = tokenizer.get_vocab()
    names = [TURN_END, tokenizer.eos_token, END_OF_TEXT]
    tokens = tuple(dict.fromkeys(vocabulary[name] for name in names if name in vocabulary))
    if not tokens:
        raise ValueError("the tokenizer has no end-of-sequence token")
    return tokens


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Its tokens; a special token that is written in it is text like any other."""
    return _encode(tokenizer, text, split_special_tokens=True)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    """Half a surrogate pair, which a program's message may have and no tokenizer takes, becomes a question mark."""
    return tokenizer.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False, **options)


def _encode_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    messages = _supported(tokenizer, messages)
    continued = messages[-1]["role"] == "assistant"
    written = any(token in m["content"] for m in messages for token in tokenizer.all_special_tokens)
    if not continued and not written:
        return _encode(tokenizer, _rendered(tokenizer, messages))
    pieces = _pieces(tokenizer, messages)
    if continued:
        pieces = pieces[: pieces.index(len(messages) - 1) + 1]
    return _encode_pieces(tokenizer, pieces, [m["content"] for m in messages])


def _encode_pieces(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str | int], contents: Sequence[str]
) -> list[int]:
    tokens: list[int] = []
    for piece in pieces:
        if isinstance(piece, int):
            tokens += encode_text(tokenizer, contents[piece])
        else:
            tokens += _encode(tokenizer, piece)
    return tokens


def _supported(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Sequence[Message]:
    """The messages; where the template knows no system message, it is the beginning of the first message instead."""
    if messages[0]["role"] != "system" or len(messages) == 1:
        return messages
    try:
        if 0 in _pieces(tokenizer, messages[:2]):
            return messages
    except TemplateError:
        pass
    system, first, *rest = messages
    return [first | {"content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _pieces(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[str | int]:
    """The rendered template: its own text, and the numbers of the messages whose contents stand between."""
    text = _rendered(tokenizer, [m | {"content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)])
    pieces = [int(piece) if i % 2 else piece for i, piece in enumerate(_MARK.split(text))]
    return [piece for piece in pieces if piece != ""]


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    from jinja2.exceptions import TemplateError as JinjaError

    if tokenizer.chat_template is None:
        raise TemplateError("there are chat messages, but the tokenizer has no chat template")
    try:
        text: Any = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    except JinjaError as error:
        roles = ", ".join(m["role"] for m in messages)
        raise TemplateError(f"the chat template refuses messages of the roles {roles}: {error}") from None
    return text
