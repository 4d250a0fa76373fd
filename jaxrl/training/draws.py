"""Sampling of the next steps' batches while the current one is trained on."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, Generic, NamedTuple, TypeVar

from jaxrl.errors import CheckpointError
from jaxrl.files import write_beside
from models.lora import copy_trained
from rollouts.episode import Group

T = TypeVar("T")


class Draw(NamedTuple):
    """What was sampled for one step."""

    groups: list[Group]  # to train on
    drawn: list[Group]  # all of them: more, with dynamic sampling
    seconds: float  # that the sampler was busy
    judged_flops: float = 0.0  # operations of the reward model
    stats: dict[str, float] = {}  # for the log  # noqa: RUF012


class _Unpickler(pickle.Unpickler):
    """Reads draws that earlier versions saved, when this module had another name."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(__name__ if module == "jaxrl.ahead" else module, name)


class SamplingAhead(Generic[T]):
    """Draws the batches of steps k + 1 .. k + staleness in a thread while step k trains; with staleness 0, none.

    The batch of step k is sampled from weights of version k - 1 - staleness or newer (version v: after step v). With
    a staleness of 0 or 1 the version does not depend on timing, so that such a run is repeatable. What is drawn but
    not used yet is part of a checkpoint: see `save` and `restore`. Published parameters are kept until the sampler
    loads them and no longer: at most one set of them is waiting.

    Args:
        draw: the batch of a step, sampled from the weights loaded before.
        load_weights: (params, version) into the sampler.
        copy: parameters that the trainer will not donate, and that no other process is needed for.
        staleness: the most versions between sampling and update.
        last: the last step to draw for.
        folder: where `save` writes (or, without `writes`, another process does); it keeps the newest `keep` files.
    """

    def __init__(
        self,
        draw: Callable[[int], T],
        load_weights: Callable[[Any, int], None],
        *,
        copy: Callable[[Any], Any] = copy_trained,
        staleness: int,
        last: int,
        folder: Path,
        keep: int = 2,
        writes: bool = True,
    ):
        self._draw, self._load_weights, self._copy = draw, load_weights, copy
        self._staleness, self._last = staleness, last
        self._folder, self._keep, self._writes = folder, keep, writes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampling-ahead")
        self._drawn: dict[int, Future[T]] = {}
        self._published: list[tuple[Any, int]] = []  # one at most: parameters and their version, until they are loaded
        self._handing_over = Lock()

    def publish(self, params: Any, version: int) -> None:
        """From now on new batches are sampled from these parameters. Also needed when others than these were loaded."""
        if self._staleness == 0:
            self._load_weights(params, version)
        elif self._draws_left(version):  # the trainer's own buffers are donated to its next update
            with self._handing_over:  # the sampler has loaded the set before, and only one is in memory
                self._published.clear()
                self._published.append((self._copy(params), version))

    def _draws_left(self, version: int) -> bool:
        """Whether a draw after this version has not begun yet."""
        waiting = any(not (future.running() or future.done()) for future in self._drawn.values())
        return waiting or max(self._drawn, default=version) < self._last

    def take(self, step: int) -> T:
        """The batch of `step`; those of the next steps are on their way then. Raises what `draw` raised."""
        if self._staleness == 0:
            return self._draw(step)
        if step not in self._drawn:
            self._submit(step)
        batch = self._drawn[step].result()
        del self._drawn[step]
        for following in range(step + 1, min(step + self._staleness, self._last) + 1):
            if following not in self._drawn:
                self._submit(following)
        return batch

    def _submit(self, step: int) -> None:
        newest = self._published
        # An idle thread would start with these weights anyway; decided here, it does not depend on timing.
        if all(future.done() for future in self._drawn.values()):
            self._published = []

        def sample() -> T:
            with self._handing_over:
                while newest:  # or else the sampler has them already
                    self._load_weights(*newest.pop())
            return self._draw(step)

        self._drawn[step] = self._thread.submit(sample)

    def wait(self) -> None:
        """Returns when the sampler is idle."""
        for future in self._drawn.values():
            future.exception()

    def save(self, step: int) -> None:
        """Keeps the batches that are drawn but not used after `step`; waits for those on their way."""
        if not self._drawn:
            return
        batches = {following: future.result() for following, future in self._drawn.items()}
        if not self._writes:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        write_beside(self._path(step), pickle.dumps(batches))
        # Later ones are of a run that went on from an earlier checkpoint: they do not push this one out.
        until_now = sorted(path for path in self._folder.glob("*.pickle") if path <= self._path(step))
        for old in until_now[: -self._keep]:
            old.unlink()

    def restore(self, step: int) -> None:
        """Goes on from what `save` kept after `step`, if it kept anything. Raises CheckpointError if it is damaged."""
        if self._staleness and self._path(step).exists():
            try:
                with open(self._path(step), "rb") as file:
                    batches = _Unpickler(file).load()
            except (pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, ImportError) as error:
                raise CheckpointError(
                    f"{self._path(step)} cannot be read ({type(error).__name__}); delete it to sample these episodes "
                    f"anew, or checkpoint {step} to resume from an earlier one"
                ) from error
            for following, batch in batches.items():
                self._drawn[following] = Future()
                self._drawn[following].set_result(batch)

    def _path(self, step: int) -> Path:
        return self._folder / f"{step:08d}.pickle"

    def __enter__(self) -> SamplingAhead[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(wait=kind is not KeyboardInterrupt)

    def close(self, wait: bool = True) -> None:
        """Drops what was not begun and waits for the rest, unless it is to stop at once."""
        self._thread.shutdown(wait=wait, cancel_futures=True)
