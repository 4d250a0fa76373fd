"""Rewards that several tasks share."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

from rollouts.episode import Problem, Reward, Submission
from rollouts.services import Services
from sandbox.verdict import NOT_RUN, Limits, Program, TestResult, Verdict

RERUNS = 4  # of the tests after one that ended the program


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


async def every_test(problem: Problem, submission: Submission, verdict: Verdict, services: Services) -> Verdict:
    """The verdict with a result of its own for each test of the problem.

    A test in which the program ends, or takes too long, ends the run of tests: those after it are run again without it.
    One that took too long gets a second try, since a busy machine is slow. After RERUNS runs the rest counts as failed.
    """
    results, limits = list(verdict.tests), problem.meta.get("limits", Limits())
    if len(results) != len(problem.tests) or verdict.status == "syntax_error":
        return verdict
    tried: set[int] = set()
    for _ in range(RERUNS):
        first = next((i for i, result in enumerate(results) if _unsettled(result, i in tried)), None)
        if first is None:
            break
        tried.add(first)
        again = await services.run(Program(submission.program or "", problem.tests[first:], limits))
        if again.status == "sandbox_error":
            return again
        results[first:] = again.tests
    status = next((r.status for r in results if r.status != "passed"), "passed")
    return dataclasses.replace(verdict, status=status, tests=tuple(results))


def _unsettled(result: TestResult, tried: bool) -> bool:
    return result.message == NOT_RUN or (result.status == "timeout" and not tried)
