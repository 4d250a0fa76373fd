"""The Engine protocol: token ids in, token ids and logprobs out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np


class UnsupportedError(ValueError):
    """An engine or environment cannot do this with these settings, problems or server."""


class PromptTooLongError(UnsupportedError):
    """A prompt with max_new_tokens does not fit the engine's context."""


@dataclass(frozen=True)
class SamplingParams:
    """How to sample a completion.

    The returned logprobs are those of softmax(logits / temperature), before top-k, top-p and min-p truncate it;
    temperature 0 is greedy, with the logprobs of temperature 1. The same (prompt, params) gives the same tokens
    whatever else the engine is doing.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0  # 1.0: off
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # 0.0: off
    stop_tokens: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    n: int = 1  # completions of this prompt; the i-th is sampled with seed (seed, i)
    seed: int = 0
    sequence: int = 0  # requests with one number (0: none) continue each other until Engine.release; n must be 1

    def __post_init__(self) -> None:
        for name, ok, rule in (
            ("max_new_tokens", self.max_new_tokens >= 1, ">= 1"),
            ("temperature", self.temperature >= 0, ">= 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, ">= 0"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("n", self.n >= 1, ">= 1"),
            ("sequence", not self.sequence or self.n == 1, "0 where n is not 1"),
        ):
            if not ok:
                raise ValueError(f"SamplingParams.{name} = {getattr(self, name)} must be {rule}")


@dataclass(frozen=True)
class Completion:
    """What the engine sampled. `tokens` includes the stop token, or the token that completes a stop string.

    `changes` are the weights that arrived while it was sampled: the token from which on, and their version.
    """

    tokens: np.ndarray  # i32[n]
    logprobs: np.ndarray  # f32[n], of the temperature-scaled distribution
    finish_reason: Literal["stop", "length"]
    weight_version: int  # of the first token, the oldest
    cached: int = 0  # prompt tokens known from the previous request of the sequence, hence not computed
    changes: tuple[tuple[int, int], ...] = ()

    @property
    def versions(self) -> np.ndarray:
        """i32[n]: of the weights that each token was sampled from."""
        versions = np.full(len(self.tokens), self.weight_version, np.int32)
        for first, version in self.changes:
            versions[first:] = version
        return versions


def check_prompt(prompt: np.ndarray, params: SamplingParams, vocab_size: int, max_length: int) -> None:
    """Raises ValueError for a prompt i32[n] outside the vocabulary, PromptTooLongError for one that does not leave room
    for max_new_tokens."""
    if len(prompt) == 0:
        raise ValueError("the prompt is empty; give at least one token")
    if np.min(prompt) < 0 or np.max(prompt) >= vocab_size:
        raise ValueError(f"a prompt token is outside the vocabulary of {vocab_size}")
    if len(prompt) + params.max_new_tokens > max_length:
        raise PromptTooLongError(
            f"a prompt of {len(prompt)} tokens and {params.max_new_tokens} new ones do not fit the engine's max_length "
            f"{max_length}"
        )


class Engine(Protocol):
    """A sampler. `sample` may be awaited by many episodes at once; the engine batches them."""

    max_length: int  # prompt and new tokens together
    version: int  # of the weights that it samples from

    async def sample(self, prompt: np.ndarray, params: SamplingParams) -> list[Completion]:
        """`params.n` completions of the prompt i32[n].

        Raises PromptTooLongError when prompt and max_new_tokens do not fit; prompts are never truncated.
        """
        ...

    def release(self, sequence: int) -> None:
        """Frees what is kept for this sequence, which no further request will continue."""
        ...

    def load_weights(self, params: Any, version: int) -> None:
        """Samples from these parameters from now on; completions carry `version`, which identifies them."""
        ...

    def unload(self) -> None:
        """Frees its memory on the trainer's devices until the next `load_weights`."""
        ...

    def close(self) -> None:
        """Frees everything."""
        ...
