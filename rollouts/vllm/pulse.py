"""Distinguishes a slow server from a hung one by the work it does, not by the delay of one answer.

Signs of life are an answer, new tokens in the server's own counters, and the CPU time of its processes where that is
visible. During one long step on a loaded machine CPU time may be the only one. A server without any of them for
`limit_s` seconds hangs; one with only CPU time hangs after ten times as long, since an endless loop uses CPU time too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

HANG_S = 30.0  # without a sign of life, at first; doubles with each restart
MOST_HANG_S = 240.0
SPIN_TIMES = 10  # factor of the limit for a server that only uses CPU time
AT_WORK = 0.02  # share of a core; answering /health on an idle server takes a fifth of that

# Tokens of prompts and completions, by engine and model: https://docs.vllm.ai/en/stable/usage/metrics.html
_COUNTER = re.compile(r"^vllm:(?:prompt|generation)_tokens(?:_total)?(?:\{[^}]*\})? (\S+)", re.MULTILINE)


def count_tokens(metrics: str) -> float | None:
    """The tokens that a server has read and written, from the text of its /metrics; None if not reported."""
    found = [float(number) for number in _COUNTER.findall(metrics)]
    return sum(found) if found else None


@dataclass
class Pulse:
    """A server's last signs of life. Times are in seconds of `clock`."""

    limit_s: float = field(default_factory=lambda: HANG_S)
    clock: Callable[[], float] = time.monotonic
    heard: float = 0.0  # when it last answered, or had counted new tokens
    counted: float = 0.0  # when it last had counted new tokens
    worked: float = 0.0  # when it last used CPU time
    tokens: float | None = None
    cpu_s: float = 0.0
    cpu_at: float = 0.0  # when cpu_s was read

    def begin(self, cpu_s: float | None = None) -> None:
        """Starts the clock when the server has started, or has got work after a pause."""
        self.heard = self.worked = self.cpu_at = self.clock()
        self.cpu_s = self.cpu_s if cpu_s is None else cpu_s

    def be_patient(self) -> None:
        """Doubles the limit: a server that was restarted may have been slow after all."""
        self.limit_s = max(self.limit_s, min(2 * self.limit_s, MOST_HANG_S))

    def see(self, answered: bool, tokens: float | None = None, cpu_s: float | None = None) -> None:
        """Records one observation; None for what is not visible."""
        now = self.clock()
        if tokens is not None:
            if self.tokens is not None and tokens > self.tokens:
                self.heard = self.counted = now
            self.tokens = tokens
        if answered:
            self.heard = now
        if cpu_s is not None and now > self.cpu_at:
            if cpu_s - self.cpu_s > AT_WORK * (now - self.cpu_at):
                self.worked = now
            self.cpu_s, self.cpu_at = cpu_s, now

    def hangs(self) -> str:
        """Why the server counts as hung; "" while it does not."""
        now = self.clock()
        if now - max(self.heard, self.worked) > self.limit_s:
            return f"no answer, no token and no CPU time for {self.limit_s:.0f} s"
        if now - self.heard > SPIN_TIMES * self.limit_s:
            return f"no answer and no token for {SPIN_TIMES * self.limit_s:.0f} s, though it uses CPU time"
        return ""
