"""A program each turn, the failures of its public tests as the next message (RLEF, arXiv 2410.02089)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rollouts.environments.dialogue import Dialogue, DialogueEnvironment, EpisodeOverError
from rollouts.episode import Attempt, Problem, Reward
from sandbox.verdict import TestResult, Verdict

HEADER, REQUEST = "Your program is wrong:", "Write the whole program again."


@dataclass
class Feedback(DialogueEnvironment):
    """The model answers with a whole program; while public tests fail it is told so and tries again.

    The episode ends with a program that passes the public tests, or after `max_turns` programs. The reward is the
    task's, by all tests, of the last one; each earlier answer that is no valid program costs `invalid_penalty` (0.2 in
    the paper), and so does an invalid last one if `penalize_last`.

    feedback: "tests": what failed, with expected and actual values; "binary": only that something did; "random": what
    fails of another problem's tests, drawn from `others`: the paper's ablation, in which nothing should be gained.
    failures: so many are told, of `characters` at most each.
    """

    max_turns: int = 3
    invalid_penalty: float = 0.2
    penalize_last: bool = False
    feedback: str = "tests"  # tests | binary | random
    others: Sequence[Problem] = ()
    failures: int = 3
    characters: int = 300
    header: str = HEADER
    request: str = REQUEST

    async def converse(self, dialogue: Dialogue) -> None:
        problem = dialogue.problem
        if not problem.public_tests:
            raise ValueError(f"problem {problem.id} has no public tests, which rollout.environment = 'feedback' needs")
        seen = dataclasses.replace(problem, tests=problem.public_tests)
        for turn in range(self.max_turns):
            answer = await dialogue.sample()
            verdict = await self._verdict(dialogue, seen, answer)
            valid = verdict.status != "syntax_error"
            dialogue.attempts.append(Attempt(verdict.passed, False, valid))  # judged below if it is the last
            if verdict.passed:
                return
            if turn < self.max_turns - 1:
                if self.feedback == "random":
                    verdict = await self._verdict(dialogue, self._other(dialogue), answer)
                dialogue.reply(self.message(verdict))
        raise EpisodeOverError("out_of_turns")

    async def _verdict(self, dialogue: Dialogue, problem: Problem, answer: str) -> Verdict:
        reward = await dialogue.tool(self.score(problem, answer))
        if reward.verdict is None:
            return Verdict("syntax_error", (TestResult("syntax_error", "there is no program in the answer"),))
        if reward.verdict.status == "sandbox_error":
            raise EpisodeOverError("sandbox_error")
        return reward.verdict

    def _other(self, dialogue: Dialogue) -> Problem:
        """Another problem, the same for the same episode and turn."""
        draw = random.Random(f"{dialogue.params.seed} {len(dialogue.turns)}")
        others = [draw.choice(self.others) for _ in range(8)]  # of many: one at least is another one
        other = next((p for p in others if p.id != dialogue.problem.id), others[0])
        return dataclasses.replace(other, tests=other.public_tests or other.tests)

    def message(self, verdict: Verdict) -> str:
        """What the model is told of its program."""
        if self.feedback == "binary":
            return f"{self.header.rstrip(':')}. {self.request}"
        failed = [t for t in verdict.tests if t.status != "passed"]
        lines = dict.fromkeys((t.message or t.status)[: self.characters] for t in failed)  # each said once
        return told([*lines][: self.failures], self.header, self.request)

    async def judge(self, dialogue: Dialogue) -> Reward:
        """The task's, by all tests, of the last answer; and the penalty for those that are no programs."""
        answers = [t.text for t in dialogue.turns if t.sampled]
        penalized = dialogue.attempts if self.penalize_last else dialogue.attempts[: max(len(answers) - 1, 0)]
        invalid = sum(not attempt.valid for attempt in penalized)
        if invalid and self.invalid_penalty:
            dialogue.parts["invalid"] = -self.invalid_penalty * invalid
        reward = await self.score(dialogue.problem, answers[-1] if answers else "")
        if dialogue.attempts and len(dialogue.attempts) == len(answers):
            dialogue.attempts[-1] = dialogue.attempts[-1]._replace(solved=reward.solved)
        return reward


def told(failures: Sequence[str], header: str = HEADER, request: str = REQUEST) -> str:
    """The message on a program that failed."""
    return "\n".join([header, *failures, request])
