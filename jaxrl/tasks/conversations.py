"""Conversations to learn from, for SFT.

A data set has one JSON object a line with "messages", a list of {"role", "content"}: system, user and tool messages are
read, the assistant's are learned. A message of role "output" is what a tool put into the assistant's own message, which
continues in the next one. An assistant's message may also have "weight" (0: not learned), "reasoning_content" and
"tool_calls", if the chat template has a place for them. More fields of a line are kept as they are.
"""

from __future__ import annotations

from itertools import pairwise

from jaxrl.tasks.rows import DataError, Row, described, read_rows
from rollouts.chat import OUTPUT, TemplateError
from rollouts.episode import Problem
from rollouts.template import check_message

ROLES = ("system", "user", "assistant", "tool", OUTPUT)


def read_conversations(source: str, split: str = "train") -> list[Problem]:
    """The conversations of a file (.jsonl, .json, .parquet, .gz) or of a data set of the hub, as demonstrations.

    Raises DataError, with file and line, for a row that is not a conversation to learn from.
    """
    return [_demonstration(row) for row in read_rows(source, split)]


def _demonstration(row: Row) -> Problem:
    messages = row.parts("messages")
    if not messages:
        raise DataError(f"{row.where}: messages must be a list of messages, is an empty one")
    for field in ("tools", "functions"):
        if row.fields.get(field):
            raise DataError(f"{row.where}: {field} would be ignored; describe the tools in a system message instead")
    plain = []
    for message in messages:
        if message.text("role") not in ROLES:
            raise DataError(
                f"{message.where}: role must be one of {', '.join(ROLES)}, is {described(message.text('role'))}"
            )
        if not message.fields.get("tool_calls"):
            message.text("content")
        try:
            check_message(message.fields)
        except TemplateError as error:
            raise DataError(f"{message.where}: {error}") from None
        plain.append({name: value for name, value in message.fields.items() if value is not None})
    for i, (one, other) in enumerate(pairwise(plain)):
        if one["role"] == other["role"] == "assistant":
            raise DataError(f"{row.where}: messages[{i}] and [{i + 1}] are both the assistant's; make them one message")
    first = next((i for i, m in enumerate(plain) if m["role"] == "assistant"), 0)
    prompt = row.optional_text("prompt") or None
    if plain[-1]["role"] != "assistant" or not (first or prompt):
        raise DataError(f"{row.where}: the conversation must begin with another message and end with the assistant's")
    if all(m.get("weight") == 0 for m in plain if m["role"] == "assistant"):
        raise DataError(f"{row.where}: no message of the assistant has a weight other than 0")
    return Problem(row.where, tuple(plain[:first]), prompt, demonstration=tuple(plain[first:]))
