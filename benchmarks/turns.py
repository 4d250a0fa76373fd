"""Do episodes wait for the sandbox side by side? Many of them, of four turns, with calls that take 0.2 s.

    python benchmarks/turns.py [--episodes 64] [--call 0.2]

The engine is the JAX engine with a small random model, the sandbox the real one with code that sleeps. Printed: the
wall time of all episodes, of one of them alone, and the longest chain of sampling and calls among them; and how many
tokens before a turn were computed, and how many were found in the cache.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np
from flax import nnx

from jaxrl.runs.host import prepare_process
from models.config import ModelConfig
from models.decoder import Decoder, initialize
from rollouts.collect import collect
from rollouts.engine import SamplingParams
from rollouts.environments.dialogue import Budget, Dialogue
from rollouts.environments.interpreter import Interpreter, Settings
from rollouts.episode import Problem, Reward, Submission
from rollouts.jax.engine import JaxEngine
from rollouts.services import Services
from sandbox.session import Sessions

MODEL = ModelConfig("qwen2", 512, 128, 352, 2, 4, 2, 32, 1024, qkv_bias=True, tied_embeddings=True)
TOKENS = 16  # of a turn
TURNS = 4


class Numbers:
    """A tokenizer of whatever."""

    def decode(self, tokens: np.ndarray, **_: object) -> str:
        return " ".join(map(str, tokens))

    def encode(self, text: str, **_: object) -> list[int]:
        return [len(word) for word in text.split()]


class Sleeps(Interpreter):
    """An interpreter whose model writes the same code whatever it samples."""

    code = ""

    async def _next_code(self, dialogue: Dialogue) -> str | None:
        await dialogue.sample()
        return self.code


async def score(problem: Problem, submission: Submission) -> Reward:
    return Reward(0.0, False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--call", type=float, default=0.2, help="seconds of a call")
    options = parser.parse_args()
    prepare_process()
    graphdef, params = nnx.split(initialize(Decoder(MODEL), jax.random.key(0)))
    engine = JaxEngine(graphdef, params, slots=options.episodes, max_length=256, max_new_tokens=128)
    Sleeps.code = f"import time\ntime.sleep({options.call})"
    prompt, budget, one = np.arange(1, 40, dtype=np.int32), Budget(128, turn_tokens=TOKENS), 0.0
    with Sessions(concurrency=options.episodes) as sessions:
        environment = Sleeps(
            Numbers(), lambda problem: prompt, score, SamplingParams(), budget,
            services=Services(open_session=sessions.open), settings=Settings(max_calls=TURNS - 1),
        )  # fmt: skip
        for count in (options.episodes, 1, options.episodes):  # the first compiles
            start = time.perf_counter()
            groups = collect(engine, environment, [Problem(str(i)) for i in range(count)], 1, (0, count))
            seconds = time.perf_counter() - start
            episodes = [e for g in groups for e in g.episodes]
            longest = max(e.timings["sample"] + e.timings["tool"] for e in episodes)
            turns = [t for e in episodes for t in e.turns if t.sampled]
            one = seconds if count == 1 else one
    inserted = sum(len(t.tokens) for e in episodes for t in e.turns if not t.sampled)
    known, new = sum(t.cached for t in turns), options.episodes * len(prompt)
    print(f"{len(episodes)} episodes of {TURNS} turns: {seconds:.2f} s; the longest chain in them {longest:.2f} s")
    print(f"one episode alone: {one:.2f} s, of it {(TURNS - 1) * options.call:.2f} s asleep")
    print(f"tokens before a turn: {known} cached, {new} of prompts, {inserted} inserted")


if __name__ == "__main__":
    main()
