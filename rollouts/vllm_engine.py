"""The engine whose sampler is vLLM, in processes of its own: a client of one or more sidecars.

Requests go to the least loaded replica. One that fails is taken out, revived (an owned one is restarted, an external
one waited for), given the current weights and used again; what it was sampling is sampled anew elsewhere, so that
every call of `sample` returns each of its completions once, or raises.

Weights travel by rollouts/weight_files.py, or by rollouts/nccl.py (and by files to a server that comes back). The
servers say for every completion under which versions its tokens were drawn; a version that this trainer did not send
is never returned, but reloaded and sampled anew.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2 as httpx
import numpy as np

from models.config import ModelConfig
from rollouts.engine import Completion, SamplingParams, check_prompt
from rollouts.nccl import NcclTransfer, check_available
from rollouts.sidecar import Sidecar, SidecarError
from rollouts.vllm_server import BadReplyError, ClientSettings, Server, message, read_completion, request
from rollouts.weight_files import claim_folder, named_tensors, write_weights

T = TypeVar("T")
PROBE_S = 5.0  # between two looks at a replica with work
STRIKES = 3  # failures in a row after which a replica is restarted, though it seems to live
RESTARTS = 3  # of a replica, without a completion between them, after which the run gives up


class WriteError(RuntimeError):
    """Weights could not be written, no fault of a server's: the trainer has used them up, or the disk is full."""


@dataclass
class Weights:
    """What the servers should hold."""

    version: int
    params: Any  # the trainer's, which it may use up by its next update; None once they are in files
    tensors: dict[str, np.ndarray] | None = None  # as they are in the files, once those are written


