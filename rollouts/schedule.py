"""When things happen in a stream of episodes (rollouts/stream.py).

The order of events decides which weights a token is sampled from and which episodes form a batch. Three schedules give
it:

- Live: as it comes. With a record, every boundary at which something happened is written to a file.
- Replayed: as in such a file. What comes early waits, and the engine waits for what comes late.
- Steps: by decoding steps alone. What follows a completion happens a fixed number of steps after it; the engine waits
  for what is late. Needs no record, since nothing depends on the time.

The weights follow the same order: `version` says at each boundary which ones the engine must have.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from rollouts.engine import UnsupportedError
from rollouts.stream import Lane, Stream


class Schedule(Protocol):
    """rollouts.stream.Schedule, and the order of what the trainer does."""

    exact: bool  # every version that is published must be loaded or refused before the next one
    recorded: bool  # it cannot begin in the middle of a run

    async def next(self, stream: Stream) -> Lane | None: ...

    def version(self, stream: Stream, due: int, newest: int) -> int | None:
        """The version to load now; None: none.

        `due` is the one that the engine must have at least, `newest` the newest that was published.
        """
        ...

    def drain(self, stream: Stream, wanted: bool) -> bool:
        """Whether the stream begins to empty its lanes now, as the trainer may have asked."""
        ...

    def pause(self, stream: Stream, able: bool) -> bool:
        """Whether the stream waits for the trainer now; `able`: it is to, with empty lanes. Ends the boundary."""
        ...

    def wants(self, version: int) -> bool:
        """Whether this version is loaded at all."""
        ...

    def place(self) -> int:
        """How much of the record has happened."""
        ...

    def restore(self, place: int) -> None: ...

    def close(self) -> None: ...


class Live:
    """Everything happens when it comes, and is written to `path` if there is one."""

    exact = False

    def __init__(self, path: Path | None = None, settings: Mapping[str, Any] = {}):
        self._path, self._file, self._lines = path, None, 0
        self._settings = dict(settings)
        self.recorded = path is not None
        self._event: dict[str, Any] = {}

    async def next(self, stream: Stream) -> Lane | None:
        if not stream.arrivals and not stream.engine.ready and any(lane.outside for lane in stream.lanes):
            await stream.something.wait()
        if not stream.arrivals:
            return None  # the engine has work, or the source does
        lane = stream.arrivals[0]
        self._event.setdefault("lanes", []).append(lane.number)
        return lane

    def version(self, stream: Stream, due: int, newest: int) -> int | None:
        if newest <= stream.engine.version:
            return None
        self._event["version"] = newest
        return newest

    def drain(self, stream: Stream, wanted: bool) -> bool:
        if wanted:
            self._event["drain"] = True
        return wanted

    def pause(self, stream: Stream, able: bool) -> bool:
        if able:
            self._event["pause"] = True
        self._write(stream.turn)
        return able

    def wants(self, version: int) -> bool:
        return True

    def _write(self, turn: int) -> None:
        if self._event and self._path is not None:
            self._file = self._file or _append(self._path, self._lines)
            if not self._lines:
                self._file.write(json.dumps({"settings": self._settings}) + "\n")
                self._lines += 1
            self._file.write(json.dumps({"turn": turn, **self._event}) + "\n")
            self._file.flush()
            self._lines += 1
        self._event = {}

    def place(self) -> int:
        return self._lines

    def restore(self, place: int) -> None:
        self._lines = place

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _append(path: Path, lines: int) -> IO[str]:
    """The file, cut after that many lines, to be written further; the lines that stay are never touched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.read_bytes().splitlines(keepends=True)[:lines] if path.exists() else []
    if len(kept) < lines:
        raise UnsupportedError(f"{path} has {len(kept)} lines, the checkpoint is of line {lines}; it cannot continue")
    file = open(path, "r+" if path.exists() else "w")
    file.seek(sum(map(len, kept)))
    file.truncate()
    return file


class Replayed:
    """What a record says. Raises UnsupportedError where the run does something else than the recorded one."""

    exact = recorded = True

    def __init__(self, path: Path, settings: Mapping[str, Any] = {}):
        self._path = path
        head, *self._events = [json.loads(line) for line in _whole_lines(path)] or [{}]
        for name, value in settings.items():
            if (found := head.get("settings", {}).get(name)) != value:
                raise UnsupportedError(f"{path} is of a run with {name} = {found!r}, and this run has {value!r}")
        self._versions = {event["version"] for event in self._events if "version" in event}
        self._place, self._lanes = 0, deque[int]()
        self._now: dict[str, Any] = {}
        self._turn = -1

    def _look(self, stream: Stream) -> None:
        """The event of this turn, once."""
        if stream.turn == self._turn:
            return
        self._turn, self._now = stream.turn, {}
        if self._place < len(self._events) and self._events[self._place]["turn"] == stream.turn:
            self._now = self._events[self._place]
            self._place += 1
        elif self._place >= len(self._events) and stream.busy():
            raise UnsupportedError(
                f"{self._path} ends before turn {stream.turn}, and this run continues: it was stopped, or its settings "
                "are others"
            )
        self._lanes = deque(self._now.get("lanes", ()))

    async def next(self, stream: Stream) -> Lane | None:
        self._look(stream)
        if not self._lanes:
            return None
        number = self._lanes.popleft()
        if number >= len(stream.lanes):
            raise UnsupportedError(f"{self._path} has lane {number}, and this stream {len(stream.lanes)} lanes")
        lane = stream.lanes[number]
        if not lane.outside:
            raise UnsupportedError(
                f"{self._path}: turn {stream.turn}: lane {number} had news, and here it can have none: this run is not "
                "the recorded one"
            )
        return lane if await stream.news_of(lane) else None

    def version(self, stream: Stream, due: int, newest: int) -> int | None:
        return self._now.get("version")

    def drain(self, stream: Stream, wanted: bool) -> bool:
        return self._now.get("drain", False)

    def pause(self, stream: Stream, able: bool) -> bool:
        return self._now.get("pause", False)

    def wants(self, version: int) -> bool:
        return version in self._versions

    def place(self) -> int:
        return self._place + 1

    def restore(self, place: int) -> None:
        self._place = place - 1  # the first line is of no event

    def close(self) -> None:
        """Nothing is open."""


def _whole_lines(path: Path) -> Iterable[str]:
    """The lines of a record; one that a killed run has not finished is left out."""
    lines = path.read_text().splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


class Steps:
    """What follows a completion happens `stream.delay` decoding steps after it."""

    exact, recorded = True, False

    async def next(self, stream: Stream) -> Lane | None:
        outside = [lane for lane in stream.lanes if lane.outside]
        if not outside:
            return None
        lane = min(outside, key=lambda lane: (lane.due, lane.number))
        if lane.due > stream.step:
            if stream.engine.ready:
                return None
            stream.step = lane.due  # the engine has nothing to do until then
        return lane if await stream.news_of(lane) else None

    def version(self, stream: Stream, due: int, newest: int) -> int | None:
        return due if due > stream.engine.version else None

    def drain(self, stream: Stream, wanted: bool) -> bool:
        return False

    def pause(self, stream: Stream, able: bool) -> bool:
        return able

    def wants(self, version: int) -> bool:
        return True

    def place(self) -> int:
        return 0

    def restore(self, place: int) -> None:
        """Nothing to remember."""

    def close(self) -> None:
        """Nothing is open."""
