"""Episodes on lanes: a fixed number is in flight, and one that ends makes room for the next at once.

Whoever samples whole batches waits for the longest episode of each. Here nobody waits: an engine that takes turns
(rollouts/jax/engine.py) decodes what is there, tools and judges work beside it, and new weights arrive between two
turns. In which order all this happens is decided by a schedule (rollouts/schedule.py), at the boundary before each
turn; everything else is a function of that order.

A lane's news is a request of its episode or the episode's end. It arrives at any time, and counts when the schedule
lets it in.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from rollouts.collect import Environment
from rollouts.engine import Completion, Engine, SamplingParams, UnsupportedError
from rollouts.episode import Episode, Problem

STRIDE = 16  # decoding steps of a turn, at most: how long news and weights wait


class TurnEngine(Protocol):
    """An engine that does nothing of its own accord: see rollouts.jax.engine.JaxEngine."""

    max_length: int
    version: int

    @property
    def ready(self) -> bool: ...

    @property
    def running(self) -> int: ...

    def submit(self, prompt: np.ndarray, params: SamplingParams) -> list[asyncio.Future[Completion]]: ...

    async def turn(self, most: int) -> int: ...

    def release(self, sequence: int) -> None: ...

    def abandon(self) -> None: ...


class Work(NamedTuple):
    """An episode to play."""

    number: int  # counted over all episodes of the stream
    problem: Problem
    seed: int


class Source(Protocol):
    """What a stream plays, and who hears of it. All calls come in an order that the schedule decides."""

    def next(self) -> Work | None:
        """The next episode to begin; None: none for now."""
        ...

    def ended(self, work: Work, episode: Episode) -> None: ...

    async def boundary(self, stream: Stream) -> bool:
        """Called before each turn; weights may change here. False ends the stream."""
        ...


class Schedule(Protocol):
    """The order of events."""

    async def next(self, stream: Stream) -> Lane | None:
        """The lane whose news is let in now; None: the engine takes its turn."""
        ...


class _Asked(NamedTuple):
    """A request that an episode waits for."""

    prompt: np.ndarray
    params: SamplingParams
    answer: asyncio.Future[list[Completion]]


@dataclass(eq=False)
class Lane:
    """A place for one episode at a time, and the engine that the episode sees."""

    number: int
    stream: Stream
    work: Work | None = None  # that is played; None: the lane is idle
    due: int = 0  # decoding step of the stream when its news is due, for a schedule that counts them
    sampling: list[asyncio.Future[Completion]] = field(default_factory=list)  # in the engine
    news: deque[_Asked | Episode | Exception] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)  # there is news
    released: list[int] = field(default_factory=list)  # sequences, until its news is let in
    asked: _Asked | None = None

    @property
    def outside(self) -> bool:
        """Whether a tool, a judge or the environment is at work, and not the engine."""
        return self.work is not None and not self.sampling

    # ------------------------------------------------------------------ as an engine: see rollouts.engine.Engine

    @property
    def max_length(self) -> int:
        return self.stream.engine.max_length

    @property
    def version(self) -> int:
        return self.stream.engine.version

    async def sample(self, prompt: np.ndarray, params: SamplingParams) -> list[Completion]:
        if self.asked is not None:
            raise UnsupportedError("an episode that asks for two completions at once cannot be streamed")
        asked = self.asked = _Asked(prompt, params, asyncio.get_running_loop().create_future())
        self.tell(asked)
        try:
            return await asked.answer
        except asyncio.CancelledError:  # the episode ran out of time, or does not want it any more
            if self.asked is asked:
                self.give_up()
            raise

    def release(self, sequence: int) -> None:
        self.released.append(sequence)

    def load_weights(self, params: Any, version: int) -> None:
        raise UnsupportedError("the weights of a stream are its source's")

    def unload(self) -> None:
        """Nothing of its own."""

    def close(self) -> None:
        """Nothing of its own."""

    # ------------------------------------------------------------------

    def tell(self, news: _Asked | Episode | Exception) -> None:
        """The news has arrived, and waits for the schedule."""
        self.news.append(news)
        self.arrived.set()
        self.stream.arrivals.append(self)
        self.stream.something.set()

    def give_up(self) -> None:
        """The engine forgets the request at its next turn."""
        for done in self.sampling:
            done.cancel()
        self.sampling, self.asked = [], None

    async def play(self, environment: Environment, work: Work) -> None:
        """Plays an episode; how it ended is news."""
        try:
            self.tell(await environment.play(work.problem, cast(Engine, self), work.seed))
        except asyncio.CancelledError:
            if self.stream.ending.is_set():
                raise
            self.tell(RuntimeError(f"an episode of problem {work.problem.id} was cancelled"))
        except Exception as error:
            self.tell(error)


@dataclass
class Slots:
    """Seconds that episodes spent in each state, summed over them, and how long the engine stood still."""

    sampling: float = 0.0
    tools: float = 0.0  # outside: tools, judges
    waiting: float = 0.0  # for a slot of the engine
    engine: float = 0.0  # at work
    idle: float = 0.0


class Stream:
    """Plays the episodes of a source, `lanes` at a time. Run it in a loop of its own: `asyncio.run(stream.run())`.

    Args:
        delay: decoding steps between a completion and the news that follow it, for schedules that count them.
        stride: decoding steps of a turn, at most.
    """

    def __init__(
        self,
        engine: TurnEngine,
        environment: Environment,
        source: Source,
        schedule: Schedule,
        lanes: int,
        delay: int = 0,
        stride: int = STRIDE,
    ):
        self.engine, self.environment, self.source, self.schedule = engine, environment, source, schedule
        self.delay, self.stride = delay, stride
        self.turn = self.step = 0  # turns and decoding steps so far
        self.lanes = [Lane(number, self) for number in range(lanes)]
        self.arrivals: deque[Lane] = deque()  # lanes with news, a lane once for each
        self.something = asyncio.Event()  # news, or something for the source
        self.ending = asyncio.Event()  # nothing is waited for any more
        self.slots = Slots()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the source ends it. Raises what an episode or the engine raised."""
        clock = time.perf_counter()
        try:
            while True:
                self._fill()
                while lane := await self.schedule.next(self):
                    self._let_in(lane)
                self.something.clear()
                if not await self.source.boundary(self):
                    return
                began = time.perf_counter()
                self.slots.idle += began - clock
                if self.engine.ready:
                    self.step += await self.engine.turn(self.stride)
                    self._hand_out()
                self.turn += 1
                self._count_slots(time.perf_counter() - clock, (clock := time.perf_counter()) - began)
        finally:
            self.ending.set()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self.engine.abandon()

    async def news_of(self, lane: Lane) -> bool:
        """Waits for news of a lane; False if the stream ends before."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (lane.arrived, self.ending)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        return lane.arrived.is_set()

    def busy(self) -> Sequence[Lane]:
        """The lanes that have an episode."""
        return [lane for lane in self.lanes if lane.work is not None]

    def _fill(self) -> None:
        """Begins an episode on each idle lane, as far as the source has some."""
        for lane in self.lanes:
            if lane.work is None and not self._begin(lane):
                return

    def _begin(self, lane: Lane) -> bool:
        lane.work = self.source.next()
        if lane.work is None:
            return False
        lane.due = self.step
        task = asyncio.get_running_loop().create_task(lane.play(self.environment, lane.work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def _let_in(self, lane: Lane) -> None:
        """The lane's oldest news happens."""
        self.arrivals.remove(lane)
        news = lane.news.popleft()
        if not lane.news:
            lane.arrived.clear()
        released, lane.released = lane.released, []
        for sequence in released:
            self.engine.release(sequence)
        if isinstance(news, Exception):
            raise news
        if isinstance(news, Episode):
            work, lane.work = lane.work, None
            assert work is not None
            self.source.ended(work, news)
            self._begin(lane)
            return
        if news.answer.done():  # given up before it was let in
            return
        try:
            lane.sampling = self.engine.submit(news.prompt, news.params)
        except Exception as error:  # the episode's, for example a prompt that is too long
            lane.due, lane.asked = self.step, None
            news.answer.set_exception(error)

    def _hand_out(self) -> None:
        """Gives the episodes what the engine has completed."""
        for lane in self.lanes:
            if lane.asked is not None and lane.sampling and all(done.done() for done in lane.sampling):
                sampled, answer = lane.sampling, lane.asked.answer
                lane.sampling, lane.asked, lane.due = [], None, self.step + self.delay
                if answer.done():  # cancelled, and the episode has not noticed yet
                    continue
                if error := next((error for done in sampled if (error := done.exception())), None):
                    answer.set_exception(error)
                else:
                    answer.set_result([done.result() for done in sampled])

    def _count_slots(self, seconds: float, working: float) -> None:
        outside = sum(lane.outside for lane in self.lanes)
        inside = sum(bool(lane.sampling) for lane in self.lanes)
        running = min(self.engine.running, inside)
        self.slots.sampling += running * working
        self.slots.waiting += (inside - running) * working + inside * (seconds - working)
        self.slots.tools += outside * seconds
        self.slots.engine += working
