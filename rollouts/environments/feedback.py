"""A program each turn, the failures of its public tests as the next message (RLEF, arXiv 2410.02089)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge

from rollouts.engine import UnsupportedError
from rollouts.environments.dialogue import Dialogue, DialogueEnvironment, EpisodeOverError
from rollouts.episode import Attempt, Problem, Reward, Submission
from sandbox.verdict import TestResult, Verdict

HEADER, REQUEST = "Your program is wrong:", "Write the whole program again."


@dataclass
class Settings:
    """Programs until one passes the public tests; what the model sees of those that fail."""

    name: str = ""
    max_turns: Annotated[int, Ge(1)] = 3  # programs of an episode
    invalid_penalty: Annotated[float, Ge(0)] = 0.2  # off the reward, for each earlier answer that is not a program
    penalize_last: bool = False  # for the last one too
    feedback: Literal["tests", "binary", "random"] = "tests"  # what failed; that something did; of another problem
    failures: Annotated[int, Ge(0)] = 3  # shown at most
    characters: Annotated[int, Ge(1)] = 300  # of each of them
    header: str = HEADER
    request: str = REQUEST

    @property
    def programs(self) -> int:
        """Programs that an episode may submit."""
        return self.max_turns


class Feedback(DialogueEnvironment):
    """The model answers with a whole program; while public tests fail it sees which and tries again.

    The episode ends with a program that passes the public tests, or after `max_turns` programs. The reward is the
    task's, by all tests, of the last one; each earlier answer that is not a valid program costs `invalid_penalty` (0.2
    in the paper), and so does an invalid last one if `penalize_last`. Feedback of another problem's tests ("random")
    is the paper's ablation, in which nothing should be gained.
    """

    settings: Settings

    async def converse(self, dialogue: Dialogue) -> None:
        problem = dialogue.problem
        if not problem.public_tests:
            raise UnsupportedError(
                f"problem {problem.id} has no public tests, which rollout.environment = 'feedback' needs"
            )
        seen = dataclasses.replace(problem, tests=problem.public_tests)
        for turn in range(self.settings.max_turns):
            answer = await dialogue.sample()
            dialogue.submissions.append(self.submit(problem, answer))
            verdict = await self._verdict(dialogue, seen, dialogue.submissions[-1])
            valid = verdict.status != "syntax_error"
            dialogue.attempts.append(Attempt(verdict.passed, False, valid))  # judged below if it is the last
            if verdict.passed:
                return
            if turn < self.settings.max_turns - 1:
                if self.settings.feedback == "random":
                    other = self._other(dialogue)
                    verdict = await self._verdict(dialogue, other, self.submit(other, answer))
                dialogue.reply(self.message(verdict))
        raise EpisodeOverError("out_of_turns")

    async def _verdict(self, dialogue: Dialogue, problem: Problem, submission: Submission) -> Verdict:
        reward = await dialogue.tool(self.judge(problem, submission))
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
        """What the model sees of its program."""
        if self.settings.feedback == "binary":
            return f"{self.settings.header.rstrip(':')}. {self.settings.request}"
        failed = [t for t in verdict.tests if t.status != "passed"]
        lines = dict.fromkeys((t.message or t.status)[: self.settings.characters] for t in failed)  # each once
        return failure_message([*lines][: self.settings.failures], self.settings.header, self.settings.request)

    def submission(self, dialogue: Dialogue) -> Submission:
        """The last answer; an empty one where there is none."""
        answers = [t.text for t in dialogue.turns if t.sampled]
        if answers and len(dialogue.submissions) == len(answers):
            return dialogue.submissions[-1]
        return self.submit(dialogue.problem, answers[-1] if answers else "")

    async def reward(self, dialogue: Dialogue, submission: Submission) -> Reward:
        """The task's, by all tests, of the last answer; and the penalty for those that are not programs."""
        answers = sum(t.sampled for t in dialogue.turns)
        last = None if self.settings.penalize_last else max(answers - 1, 0)
        invalid = sum(not attempt.valid for attempt in dialogue.attempts[:last])
        if invalid and self.settings.invalid_penalty:
            dialogue.parts["invalid"] = -self.settings.invalid_penalty * invalid
        reward = await self.judge(dialogue.problem, submission)
        if dialogue.attempts and len(dialogue.attempts) == answers:
            dialogue.attempts[-1] = dialogue.attempts[-1]._replace(solved=reward.solved)
        return reward


def make_environment(**fields: Any) -> Feedback:
    return Feedback(**fields)


def failure_message(failures: Sequence[str], header: str = HEADER, request: str = REQUEST) -> str:
    """The message on a program that failed."""
    return "\n".join([header, *failures, request])
