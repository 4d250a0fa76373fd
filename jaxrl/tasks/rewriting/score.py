"""What a transform is worth on pairs of programs: judged in the sandbox, by syntax trees and by behaviour.

A transform is a program that defines transform(source: str) -> str. It runs in the sandbox, and its answers are
compared with the right ones in the sandbox's judge. Of a program x with the right answer y, the answer z is

    tp  y != x, z = y     fn  y != x, z = x     fp  z is neither     tn  y = x, z = x

where = is equality of syntax trees. An exception or a time-out counts as no change, and as `crashed`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxrl.tasks.rewriting.programs import Pair
from rollouts.services import Services
from sandbox.trees import MAX_PROGRAM, tree_digest
from sandbox.verdict import CallTest, Limits, Program, ReferenceTest, TestResult

FUNCTION = "transform"
LIMITS = Limits(wall_s=10.0, cpu_s=4.0, memory_mb=512)
BEHAVIOUR_LIMITS = Limits(wall_s=5.0, cpu_s=2.0, memory_mb=256)
Outcome = Literal["tp", "fp", "fn", "tn"]


@dataclass(frozen=True)
class Score:
    """Counts over programs. `broken`: of the fp, those that do something else than before; None: not looked at."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0
    crashed: int = 0  # of fn and tn
    broken: int | None = None

    @property
    def precision(self) -> float:
        """TP / (TP + FP): of the changed programs, those that are right. 1 where none was changed."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else 1.0

    @property
    def recall(self) -> float:
        """TP / (TP + FN): of the programs to change that were not changed wrongly. 1 where there are none."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else 1.0

    @property
    def perfectly_precise(self) -> bool:
        """No program was changed wrongly."""
        return self.fp == 0


def pair_tests(pairs: Sequence[Pair]) -> tuple[CallTest, ...]:
    """The tests of a transform: one for each pair."""
    return tuple(CallTest(FUNCTION, (p.before,), p.after, normal="python") for p in pairs)


def outcome(test: CallTest, result: TestResult) -> tuple[Outcome, bool]:
    """What came out for a pair, and whether the transform crashed on it."""
    before, after = tree_digest(test.args[0]), tree_digest(test.expected)
    if result.status == "passed":
        return ("tn" if before == after else "tp"), False
    if result.status != "wrong_answer":
        return ("tn" if before == after else "fn"), True
    return ("fn" if result.digest == before != after else "fp"), False


def score_of(tests: Sequence[CallTest], results: Sequence[TestResult]) -> Score:
    """The score of the results of these tests; broken programs are not looked at."""
    found = [outcome(t, r) for t, r in zip(tests, results, strict=True)]
    counts = {kind: sum(o == kind for o, _ in found) for kind in ("tp", "fp", "fn", "tn")}
    return Score(**counts, crashed=sum(crashed for _, crashed in found))


async def broken(pairs: Sequence[Pair], results: Sequence[TestResult], services: Services) -> int | None:
    """How many of the wrongly changed programs give something else than before, on the pairs' calls of f.

    What is not Python, or too long to be shown, is broken; a pair without calls is not. None where the
    sandbox fails.
    """
    changed = [
        (pair, result.actual if result.digest and len(result.actual) < MAX_PROGRAM else None)
        for pair, test, result in zip(pairs, pair_tests(pairs), results, strict=True)
        if outcome(test, result)[0] == "fp" and pair.calls
    ]
    programs = [
        Program(text, (ReferenceTest("f", pair.calls, reference=pair.before),), BEHAVIOUR_LIMITS)
        for pair, text in changed
        if text is not None
    ]
    verdicts = await asyncio.gather(*(services.run(p) for p in programs))
    if any(v.status == "sandbox_error" for v in verdicts):
        return None
    return len(changed) - sum(v.passed for v in verdicts)


async def score(program: str, pairs: Sequence[Pair], services: Services) -> Score:
    """The score of a transform's source on these pairs. Raises RuntimeError where the sandbox fails."""
    tests = pair_tests(pairs)
    verdict = await services.run(Program(program, tests, LIMITS))
    if verdict.status == "sandbox_error":
        raise RuntimeError(f"the sandbox could not judge the transform: {verdict.stderr[:400]}")
    changed = await broken(pairs, verdict.tests, services)
    if changed is None:
        raise RuntimeError("the sandbox could not run a changed program")
    return dataclasses.replace(score_of(tests, verdict.tests), broken=changed)
