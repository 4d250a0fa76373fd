"""Engine x environment -> groups of episodes."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from rollouts.engine import Completion, Engine, SamplingParams
from rollouts.episode import Episode, Group, Problem

T = TypeVar("T")


class Environment(Protocol):
    """How an episode goes. The one method plays one from prompt to reward."""

    async def play(self, problem: Problem, engine: Engine, seed: int) -> Episode: ...


class Keeper(Protocol):
    """Sees every episode as soon as it is finished, and may know some from an earlier try.

    An episode is the one of the same (seed, number), see `collect_episodes`.
    """

    def known(self, seed: Sequence[int], number: int, problem: Problem) -> Episode | None: ...

    def finished(self, seed: Sequence[int], number: int, episode: Episode) -> None: ...


def collect(
    engine: Engine,
    environment: Environment,
    problems: Sequence[Problem],
    group_size: int,
    seed: Sequence[int],
    keeper: Keeper | None = None,
) -> list[Group]:
    """`group_size` episodes of each problem, played all at once.

    Each episode draws with a seed of its own, made from `seed` (for example run seed and step), the place of its
    problem and its place in the group, so that the result does not depend on timing.
    """
    numbers = range(len(problems) * group_size)
    episodes = collect_episodes(engine, environment, problems, group_size, seed, numbers, keeper)
    return [Group(p, episodes[i * group_size : (i + 1) * group_size]) for i, p in enumerate(problems)]


def collect_episodes(
    engine: Engine,
    environment: Environment,
    problems: Sequence[Problem],
    group_size: int,
    seed: Sequence[int],
    numbers: Sequence[int],
    keeper: Keeper | None = None,
) -> list[Episode]:
    """Some of the episodes of `collect`: number p * group_size + g is the g-th of the p-th problem."""

    async def play(number: int) -> Episode:
        p, g = divmod(number, group_size)
        if keeper and (known := keeper.known(seed, number, problems[p])):
            return known
        episode = await environment.play(problems[p], engine, episode_seed(seed, p, g))
        if keeper:
            keeper.finished(seed, number, episode)
        return episode

    async def play_all() -> list[Episode]:
        return list(await asyncio.gather(*map(play, numbers)))

    return _run(play_all())


def play_each(
    engine: Engine,
    environment: Environment,
    problems: Sequence[Problem],
    group_size: int,
    seed: Sequence[int],
    numbers: Iterable[int],
    finished: Callable[[int, Episode], None],
    at_once: int,
) -> None:
    """The episodes of `collect_episodes`, at most `at_once` at a time, each handed over and forgotten.

    For numbers of episodes that do not fit into memory. They begin in the order of `numbers`.
    """
    waiting = iter(numbers)

    async def play_one_by_one() -> None:
        for number in waiting:
            p, g = divmod(number, group_size)
            finished(number, await environment.play(problems[p], engine, episode_seed(seed, p, g)))

    async def play_all() -> None:
        await asyncio.gather(*(play_one_by_one() for _ in range(at_once)))

    _run(play_all())


def generate(engine: Engine, prompts: Sequence[np.ndarray], params: SamplingParams) -> list[list[Completion]]:
    """Completions of each prompt i32[n], all with the same settings; the i-th prompt draws with seed (seed, i)."""

    async def sample_all() -> list[list[Completion]]:
        seeds = [episode_seed((params.seed,), i, 0) for i in range(len(prompts))]
        settings = [dataclasses.replace(params, seed=seed) for seed in seeds]
        return list(await asyncio.gather(*(engine.sample(p, s) for p, s in zip(prompts, settings))))

    return _run(sample_all())


def _run(main: Coroutine[Any, Any, T]) -> T:
    """What `main` returns. asyncio.run would make a repr of it (while it resets Ctrl-C), all tokens of all episodes."""
    results = []

    async def keep_result() -> None:
        results.append(await main)

    asyncio.run(keep_result())
    return results[0]


def episode_seed(seed: Sequence[int], problem: int, episode: int) -> int:
    """A 63-bit seed, independent for every (seed, problem, episode)."""
    return int(np.random.SeedSequence([*seed, problem, episode]).generate_state(1, np.uint64)[0] >> 1)
