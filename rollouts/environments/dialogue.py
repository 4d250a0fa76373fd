"""What environments are made of: an episode in the making, and how one is played within its budget."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rollouts.chat import answer_lead, following
from rollouts.control import decode_text, encode_text
from rollouts.engine import Engine, SamplingParams
from rollouts.episode import Attempt, Episode, EpisodeStatus, Problem, Reward, Role, Submission, Turn
from rollouts.services import Services
from sandbox.verdict import Verdict

OUTPUT_FENCE = "```output"  # opens what a tool gives, in the answer


class EpisodeOverError(Exception):
    """Ends an episode; the arguments are its status, and what a user should know of a sandbox_error."""

    def __init__(self, status: EpisodeStatus, reason: str = ""):
        super().__init__(status)
        self.status: EpisodeStatus = status
        self.reason = reason


@dataclass(frozen=True)
class Budget:
    """What an episode may use. Each has its own status: truncated, out_of_turns, out_of_time."""

    tokens: int  # after the prompt, inserted ones included
    turns: int = 1_000  # of the model
    turn_tokens: int = 0  # of one turn; a longer one is cut there and goes on as if it had ended; 0: no limit
    wall_s: float = 0.0  # until the last turn, waiting for the engine included; 0: no limit


@dataclass
class Dialogue:
    """An episode in the making: a list of tokens that only grows.

    `sample` lets the model go on, `insert` puts text into its answer, `reply` ends its answer and adds a message.
    """

    problem: Problem
    engine: Engine
    tokenizer: Any
    params: SamplingParams  # with the seed and the sequence of the episode
    budget: Budget
    prompt: np.ndarray  # i32[n]
    learn_inserted: bool = False  # the loss is on inserted turns too
    turns: list[Turn] = field(default_factory=list)
    weight_versions: list[int] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    submissions: list[Submission] = field(default_factory=list)  # those of `attempts`
    parts: dict[str, float] = field(default_factory=dict)  # of the reward, beside the task's
    state: Any = None  # the environment's own
    ended: bool = False  # the model has ended its answer
    timings: dict[str, float] = field(default_factory=lambda: {"sample": 0.0, "tool": 0.0})

    @property
    def tokens(self) -> np.ndarray:
        """i32[n]: the episode so far."""
        return np.concatenate([self.prompt, *(t.tokens for t in self.turns)])

    @property
    def text(self) -> str:
        """All that the model wrote. What was inserted is a line's end here, without the fence opened for it."""
        text = ""
        for turn in self.turns:
            if turn.sampled:
                text += turn.text
            elif text:
                text = text.removesuffix(OUTPUT_FENCE)
                text += "" if text.endswith("\n") else "\n"
        return text

    @property
    def left(self) -> int:
        """Tokens that may still be sampled or inserted."""
        return self.budget.tokens - sum(len(t.tokens) for t in self.turns)

    async def sample(self, stop_strings: Sequence[str] = (), kind: Literal["", "text"] = "") -> str:
        """The model's next turn, up to one of `stop_strings` (which it includes) or the end of its answer.

        A turn of kind "text" is not a program: the run's stop strings, which end programs, do not cut it.

        Raises EpisodeOverError when turns or tokens run out; what was sampled until then is part of the episode.
        """
        number, usual = sum(t.sampled for t in self.turns), () if kind == "text" else self.params.stop_strings
        if number >= self.budget.turns:
            raise EpisodeOverError("out_of_turns")
        if self.left < 1:
            raise EpisodeOverError("truncated")
        room = min(self.left, self.budget.turn_tokens or self.left)
        seed = int(np.random.SeedSequence([self.params.seed, number]).generate_state(1, np.uint64)[0] >> 1)
        params = dataclasses.replace(
            self.params,
            max_new_tokens=room,
            seed=seed if number else self.params.seed,
            stop_strings=tuple(dict.fromkeys([*usual, *stop_strings])),
        )
        start = time.perf_counter()
        (completion,) = await self.engine.sample(self.tokens, params)
        self.timings["sample"] += time.perf_counter() - start
        tokens, cached = completion.tokens, completion.cached
        text = decode_text(self.tokenizer, tokens)
        whole = decode_text(self.tokenizer, tokens, special=True)  # a stop string may be, or have, a special token
        if self._begins_an_answer():
            text = text.removeprefix(answer_lead(self.tokenizer))
        turn = Turn("assistant", tokens, True, completion.logprobs, text=text, cached=cached, kind=kind)
        turn.versions = completion.versions if completion.changes else None
        self.turns.append(turn)
        self.weight_versions.append(completion.weight_version)
        stopped = any(string in whole for string in usual)
        self.ended = stopped or (len(tokens) > 0 and tokens[-1] in params.stop_tokens)
        if completion.finish_reason == "length" and self.left < 1:
            raise EpisodeOverError("truncated")
        return text

    def _begins_an_answer(self) -> bool:
        messages = self.problem.messages
        last = self.turns[-1].role if self.turns else messages[-1]["role"] if messages else "assistant"
        return last not in ("assistant", "output")

    def insert(self, text: str, status: str = "") -> None:
        """Puts text into the model's answer, which goes on after it. Special tokens written in it stay text.

        `status` is that of the tool call whose output it is. Raises EpisodeOverError("truncated") if it does not fit.
        """
        self._append("output", np.asarray(encode_text(self.tokenizer, text), np.int32), text, status)

    def reply(self, content: str, role: Role = "user", status: str = "", plain: str | None = None) -> None:
        """Ends the model's answer and adds a message by the chat template. Otherwise as `insert`.

        `plain` is the message without the prompts of a strategy.
        """
        self.replies([(content, role)], status)
        self.turns[-1].plain = plain

    def replies(self, messages: Sequence[tuple[str, Role]], status: str = "") -> None:
        """Ends the model's answer and adds these messages, (content, role), by the chat template.

        Between two answers the template renders them together: the tokens are those of the last one's turn.
        """
        last = int(self.turns[-1].tokens[-1]) if len(self.turns[-1].tokens) else -1  # a server may leave out the end
        added = [{"role": role, "content": content} for content, role in messages]
        tokens = following(self.tokenizer, added, last, self._history())
        if len(tokens) >= self.left:
            raise EpisodeOverError("truncated")
        for content, role in messages[:-1]:
            self._append(role, np.zeros(0, np.int32), content, status)
        content, role = messages[-1]
        self._append(role, tokens, content, status)

    def _history(self) -> list[dict[str, Any]]:
        """The conversation before the model's last answer, as messages."""
        messages = [dict(m) for m in self.problem.messages]
        for turn in self.turns:
            role = "assistant" if turn.role == "output" else turn.role
            if messages and messages[-1]["role"] == role == "assistant":
                messages[-1]["content"] += turn.text
            else:
                messages.append({"role": role, "content": turn.text})
        return messages[:-1]

    def _append(self, role: Role, tokens: np.ndarray, text: str, status: str) -> None:
        if status == "sandbox_error":
            raise EpisodeOverError("sandbox_error")
        if len(tokens) >= self.left:  # one at least must be left for the model
            raise EpisodeOverError("truncated")
        self.turns.append(Turn(role, tokens, False, learned=self.learn_inserted, text=text, status=status))
        self.ended = False

    async def tool(self, result: Awaitable[Any]) -> Any:
        """Awaits what a tool gives; the time counts as the tool's."""
        start = time.perf_counter()
        try:
            return await result
        finally:
            self.timings["tool"] += time.perf_counter() - start


