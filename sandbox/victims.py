"""Who the kernel ends first when memory is short."""

from __future__ import annotations

import os
from collections.abc import Callable

from sandbox.isolation import Jail, open_own

FIRST_VICTIM = b"1000"  # oom_score_adj


class FirstVictims:
    """Forks processes that are the kernel's first choice when memory is short, before this one.

    Raises OSError where the score cannot be raised and lowered again.
    """

    def __init__(self, jail: Jail):
        self._score = open_own(jail, "oom_score_adj")
        self._own = os.read(self._score, 16)
        os.write(self._score, FIRST_VICTIM)
        os.write(self._score, self._own)

    def fork(self, fork: Callable[[], int] = os.fork) -> int:
        """What `fork` returns. A child inherits the score, and cannot change it without /proc."""
        pid = -1
        os.write(self._score, FIRST_VICTIM)
        try:
            pid = fork()
            return pid
        finally:
            if pid:  # the parent, also where no process could be made
                os.write(self._score, self._own)

    def close(self) -> None:
        """For a process that will not fork."""
        os.close(self._score)
