"""Working trees for episodes: a bounded number at a time, and none left behind."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from sandbox.checkout import Checkout, CheckoutError
from sandbox.checkouts import Checkouts

FILES = {"a.txt": "one\n", "sub/b.txt": "two\n"}


@pytest.fixture
def checkouts():
    with Checkouts(concurrency=2, disk_mb=64) as made:
        yield made


@pytest.fixture
def made(monkeypatch):
    """All checkouts of a test, with the time of their start and end."""
    found = []
    start, close = Checkout.__init__, Checkout.close

    def started(self, *args, **kwargs):
        start(self, *args, **kwargs)
        self.span = [time.monotonic(), None]
        found.append(self)

    def closed(self):
        close(self)
        if hasattr(self, "span"):
            self.span[1] = self.span[1] or time.monotonic()

    monkeypatch.setattr(Checkout, "__init__", started)
    monkeypatch.setattr(Checkout, "close", closed)
    return found


def ended(checkout: Checkout) -> bool:
    return checkout._process.returncode is not None and not os.path.exists(f"/proc/{checkout._process.pid}")


def test_files_by_path_and_two_at_a_time(checkouts, made):
    async def one(i: int) -> str:
        async with checkouts.open(FILES) as tree:
            await tree.call(Checkout.run, ["sh", "-c", f"echo {i} >> a.txt"])
            return (await tree.call(Checkout.run, ["cat", "a.txt", "sub/b.txt"])).output

    async def all_of_them() -> list[str]:
        return list(await asyncio.gather(*map(one, range(4))))

    assert asyncio.run(all_of_them()) == [f"one\n{i}\ntwo\n" for i in range(4)]
    spans = [c.span for c in made]
    assert len(spans) == 4 and all(map(ended, made))
    for start, _ in spans:
        assert sum(s <= start < e for s, e in spans) <= 2


def test_the_bound_holds_for_several_event_loops(checkouts, made):
    async def one() -> None:
        async with checkouts.open(FILES) as tree:
            await tree.call(Checkout.run, ["sleep", "0.2"])

    async def three() -> None:
        await asyncio.gather(one(), one(), one())

    loops = [threading.Thread(target=asyncio.run, args=(three(),)) for _ in range(2)]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join()
    spans = [c.span for c in made]
    assert len(spans) == 6 and all(sum(s <= start < e for s, e in spans) <= 2 for start, _ in spans)


@pytest.mark.parametrize("when", ["opening", "running"])
def test_a_cancelled_episode_leaves_nothing(checkouts, made, when):
    async def one() -> None:
        async with checkouts.open(FILES) as tree:
            await tree.call(Checkout.run, ["sleep", "60"])

    async def cancelled() -> float:
        task = asyncio.create_task(one())
        await asyncio.sleep(0.05)
        while when == "running" and not made:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3 if when == "running" else 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with checkouts.open(FILES) as tree:  # there is room again
            assert (await tree.call(Checkout.run, ["true"])).exit_code == 0
        return time.monotonic()

    start = time.monotonic()
    assert asyncio.run(cancelled()) - start < 40
    checkouts.close()
    assert made and all(map(ended, made))


def test_what_fails_is_raised_and_its_room_is_free(checkouts, made):
    async def fails() -> None:
        for _ in range(3):
            with pytest.raises(CheckoutError, match="cannot be read"):
                async with checkouts.open("/no/such/folder"):
                    pass
            with pytest.raises(ZeroDivisionError):
                async with checkouts.open(FILES) as tree:
                    await tree.call(lambda checkout: 1 / 0)

    asyncio.run(fails())
    assert len(made) == 3 and all(map(ended, made))