def whole_text(problem: Problem, text: str) -> str | None:
    """The program of a text for a task that does not ask for one."""
    return None


@dataclass
class DialogueEnvironment:
    """An environment in which the model's turns and inserted ones alternate. A new one writes `converse`.

    `settings` are the environment's own; a module of an environment has them as class Settings, and
    make_environment(**fields), which gets all fields below.
    """

    tokenizer: Any  # the model's
    encode: Callable[[Problem], np.ndarray]  # prompt tokens i32[n]
    judge: Callable[[Problem, Submission], Awaitable[Reward]]  # the task's
    params: SamplingParams  # of every turn
    budget: Budget
    learn_inserted: bool = False  # the loss is on inserted turns too
    extract: Callable[[Problem, str], str | None] = whole_text  # the program in a text, as the task reads it
    services: Services = Services()
    others: Sequence[Problem] = ()  # the task's training problems
    settings: Any = None

    continues = True  # an episode has several turns: the engine keeps what it computed for it

    async def converse(self, dialogue: Dialogue) -> None:
        """Plays the turns. The episode is over when this returns, or raises EpisodeOverError."""
        raise NotImplementedError

    def submit(self, problem: Problem, text: str, state: Any = None) -> Submission:
        """The submission of a text."""
        return Submission(text, self.extract(problem, text), state)

    def submission(self, dialogue: Dialogue) -> Submission:
        """What is judged at the end of the episode: here all that the model wrote."""
        return self.submit(dialogue.problem, dialogue.text)

    async def reward(self, dialogue: Dialogue, submission: Submission) -> Reward:
        """The reward of the episode's submission: here the task's."""
        return await self.judge(dialogue.problem, submission)

    async def play(self, problem: Problem, engine: Engine, seed: int) -> Episode:
        """One episode, drawn with this seed."""
        start = time.perf_counter()
        prompt = self.encode(problem)
        params = dataclasses.replace(self.params, n=1, seed=seed, sequence=(seed or 1) if self.continues else 0)
        dialogue = Dialogue(problem, engine, self.tokenizer, params, self.budget, prompt, self.learn_inserted)
        status: EpisodeStatus = "finished"
        failed: Verdict | None = None
        timer = asyncio.timeout(self.budget.wall_s or None)
        try:
            async with timer:
                await self.converse(dialogue)
        except EpisodeOverError as over:
            status = over.status
            failed = Verdict("sandbox_error", stderr=over.reason) if over.reason else None
        except TimeoutError:
            if not timer.expired():
                raise
            status = "out_of_time"
        finally:
            if self.continues:
                engine.release(params.sequence)
        played = time.perf_counter()
        submission = self.submission(dialogue)
        if status == "sandbox_error":
            reward = Reward(0.0, False, verdict=failed)
        else:
            reward = await self.reward(dialogue, submission)
        if reward.verdict is not None and reward.verdict.status == "sandbox_error":
            status = "sandbox_error"
        parts = reward.parts | dialogue.parts
        reward = dataclasses.replace(reward, value=reward.value + sum(dialogue.parts.values()), parts=parts)
        now = time.perf_counter()
        return Episode(
            problem=problem,
            prompt=dialogue.prompt,
            turns=dialogue.turns,
            reward=reward,
            status=status,
            text=dialogue.text,
            weight_versions=tuple(dialogue.weight_versions),
            timings=dialogue.timings | {"score": now - played, "episode": now - start},
            attempts=dialogue.attempts,
            submission=submission,
            submissions=tuple(dialogue.submissions),
        )
