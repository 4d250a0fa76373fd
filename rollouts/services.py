"""What environments and judges may use besides the model: the sandbox's judge pool, interpreters, scorers,
working trees.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rollouts.episode import Problem, Submission
from sandbox.checkouts import Checkouts
from sandbox.session import Session
from sandbox.verdict import Program, Verdict


class JudgePool(Protocol):
    """Runs programs on their tests: sandbox.pool.Pool, or one on other machines."""

    @property
    def workers(self) -> int: ...

    async def run_async(self, program: Program) -> Verdict: ...

    def run(self, programs: Sequence[Program]) -> list[Verdict]: ...


class Scorer(Protocol):
    """A number for how good a submission is, such as a reward model gives."""

    def __call__(self, problem: Problem, submission: Submission) -> Awaitable[float]: ...


@dataclass(frozen=True)
class Services:
    """What a run has started for its episodes. What the run's settings do not ask for is None or not there."""

    pool: JudgePool | None = None
    open_session: Callable[[], Session] | None = None  # a fresh Python interpreter
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    trees: Checkouts = field(default_factory=Checkouts)  # nothing runs before one is opened

    async def run(self, program: Program) -> Verdict:
        """The verdict on one program."""
        if self.pool is None:
            raise ValueError("this task runs programs, but the run has no judge pool")
        return await self.pool.run_async(program)
