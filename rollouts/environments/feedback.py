"""A program each turn, the failures of its public tests as the next message (RLEF, arXiv 2410.02089).

With prompts of a strategy (arXiv 2410.08105): a turn may begin with a text in which the model thinks, and the request
for the program may come with an instruction.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge

from rollouts.engine import UnsupportedError
from rollouts.environments.dialogue import Dialogue, DialogueEnvironment, EpisodeOverError
from rollouts.episode import Attempt, Problem, Reward, Submission, answers_of
from rollouts.strategies import PROMPTS, STRATEGIES, Schedule, Strategy, text_of
from rollouts.strategies import REQUEST as FIRST_REQUEST
from sandbox.trace import described, trace_program, traced_lines
from sandbox.verdict import Limits, TestResult, Verdict

HEADER, REQUEST = "Your program is wrong:", "Write the whole program again."
PASSED, TRACE = "These tests pass:", "What happened in the first of them:"
TRACE_LINES = 20


@dataclass
class Settings:
    """Programs until one passes the public tests; what the model sees of those that fail."""

    name: str = ""
    max_turns: Annotated[int, Ge(1)] = 3  # programs of an episode
    invalid_penalty: Annotated[float, Ge(0)] = 0.2  # off the reward, for each earlier answer that is not a program
    penalize_last: bool = False  # for the last one too
    # binary: that it failed; failed (tests is its older name): which tests did; failed_and_passed: and which passed;
    # trace: and what the variables were in the first that failed; random: which tests of another problem failed.
    feedback: Literal["tests", "binary", "failed", "failed_and_passed", "trace", "random"] = "tests"
    failures: Annotated[int, Ge(0)] = 3  # shown at most; as many that passed
    characters: Annotated[int, Ge(1)] = 300  # of each of them
    trace_lines: Annotated[int, Ge(1)] = TRACE_LINES  # of a trace, with a line for the rest
    header: str = HEADER
    request: str = REQUEST
    reasoning: str = ""  # asked for before the program: a name of rollouts/strategies.py, or a text of several words
    instruction: str = ""  # beside the request for the program: the same
    schedule: Schedule = "first"  # turns with these prompts; retry: instruction in turn 2, reasoning from turn 3
    strategy: Literal["", "cot_retry"] = ""  # a named one, in place of the last three
    first_request: str = FIRST_REQUEST  # of the program, after the reasoning of the first turn

    @property
    def programs(self) -> int:
        """Programs that an episode may submit."""
        return self.max_turns

    @property
    def prompting(self) -> Strategy:
        """What is said beside the problem and the feedback, and when."""
        own = Strategy(self.reasoning, self.instruction, self.schedule)
        return STRATEGIES[self.strategy] if self.strategy else own

    @property
    def prompted(self) -> bool:
        """Whether a strategy's prompts are said at all."""
        return bool(self.prompting.reasoning or self.prompting.instruction)

    @property
    def opening(self) -> str:
        """What comes after the problem in the first message."""
        reasoning, instruction = self.prompting.at(0)
        return reasoning or instruction

    def check(self, where: str = "rollout.environment") -> None:
        """Raises ValueError for an unknown prompt, and for settings that contradict each other or do nothing."""
        own = Strategy(self.reasoning, self.instruction, self.schedule)
        if self.strategy and own != Strategy():
            raise ValueError(f"{where}.strategy = {self.strategy!r} must be '' with reasoning, instruction or schedule")
        for name, prompts in PROMPTS.items():
            try:
                text_of(getattr(self, name), prompts)
            except ValueError as error:
                raise ValueError(f"{where}.{name}: {error}") from None
        prompting = self.prompting
        if not self.prompted and prompting.schedule != "first":
            raise ValueError(f"{where}.schedule = {self.schedule!r} needs {where}.reasoning or {where}.instruction")
        least = prompting.last_change() + 1 if prompting.schedule == "retry" else 2 * (prompting.schedule == "every")
        if self.max_turns < least:
            raise ValueError(
                f"{where}.max_turns = {self.max_turns} must be at least {least}, the turn of the last prompt that "
                f"{where}.{'strategy' if self.strategy else 'schedule'} = {self.strategy or self.schedule!r} says"
            )
        if self.trace_lines != TRACE_LINES and self.feedback != "trace":
            raise ValueError(f"{where}.trace_lines = {self.trace_lines} needs {where}.feedback = 'trace'")


