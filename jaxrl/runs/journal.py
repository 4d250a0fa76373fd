"""Finished episodes, appended to a file one by one: a command that is killed carries on where it was."""

from __future__ import annotations

import dataclasses
import pickle
import struct
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from jaxrl.runs.log import Progress
from rollouts.episode import Episode, Problem

_HEAD = struct.Struct("<II")  # of a record: bytes and CRC-32 of the pickle that follows


class Tally:
    """Shows how far a command is with `total` episodes. A rollouts.collect.Keeper that keeps none."""

    def __init__(self, name: str, total: int, progress: Progress, solved: Sequence[bool] = ()):
        self._total, self._progress, self._solved = total, progress, list(solved)
        self._began, self._tokens = time.monotonic(), 0
        progress.stage(name, total, len(self._solved))

    def known(self, seed: Sequence[int], number: int, problem: Problem) -> Episode | None:
        return None

    def finished(self, seed: Sequence[int], number: int, episode: Episode) -> None:
        self._solved.append(episode.reward.solved)
        self._tokens += episode.sampled_length
        rate = self._tokens / max(time.monotonic() - self._began, 1e-9)
        step = min(len(self._solved), self._total)  # those that are drawn anew come on top
        self._progress.update(step, pass_rate=float(np.mean(self._solved)), tokens_per_s=rate)

    def so_far(self) -> str:
        """How many episodes are finished and solved."""
        text = f"{len(self._solved)} of {self._total} episodes are finished"
        return text + (f", {np.mean(self._solved):.1%} of them solved" if self._solved else "")


class Journal(Tally):
    """Keeps the episodes of a command in FOLDER/NAME.I.journal, too.

    A record that a kill has cut short is dropped, and so is a file with another `identity`. Episodes that the sandbox
    could not judge are not kept.

    Args:
        identity: what the episodes depend on beside the run's settings: a fingerprint of the weights.
        total: how many episodes this process will play.
        index: I, of this process. Every process reads the files of all, since their number may have changed.
    """

    def __init__(self, folder: Path, name: str, identity: str, total: int, progress: Progress, index: int = 0):
        self._path = folder / f"{name}.{index}.journal"
        self._known: dict[tuple[tuple[int, ...], int], tuple[str, Episode]] = {}
        end = 0  # of what stays in this process's file
        for path in sorted(folder.glob(f"{name}.*.journal")):
            records, size = _read(path)
            if records and records[0] == identity:
                self._known |= {key: kept for key, *kept in records[1:]}
                end = size if path == self._path else end
        self._file = open(self._path, "ab", buffering=0)
        self._file.truncate(end)
        if not end:
            self._append(identity)
        super().__init__(name, total, progress, [episode.reward.solved for _, episode in self._known.values()])
        if self._known:
            progress.print(f"{name}: {len(self._known)} finished episodes are kept from an earlier try")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._file.close()

    def known(self, seed: Sequence[int], number: int, problem: Problem) -> Episode | None:
        name, episode = self._known.get((tuple(seed), number), ("", None))
        return dataclasses.replace(episode, problem=problem) if episode and name == problem.id else None

    def finished(self, seed: Sequence[int], number: int, episode: Episode) -> None:
        without_problem: Any = {"problem": None}  # it can be large, and is at hand where an episode is read
        if episode.status != "sandbox_error":  # another try may be able to judge it
            self._append(((tuple(seed), number), episode.problem.id, dataclasses.replace(episode, **without_problem)))
        super().finished(seed, number, episode)

    def remove(self) -> None:
        """Deletes the files of all processes: the results are written."""
        name = self._path.name.split(".")[0]
        for path in self._path.parent.glob(f"{name}.*.journal"):
            path.unlink()

    def _append(self, record: Any) -> None:
        body = pickle.dumps(record)
        self._file.write(_HEAD.pack(len(body), zlib.crc32(body)) + body)


def _read(path: Path) -> tuple[list[Any], int]:
    """The whole records of a file, and where they end."""
    data, records, end = path.read_bytes(), [], 0
    while len(data) >= end + _HEAD.size:
        size, checksum = _HEAD.unpack_from(data, end)
        body = data[end + _HEAD.size : end + _HEAD.size + size]
        if len(body) < size or zlib.crc32(body) != checksum:
            break
        try:
            records.append(pickle.loads(body))
        except (pickle.UnpicklingError, AttributeError, ImportError, TypeError):  # of another version of jaxrl
            break
        end += _HEAD.size + size
    return records, end
