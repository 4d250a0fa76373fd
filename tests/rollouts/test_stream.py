"""A stream of episodes: nobody waits for the slowest, and a schedule makes the order of events repeatable."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import numpy as np
import pytest
from support.fake_turns import FakeTurns, Tools

from rollouts.engine import Completion, SamplingParams, UnsupportedError
from rollouts.episode import Episode, Problem, Reward, Turn
from rollouts.free_running import FreeRunning
from rollouts.schedule import Live, Replayed, Steps
from rollouts.stream import Stream, Work

EPISODES = 40


class Numbers:
    """Forty episodes; new weights whenever eight more have ended, as the schedule says."""

    def __init__(self, engine: FakeTurns, schedule, episodes: int = EPISODES):
        self.engine, self.schedule, self.episodes = engine, schedule, episodes
        self.begun, self.ends = 0, []

    def next(self) -> Work | None:
        if self.begun == self.episodes:
            return None
        self.begun += 1
        return Work(self.begun - 1, Problem(f"p{self.begun - 1}"), 1_000 + self.begun)

    def ended(self, work: Work, episode: Episode) -> None:
        tokens = [t for turn in episode.turns for t in turn.tokens.tolist()]
        self.ends.append((work.number, episode.weight_versions, tokens))

    async def boundary(self, stream: Stream) -> bool:
        due = len(self.ends) // 8
        version = self.schedule.version(stream, due, due)
        if version is not None:
            self.engine.change_weights(f"weights {version}", version)
        self.schedule.drain(stream, False)
        self.schedule.pause(stream, False)
        return self.begun < self.episodes or bool(stream.busy())


def played(schedule, seed: int, lanes: int = 6, **how) -> tuple[list, Stream]:
    """What ended, in order, with tools whose durations are drawn with `seed`."""
    engine = FakeTurns()
    source = Numbers(engine, schedule)
    stream = Stream(engine, Tools(np.random.default_rng(seed), **how), source, schedule, lanes, delay=24)
    asyncio.run(asyncio.wait_for(stream.run(), 60))
    schedule.close()
    assert sorted(number for number, _, _ in source.ends) == list(range(EPISODES))
    return source.ends, stream


def test_by_steps_nothing_depends_on_how_long_tools_take():
    first, stream = played(Steps(), 0)
    assert played(Steps(), 1)[0] == first and played(Steps(), 2, longest_s=0.0)[0] == first
    assert any(len(set(versions)) > 1 for _, versions, _ in first)  # weights arrived in flight
    assert [number for number, _, _ in first] != sorted(number for number, _, _ in first)
    assert not stream.arrivals


def test_a_record_is_replayed_exactly(tmp_path: Path):
    path = tmp_path / "schedule.jsonl"
    first, _ = played(Live(path), 0)
    assert played(Replayed(path), 1)[0] == first
    assert played(Replayed(path), 2, longest_s=0.02)[0] == first


def test_a_record_of_another_run_is_refused(tmp_path: Path):
    path = tmp_path / "schedule.jsonl"
    played(Live(path), 0, lanes=5)
    with pytest.raises(UnsupportedError, match=r"schedule.jsonl"):
        played(Replayed(path), 0, lanes=3)


def test_a_record_of_other_settings_is_refused(tmp_path: Path):
    path = tmp_path / "schedule.jsonl"
    played(Live(path, {"grpo.group_size": 4}), 0)
    with pytest.raises(UnsupportedError, match=r"grpo.group_size = 4, and this run has 8"):
        Replayed(path, {"grpo.group_size": 8})


def test_a_record_that_ends_early_is_refused(tmp_path: Path):
    path = tmp_path / "schedule.jsonl"
    played(Live(path), 0)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:20]))
    with pytest.raises(UnsupportedError, match="ends before turn"):
        played(Replayed(path), 0)


def test_the_engine_works_while_a_tool_is_slow():
    class OneSlowTool(Tools):
        async def play(self, problem, engine, seed):
            episode = await super().play(problem, engine, seed)
            while problem.id == "p0" and len(source.ends) < EPISODES - 1:
                await asyncio.sleep(0.001)
            return episode

    engine, schedule = FakeTurns(), Live()
    source = Numbers(engine, schedule)
    tools = OneSlowTool(np.random.default_rng(0), longest_s=0.0)
    asyncio.run(asyncio.wait_for(Stream(engine, tools, source, schedule, 4).run(), 60))
    assert source.ends[-1][0] == 0  # all others were played meanwhile, on three lanes


def test_every_second_of_every_lane_is_counted():
    _, stream = played(Live(), 0)
    slots = stream.slots
    assert min(slots.sampling, slots.tools, slots.engine) > 0
    assert slots.sampling <= 4 * slots.engine * 1.001


def test_an_error_of_an_episode_ends_the_stream():
    class Broken(Tools):
        async def play(self, problem, engine, seed):
            if problem.id == "p3":
                raise KeyError("broken")
            return await super().play(problem, engine, seed)

    engine, schedule = FakeTurns(), Live()
    with pytest.raises(KeyError, match="broken"):
        asyncio.run(Stream(engine, Broken(np.random.default_rng(0)), Numbers(engine, schedule), schedule, 4).run())


def test_a_prompt_that_is_too_long_is_the_error_of_its_episode():
    class Long:
        async def play(self, problem, engine, seed):
            await engine.sample(np.ones(2_000, int), SamplingParams())

    engine, schedule = FakeTurns(), Steps()
    with pytest.raises(UnsupportedError, match="too long"):
        asyncio.run(Stream(engine, Long(), Numbers(engine, schedule), schedule, 2).run())


def test_two_completions_at_once_are_refused():
    class Twice:
        async def play(self, problem, engine, seed):
            await asyncio.gather(*(engine.sample(np.array([1]), SamplingParams(seed=i)) for i in (1, 2)))

    engine, schedule = FakeTurns(), Live()
    with pytest.raises(UnsupportedError, match="two completions at once"):
        asyncio.run(Stream(engine, Twice(), Numbers(engine, schedule), schedule, 2).run())


def test_a_server_that_samples_of_its_own_accord():
    """Weights change while it samples; the completions say which were used."""

    class Server:
        max_length, version = 100, 0

        async def sample(self, prompt, params):
            before = self.version
            await asyncio.sleep(0.01 * (params.seed % 5))
            changes = ((1, self.version),) if self.version > before else ()
            return [Completion(np.arange(2, dtype=np.int32), np.zeros(2, np.float32), "stop", before, changes=changes)]

        def release(self, sequence):
            pass

        def change_weights(self, params, version):
            self.version = version

    server, schedule = Server(), Live()
    source = Numbers(server, schedule)
    tools = Tools(np.random.default_rng(0))
    asyncio.run(asyncio.wait_for(Stream(FreeRunning(server), tools, source, schedule, 6).run(), 60))
    assert sorted(number for number, _, _ in source.ends) == list(range(EPISODES)) and server.version >= 4
    assert len({version for _, versions, _ in source.ends for version in versions}) > 2


def test_an_episode_that_runs_out_of_time_makes_room_for_the_next():
    """Its request is given up; the lane's next episode asks as if nothing had been."""

    class Short(Tools):
        async def play(self, problem, engine, seed):
            turns = []
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.004 if int(problem.id[1:]) % 2 else 5):
                    await engine.sample(np.array([1]), SamplingParams(seed=seed, sequence=seed))
                    turns = [Turn("assistant", np.array([seed]), True, np.zeros(1, np.float32))]
            engine.release(seed)
            return Episode(problem, np.array([1]), turns, Reward(0.0, False), "finished", "", (0,) * len(turns))

    engine, schedule = FakeTurns(slots=3), Live()
    source = Numbers(engine, schedule)
    stream = Stream(engine, Short(np.random.default_rng(0)), source, schedule, 6, stride=2)
    asyncio.run(asyncio.wait_for(stream.run(), 60))
    assert sorted(number for number, _, _ in source.ends) == list(range(EPISODES))
    assert any(not tokens for _, _, tokens in source.ends)


def test_an_episode_that_is_cancelled_from_outside_is_an_error():
    class Cancelled(Tools):
        async def play(self, problem, engine, seed):
            raise asyncio.CancelledError

    engine, schedule = FakeTurns(), Steps()
    with pytest.raises(RuntimeError, match="problem p0 was cancelled"):
        asyncio.run(Stream(engine, Cancelled(np.random.default_rng(0)), Numbers(engine, schedule), schedule, 2).run())


def test_releases_happen_with_the_news_that_follow_them():
    engine, schedule = FakeTurns(), Steps()
    source = Numbers(engine, schedule, episodes=6)
    asyncio.run(Stream(engine, Tools(np.random.default_rng(0)), source, schedule, 2).run())
    assert engine.released == [1_001 + number for number, _, _ in source.ends]
