"""Chat messages as tokens, by a tokenizer's own template: what was sampled is never rendered again.

Whole conversations are rendered and cut (rollouts.template); control tokens that are written in a content stay text
(rollouts.control).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rollouts.control import MARK, controls_of, encode_text
from rollouts.episode import Problem
from rollouts.template import OUTPUT, Message, Piece, TemplateError, check_message, template_of

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "END_OF_TEXT", "OUTPUT", "TURN_END", "TURN_START", "Message", "TemplateError", "answer_tokens", "chat_prompt",
    "conversation", "encode_text", "following", "stop_tokens",
]  # fmt: skip
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def chat_prompt(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> np.ndarray:
    """i32[n]: the problem's messages by the chat template, with the header of the answer; or its plain prompt.

    Messages that end with the assistant's are an answer begun, to be continued. Control tokens that are written in a
    message or prompt stay text. Raises ValueError for a problem with neither messages nor a prompt, and TemplateError
    for messages that the tokenizer cannot render.
    """
    if problem.messages:
        try:
            _check(problem.messages)
            template = template_of(tokenizer)
            messages = template.prepare(problem.messages)
            if messages[-1]["role"] == "assistant":
                pieces = template.answer_begun(messages[:-1], messages[-1]["content"] or "")
            else:
                pieces = (template.prompt(messages),)
        except TemplateError as error:
            raise TemplateError(f"problem {problem.id}: {error}") from None
        tokens, _ = _encode_pieces(tokenizer, [(text, False) for text in pieces])
    elif problem.prompt:
        controls = controls_of(tokenizer)
        start = [t for t in tokenizer.encode("") if t == tokenizer.bos_token_id]  # for models that begin with one
        tokens = start + controls.encode(controls.escape(problem.prompt))
    else:
        raise ValueError(f"problem {problem.id} has neither messages nor a prompt")
    return np.asarray(tokens, np.int32)


def following(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    last_token: int,
    history: Sequence[Message] = (),
) -> np.ndarray:
    """i32[n]: what stands between an answer of the model and its next one, with these messages between them.

    Begins with the token that ends a message, unless the answer's `last_token` is that, or another one that ends
    messages in the template (Llama's <|eom_id|>, after a call). `history` is the conversation before the answer, for
    templates that count (tool replies, say).
    Raises TemplateError for messages that the tokenizer cannot render.
    """
    _check([*history, *messages])
    template, controls = template_of(tokenizer), controls_of(tokenizer)
    text, before = template.between(template.prepare(history), template.prepare(messages)), "."
    last = next((name for name, token in controls.ids.items() if token == last_token), "")
    ends_messages = last_token in stop_tokens(tokenizer) and last in (template.source or "")
    if last and template.end and (last == template.end or ends_messages):
        text, before = text.partition(template.end)[2], last
    return np.asarray(controls.encode(text, before), np.int32)


def conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], prompt: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """tokens i32[n] and learned bool[n] of a whole conversation, as the template renders it.

    Where the template takes something out of earlier answers (reasoning), they are as an environment would have made
    them: whole. Learned are the model's own messages with the tokens that end them, except those of weight 0. A message
    of role "output" is what a tool put into the answer before it, which then continues in the next message. A plain
    `prompt` may stand before the messages. Raises ValueError for a conversation in which the model says nothing, and
    TemplateError as `chat_prompt` does, and for fields of a message that would be ignored.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise TemplateError("a conversation to learn from must end with a message of role 'assistant'")
    merged = _merged(messages)
    weights = [m.get("weight") != 0 for m in merged if m["role"] == "assistant"]
    if not any(weights):
        raise TemplateError("a conversation to learn from must have an answer whose weight is not 0")
    ends, start = _ends(tokenizer), np.zeros(0, np.int32)
    if merged[0]["role"] == "assistant":
        start = chat_prompt(tokenizer, Problem("conversation", prompt=prompt))
        pieces = _after_plain_prompt(tokenizer, merged, ends[0])
    else:
        template = template_of(tokenizer)
        prepared = template.prepare(merged)
        pieces = template.whole(prepared, ends) or template.turn_by_turn(prepared, ends)
    parts: list[Piece] = []
    for i, (text, learned) in enumerate(pieces):
        inner = text.split(MARK)  # the model's and a tool's by turns
        parts += [(part, learned and weights[i // 2] and j % 2 == 0) for j, part in enumerate(inner)]
    tokens, learned = _encode_pieces(tokenizer, parts, before="." if len(start) else "")
    tokens, learned = [*start.tolist(), *tokens], [*[False] * len(start), *learned]
    return np.asarray(tokens, np.int32), np.asarray(learned, bool)


def answer_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    """i32[n]: an answer as the model should give it, with the token that ends it."""
    return np.asarray([*encode_text(tokenizer, text), stop_tokens(tokenizer)[0]], np.int32)


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end an answer; the first is the one to train on. Raises ValueError if there is none.

    In this order: what the chat template puts after an answer, what the model's own settings name (`tokenizer.ends`,
    see jaxrl.runs.tokenizer.load_tokenizer), the tokenizer's end of sequence, and the end of a text.
    """
    ids = controls_of(tokenizer).ids
    template_end = ids.get(template_of(tokenizer).end) if tokenizer.chat_template else None
    candidates = [template_end, *getattr(tokenizer, "ends", ()), tokenizer.eos_token_id, ids.get(END_OF_TEXT)]
    tokens = tuple(dict.fromkeys(t for t in candidates if isinstance(t, int)))
    if not tokens:
        raise TemplateError("the tokenizer has no end-of-sequence token")
    return tokens


def split_stops(tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Stop strings as the control tokens among them, and the others."""
    ids = controls_of(tokenizer).ids
    return tuple(ids[s] for s in strings if s in ids), tuple(s for s in strings if s not in ids)


def answer_lead(tokenizer: PreTrainedTokenizerBase) -> str:
    """The blank that belongs to the template, but that the model writes at the beginning of its answer; "" mostly."""
    return template_of(tokenizer).lead if tokenizer.chat_template else ""


def _ends(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(tokenizer.convert_ids_to_tokens(t)) for t in stop_tokens(tokenizer)]


def _encode_pieces(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece], before: str = ""
) -> tuple[list[int], list[bool]]:
    """The tokens of each piece in its place, and whether they are learned. No token goes over a piece's end."""
    controls = controls_of(tokenizer)
    tokens: list[int] = []
    learned: list[bool] = []
    for text, of_model in pieces:
        new = controls.encode(text, before)
        tokens, learned, before = tokens + new, learned + [of_model] * len(new), text or before
    return tokens, learned


def _check(messages: Sequence[Message]) -> None:
    for message in messages:
        check_message(message)


def _merged(messages: Sequence[Message]) -> list[Message]:
    """The messages, with what tools put into an answer as a part of its content: [model's, tool's, model's, ...]."""
    _check(messages)
    merged: list[Message] = []
    i = 0
    while i < len(messages):
        message, parts = dict(messages[i]), [messages[i]["content"]]
        while message["role"] == "assistant":
            until = next((j for j in range(i + 1, len(messages)) if messages[j]["role"] != OUTPUT), len(messages))
            if until in (i + 1, len(messages)) or messages[until]["role"] != "assistant":
                break
            parts += ["".join(m["content"] for m in messages[i + 1 : until]), messages[until]["content"]]
            i = until
        merged.append(message | {"content": parts} if len(parts) > 1 else message)
        i += 1
    return merged


def _after_plain_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], end: str) -> list[Piece]:
    """The pieces of answers to a plain prompt and of what stands between them."""
    template, pieces, place = template_of(tokenizer), [("", False)], 0
    prepared = template.prepare(messages)
    for i, message in enumerate(prepared):
        if message["role"] != "assistant":
            continue
        if i:
            text = template.between([], prepared[place + 1 : i])
            pieces.append((text.partition(template.end)[2] if template.end else text, False))
        pieces.append((message["content"] + end, True))
        place = i
    return pieces
