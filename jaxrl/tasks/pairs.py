"""Pairs of answers to one question, of which one is better: what a reward model is trained on.

One JSON object a line: "id" (of the question), "messages" (the prompt, as the policy got it), "chosen" and "rejected"
(texts of answers), and their pass rates "chosen_rate" and "rejected_rate", which need not be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl.tasks.rows import DataError, Row, read_rows


class Pair(NamedTuple):
    """Two answers to a question."""

    where: str  # FILE:LINE
    question: str
    messages: tuple[dict[str, Any], ...]
    chosen: str
    rejected: str


def read_pairs(path: str) -> list[Pair]:
    """The pairs of a file (.jsonl, .json, .parquet, .gz). Raises DataError with file and line for others."""
    pairs = [_pair(row) for row in read_rows(path, "train")]
    if not pairs:
        raise DataError(f"{path} has no pairs")
    return pairs


def _pair(row: Row) -> Pair:
    messages = row.parts("messages")
    if not messages or messages[-1].text("role") == "assistant":
        raise DataError(f"{row.where}: messages must be those of a prompt: one at least, the last not the assistant's")
    plain = tuple({"role": m.text("role"), "content": m.text("content")} for m in messages)
    pair = Pair(row.where, row.name("id"), plain, row.text("chosen"), row.text("rejected"))
    if pair.chosen == pair.rejected:
        raise DataError(f"{row.where}: chosen and rejected are the same text")
    if {"chosen_rate", "rejected_rate"} <= row.fields.keys():
        high, low = row.number("chosen_rate"), row.number("rejected_rate")
        if not high > low:
            raise DataError(f"{row.where}: chosen_rate = {high:g} must be above rejected_rate = {low:g}")
    return pair


def split_pairs(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(to train on, held out): all pairs of a question are on one side. At least one question is held out if share > 0.

    Raises DataError where no question is left to train on.
    """
    questions = sorted({p.question for p in pairs})
    count = max(1, round(share * len(questions))) if share else 0
    if count >= len(questions):
        raise DataError(f"reward.held_out = {share:g} leaves none of the {len(questions)} questions to train on")
    order = np.random.default_rng([seed, 0x70616972]).permutation(len(questions))
    held_out = {questions[i] for i in order[:count]}
    return [p for p in pairs if p.question not in held_out], [p for p in pairs if p.question in held_out]
