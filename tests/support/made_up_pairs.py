"""Pairs of answers for a reward model to tell apart."""

from __future__ import annotations

import json
from pathlib import Path


def write_pairs(path: Path) -> Path:
    """Three pairs of each of 30 questions; the better answers end in another word."""
    lines = []
    for q in range(30):
        messages = [{"role": "user", "content": f"sum {q} {q * 7 % 11}"}]
        for k in range(3):
            lines.append({"id": f"q{q}", "messages": messages, "chosen": f"{q + k} good", "rejected": f"{q - k} bad",
                          "chosen_rate": 1.0, "rejected_rate": 0.2 * k})  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
