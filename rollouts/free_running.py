"""An engine that samples of its own accord, such as vLLM's, as one that takes turns (rollouts/stream.py).

A turn is a moment in which something may be completed. Which tokens are sampled in it is the server's business, so that
no schedule can repeat it.
"""

from __future__ import annotations

import asyncio

import numpy as np

from rollouts.engine import Completion, Engine, SamplingParams

MOMENT_S = 0.02  # how long news and weights wait


class FreeRunning:
    """See rollouts.stream.TurnEngine. Its weights are loaded as the engine's."""

    def __init__(self, engine: Engine):
        self.engine, self.max_length = engine, engine.max_length
        self._running: set[asyncio.Task[Completion]] = set()

    @property
    def version(self) -> int:
        return self.engine.version

    @property
    def ready(self) -> bool:
        return bool(self._running)

    @property
    def running(self) -> int:
        return len(self._running)

    def submit(self, prompt: np.ndarray, params: SamplingParams) -> list[asyncio.Future[Completion]]:
        async def sample() -> Completion:
            (completion,) = await self.engine.sample(prompt, params)
            return completion

        task = asyncio.get_running_loop().create_task(sample())
        self._running.add(task)
        return [task]

    async def turn(self, most: int) -> int:
        _, self._running = await asyncio.wait(self._running, timeout=MOMENT_S, return_when=asyncio.FIRST_COMPLETED)
        return 0

    def abandon(self) -> None:
        for task in self._running:
            task.cancel()

    def release(self, sequence: int) -> None:
        self.engine.release(sequence)
