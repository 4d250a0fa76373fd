"""The engine that samples with vLLM in separate processes: a client of one or more sidecars.

Requests go to the least loaded replica. A replica that fails is taken out, revived (an owned one is restarted, an
external one waited for), given the current weights and used again; its requests are repeated elsewhere, so that every
call of `sample` returns each of its completions once, or raises. A slow replica stays in use, with fewer requests at a
time, while it shows signs of life (rollouts/vllm/pulse.py).

rollouts/vllm/weight_sync.py sends the weights. For every completion the servers name the versions that its tokens were
sampled from; completions from a version that this trainer did not send are discarded, the weights sent and the request
repeated.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import httpx2 as httpx
import numpy as np

from models.config import ModelConfig
from rollouts.engine import Completion, SamplingParams, UnsupportedError, check_prompt
from rollouts.vllm import server as vllm_server
from rollouts.vllm.nccl import check_available
from rollouts.vllm.server import (
    NO_TIMEOUT,
    BadReplyError,
    ClientSettings,
    Server,
    TakenOutError,
    connect,
    join,
    message,
    read_completion,
    request,
    request_seed,
)
from rollouts.vllm.sidecar import Sidecar, SidecarError
from rollouts.vllm.weight_sync import Weights, WeightSync, WriteError

T = TypeVar("T")
STRIKES = 3  # consecutive failures after which a replica is restarted, although it seems alive
RESTARTS = 3  # restarts of a replica without a completion in between, after which the run gives up
SLOW_S = 30.0  # between two reductions of a slow server's requests
PATIENCE = 10  # factor of the limits on completions while the server counts tokens


class VllmEngine:
    """Samples with vLLM servers. See rollouts.engine.Engine for the protocol; the module says what failures do.

    Usable from any thread and event loop, since it has its own loop. Samples nothing before the first `load_weights`.

    Args:
        sidecar: servers to start and own; None: those at `addresses`, which run already.
        max_length: tokens of a prompt and its completion together, at most.
        say: called in the engine's thread with a line for the user about each failure of a server.
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
        self.version, self.restarts = -1, 0  # of the weights; of owned servers, as reported
        self.sync = WeightSync(config, settings)
        self._waiting: deque[tuple[asyncio.Future[Server], int]] = deque()  # with the request's sequence
        self._servers_of: dict[int, Server] = {}  # by sequence: where its beginning is cached
        self._failure: SidecarError | None = None
        self._last_completion = time.monotonic()
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

    # ------------------------------------------------------------------ protocol

    async def sample(self, prompt: np.ndarray, params: SamplingParams) -> list[Completion]:
        """`params.n` completions of prompt i32[n]. Raises SidecarError when no replica answers for settings.wait_s."""
        check_prompt(prompt, params, self.config.vocab_size, self.max_length)
        self._check_open()
        ids = [int(t) for t in prompt]
        seeds = [request_seed(params.seed, i) for i in range(params.n)]

        async def all_of_them() -> list[Completion]:
            return list(await asyncio.gather(*(self._complete(ids, params, seed) for seed in seeds)))

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(all_of_them(), self._loop))

    async def score(self, prompt: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """f32[n]: see Server.score."""
        self._check_open()

        async def ask() -> np.ndarray:
            replica = await self._acquire()
            try:
                return await replica.score(prompt, tokens, self.sync.model)
            finally:
                replica.load -= 1
                self._wake()

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ask(), self._loop))

    def load_weights(self, params: Any, version: int) -> None:
        """Gives all replicas these parameters; returns when at least one has them.

        What happens to running requests is settings.in_flight. Raises SidecarError as `sample` does, OSError when
        the files cannot be written.
        """
        if version == self.version:
            return
        self._check_open()
        weights = Weights(version, params)
        if self.settings.sync == "files":
            self.sync.write(weights)
        self._run(self._load_everywhere(weights))
        self.sync.remove_old(version)

    def release(self, sequence: int) -> None:
        """Lets a later request of this sequence go to any server."""
        self._loop.call_soon_threadsafe(self._servers_of.pop, sequence, None)

    def _check_open(self) -> None:
        if self._closed:
            raise SidecarError("the engine is closed")

    def unload(self) -> None:
        """Its weights are not in this process."""

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
        self.sync.close()

    # ------------------------------------------------------------------ one completion

    async def _complete(self, prompt: list[int], params: SamplingParams, seed: int) -> Completion:
        """Sends the request to replicas until one of them gives a valid answer, or the last part of one."""
        # An aborted request is continued, unless a stop string could be half in each part.
        continued = self.settings.in_flight == "recompute" and not params.stop_strings
        begun, whole = None, list(prompt)
        while True:
            replica = await self._acquire(params.sequence)
            least, done = self.version, len(whole) - len(prompt)
            rest = replace(params, max_new_tokens=params.max_new_tokens - done)
            body = json.dumps(request(whole, rest, (seed + done) % 2**63, self.sync.model)).encode()
            try:
                reply = await self._ask(replica, body)
                if reply.status_code in (400, 422):
                    raise UnsupportedError(f"{replica.address} refused a request: {message(reply)}")
                part = read_completion(reply, rest, self.config.vocab_size, self.sync.session, least)
            except TakenOutError:
                continue
            except (httpx.HTTPError, BadReplyError) as error:
                self._take_out(replica, f"{type(error).__name__}: {error}")
                continue
            finally:
                replica.load -= 1
                self._wake()
            if part is not None and (part.whole or continued):
                self._last_completion = time.monotonic()
                begun, whole = join(begun, part.completion), whole + part.completion.tokens.tolist()
                if part.whole:
                    replica.strikes, replica.starts = 0, 0
                    replica.room = min(replica.room + 1, self.settings.concurrency)
                    return begun

    async def _ask(self, replica: Server, body: bytes) -> httpx.Response:
        """The reply to a request, within settings.request_timeout_s, or PATIENCE times that while tokens are counted.

        Raises httpx.HTTPError, and TakenOutError when the replica is taken out meanwhile.
        """
        post = asyncio.ensure_future(replica.http.post("/inference/v1/generate", content=body, timeout=NO_TIMEOUT))
        replica.posts.add(post)
        start, limit = time.monotonic(), self.settings.request_timeout_s
        try:
            while not (await asyncio.wait({post}, timeout=limit))[0]:
                now = time.monotonic()
                if replica.pulse.counted < now - limit or now > start + PATIENCE * limit:
                    raise httpx.ReadTimeout(f"no completion for {now - start:.0f} s")
                self._slow_down(replica, f"a request takes more than {now - start:.0f} s, though it counts tokens")
            if post.cancelled():
                raise TakenOutError
            return post.result()
        finally:
            post.cancel()
            replica.posts.discard(post)

    # ------------------------------------------------------------------ replicas

    async def _attach(self, addresses: list[str]) -> None:
        """Connects to the servers, after starting owned ones. Returns when all have answered once."""
        if not addresses:
            raise SidecarError("a vLLM server's address is missing")
        self.replicas = [
            connect(i, address.rstrip("/"), self.settings, self.sidecar) for i, address in enumerate(addresses)
        ]
        await asyncio.gather(*(self._wait_for_server(r, restart=self.sidecar is not None) for r in self.replicas))
        described = [await self._describe(r) for r in self.replicas]
        facts, self.workers = [d[0] for d in described], len(described[0])
        for replica, fact in zip(self.replicas, facts):
            replica.check(fact, self.config.vocab_size, self.max_length)
        if self.settings.sync == "nccl" and len({len(d) for d in described}) > 1:
            raise SidecarError(
                "the replicas differ in tensor_parallel, which rollout.sidecar.sync = 'nccl' cannot serve"
            )
        if len({f["dtype"] for f in facts}) > 1:
            raise SidecarError(f"the replicas differ in dtype: {', '.join(f['dtype'] for f in facts)}")
        self.sync.prepare(facts, self._say)
        self._watcher = asyncio.ensure_future(self._watch_replicas())

    async def _acquire(self, sequence: int = 0) -> Server:
        """Waits for a ready replica with room, and counts the request in its load.

        Prefers the replica that has the sequence's beginning, then the least loaded one.
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
            free = [r for r in self.replicas if r.ready and r.load < r.room]
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

    def _take_out(self, replica: Server, reason: str, hung: bool = False) -> None:
        """Stops using this replica until it is revived; its requests are repeated elsewhere."""
        if replica.reviving:
            return
        self._note(replica, reason)
        replica.ready = False
        replica.strikes += 1
        replica.revival = asyncio.ensure_future(self._revive(replica, hung))

    async def _revive(self, replica: Server, hung: bool) -> None:
        """Tries until the replica answers, has the current weights and is ready, or until it is lost."""
        running = len(replica.posts)
        for post in list(replica.posts):
            post.cancel()
        delay = 0.1
        while True:
            if not hung and (why := await replica.wait_for_sign()):
                self._note(replica, why)
                hung = True
            restart = self.sidecar is not None and (hung or replica.strikes >= STRIKES)
            if hung:
                replica.room = max(1, min(replica.room, running or replica.room) // 4)  # it may have had too many
            hung = False  # until that is found again
            try:
                if restart and replica.starts == RESTARTS:
                    replica.lost = True
                    if all(r.lost for r in self.replicas):
                        self._give_up(f"was restarted {RESTARTS} times without completing a request")
                    return
                if restart:
                    self.restarts += 1
                    replica.starts, replica.strikes = replica.starts + 1, 0
                    replica.pulse.be_patient()
                await self._wait_for_server(replica, restart)
                replica.forget_question()  # the old server will not answer it
                if self.sync.newest is not None:
                    await self._send(replica, self.sync.newest)
                replica.revivals += 1
                replica.ready, replica.lost = True, False
                self._wake()
                return
            except Exception as error:  # of any type: the replica may still come back
                self._note(replica, f"{type(error).__name__}: {error}")
                replica.strikes += not isinstance(error, WriteError)
                await asyncio.sleep(delay)
                delay = min(2 * delay, 5.0)

    def _slow_down(self, replica: Server, why: str) -> None:
        """Halves the concurrent requests, at most once per SLOW_S; each completion allows one more (`_complete`)."""
        now, running = time.monotonic(), len(replica.posts)
        if replica.room > 1 and now > replica.slowed + SLOW_S and running:
            replica.slowed, replica.room = now, max(1, min(replica.room, running) // 2)
            self._say(f"sampler: {replica.address}: slow: {why}; {replica.room} requests at a time from now on")

    def _note(self, replica: Server, event: str) -> None:
        replica.last_error = event[:400]
        self._say(f"sampler: {replica.address}: {replica.last_error}")

    async def _wait_for_server(self, replica: Server, restart: bool) -> None:
        """Returns when the server answers; an owned one is first (re)started if `restart` is set."""
        if self.sidecar is not None:
            if restart:
                limit_s = self.sidecar.settings.start_timeout_s * 2**replica.starts
                await asyncio.to_thread(self.sidecar.kill, replica.index)
                self.sidecar.start(replica.index)  # in this thread: never after `close`
                await asyncio.to_thread(self.sidecar.wait_until_healthy, replica.index, limit_s)
            return
        start, noted = time.monotonic(), False
        while True:
            waited = time.monotonic() - start
            try:
                # A slow server gets more time with each attempt.
                patience = min(max(vllm_server.PROBE_TIMEOUT_S, waited), max(1.0, self.settings.wait_s - waited))
                for facts in await replica.describe(patience):  # raises a refusal at once: waiting does not help
                    replica.check(facts, self.config.vocab_size, self.max_length)
                return
            except (httpx.HTTPError, BadReplyError) as error:
                if not noted:
                    wait = f"waiting for it, {self.settings.wait_s:.0f} s at most"
                    self._say(f"sampler: {replica.address}: {type(error).__name__}: {error}; {wait}")
                    noted = True
                if waited > self.settings.wait_s:
                    raise SidecarError(
                        f"{replica.address} does not answer ({type(error).__name__}: {error}); waited "
                        f"{self.settings.wait_s:.0f} s (rollout.sidecar.wait_s)"
                    ) from None
            await asyncio.sleep(0.5)

    async def _describe(self, replica: Server) -> list[dict[str, Any]]:
        """Server.describe for a server that may still be busy starting: raises SidecarError after settings.wait_s."""
        try:
            return await replica.describe(self.settings.wait_s)
        except (httpx.HTTPError, BadReplyError) as error:
            why = f"{type(error).__name__}: {error}"
            raise SidecarError(f"{replica.address} does not describe what it serves ({why})") from None

    async def _watch_replicas(self) -> None:
        """Notices what requests cannot: a hung server, and that nothing was completed for too long."""
        while True:
            await asyncio.sleep(min(vllm_server.PROBE_S, self.settings.wait_s / 4))
            if not self._busy():
                self._last_completion = time.monotonic()
                continue
            await asyncio.gather(*(self._watch(r) for r in self.replicas))
            now, limit = time.monotonic(), self.settings.wait_s + self._start_time()
            silent = now - self._last_completion
            counted = now - max(self._last_completion, *(r.pulse.counted for r in self.replicas))
            if silent > limit and not any(r.ready for r in self.replicas):
                self._give_up(f"has not answered for {self.settings.wait_s:.0f} s")
            elif counted > limit + self.settings.request_timeout_s:  # every replica comes back and fails again
                self._give_up(f"has completed nothing for {silent:.0f} s")
            elif silent > PATIENCE * (limit + self.settings.request_timeout_s):
                self._give_up(f"has completed nothing for {silent:.0f} s, although it counts tokens")

    async def _watch(self, replica: Server) -> None:
        """Checks a replica that has work: takes it out if it hangs, gives it fewer requests if it is slow."""
        if not replica.ready:
            return  # `_revive` or `_send` watches it
        if not replica.posts:
            replica.pulse.begin()
            return
        answered = await replica.look()
        if not replica.ready or not replica.posts:
            return
        if ended := replica.ended():
            self._take_out(replica, ended)
        elif why := replica.pulse.hangs():
            self._take_out(replica, f"it hangs: {why}", hung=True)
        elif not answered and replica.question is not None:
            self._slow_down(replica, "it is at work but does not answer")

    def _start_time(self) -> float:
        if self.sidecar is None or not self.restarts:
            return 0.0
        return self.sidecar.settings.start_timeout_s * 2 ** max(r.starts for r in self.replicas)

    def _give_up(self, why: str) -> None:
        """Fails all waiting and later requests."""
        errors = []
        for r in self.replicas:
            logged = self.sidecar.last_error(r.index) if self.sidecar else ""
            known = dict.fromkeys(line for line in (r.last_error, logged) if line)
            errors.append(f"{r.address}: {'; '.join(known) or 'no answer'}")
        logs = f" (logs: {self.sidecar.log_folder})" if self.sidecar else ""
        self._failure = SidecarError(f"vLLM {why}; {'; '.join(errors)}{logs}")
        while self._waiting:
            waiting, _ = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(self._failure)

    # ------------------------------------------------------------------ weights

    async def _load_everywhere(self, weights: Weights) -> None:
        self.sync.newest, self.version = weights, weights.version

        async def load(replica: Server) -> None:
            if replica.reviving:
                return  # it gets the newest weights when it comes back
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
                raise SidecarError(f"no vLLM server loaded the weights of version {weights.version} ({errors})")
            await asyncio.sleep(0.05)

    async def _load_by_nccl(self, weights: Weights) -> None:
        """Sends to all servers at once. If that fails, each gets files instead, and the next call makes a new group."""
        able = [r for r in self.replicas if not r.reviving]
        for replica in able:
            replica.ready = False
        try:
            await self.sync.broadcast(able, self.workers, weights)
        except (httpx.HTTPError, BadReplyError, SidecarError) as error:
            for replica in able:
                self._take_out(replica, f"loading weights by NCCL: {type(error).__name__}: {error}")
        else:
            for replica in able:
                replica.ready, replica.lost = True, False

    async def _send(self, replica: Server, weights: Weights) -> None:
        """Sends weights to one server, followed by newer ones that have arrived meanwhile."""
        while True:
            await replica.unless_it_hangs(asyncio.ensure_future(self.sync.load(replica, weights)))
            if self.sync.newest is None or self.sync.newest.version == weights.version:
                return
            weights = self.sync.newest

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
        await asyncio.gather(*(r.http.aclose() for r in getattr(self, "replicas", ())), return_exceptions=True)
