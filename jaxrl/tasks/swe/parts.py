"""Rows of repositories for training and held out: never at random, since commits of the same days share their code."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from jaxrl.tasks.rows import DataError, Row

HELD_OUT_SEED = 70_000_027  # the same held-out problems for every run


def split_rows(rows: Sequence[Row], by: Literal["time", "repository"], share: float) -> tuple[list[Row], list[Row]]:
    """Rows for training and held out: none of these is older than one of those, or of the same repository.

    Raises DataError where no row would be left to train on.
    """
    if by == "time":
        dates = [row_date(row) for row in rows]
        newest = sorted(dates)[-max(1, round(share * len(rows)))]
        held = [date >= newest for date in dates]
    else:
        names = [row.text("repository", "repo") for row in rows]
        there = sorted({*names})
        chosen = random.Random(HELD_OUT_SEED).sample(there, max(1, round(share * len(there))))
        held = [name in chosen for name in names]
    if all(held):
        raise DataError(
            f"{rows[0].where}: task.held_out = {by!r} leaves no row to train on; choose the other way, or give "
            "task.held_out_path"
        )
    return [r for r, h in zip(rows, held) if not h], [r for r, h in zip(rows, held) if h]


def row_date(row: Row) -> float:
    """Seconds since 1970, of `date` (a number) or `created_at` (ISO 8601). Raises DataError for a row with neither."""
    if row.fields.get("created_at") is None:
        return row.number("date")
    value = str(row.get("created_at"))
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise DataError(f"{row.where}: created_at must be a date and time in ISO 8601, is {value[:40]!r}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