class VllmEngine:
    """See rollouts.engine.Engine for the protocol, and the module for what happens when a server fails.

    Works from any thread and event loop: it has a loop of its own. Until the first `load_weights` nothing is sampled.

    Args:
        sidecar: servers to start and own; None: those of `addresses` are used as they are.
        max_length: tokens of a prompt and its completion together, at most.
        say: gets a line for each failure of a server, for people, from the engine's own thread.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        addresses: Sequence[str] = (),
        sidecar: Sidecar | None = None,
        max_length: int,
        settings: ClientSettings = ClientSettings(),
        say: Callable[[str], None] = lambda _: None,
    ):
        settings.check()
        if settings.sync == "nccl":
            check_available()
        self.config, self.settings, self.sidecar, self.max_length = config, settings, sidecar, max_length
        self._say = say
        self.session = secrets.token_hex(4)  # tells this trainer's weights from those of others
        self.version, self.dtype = -1, ""
        self.restarts = 0  # of owned servers; for the report
        self._weights: Weights | None = None
        self._transfer: NcclTransfer | None = None
        self._members: list[tuple[Server, int]] = []  # of the transfer, and which of its lives each was in
        self._writing = asyncio.Lock()
        self._folder = settings.sync_folder / f"jaxrl-{self.session}"
        self._lock = claim_folder(self._folder)
        self._waiting: deque[tuple[asyncio.Future[Server], int]] = deque()  # with the request's sequence
        self._servers_of: dict[int, Server] = {}  # by sequence: where its beginning is cached
        self._failure: SidecarError | None = None
        self._last_answer = time.monotonic()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-engine", daemon=True)
        self._thread.start()
        self._closed = False
        atexit.register(self.close)
        try:
            self._run(self._attach(sidecar.addresses if sidecar else list(addresses)))
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ the protocol

    async def sample(self, prompt: np.ndarray, params: SamplingParams) -> list[Completion]:
        """`params.n` completions of prompt i32[n]. Raises SidecarError when no replica answers for settings.wait_s."""
        check_prompt(prompt, params, self.config.vocab_size, self.max_length)
        self._check_open()
        ids = [int(t) for t in prompt]
        seeds = [_request_seed(params.seed, i) for i in range(params.n)]

        async def all_of_them() -> list[Completion]:
            return list(await asyncio.gather(*(self._complete(ids, params, seed) for seed in seeds)))

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(all_of_them(), self._loop))

    async def score(self, prompt: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """f32[n]: see Server.score."""
        self._check_open()

        async def ask() -> np.ndarray:
            replica = await self._acquire()
            try:
                return await replica.score(prompt, tokens)
            finally:
                replica.load -= 1
                self._wake()

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ask(), self._loop))

    def load_weights(self, params: Any, version: int) -> None:
        """Gives all replicas these parameters; returns when one at least has them.

        What happens to running requests is settings.in_flight. Raises SidecarError as `sample` does, OSError when
        the files cannot be written.
        """
        if version == self.version:
            return
        self._check_open()
        weights = Weights(version, params)
        if self.settings.sync == "files":
            self._write(weights)
        self._run(self._load_everywhere(weights))
        for old in self._folder.glob("version_*"):
            if old != self._version_folder(version):
                shutil.rmtree(old, ignore_errors=True)

    def release(self, sequence: int) -> None:
        """Its next request, if there is one after all, may go to any server."""
        self._loop.call_soon_threadsafe(self._servers_of.pop, sequence, None)

    def _check_open(self) -> None:
        if self._closed:
            raise SidecarError("the engine is closed")

    def close(self) -> None:
        """Ends the client, and the servers that it owns."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        if self._loop.is_running():
            try:
                self._run(self._shut_down())
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(timeout=10)
        if self.sidecar is not None:
            self.sidecar.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()

    # ------------------------------------------------------------------ one completion

    async def _complete(self, prompt: list[int], params: SamplingParams, seed: int) -> Completion:
        """Asks replicas until one of them gives a right answer."""
        body = json.dumps(request(prompt, params, seed)).encode()
        while True:
            replica = await self._acquire(params.sequence)
            least = self.version
            post = asyncio.ensure_future(replica.http.post("/inference/v1/generate", content=body))
            replica.posts.add(post)
            try:
                reply = await post
                if reply.status_code in (400, 422):
                    raise ValueError(f"{replica.address} refused a request: {message(reply)}")
                completion = read_completion(reply, params, self.config.vocab_size, self.session, least)
            except asyncio.CancelledError:
                if post.cancelled() and not _being_cancelled():
                    continue  # the replica was taken out
                post.cancel()
                raise
            except (httpx.HTTPError, BadReplyError) as error:
                self._take_out(replica, f"{type(error).__name__}: {error}")
                continue
            finally:
                replica.posts.discard(post)
                replica.load -= 1
                self._wake()
            if completion is not None:  # None: aborted, for new weights
                replica.strikes, replica.starts, self._last_answer = 0, 0, time.monotonic()
                return completion

    # ------------------------------------------------------------------ replicas

    async def _attach(self, addresses: list[str]) -> None:
        """Connects to the servers, having started them where they are ours. Returns when all have answered once."""
        if not addresses:
            raise SidecarError("no address of a vLLM server is given")
        headers = {"authorization": f"Bearer {self.settings.key}"} if self.settings.key else {}
        headers["content-type"] = "application/json"
        self.replicas = [
            Server(
                i,
                address.rstrip("/"),
                httpx.AsyncClient(
                    base_url=address.rstrip("/"),
                    headers=headers,
                    timeout=httpx.Timeout(self.settings.request_timeout_s, connect=10.0),
                    # vLLM closes a connection that was idle for 5 s; a request must not be on its way then.
                    limits=httpx.Limits(
                        max_connections=None, max_keepalive_connections=self.settings.concurrency, keepalive_expiry=2
                    ),
                    trust_env=False,  # a proxy has no business between the two
                ),
            )
            for i, address in enumerate(addresses)
        ]
        await asyncio.gather(*(self._wait_for_server(r, restart=self.sidecar is not None) for r in self.replicas))
        described = [await r.describe() for r in self.replicas]
        facts, self.workers = [d[0] for d in described], len(described[0])
        for replica, fact in zip(self.replicas, facts):
            self._check_server(replica, fact)
        if self.settings.sync == "nccl" and len({len(d) for d in described}) > 1:
            raise SidecarError(
                "the replicas differ in tensor_parallel, which rollout.sidecar.sync = 'nccl' cannot serve"
            )
        if len({f["dtype"] for f in facts}) > 1:
            raise SidecarError(f"the replicas differ in dtype: {', '.join(f['dtype'] for f in facts)}")
        self.dtype = facts[0]["dtype"]
        self._watch = asyncio.ensure_future(self._watch_replicas())

    def _check_server(self, replica: Server, facts: dict[str, Any]) -> None:
        if facts["vocab_size"] != self.config.vocab_size:
            raise SidecarError(
                f"{replica.address} serves another model: its vocabulary has {facts['vocab_size']} tokens, should have "
                f"{self.config.vocab_size}"
            )
        if facts["max_length"] < self.max_length:
            raise SidecarError(
                f"{replica.address} takes {facts['max_length']} tokens (--max-length), {self.max_length} are needed"
            )
        if "processed_logprobs" not in facts["logprobs_mode"]:
            raise SidecarError(
                f"{replica.address} runs with --logprobs-mode {facts['logprobs_mode']}; start it with python -m "
                "rollouts.sidecar"
            )

    async def _acquire(self, sequence: int = 0) -> Server:
        """A replica that is ready and has room, when there is one; its load is counted already.

        The one that has the sequence's beginning, else the least loaded.
        """
        if self._failure is not None:
            raise self._failure
        waiting: asyncio.Future[Server] = self._loop.create_future()
        self._waiting.append((waiting, sequence))
        self._wake()
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                waiting.result().load -= 1
                self._wake()
            raise

    def _wake(self) -> None:
        """Gives waiting requests to replicas with room, in order of arrival."""
        while self._waiting:
            free = [r for r in self.replicas if r.ready and r.load < self.settings.concurrency]
            if not free:
                return
            waiting, sequence = self._waiting.popleft()
            if not waiting.done():
                known = self._servers_of.get(sequence)
                replica = known if known in free else min(free, key=lambda r: r.load)
                if sequence:
                    self._servers_of[sequence] = replica
                replica.load += 1
                waiting.set_result(replica)

    def _busy(self) -> bool:
        return bool(self._waiting) or any(r.posts for r in self.replicas)

    def _take_out(self, replica: Server, reason: str) -> None:
        """No more requests to this replica until it was revived; those that it has are sampled anew."""
        if replica.reviving:
            return
        self._note(replica, reason)
        replica.ready = False
        replica.strikes += 1
        replica.revival = asyncio.ensure_future(self._revive(replica))

    async def _revive(self, replica: Server) -> None:
        """Brings a replica back: answers, has the current weights, is ready. Goes on for as long as it takes."""
        for post in list(replica.posts):
            post.cancel()
        delay = 0.1
        while True:
            answers = await replica.answers()
            restart = self.sidecar is not None and (
                replica.strikes >= STRIKES or not answers or not self.sidecar.alive(replica.index)
            )
            try:
                if restart and replica.starts == RESTARTS:
                    replica.lost = True
                    if all(r.lost for r in self.replicas):
                        self._give_up(f"was restarted {RESTARTS} times in vain")
                    return
                if restart:
                    self.restarts += 1
                    replica.starts, replica.strikes = replica.starts + 1, 0
                await self._wait_for_server(replica, restart)
                if self._weights is not None:
                    await self._send(replica, self._weights)
                replica.revivals += 1
                replica.ready, replica.lost = True, False
                self._wake()
                return
            except Exception as error:  # whatever it is, the replica may still come back
                self._note(replica, f"{type(error).__name__}: {error}")
                replica.strikes += not isinstance(error, WriteError)
                await asyncio.sleep(delay)
                delay = min(2 * delay, 5.0)

    def _note(self, replica: Server, event: str) -> None:
        replica.last_error = event[:400]
        self._say(f"sampler: {replica.address}: {replica.last_error}")

    async def _wait_for_server(self, replica: Server, restart: bool) -> None:
        """Returns when the server answers: an owned one that is (re)started, as `restart` says, or an external one."""
        if self.sidecar is not None:
            if restart:
                await asyncio.to_thread(self.sidecar.kill, replica.index)
                self.sidecar.start(replica.index)  # here: the server must not die with a thread of a pool
                await asyncio.to_thread(self.sidecar.wait_until_healthy, replica.index)
            return
        deadline, said = time.monotonic() + self.settings.wait_s, False
        while True:
            try:
                for facts in await replica.describe():  # a refusal is raised at once: waiting will not help
                    self._check_server(replica, facts)
                return
            except (httpx.HTTPError, BadReplyError) as error:
                if not said:
                    wait = f"waiting for it, {self.settings.wait_s:.0f} s at most"
                    self._say(f"sampler: {replica.address}: {type(error).__name__}: {error}; {wait}")
                    said = True
                if time.monotonic() > deadline:
                    raise SidecarError(
                        f"{replica.address} does not answer ({type(error).__name__}: {error}); waited "
                        f"{self.settings.wait_s:.0f} s (rollout.sidecar.wait_s)"
                    ) from None
            await asyncio.sleep(0.5)

    async def _watch_replicas(self) -> None:
        """Notices what no request would: a server that hangs, and that nobody has answered for too long."""
        while True:
            await asyncio.sleep(min(PROBE_S, self.settings.wait_s / 4))
            if not self._busy():
                self._last_answer = time.monotonic()
                continue
            for replica in self.replicas:
                if replica.ready and replica.posts and not await replica.answers():
                    self._take_out(replica, f"it hangs ({replica.last_error})")
            silent, limit = time.monotonic() - self._last_answer, self.settings.wait_s + self._start_time()
            if silent > limit and not any(r.ready for r in self.replicas):
                self._give_up(f"has not answered for {self.settings.wait_s:.0f} s")
            elif silent > limit + self.settings.request_timeout_s:  # each comes back and fails again
                self._give_up(f"has completed nothing for {silent:.0f} s")

    def _start_time(self) -> float:
        return self.sidecar.settings.start_timeout_s if self.sidecar is not None and self.restarts else 0.0

    def _give_up(self, why: str) -> None:
        """Fails everything that waits, and all that comes later."""
        errors = [
            f"{r.address}: {self.sidecar.last_error(r.index) if self.sidecar else r.last_error or 'no answer'}"
            for r in self.replicas
        ]
        logs = f" (logs: {self.sidecar.log_folder})" if self.sidecar else ""
        self._failure = SidecarError(f"vLLM {why}; {'; '.join(errors)}{logs}")
        while self._waiting:
            waiting, _ = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(self._failure)

    # ------------------------------------------------------------------ weights

    def _version_folder(self, version: int) -> Path:
        return self._folder / f"version_{version}"

    async def _load_everywhere(self, weights: Weights) -> None:
        self._weights, self.version = weights, weights.version

        async def load(replica: Server) -> None:
            if replica.reviving:
                return  # it will get the newest weights when it is back
            replica.ready = False
            try:
                await self._send(replica, weights)
                replica.ready, replica.lost = True, False
            except (httpx.HTTPError, BadReplyError, SidecarError) as error:
                self._take_out(replica, f"loading weights: {type(error).__name__}: {error}")

        if self.settings.sync == "nccl":
            await self._load_by_nccl(weights)
        else:
            await asyncio.gather(*(load(r) for r in self.replicas))
        self._wake()
        deadline = time.monotonic() + self.settings.wait_s
        while not any(r.ready for r in self.replicas):
            if self._failure is not None:
                raise self._failure
            if time.monotonic() > deadline + self._start_time():
                errors = "; ".join(f"{r.address}: {r.last_error}" for r in self.replicas)
                raise SidecarError(f"no vLLM server took the weights of version {weights.version} ({errors})")
            await asyncio.sleep(0.05)

    async def _load_by_nccl(self, weights: Weights) -> None:
        """To all servers at once. If that fails, each of them gets files instead, and the next group is a new one."""
        able = [r for r in self.replicas if not r.reviving]
        for replica in able:
            replica.ready = False
        try:
            members = [(r, r.revivals) for r in able]
            if self._transfer is None or self._members != members:
                self._leave_group()
                self._transfer, self._members = NcclTransfer(able, self.workers), members
            label, mode = self._label(weights), self.settings.in_flight
            await self._transfer.send(weights.params, self.config, self.dtype, label, mode)
        except (httpx.HTTPError, BadReplyError, SidecarError) as error:
            self._leave_group()
            for replica in able:
                self._take_out(replica, f"loading weights by NCCL: {type(error).__name__}: {error}")
        else:
            for replica in able:
                replica.ready, replica.lost = True, False

    def _leave_group(self) -> None:
        if self._transfer is not None:
            self._transfer.close()
            self._transfer = None

    def _write(self, weights: Weights) -> dict[str, np.ndarray]:
        """The weights' files, written now; the tensors in them."""
        folder = self._version_folder(weights.version)
        shutil.rmtree(folder, ignore_errors=True)
        tensors = named_tensors(weights.params, self.config, self.dtype)
        weights.tensors = write_weights(tensors, self.dtype, folder)
        weights.params = None
        return weights.tensors

    def _label(self, weights: Weights) -> str:
        return f"{self.session}/{weights.version}"

    async def _send(self, replica: Server, weights: Weights) -> None:
        """Weights into one server. Newer ones may have come meanwhile: then those follow."""
        while True:
            async with self._writing:
                try:
                    tensors = weights.tensors or await asyncio.to_thread(self._write, weights)
                except (OSError, RuntimeError) as error:
                    raise WriteError(f"weights of version {weights.version}: {error}") from error
            folder = self._version_folder(weights.version)
            loading = replica.load_files(folder, tensors, self._label(weights), self.settings.in_flight)
            await self._unless_it_hangs(replica, asyncio.ensure_future(loading))
            if self._weights is None or self._weights.version == weights.version:
                return
            weights = self._weights

    async def _unless_it_hangs(self, replica: Server, loading: asyncio.Future[None]) -> None:
        """Waits for what a server may take long to do, but not for one that has stopped. Raises BadReplyError then."""
        try:
            while not (await asyncio.wait({loading}, timeout=PROBE_S))[0]:
                if not await replica.healthy() and not loading.done():
                    raise BadReplyError(f"it hangs while it takes weights ({replica.last_error})")
        finally:
            if not loading.done():
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
        loading.result()

    # ------------------------------------------------------------------ the loop

    def _run(self, main: Coroutine[Any, Any, T]) -> T:
        """What `main` returns, run in the engine's own loop."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(main, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _shut_down(self) -> None:
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._leave_group()
        await asyncio.gather(*(r.http.aclose() for r in getattr(self, "replicas", ())), return_exceptions=True)


def _request_seed(seed: int, index: int) -> int:
    """A 63-bit seed for the index-th completion of a request."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
