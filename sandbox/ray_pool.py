"""The pool over the machines of a Ray cluster: the same interface, one actor with a local pool on each node.

Programs wait in one queue. Each node takes small chunks from it, at most two at a time, so that a slow node holds up
little and nothing piles up anywhere but in the queue. When a node is lost, the chunks that it had go back to the
front of the queue: each program gets exactly one verdict. Needs the `ray` extra.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from sandbox.launch import WorkerError
from sandbox.layers import LEAST, required_layers
from sandbox.pool import Pool, check_program
from sandbox.verdict import Limits, Program, Verdict

CHUNK_PER_WORKER = 4  # programs
CHUNKS_IN_FLIGHT = 2  # for each node
LOOK_S = 0.5  # between two looks at the cluster's nodes
PATIENCE_S = 60.0  # without any node, before waiting programs are given up as sandbox errors
Item = tuple[Program, "Future[Verdict]"]


class RayPool:
    """Judges programs on all nodes of a Ray cluster; safe to use from many threads and event loops at once.

    Args:
        address: of a cluster, as ray.init takes it; None: the running one, or a new one on this machine.
        workers: programs at a time on each node; 0: one per core there.
        limits, least: see sandbox.pool.Pool.

    Returns when the first node is ready. Raises IsolationError, from that node's pool, when a machine gives less than
    `least`, and WorkerError when no node is ready in time.
    """

    def __init__(self, address: str | None = None, workers: int = 0, limits: Limits | None = None, least: str = LEAST):
        import ray

        required_layers(least)
        self._ray = ray
        if not ray.is_initialized():
            ray.init(address, log_to_driver=False)
        self._actor = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(_NodePool)
        self._arguments = (workers, limits, least)
        self._node_workers: dict[str, int] = {}
        self._waiting: collections.deque[Item] = collections.deque()
        self._changed = threading.Condition()
        self._nodes: dict[str, threading.Thread] = {}
        self._refused: Exception | None = None
        self._closed = False
        self._last_alive = time.monotonic()
        self.sandbox_errors = 0
        self._look_for_nodes()
        self._watcher = threading.Thread(target=self._watch, name="sandbox-nodes", daemon=True)
        self._watcher.start()
        with self._changed:
            ready = self._changed.wait_for(lambda: self._node_workers or self._refused, PATIENCE_S)
        if self._refused or not ready:
            self.close()
            raise self._refused or WorkerError(f"no node of the Ray cluster was ready in {PATIENCE_S:.0f} s")

    def run(self, programs: Sequence[Program]) -> list[Verdict]:
        """The verdicts, in the order of the programs. Raises ValueError for a program that `check_program` refuses."""
        return [f.result() for f in [self.submit(p) for p in programs]]

    async def run_async(self, program: Program) -> Verdict:
        """One program's verdict. Raises ValueError for a program that `check_program` refuses."""
        return await asyncio.wrap_future(self.submit(program))

    def submit(self, program: Program) -> Future[Verdict]:
        """A future of the program's verdict."""
        check_program(program)
        if self._refused:
            raise self._refused
        future: Future[Verdict] = Future()
        with self._changed:
            self._waiting.append((program, future))
            self._changed.notify()
        return future

    @property
    def workers(self) -> int:
        """Programs at a time on all nodes that have joined so far, at least 1."""
        return max(1, sum(self._node_workers.values()))

    def close(self) -> None:
        """Ends the nodes' pools; programs that are waiting are not run."""
        with self._changed:
            self._closed = True
            for _, future in self._waiting:
                future.cancel()
            self._waiting.clear()
            self._changed.notify_all()
        self._watcher.join()
        for thread in self._nodes.values():
            thread.join()

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _watch(self) -> None:
        while not self._closed:
            time.sleep(LOOK_S)
            with contextlib.suppress(Exception):  # the cluster's head may be away for a moment
                self._look_for_nodes()
            if any(thread.is_alive() for thread in self._nodes.values()):
                self._last_alive = time.monotonic()
            elif time.monotonic() - self._last_alive > PATIENCE_S:
                self._give_up("no node of the Ray cluster is left")

    def _look_for_nodes(self) -> None:
        """Starts serving nodes that are new, or back."""
        for node in self._ray.nodes():
            name = node["NodeID"]
            if node["Alive"] and not (name in self._nodes and self._nodes[name].is_alive()):
                self._nodes[name] = threading.Thread(target=self._serve, args=(name,), name="sandbox-node", daemon=True)
                self._nodes[name].start()

    def _serve(self, node: str) -> None:
        """Gives one node work until it is lost or the pool is closed."""
        from ray.exceptions import RayTaskError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = self._ray
        actor: Any = None
        running: dict[Any, list[Item]] = {}
        try:
            place = NodeAffinitySchedulingStrategy(node, soft=False)
            actor = self._actor.options(scheduling_strategy=place).remote(*self._arguments)
            workers: Any = ray.get(actor.workers.remote())
            with self._changed:
                self._node_workers[node] = workers
                self._changed.notify_all()
            chunk = CHUNK_PER_WORKER * workers
            while True:
                while len(running) < CHUNKS_IN_FLIGHT and (items := self._take(chunk, wait=not running)):
                    running[actor.judge.remote([program for program, _ in items])] = items
                if not running:
                    return  # closed
                (first, *_), _ = ray.wait(list(running), num_returns=1)
                verdicts = ray.get(first)
                self._deliver(running.pop(first), verdicts)
        except RayTaskError as error:  # the node works, its pool does not: no other try will help
            with self._changed:
                self._refused = error.cause if isinstance(error.cause, Exception) else error
                self._changed.notify_all()
            self._put_back(running)
            self._give_up(str(error.cause))
        except Exception:  # the node is lost
            self._put_back(running)
        finally:
            if actor is not None:
                with contextlib.suppress(Exception):
                    ray.kill(actor)

    def _take(self, count: int, wait: bool) -> list[Item]:
        """Up to `count` waiting programs; none when the pool is closed, or there are none and `wait` is false."""
        with self._changed:
            while wait and not self._waiting and not self._closed:
                self._changed.wait()
            return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    def _put_back(self, running: dict[Any, list[Item]]) -> None:
        with self._changed:
            self._waiting.extendleft(item for items in reversed(running.values()) for item in reversed(items))
            self._changed.notify_all()

    def _deliver(self, items: list[Item], verdicts: list[Verdict]) -> None:
        for (_, future), verdict in zip(items, verdicts, strict=True):
            self.sandbox_errors += verdict.status == "sandbox_error"
            if not future.cancelled():
                future.set_result(verdict)

    def _give_up(self, message: str) -> None:
        with self._changed:
            items, self._waiting = list(self._waiting), collections.deque()
        self._deliver(items, [Verdict("sandbox_error", stderr=message)] * len(items))


class _NodePool:
    """The actor: a pool on its node."""

    def __init__(self, workers: int, limits: Limits | None, least: str):
        self._arguments = (workers, limits, least)
        self._pool: Pool | None = None

    def workers(self) -> int:
        """How many programs run here at a time. Raises IsolationError."""
        self._pool = self._pool or Pool(*self._arguments)
        return self._pool.workers

    def judge(self, programs: list[Program]) -> list[Verdict]:
        assert self._pool
        return self._pool.run(programs)
