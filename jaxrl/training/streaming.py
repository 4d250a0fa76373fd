"""Sampling that never waits for a batch: groups leave a stream of episodes (rollouts/stream.py) when they are complete.

The batch of a step is the first `size` groups that became complete since the last one, in the order that the schedule
decides. The sampler is at most `lag` = min(1, max_staleness) batches ahead of the trainer: a batch that is complete
beyond that makes it wait for new weights, with which episodes in flight then continue. So the tokens of an episode have
several versions. Those that are more than max_staleness versions old when the episode is trained on are left out of
the loss (stale = "mask": it is truncated in front, and continued), or its group is dropped.

Before an evaluation and a checkpoint the lanes are emptied: what is saved then is all that there is, and a run that is
resumed from it continues as if it had never stopped.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.algorithms.credit import usable
from jaxrl.errors import CheckpointError
from jaxrl.files import write_beside
from jaxrl.tasks.sampling import Selection
from jaxrl.training.draws import Draw
from rollouts.collect import Environment, episode_seed
from rollouts.engine import UnsupportedError
from rollouts.episode import Episode, Group, Problem
from rollouts.schedule import Schedule
from rollouts.stream import Slots, Stream, Work


@dataclass(frozen=True)
class Plan:
    """What a stream is to give: batches for the steps start + 1 .. last.

    `due` says of a version whether the lanes are emptied once it is loaded, for an evaluation or a checkpoint.
    """

    start: int
    last: int
    size: int  # groups of a batch, of this process
    group_size: int
    max_staleness: int
    due: Callable[[int], bool]
    stale: str = "mask"  # or "drop"
    signal: Callable[[Group, int], bool] | None = None  # of a group, for a step: those without it are left out (DAPO)
    draws: int = 1  # batches that are sampled at most for one, with `signal`
    seed: tuple[int, ...] = (0,)
    process: int = 0  # of `processes`, which share each batch: group g is that of process g % processes
    processes: int = 1

    @property
    def lag(self) -> int:
        return min(1, self.max_staleness)


@dataclass
class State:
    """All that a stream with empty lanes has to remember. It is pickled beside a checkpoint."""

    begun: int = 0  # episodes
    turn: int = 0
    step: int = 0  # decoding steps
    place: int = 0  # in the record of the schedule
    formed: int = 0  # batches
    problems: dict[int, Problem] = field(default_factory=dict)  # of groups that are not complete, or have not begun
    members: dict[int, dict[int, Episode]] = field(default_factory=dict)  # of incomplete groups
    complete: list[Group] = field(default_factory=list)  # in no batch yet, in order
    drawn: list[Group] = field(default_factory=list)  # since the last batch, with those that were left out
    left_out: int = 0  # of `drawn`: groups that are too old, or without a signal
    waiting: dict[int, Draw] = field(default_factory=dict)  # batches by step, not trained on yet
    selection: dict[str, Any] = field(default_factory=dict)


class Streaming:
    """Batches of a stream that runs in a thread. Has the methods of jaxrl.training.draws.SamplingAhead.

    Args:
        change_weights: (params, version) into the engine between two of its turns.
        load_weights: the same while it is idle.
        copy: parameters that the trainer will not donate.
        folder: where `save` writes; it keeps the newest `keep` files.
    """

    def __init__(
        self,
        plan: Plan,
        engine: Any,
        environment: Environment,
        selection: Selection,
        schedule: Schedule,
        *,
        lanes: int,
        delay: int,
        change_weights: Callable[[Any, int], None],
        load_weights: Callable[[Any, int], None],
        copy: Callable[[Any], Any],
        folder: Path,
        keep: int = 2,
    ):
        self._plan, self._engine, self._selection, self._schedule = plan, engine, selection, schedule
        self._change_weights, self._load_weights, self._copy = change_weights, load_weights, copy
        self._folder, self._keep = folder, keep
        self._suffix = f".stream_{plan.process}"
        self._make_stream = lambda: Stream(engine, environment, self, schedule, lanes, delay)
        self._state = State()
        self._published: tuple[Any, int] | None = None  # parameters that the stream has not loaded yet
        self._newest = plan.start  # the newest version that was published
        self._draining = self._drained = self._over = self._drain_wanted = False
        self._before = Slots()  # at the last batch
        self._changed = threading.Condition()
        self._loading = threading.Lock()  # while parameters are copied or loaded
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handed = asyncio.Event()  # the trainer has done something
        self._stream: Stream | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    # ------------------------------------------------------------------ called by the trainer

    def publish(self, params: Any, version: int) -> None:
        """These parameters are the ones after step `version`."""
        if self._thread is None or self._drained:
            if not self._over:
                self._load_weights(self._copy(params), version)
            self._newest = max(self._newest, version)
            return
        if self._over or not self._schedule.wants(version):
            return
        if not self._schedule.exact:
            self._published = None  # the newer ones take its place in memory
        with self._loading:  # what is being loaded is gone, too
            handed = self._copy(params), version
        with self._changed:
            if self._over:
                return
            self._published, self._newest = handed, version
            del handed
            self._wake()
            if self._schedule.exact:
                self._changed.wait_for(lambda: self._published is None or self._over)

    def take(self, step: int) -> Draw:
        """The batch of `step`, or this process's part of it. Raises what an episode raised."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
            self._thread.start()
        with self._changed:
            while step not in self._state.waiting:
                if self._failure is not None:
                    raise self._failure
                if self._over:
                    raise RuntimeError(f"the stream is over and has no batch for step {step}")
                self._resume()
                self._changed.wait()
            draw = self._state.waiting.pop(step)
            self._resume()
            return draw

    def wait(self) -> None:
        """Returns when the lanes are empty; they fill again with the next `take`."""
        with self._changed:
            if self._thread is None:
                return
            if not self._schedule.exact and not self._draining:
                self._drain_wanted = True
                self._wake()
            self._changed.wait_for(lambda: self._drained or self._over)
            if self._failure is not None:
                raise self._failure

    def can_save(self, step: int) -> bool:
        """Whether the lanes may be emptied after `step`: where the order of events is fixed, only if that is due."""
        return not self._schedule.exact or self._plan.due(step) or step == self._plan.last

    def save(self, step: int) -> dict[str, Any]:
        """Keeps what is sampled but not used after `step`, with the lanes empty. Returns the selection's state."""
        self.wait()
        self._folder.mkdir(parents=True, exist_ok=True)
        write_beside(self._path(step), pickle.dumps(self._state))
        files = self._folder.glob("*" + self._suffix)
        until_now = sorted(path for path in files if path <= self._path(step))
        for old in until_now[: -self._keep]:
            old.unlink()
        return self._selection.state() if self._over else self._state.selection

    def restore(self, step: int) -> None:
        """Continues from what `save` kept after `step`. Raises CheckpointError if it is damaged."""
        if not self._path(step).exists():
            self._begin_at(step)
            return
        try:
            with open(self._path(step), "rb") as file:
                self._state = pickle.load(file)
        except (pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, ImportError) as error:
            raise CheckpointError(
                f"{self._path(step)} cannot be read ({type(error).__name__}); delete it to sample these episodes "
                f"anew, or checkpoint {step} to resume from an earlier one"
            ) from error
        self._schedule.restore(self._state.place)
        self._newest = step

    def _begin_at(self, step: int) -> None:
        """Continues without what was sampled before. Raises CheckpointError where the order of events is recorded."""
        plan = self._plan
        if step == plan.start:
            return
        if self._schedule.recorded:
            raise CheckpointError(
                f"{self._path(step)} is missing, and a recorded schedule cannot continue without it; delete checkpoint "
                f"{step} to resume from an earlier one"
            )
        self._state.formed = step - plan.start
        self._state.begun = self._state.formed * plan.size * plan.group_size
        self._newest = step

    def _path(self, step: int) -> Path:
        return self._folder / f"{step:08d}{self._suffix}"

    def close(self, wait: bool = True) -> None:
        """Ends the stream; episodes in flight are lost."""
        with self._changed:
            self._over = True
            self._wake()
            self._changed.notify_all()
        if self._thread is not None and wait:
            self._thread.join()
        self._schedule.close()

    def _wake(self) -> None:
        """Tells the stream's thread that something has changed."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._handed.set)
            if self._stream is not None:
                self._loop.call_soon_threadsafe(self._stream.something.set)
                if self._over:
                    self._loop.call_soon_threadsafe(self._stream.ending.set)

    def _resume(self) -> None:
        if self._drained:
            self._drained = self._draining = False
            self._wake()

    # ------------------------------------------------------------------ called in the stream's thread

    def _run(self) -> None:
        async def main() -> None:
            self._loop, self._handed = asyncio.get_running_loop(), asyncio.Event()
            self._stream = self._make_stream()
            self._stream.turn, self._stream.step = self._state.turn, self._state.step
            self._form()  # as after a pause
            try:
                await self._stream.run()
            finally:
                with self._changed:
                    self._loop = None

        failure = None
        try:
            asyncio.run(main())
        except BaseException as error:  # of any type: the trainer raises it
            failure = error
        with self._changed:
            self._failure, self._over, self._published = failure, True, None
            self._changed.notify_all()

    def next(self) -> Work | None:
        """The next episode, while batches are missing; members of a group follow one another."""
        plan, state = self._plan, self._state
        if self._draining or self._over:
            return None
        group, member = divmod(state.begun, plan.group_size)
        if member == 0:
            missing = (plan.last - plan.start - state.formed) * plan.size
            if plan.signal is None and len(state.complete) + len(state.members) >= missing:
                return None
            if missing <= 0:
                return None
            state.members[group] = {}
        if group not in state.problems:
            draw = group // plan.size
            problems = self._selection.next(draw * plan.draws, plan.size * plan.processes)
            state.problems |= {draw * plan.size + i: p for i, p in enumerate(problems[plan.process :: plan.processes])}
        state.begun += 1
        seed = episode_seed(plan.seed, group * plan.processes + plan.process, member)
        return Work(group * plan.group_size + member, state.problems[group], seed)

    def ended(self, work: Work, episode: Episode) -> None:
        """An episode has ended, and its group may be complete."""
        group, member = divmod(work.number, self._plan.group_size)
        members = self._state.members[group]
        members[member] = episode
        if len(members) == self._plan.group_size:
            del self._state.members[group], self._state.problems[group]
            whole = Group(work.problem, [members[i] for i in range(self._plan.group_size)])
            self._selection.observe([whole])
            self._state.complete.append(whole)
            self._state.drawn.append(whole)
            self._form()

    def _form(self) -> None:
        """Makes batches of the complete groups, as far as they reach."""
        plan, state = self._plan, self._state
        while not self._draining and state.formed < plan.last - plan.start:
            if state.formed > self._engine.version - plan.start + plan.lag:
                return  # new weights come first
            step = plan.start + state.formed + 1
            fit = [g for g in state.complete if self._fits(g, step)]
            state.left_out += len(state.complete) - len(fit)
            state.complete = fit
            enough = len(fit) >= plan.size
            if not enough and (plan.signal is None or len(state.drawn) < plan.size * plan.draws):
                return
            batch = fit[: plan.size]
            for group in batch:
                mark_stale(group, step - 1 - plan.max_staleness)
            rest = fit[plan.size :]
            drawn, state.drawn = [g for g in state.drawn if not _among(g, rest)], [*rest]
            state.complete = rest
            slots, sampled = self._slots_since()
            slots["stream/dropped"] = state.left_out / len(drawn)
            state.left_out = 0
            with self._changed:
                state.waiting[step] = Draw(batch, drawn, sampled, stats=slots)
                state.formed += 1
                self._changed.notify_all()

    def _fits(self, group: Group, step: int) -> bool:
        plan = self._plan
        if plan.signal is not None and not plan.signal(group, step):
            return False
        oldest = step - 1 - plan.max_staleness
        ages = [token_versions(e) >= oldest for e in usable(group)]
        return all(bool(fresh.any() if plan.stale == "mask" else fresh.all()) for fresh in ages if len(fresh))

    def _slots_since(self) -> tuple[dict[str, float], float]:
        """How the episodes spent their time since the last batch, as shares, and how long the engine was at work."""
        assert self._stream is not None
        now, before = self._stream.slots, self._before
        self._before = Slots(**vars(now))
        spent = {name: getattr(now, name) - getattr(before, name) for name in ("sampling", "tools", "waiting")}
        total = sum(spent.values()) or 1.0
        engine, idle = now.engine - before.engine, now.idle - before.idle
        shares = {f"stream/{name}": seconds / total for name, seconds in spent.items()}
        return shares | {"stream/engine_idle": idle / ((engine + idle) or 1.0)}, engine

    async def boundary(self, stream: Stream) -> bool:
        """New weights, and empty lanes where they are due."""
        plan, state = self._plan, self._state
        if self._over:
            return False
        if state.formed == plan.last - plan.start:  # what is still in flight is for no batch
            self._schedule.pause(stream, False)
            return False
        due = plan.start + max(0, state.formed - plan.lag)
        if not self._schedule.exact:
            await self._until(lambda: self._newest >= due or self._draining or self._drain_wanted)
        handed = self._published
        newest = handed[1] if handed else self._engine.version
        version = self._schedule.version(stream, due, newest)
        if version is not None:
            await self._load(version, handed)
        if self._schedule.drain(stream, self._drain_wanted):
            self._draining, self._drain_wanted = True, False
        empty = self._draining and not stream.busy() and not stream.engine.ready
        if self._schedule.pause(stream, empty and self._engine.version == self._newest):
            await self._pause(stream)
        return not self._over

    async def _load(self, version: int, handed: tuple[Any, int] | None) -> None:
        """These weights, once they are handed over; newer ones have their turn at the next boundary."""
        if version - self._plan.start > self._state.formed:
            raise UnsupportedError(
                f"version {version} is due before its batch is complete: this run is not the recorded one"
            )
        if handed is None or handed[1] < version:
            await self._until(lambda: self._published is not None and self._published[1] >= version)
            handed = self._published
        if self._over or handed is None:
            return
        if handed[1] != version:
            raise RuntimeError(f"version {version} is due, and {handed[1]} was published")
        await asyncio.to_thread(self._change, handed)
        with self._changed:
            if self._published is handed:
                self._published = None
            self._draining |= self._plan.due(version)
            self._changed.notify_all()
        self._form()

    def _change(self, handed: tuple[Any, int]) -> None:
        with self._loading:
            self._change_weights(*handed)

    async def _pause(self, stream: Stream) -> None:
        """With empty lanes, until the trainer continues. It does not wait where a recorded run was merely stopped."""
        state = self._state
        if self._schedule.exact and not self._plan.due(self._engine.version):
            self._draining = False
            self._form()
            return
        state.turn, state.step, state.place = stream.turn + 1, stream.step, self._schedule.place()
        state.selection = self._selection.state()
        with self._changed:
            self._drained = True
            self._changed.notify_all()
        await self._until(lambda: not self._drained)
        self._form()

    async def _until(self, done: Callable[[], bool]) -> None:
        """Until that is so, or all is over."""
        while not done() and not self._over:
            self._handed.clear()
            if not done() and not self._over:
                await self._handed.wait()


def token_versions(episode: Episode) -> np.ndarray:
    """i32[n]: the version of each token that was sampled."""
    sampled = [turn for turn in episode.turns if turn.sampled]
    versions = [
        np.full(len(turn.tokens), version, np.int32) if turn.versions is None else turn.versions
        for turn, version in zip(sampled, episode.weight_versions)
    ]
    return np.concatenate([np.zeros(0, np.int32), *versions])


def mark_stale(group: Group, oldest: int) -> None:
    """Takes tokens of older versions out of the loss."""
    for episode in group.episodes:
        sampled = [turn for turn in episode.turns if turn.sampled]
        for turn, version in zip(sampled, episode.weight_versions):
            versions = np.full(len(turn.tokens), version) if turn.versions is None else turn.versions
            if (versions < oldest).any():
                turn.fresh = versions >= oldest


def _among(group: Group, groups: list[Group]) -> bool:
    return any(group is other for other in groups)
