"""Rewards that several tasks share."""

from __future__ import annotations

from collections.abc import Hashable

from rollouts.episode import Problem, Reward, Submission
from rollouts.services import Services
from sandbox.verdict import Limits, Program


async def judge_program(
    problem: Problem,
    submission: Submission,
    services: Services,
    *,
    partial: float = 0.0,
    part: str = "partial",
    limits: Limits = Limits(),
    answer: Hashable | None = None,
) -> Reward:
    """1 if the program passes all tests of the problem, else `partial` times the share that it passes.

    Partial credit is the reward part named `part`, which is left out where `partial` is 0.
    """
    verdict = await services.run(Program(submission.program or "", problem.tests, limits))
    parts = {"solved": float(verdict.passed)}
    if partial:
        failed = not verdict.passed and verdict.status != "sandbox_error"
        parts[part] = partial * verdict.pass_fraction if failed else 0.0
    return Reward(sum(parts.values()), verdict.passed, parts, verdict, answer)
