"""The objects of a rollout: Problem, Turn, Episode, Group. Tokens in, tokens out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from sandbox.verdict import Test, Verdict


@dataclass(frozen=True)
class Problem:
    """One problem of a task.

    `messages` are chat messages ({"role", "content"}); a task for base models gives a plain `prompt` instead.
    `tests` or `answer` say what is right; `public_tests` are those of `tests` whose failures the model may see.
    `meta` is for the report and for filters (difficulty, kind, ...).
    `demonstration` is a right answer for SFT, where the task has one: a text, or the messages of several turns (see
    rollouts.chat.conversation).
    """

    id: str
    messages: tuple[dict[str, str], ...] = ()
    prompt: str | None = None
    tests: tuple[Test, ...] = ()
    public_tests: tuple[Test, ...] = ()
    answer: Any = None
    demonstration: str | tuple[dict[str, str], ...] | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Submission:
    """What an environment hands in at the end of an episode, made once; the judge and all that follows read it."""

    text: str  # what the model wrote, as far as it counts
    program: str | None = None  # the program in it; None for a task that does not ask for one
    state: Any = None  # of an environment that changes something: an edited buffer, a diff


@dataclass(frozen=True)
class Reward:
    """The reward of an episode with its named parts, and whether the problem counts as solved.

    `answer` is the submission's answer in normal form, for majority votes (hashable; None: it gives none).
    """

    value: float
    solved: bool
    parts: dict[str, float] = field(default_factory=dict)
    verdict: Verdict | None = None
    answer: Hashable | None = None
    turns: tuple[float, ...] | None = None  # a value for each sampled turn, in order; None: not given


Role = Literal["assistant", "user", "tool", "output"]  # output: put into the assistant's own message


@dataclass
class Turn:
    """A stretch of an episode: sampled by the model (logprobs given) or inserted by the environment.

    `learned` turns are in the loss: those that were sampled, and by a setting of the environment what a tool printed.
    `text` is for people and the samples file; `status` is that of the tool call whose output an inserted turn is, ""
    for other turns. `cached` counts the tokens before a sampled turn that the engine did not have to compute. A sampled
    turn of kind "text" is an answer that no program is looked for in. `plain` is the text of an inserted turn without
    the prompts of a strategy (rollouts/strategies.py): "" where nothing else is in it, None where it has none.
    `versions` are those of the weights that each token was sampled from, where more than one was. Tokens that are not
    `fresh` were sampled too long ago to be in the loss.
    """

    role: Role
    tokens: np.ndarray  # i32[n]
    sampled: bool
    logprobs: np.ndarray | None = None  # f32[n], only if sampled
    learned: bool | None = None  # None: as `sampled`
    text: str = ""
    status: str = ""
    cached: int = 0
    kind: Literal["", "text"] = ""
    plain: str | None = None
    versions: np.ndarray | None = None  # i32[n]; None: all of the turn's one version
    fresh: np.ndarray | None = None  # bool[n]; None: all

    def __post_init__(self) -> None:
        self.learned = self.sampled if self.learned is None else self.learned


def answers_of(turns: Sequence[Turn]) -> list[Turn]:
    """The sampled turns in which an answer is looked for: not those of kind "text"."""
    return [turn for turn in turns if turn.sampled and turn.kind != "text"]


class Attempt(NamedTuple):
    """A program that the model submitted in a turn: did it pass the tests that it may see, and all of them?"""

    public: bool
    solved: bool
    valid: bool = True  # it is a program at all


# finished: the model ended it. The others are budgets that ran out (tokens, turns, wall time), and a sandbox that
# could not judge.
EpisodeStatus = Literal["finished", "truncated", "out_of_turns", "out_of_time", "sandbox_error"]


@dataclass
class Episode:
    """One attempt at a problem. `sandbox_error` episodes are never trained on."""

    problem: Problem
    prompt: np.ndarray  # i32[n]
    turns: list[Turn]
    reward: Reward
    status: EpisodeStatus
    text: str  # the sampled text, for people and the samples file
    weight_versions: tuple[int, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)  # seconds
    attempts: list[Attempt] = field(default_factory=list)  # of environments that score the program of each turn
    submission: Submission | None = None  # what the reward is for; None in episodes saved by earlier versions
    source: str = ""  # of a replayed episode: FILE:LINE, or "demonstration"
    submissions: tuple[Submission, ...] = ()  # those of `attempts`; not in samples files

    @property
    def submitted(self) -> Submission:
        """The submission; where it is not there, the whole text."""
        return self.submission or Submission(self.text)

    @property
    def sampled_length(self) -> int:
        """Number of sampled tokens."""
        return sum(len(t.tokens) for t in self.turns if t.sampled)

    @property
    def length(self) -> int:
        """Number of tokens after the prompt, inserted ones included."""
        return sum(len(t.tokens) for t in self.turns)

    @property
    def answers(self) -> list[Turn]:
        """The sampled turns in which an answer is looked for."""
        return answers_of(self.turns)

    @property
    def calls(self) -> list[str]:
        """The status of each tool call."""
        return [t.status for t in self.turns if t.status]


@dataclass
class Group:
    """The G episodes of one problem."""

    problem: Problem
    episodes: list[Episode]

    @property
    def rewards(self) -> np.ndarray:
        """f32[G]"""
        return np.array([e.reward.value for e in self.episodes], np.float32)