class Feedback(DialogueEnvironment):
    """The model answers with a whole program; while public tests fail it sees which and tries again.

    The episode ends with a program that passes the public tests, or after `max_turns` programs. The reward is the
    task's, by all tests, of the last one; each earlier answer that is not a valid program costs `invalid_penalty` (0.2
    in the paper), and so does an invalid last one if `penalize_last`. Feedback of another problem's tests ("random")
    is the paper's ablation, in which nothing should be gained. A turn with a reasoning prompt has two messages of the
    model: a text, which is never judged, and the program.
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
            reasoning, instruction = self.settings.prompting.at(turn)
            if reasoning:
                await dialogue.sample(kind="text")
                again = self.settings.request if turn else self.settings.first_request
                dialogue.reply(joined(again, instruction), plain="")
            answer = await dialogue.sample()
            dialogue.submissions.append(self.submit(problem, answer))
            verdict = await self._verdict(dialogue, seen, dialogue.submissions[-1])
            valid = verdict.status != "syntax_error"
            dialogue.attempts.append(Attempt(verdict.passed, False, valid))  # judged below if it is the last
            if verdict.passed:
                return
            if turn < self.settings.max_turns - 1:
                trace: Sequence[str] = ()
                if self.settings.feedback == "random":
                    other = self._other(dialogue)
                    verdict = await self._verdict(dialogue, other, self.submit(other, answer))
                elif self.settings.feedback == "trace":
                    trace = await self._trace(dialogue, seen, verdict)
                plain = self.message(self.facts(seen, verdict, trace))
                said = self.message(self.facts(seen, verdict, trace), *self.settings.prompting.at(turn + 1))
                dialogue.reply(said, plain=None if said == plain else plain)
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

    async def _trace(self, dialogue: Dialogue, problem: Problem, verdict: Verdict) -> Sequence[str]:
        """What the last program did in the first public test that it fails; nothing where it cannot be traced."""
        number = next((i for i, test in enumerate(verdict.tests) if test.status != "passed"), 0)
        limits = problem.meta.get("limits", Limits())
        program = trace_program(dialogue.submissions[-1].program or "", problem.tests[number], limits)
        if verdict.status == "syntax_error" or program is None:
            return ()
        traced = await dialogue.tool(self.services.run(program))
        return traced_lines(traced, problem.tests[number], self.settings.trace_lines)

    def facts(self, problem: Problem, verdict: Verdict, trace: Sequence[str] = ()) -> str:
        """What the model sees of its program, without a request."""
        settings, header = self.settings, self.settings.header
        if settings.feedback == "binary":
            return f"{header.rstrip(':')}."
        failed = [t for t in verdict.tests if t.status != "passed"]
        lines = [*dict.fromkeys((t.message or t.status)[: settings.characters] for t in failed)]  # each once
        lines = [header, *lines[: settings.failures]]
        if settings.feedback == "failed_and_passed":
            passed = [described(t) for t, r in zip(problem.tests, verdict.tests) if r.status == "passed"]
            lines += [PASSED, *(line[: settings.characters] for line in passed[: settings.failures])] if passed else []
        return "\n".join([*lines, *([TRACE, *trace] if trace else [])])

    def message(self, facts: str, reasoning: str = "", instruction: str = "") -> str:
        """The message on a program that failed: the facts, and what is asked for next."""
        wanted = reasoning or joined(self.settings.request, instruction)
        return f"{facts} {wanted}" if self.settings.feedback == "binary" else joined(facts, wanted)

    def submission(self, dialogue: Dialogue) -> Submission:
        """The last answer; an empty one where there is none."""
        answers = [t.text for t in answers_of(dialogue.turns)]
        if answers and len(dialogue.submissions) == len(answers):
            return dialogue.submissions[-1]
        return self.submit(dialogue.problem, answers[-1] if answers else "")

    async def reward(self, dialogue: Dialogue, submission: Submission) -> Reward:
        """The task's, by all tests, of the last answer; and the penalty for those that are not programs."""
        answers = len(answers_of(dialogue.turns))
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
    return joined(header, *failures, request)


def joined(*parts: str) -> str:
    """The parts that say something, each on lines of its own."""
    return "\n".join(filter(None, parts))
