"""Working trees for episodes: a bounded number at a time, used from an event loop, closed whatever happens.

async with checkouts.open(folder) as tree:
    ran = await tree.call(Checkout.run, ["npm", "test"])
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from sandbox.checkout import Checkout
from sandbox.layers import LEAST

P = ParamSpec("P")
T = TypeVar("T")
TREES = 16  # at a time


class WorkingTree:
    """An open checkout. Its calls must not overlap."""

    def __init__(self, checkout: Checkout, threads: ThreadPoolExecutor):
        self._checkout, self._threads = checkout, threads

    async def call(self, use: Callable[Concatenate[Checkout, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What use(checkout, ...) returns, in a thread. Raises CheckoutError when the checkout has ended."""
        future = self._threads.submit(use, self._checkout, *args, **kwargs)
        return await asyncio.wrap_future(future)


class Room:
    """A bound on what is open at a time, for several event loops: evaluation beside training has its own."""

    def __init__(self, free: int):
        self._free, self._lock = free, threading.Lock()
        self._waiting: deque[Future[None]] = deque()

    async def __aenter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn: Future[None] = Future()
            self._waiting.append(turn)
        try:
            await asyncio.wrap_future(turn)
        except BaseException:  # cancelled, perhaps when its turn had come, or its loop is closed
            if not turn.cancel():
                self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self._free += 1


class Checkouts:
    """Opens working trees; what asks for one more waits.

    Args:
        concurrency: trees at a time. Each has its files in memory.
        memory_mb, disk_mb, least: of each tree, see Checkout.
    """

    def __init__(self, concurrency: int = TREES, memory_mb: int = 2048, disk_mb: int = 1024, least: str = LEAST):
        self.concurrency, self._limits = concurrency, {"memory_mb": memory_mb, "disk_mb": disk_mb}
        self._least = least
        self._threads = ThreadPoolExecutor(2 * len(os.sched_getaffinity(0)), thread_name_prefix="checkout")
        self._room = Room(concurrency)

    @contextlib.asynccontextmanager
    async def open(
        self, folder: str | Mapping[str, str], read_only: Mapping[str, str] | None = None
    ) -> AsyncIterator[WorkingTree]:
        """A working tree with the files of a folder, or with these contents by path; closed when the block is left.

        Raises what Checkout does.
        """
        async with self._room:
            made = self._threads.submit(self._make, folder, read_only)
            try:
                checkout = await asyncio.wrap_future(made)
            except asyncio.CancelledError:
                made.add_done_callback(_close_late)
                raise
            try:
                yield WorkingTree(checkout, self._threads)
            finally:  # a command that still runs in it ends with it
                checkout.close()

    def _make(self, folder: str | Mapping[str, str], read_only: Mapping[str, str] | None) -> Checkout:
        if isinstance(folder, str):
            return Checkout(folder, read_only, least=self._least, **self._limits)
        with tempfile.TemporaryDirectory(prefix="jaxrl-tree-") as place:
            for path, content in folder.items():
                file = Path(place, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content)
            return Checkout(place, read_only, least=self._least, **self._limits)

    def close(self) -> None:
        """Waits for what is being opened. Trees are closed by those who opened them."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Checkouts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close_late(made: Future[Checkout]) -> None:
    """Of a tree that nobody waits for any longer."""
    if not made.cancelled() and made.exception() is None:
        made.result().close()
