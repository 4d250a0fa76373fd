"""A program repaired by edits: a command of a line editor each turn, the program and its tests as the next message.

Chain-of-Edits (arXiv 2507.05065); the language is that of rollouts/editor.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge

from rollouts.editor import apply, lines_of, parse, render
from rollouts.engine import UnsupportedError
from rollouts.environments.dialogue import Dialogue, DialogueEnvironment, EpisodeOverError
from rollouts.episode import Attempt, Problem, Reward, Submission
from sandbox.verdict import NOT_RUN, Verdict

BROKEN = "broken"  # the program to repair, in Problem.meta
MALFORMED = "malformed command"


@dataclass
class Settings:
    """Commands until one says that the work is done; what they earn, turn by turn."""

    name: str = ""
    max_turns: Annotated[int, Ge(1)] = 10  # commands of an episode
    malformed_penalty: Annotated[float, Ge(0)] = 0.5  # of a command that does not parse or fit
    no_exit_penalty: Annotated[float, Ge(0)] = 0.5  # of a last turn that is not EXIT
    failures: Annotated[int, Ge(0)] = 3  # of public tests, shown at most
    characters: Annotated[int, Ge(1)] = 120  # of each of them


@dataclass
class Editing:
    """An episode's state."""

    lines: tuple[str, ...]
    rewards: list[float] = field(default_factory=list)  # of the turns
    malformed: int = 0
    exited: bool = False
    solved: bool = False  # at some time
    seen: dict[tuple[str, ...], tuple[Verdict, bool]] = field(default_factory=dict)  # (by public tests, by all)


class Edits(DialogueEnvironment):
    """The model edits the program in meta["broken"] with one command a turn.

    A turn earns 1 when the program passes all tests for the first time, `-malformed_penalty` when it is not a command
    that fits, else 0; the last turn earns `-no_exit_penalty` if it is not EXIT, of the two the larger. The episode's
    reward is their sum, `solved` is of the program at the end. The model sees public tests alone.
    """

    settings: Settings

    async def converse(self, dialogue: Dialogue) -> None:
        problem = dialogue.problem
        if BROKEN not in problem.meta:
            raise UnsupportedError(f"problem {problem.id} has no program to repair, which environment 'edits' needs")
        now = dialogue.state = Editing(lines_of(problem.meta[BROKEN]))
        for turn in range(self.settings.max_turns):
            command = parse(await dialogue.sample())
            lines = apply(now.lines, command) if command else None
            if command and command.kind == "EXIT":
                now.rewards.append(0.0)
                now.exited = True
                return
            if lines is None:
                now.malformed += 1
                now.rewards.append(-self.settings.malformed_penalty)
            else:
                now.lines = lines
            verdict, solved = await self._judged(dialogue, now)
            if lines is not None:
                now.rewards.append(float(solved and not now.solved))
                now.solved = now.solved or solved
            if turn < self.settings.max_turns - 1:
                feedback = feedback_lines(verdict, self.settings.failures, self.settings.characters)
                dialogue.reply(render(now.lines, [*([MALFORMED] if lines is None else []), *feedback]))
        raise EpisodeOverError("out_of_turns")

    async def _judged(self, dialogue: Dialogue, now: Editing) -> tuple[Verdict, bool]:
        """The verdict by the public tests (by all where there are none), and whether all tests pass."""
        problem, submission = dialogue.problem, self.submission(dialogue)
        if now.lines not in now.seen:
            public = dataclasses.replace(problem, tests=problem.public_tests or problem.tests)
            verdict = await self._verdict(dialogue, public, submission)
            whole = verdict.passed and public.tests != problem.tests
            solved = (await self._verdict(dialogue, problem, submission)).passed if whole else verdict.passed
            now.seen[now.lines] = verdict, solved
        verdict, solved = now.seen[now.lines]
        dialogue.submissions.append(submission)
        dialogue.attempts.append(Attempt(verdict.passed, solved, verdict.status != "syntax_error"))
        return verdict, solved

    async def _verdict(self, dialogue: Dialogue, problem: Problem, submission: Submission) -> Verdict:
        reward = await dialogue.tool(self.judge(problem, submission))
        if reward.verdict is None or reward.verdict.status == "sandbox_error":
            raise EpisodeOverError("sandbox_error")
        return reward.verdict

    def submission(self, dialogue: Dialogue) -> Submission:
        """The program as it is now."""
        program = "\n".join(dialogue.state.lines)
        return Submission(dialogue.text, program, program)

    async def reward(self, dialogue: Dialogue, submission: Submission) -> Reward:
        """The sum over turns; see the class."""
        now, settings = dialogue.state, self.settings
        turns = sum(turn.sampled for turn in dialogue.turns)
        cut_off = turns - len(now.rewards)  # at most one: the tokens ran out in it
        rewards = [*now.rewards, *[-settings.malformed_penalty] * cut_off]
        if rewards and not now.exited:
            last = rewards[-1]
            rewards[-1] = min(last, -settings.no_exit_penalty) if last < 0 else last - settings.no_exit_penalty
        judged = await self.judge(dialogue.problem, submission)
        parts = {
            "solved_once": float(now.solved),
            "malformed": -settings.malformed_penalty * (now.malformed + cut_off),
        }
        parts["no_exit"] = sum(rewards) - sum(parts.values())
        return dataclasses.replace(judged, value=float(sum(rewards)), parts=parts, turns=tuple(rewards))


def feedback_lines(verdict: Verdict, failures: int, characters: int) -> list[str]:
    """A line for each failing test, each message once; nothing where all pass."""
    failed = (test for test in verdict.tests if test.status != "passed" and test.message != NOT_RUN)
    return [*dict.fromkeys(" ".join((t.message or t.status).split())[:characters] for t in failed)][:failures]


def make_environment(**fields: Any) -> Edits:
    return Edits(**fields)
