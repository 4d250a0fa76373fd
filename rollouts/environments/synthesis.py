"""A program in stages: describe, refine, implement, run, find out what is wrong (arXiv 2410.08806).

describe -> refine, until the model says that it is right -> implement -> run the public tests -> say whether the
description or the code is wrong -> write that one again -> run ...
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from rollouts.engine import UnsupportedError
from rollouts.environments.dialogue import Dialogue, DialogueEnvironment, EpisodeOverError
from rollouts.environments.feedback import failure_message
from rollouts.episode import Attempt, Reward, Submission
from sandbox.verdict import TestResult, Verdict

DESCRIBE = "First describe in words what to do and what to leave alone. No code yet."
REFINE = "Does it agree with every example? Answer RIGHT, or write a better description."
IMPLEMENT = "Now write the program."
AGAIN = "Write the whole program again."
BLAME = "Is the description wrong or the code? Answer DESCRIPTION or CODE, and why."
DESCRIBE_AGAIN = "Write the description again."
CHECK = "Go through the examples by hand. Answer RIGHT, or say what is wrong."
RIGHT, DESCRIPTION = "RIGHT", "DESCRIPTION"


@dataclass
class Settings:
    """Stages of an episode; each can be switched off."""

    name: str = ""
    describe: bool = True  # a description before the program
    refinements: Annotated[int, Ge(0)] = 10  # rounds of the first description, at most
    programs: Annotated[int, Ge(1)] = 50  # of an episode, at most
    execute: bool = True  # the model sees the public tests that fail; else it checks its program by hand
    introspect: bool = True  # it says whether the description or the code is wrong; else it writes the code again
    failures: Annotated[int, Ge(0)] = 1  # public tests shown at most
    characters: Annotated[int, Ge(1)] = 2000  # of each of them

    @property
    def opening(self) -> str:
        """What comes after the problem in the first message."""
        return DESCRIBE if self.describe else ""

    def check(self, where: str = "rollout.environment") -> None:
        """Raises UnsupportedError for settings that do nothing."""
        if not self.describe and (self.refinements or self.introspect):
            raise UnsupportedError(
                f"{where}.describe = False needs {where}.refinements = 0 and {where}.introspect = False: there is no "
                "description to write again"
            )
        if not self.execute and (self.failures, self.characters) != (1, 2000):
            raise UnsupportedError(f"{where}.failures and {where}.characters need {where}.execute = True")
        if self.programs == 1 and self.introspect:
            raise UnsupportedError(f"{where}.programs = 1 needs {where}.introspect = False: nothing is written again")


class Synthesis(DialogueEnvironment):
    """The model plans, writes and repairs a program in messages of their own.

    The episode ends with a program that passes the public tests (without `execute`: one that the model calls right), or
    after `programs` programs. The reward is the task's, by all tests, of the last program.
    """

    settings: Settings

    async def converse(self, dialogue: Dialogue) -> None:
        if not dialogue.problem.public_tests:
            raise UnsupportedError(
                f"problem {dialogue.problem.id} has no public tests, which rollout.environment = 'synthesis' needs"
            )
        if self.settings.describe:
            await self._describe(dialogue)
            dialogue.reply(IMPLEMENT)
        for number in range(1, self.settings.programs + 1):
            verdict = await self._program(dialogue)
            if self.settings.execute and verdict.passed:
                return
            if number == self.settings.programs:
                break
            if not await self._repair(dialogue, verdict):
                return
        raise EpisodeOverError("out_of_turns")

    async def _describe(self, dialogue: Dialogue) -> None:
        await dialogue.sample()
        for _ in range(self.settings.refinements):
            dialogue.reply(REFINE)
            if _says(RIGHT, await dialogue.sample()):
                return

    async def _program(self, dialogue: Dialogue) -> Verdict:
        """Samples a program and runs the public tests on it, of which the model sees nothing yet."""
        submission = self.submit(dialogue.problem, await dialogue.sample())
        dialogue.submissions.append(submission)
        public = dataclasses.replace(dialogue.problem, tests=dialogue.problem.public_tests)
        reward = await dialogue.tool(self.judge(public, submission))
        verdict = reward.verdict
        if verdict is None:
            verdict = Verdict("syntax_error", (TestResult("syntax_error", "there is no program in the answer"),))
        if verdict.status == "sandbox_error":
            raise EpisodeOverError("sandbox_error")
        dialogue.attempts.append(Attempt(verdict.passed, False, verdict.status != "syntax_error"))  # judged at the end
        return verdict

    async def _repair(self, dialogue: Dialogue, verdict: Verdict) -> bool:
        """Asks for another program, and for a description before it where that is wrong. False: it calls it right."""
        settings = self.settings
        blame = BLAME if settings.introspect else AGAIN
        if settings.execute:
            dialogue.reply(self.message(verdict, blame))
        else:
            dialogue.reply(CHECK if not settings.introspect else f"{CHECK}\n{BLAME}")
        if settings.execute and not settings.introspect:
            return True
        found = await dialogue.sample()
        if not settings.execute and _says(RIGHT, found):
            return False
        if settings.introspect and _says(DESCRIPTION, found):
            dialogue.reply(DESCRIBE_AGAIN)
            await dialogue.sample()
            dialogue.reply(IMPLEMENT)
        else:
            dialogue.reply(AGAIN)
        return True

    def message(self, verdict: Verdict, request: str) -> str:
        """What the model sees of its program."""
        failed = [t for t in verdict.tests if t.status != "passed"]
        lines = dict.fromkeys((t.message or t.status)[: self.settings.characters] for t in failed)  # each once
        return failure_message([*lines][: self.settings.failures], request=request)

    def submission(self, dialogue: Dialogue) -> Submission:
        """The last program; an empty one where there is none."""
        return dialogue.submissions[-1] if dialogue.submissions else self.submit(dialogue.problem, "")

    async def reward(self, dialogue: Dialogue, submission: Submission) -> Reward:
        """The task's, by all tests, of the last program."""
        reward = await self.judge(dialogue.problem, submission)
        if dialogue.attempts:
            dialogue.attempts[-1] = dialogue.attempts[-1]._replace(solved=reward.solved)
        return reward


def _says(word: str, text: str) -> bool:
    """Whether the answer begins with the word, whatever is around it: "**Right.**"."""
    return text.strip().lstrip("*#`\"' ").upper().startswith(word)


def make_environment(**fields: Any) -> Synthesis:
    return Synthesis(**fields)
