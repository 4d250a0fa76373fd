"""An engine that takes turns without a model, and episodes with tools that take as long as they like."""

from __future__ import annotations

import asyncio
from collections import deque

import numpy as np

from rollouts.engine import Completion, PromptTooLongError, SamplingParams
from rollouts.episode import Episode, Problem, Reward, Turn


class FakeTurns:
    """Decodes up to `slots` requests. A request's length follows from its seed, a token from its place and weights."""

    def __init__(self, slots: int = 4, longest: int = 40):
        self.slots, self.longest, self.max_length, self.version = slots, longest, 1_000, 0
        self.waiting: deque = deque()
        self.active: list[dict] = []
        self.released: list[int] = []
        self.turns = 0

    @property
    def ready(self) -> bool:
        return bool(self.active or self.waiting)

    @property
    def running(self) -> int:
        return len(self.active)

    def submit(self, prompt, params: SamplingParams):
        if len(prompt) > self.max_length:
            raise PromptTooLongError("too long")
        done = asyncio.get_running_loop().create_future()
        length = 1 + int(np.random.default_rng(params.seed).lognormal(2, 1)) % self.longest
        self.waiting.append({"done": done, "length": length, "seed": params.seed, "tokens": [], "versions": []})
        return [done]

    async def turn(self, most: int) -> int:
        await asyncio.sleep(0.0005)
        self.turns += 1
        while self.waiting and len(self.active) < self.slots:
            request = self.waiting.popleft()
            self.active += [] if request["done"].done() else [request]
        steps = min([most, *(r["length"] - len(r["tokens"]) for r in self.active)])
        for request in self.active:
            for _ in range(steps):
                request["tokens"].append((request["seed"] + 7 * len(request["tokens"]) + 31 * self.version) % 1000)
                request["versions"].append(self.version)
        self.active = [r for r in self.active if not r["done"].done()]  # the others were given up
        for request in [r for r in self.active if len(r["tokens"]) == r["length"]]:
            self.active.remove(request)
            versions = request["versions"]
            changes = tuple((i, v) for i, v in enumerate(versions) if i and v != versions[i - 1])
            tokens = np.array(request["tokens"], np.int32)
            logprobs = np.full(len(tokens), -1.0, np.float32)
            request["done"].set_result(Completion(tokens, logprobs, "stop", versions[0], changes=changes))
        return steps

    def abandon(self) -> None:
        self.active, self.waiting = [], deque()

    def release(self, sequence: int) -> None:
        self.released.append(sequence)

    def load_weights(self, params, version: int) -> None:
        assert not self.active
        self.version = version

    def change_weights(self, params, version: int) -> None:
        assert params == f"weights {version}"
        self.version = version


class Tools:
    """One to three completions, with a tool of random duration (`generator`, s) after each."""

    def __init__(self, generator: np.random.Generator, longest_s: float = 0.004):
        self.generator, self.longest_s = generator, longest_s

    async def play(self, problem: Problem, engine, seed: int) -> Episode:
        turns, versions = [], []
        for number in range(1 + seed % 3):
            (completion,) = await engine.sample(np.array([1]), SamplingParams(seed=seed + number, sequence=seed))
            turn = Turn("assistant", completion.tokens, True, completion.logprobs)
            turn.versions = completion.versions if completion.changes else None
            turns.append(turn)
            versions.append(completion.weight_version)
            await asyncio.sleep(self.longest_s * self.generator.random() ** 4)
        engine.release(seed)
        reward = float(sum(int(t.tokens.sum()) for t in turns) % 2)
        return Episode(problem, np.array([1]), turns, Reward(reward, bool(reward)), "finished", "", tuple(versions))
