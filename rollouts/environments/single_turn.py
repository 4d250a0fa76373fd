"""One prompt, one completion, one verdict."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from rollouts.engine import Engine, SamplingParams
from rollouts.episode import Episode, EpisodeStatus, Problem, Reward, Turn


@dataclass
class SingleTurn:
    """The model answers once and the answer is scored.

    `encode` gives a problem's prompt tokens i32[n], `decode` the text of sampled tokens, `score` the reward.
    """

    encode: Callable[[Problem], np.ndarray]
    decode: Callable[[np.ndarray], str]
    score: Callable[[Problem, str], Awaitable[Reward]]
    params: SamplingParams

    async def play(self, problem: Problem, engine: Engine, seed: int) -> Episode:
        start = time.perf_counter()
        prompt = self.encode(problem)
        (completion,) = await engine.sample(prompt, dataclasses.replace(self.params, n=1, seed=seed))
        sampled = time.perf_counter()
        text = self.decode(completion.tokens)
        reward = await self.score(problem, text)
        status: EpisodeStatus = "finished" if completion.finish_reason == "stop" else "truncated"
        if reward.verdict is not None and reward.verdict.status == "sandbox_error":
            status = "sandbox_error"
        return Episode(
            problem=problem,
            prompt=prompt,
            turns=[Turn("assistant", completion.tokens, True, completion.logprobs)],
            reward=reward,
            status=status,
            text=text,
            weight_versions=(completion.weight_version,),
            timings={"sample": sampled - start, "score": time.perf_counter() - sampled},
        )
