"""The client of one vLLM server: its requests over HTTP, and the checks of its replies."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx2 as httpx
import numpy as np

from rollouts.engine import Completion, SamplingParams
from rollouts.vllm.pulse import Pulse, count_tokens
from rollouts.vllm.sidecar import ADAPTERS_NAME, MODEL_NAME, Sidecar, SidecarError
from rollouts.vllm.weight_files import expected_adapters, expected_checksum

# Our word for running requests -> vLLM's. "recompute": what was sampled is the beginning of a new request.
PAUSE_MODES = {"finish": "wait", "abort": "abort", "keep": "keep", "recompute": "abort"}
PROBE_S = 5.0  # between two checks of a server with work
PROBE_TIMEOUT_S = 20.0  # how long one check waits for an answer
QUESTION_S = 3600.0  # until an unanswered check is dropped
CONNECT_S = 10.0
NO_TIMEOUT = httpx.Timeout(None, connect=CONNECT_S)


class BadReplyError(RuntimeError):
    """A server's reply cannot be right."""


class TakenOutError(Exception):
    """The replica was taken out before it answered."""


@dataclass(frozen=True)
class ClientSettings:
    """How to use the servers."""

    key: str = field(default="", repr=False)
    sync: str = "files"  # files | nccl
    lora: str = "adapters"  # what is sent of a model with adapters: adapters (where vLLM takes them) | merged
    sync_folder: Path = Path("/dev/shm")  # where weights are written; must be visible on the servers' machines
    in_flight: str = "finish"  # of running requests when weights arrive: finish | abort | keep | recompute
    concurrency: int = 256  # concurrent requests per replica
    request_timeout_s: float = 600.0
    wait_s: float = 600.0  # without an answer from any replica until the run gives up

    def check(self) -> None:
        """Raises ValueError naming the field that is wrong."""
        if self.in_flight not in PAUSE_MODES:
            raise ValueError(f"rollout.sidecar.in_flight = {self.in_flight!r} must be one of: {', '.join(PAUSE_MODES)}")
        if self.sync not in ("files", "nccl"):
            raise ValueError(f"rollout.sidecar.sync = {self.sync!r} must be one of: files, nccl")
        if self.lora not in ("adapters", "merged"):
            raise ValueError(f"rollout.sidecar.lora = {self.lora!r} must be one of: adapters, merged")
        for name in ("concurrency", "request_timeout_s", "wait_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"rollout.sidecar.{name} = {getattr(self, name)} must be > 0")


@dataclass(eq=False)
class Server:
    """A connection to one server, and what the engine knows about it."""

    index: int
    address: str
    http: httpx.AsyncClient
    sidecar: Sidecar | None = None  # its owner
    ready: bool = False  # holds the current weights, as far as is known
    strikes: int = 0  # failures since its last completion or start
    starts: int = 0  # since its last completion
    lost: bool = False  # has used all its restarts
    revivals: int = 0  # after each of them its earlier state is gone
    load: int = 0  # requests that it is working on
    room: int = 1  # upper limit of load, lower when it is slow
    slowed: float = -math.inf  # when that was last reduced
    pulse: Pulse = field(default_factory=Pulse)
    question: asyncio.Task[Any] | None = None  # a check by `look` that is not answered yet
    posts: set[asyncio.Task[Any]] = field(default_factory=set)  # those in progress
    revival: asyncio.Task[None] | None = None
    last_error: str = ""

    @property
    def reviving(self) -> bool:
        return self.revival is not None and not self.revival.done()

    async def call(self, path: str, body: dict[str, Any] | None = None, timeout: float | None = None) -> httpx.Response:
        """POSTs to an endpoint. Raises SidecarError if the key is refused, BadReplyError for any other failure."""
        content = json.dumps(body).encode() if body is not None else None
        reply = await self.http.post(path, content=content, timeout=timeout or httpx.USE_CLIENT_DEFAULT)
        endpoint = path.partition("?")[0]
        if reply.status_code in (401, 403, 404):
            raise SidecarError(
                f"{self.address}{endpoint}: status {reply.status_code}: {message(reply)}; start it with python -m "
                "rollouts.sidecar, and set the same JAXRL_SIDECAR_KEY on both sides"
            )
        if reply.status_code != 200:
            raise BadReplyError(f"{endpoint}: status {reply.status_code}: {message(reply)}")
        return reply

    async def rpc(self, method: str, *arguments: str, timeout: float | None = None) -> list[Any]:
        """What a method of WorkerExtension (rollouts/vllm/extension.py) returns on each worker."""
        reply = await self.call("/collective_rpc", {"method": method, "args": list(arguments)}, timeout)
        try:
            return reply.json()["results"]
        except (ValueError, KeyError, TypeError):
            raise BadReplyError(f"{method}: {reply.text[:200]!r}") from None

    async def describe(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """Each worker's description, see WorkerExtension.jaxrl_describe."""
        return await self.rpc("jaxrl_describe", timeout=timeout or PROBE_TIMEOUT_S)

    def check(self, facts: dict[str, Any], vocab_size: int, max_length: int) -> None:
        """Raises SidecarError unless a worker with this description can serve a model of this vocabulary."""
        if facts["vocab_size"] != vocab_size:
            raise SidecarError(
                f"{self.address} serves another model: its vocabulary has {facts['vocab_size']} tokens instead of "
                f"{vocab_size}"
            )
        if facts["max_length"] < max_length:
            raise SidecarError(
                f"{self.address} takes {facts['max_length']} tokens (--max-length), but {max_length} are needed"
            )
        if "processed_logprobs" not in facts["logprobs_mode"]:
            raise SidecarError(
                f"{self.address} runs with --logprobs-mode {facts['logprobs_mode']}; start it with python -m "
                "rollouts.sidecar"
            )

    def ended(self) -> str:
        """Why an owned server is not running; "" while it is, and for external ones."""
        if self.sidecar is None or self.sidecar.alive(self.index):
            return ""
        return f"it has ended: {self.sidecar.last_error(self.index)}"

    async def cpu_seconds(self) -> float | None:
        """The CPU time that an owned server has used; None for external ones."""
        return None if self.sidecar is None else await asyncio.to_thread(self.sidecar.cpu_seconds, self.index)

    async def look(self, ask: Callable[[float], Coroutine[Any, Any, Any]] | None = None) -> bool:
        """Whether the server answers soon; see Pulse for other signs of life.

        A check without an answer in time stays open: a late answer counts too, and a slow server does not get the same
        request again and again.

        Args:
            ask: the check, given a timeout in seconds; None: `describe`, which reaches the workers.
        """
        if self.question is None:
            self.question = asyncio.ensure_future((ask or self.describe)(QUESTION_S))
        question = self.question  # self.question may change while this waits
        _, tokens = await asyncio.gather(asyncio.wait({question}, timeout=PROBE_TIMEOUT_S), self.count_tokens())
        answered = False
        if question.done():
            if self.question is question:
                self.question = None
            if not question.cancelled():
                try:
                    question.result()
                    answered = True
                except (httpx.HTTPError, BadReplyError, SidecarError) as error:
                    self.last_error = f"{type(error).__name__}: {error}"
        self.pulse.see(answered, tokens, await self.cpu_seconds())
        return answered

    def forget_question(self) -> None:
        """Cancels the open check of `look`."""
        if self.question is not None:
            self.question.cancel()
            self.question = None

    async def wait_for_sign(self) -> str:
        """Waits until an owned server answers: "", or why it will not. Returns at once for external ones."""
        if self.sidecar is None:
            return ""
        self.pulse.begin(await self.cpu_seconds())
        while not self.ended():
            if await self.look():
                return ""
            if hung := self.pulse.hangs():
                return f"it hangs: {hung}"
            await asyncio.sleep(PROBE_S)
        return self.ended()

    async def unless_it_hangs(self, loading: asyncio.Future[None]) -> None:
        """Waits for the server to load weights, however long it takes. Raises BadReplyError when it ends or hangs."""
        self.forget_question()  # its workers are busy, so that only the server itself can answer
        self.pulse.begin(await self.cpu_seconds())
        try:
            while not (await asyncio.wait({loading}, timeout=PROBE_S))[0]:
                await self.look(self.health)
                hung = self.ended() or self.pulse.hangs()
                if hung and not loading.done():
                    raise BadReplyError(f"it hangs while it loads weights: {hung}")
        finally:
            self.forget_question()
            if not loading.done():
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
        loading.result()

    async def count_tokens(self) -> float | None:
        """The tokens in its counters; None without an answer in time."""
        try:
            reply = await self.http.get("/metrics", timeout=PROBE_TIMEOUT_S)
        except httpx.HTTPError:
            return None
        return count_tokens(reply.text) if reply.status_code == 200 else None

    async def health(self, timeout: float) -> None:
        """Returns when the server reports that it is healthy; its workers may be busy. Raises as `call` does."""
        reply = await self.http.get("/health", timeout=timeout)
        if reply.status_code != 200:
            raise BadReplyError(f"/health: status {reply.status_code}")

    async def load_files(self, folder: Path, tensors: dict[str, np.ndarray], label: str, in_flight: str) -> None:
        """Has it load the weights in `folder`, under a label, and checks them."""

        async def load() -> None:
            for report in await self.rpc("jaxrl_load", str(folder.absolute())):
                compare(tensors, report, self.address)

        await self._replace(load, label, in_flight)

    async def has_base(self, base: str) -> bool:
        """Whether all its workers hold the base with this label."""
        return set(await self.rpc("jaxrl_base")) == {base}

    async def load_base(self, folder: Path, tensors: dict[str, np.ndarray], base: str, adapters: Path) -> None:
        """Has it load a base with this label, checks it, and gives ADAPTERS_NAME an id for the adapters."""
        await self.call(f"/pause?mode={PAUSE_MODES['abort']}")  # nothing of another base is of use
        timeout: float | None = PROBE_TIMEOUT_S
        try:
            for report in await self.rpc("jaxrl_load", str(folder.absolute()), base):
                compare(tensors, report, self.address)
            # An adapter of an earlier client; a server without one answers 400 or 404.
            await self.http.post("/v1/unload_lora_adapter", content=json.dumps({"lora_name": ADAPTERS_NAME}))
            body = {"lora_name": ADAPTERS_NAME, "lora_path": str(adapters.absolute())}
            await self.call("/v1/load_lora_adapter", body)
            await self.call("/reset_prefix_cache")
            timeout = None
        finally:
            await self.call("/resume", timeout=timeout)

    async def load_adapters(self, folder: Path, tensors: dict[str, np.ndarray], label: str, in_flight: str) -> None:
        """Has it load the adapters in `folder` for the base that it has, under a label, and checks them."""
        expected = expected_adapters(tensors)

        async def load() -> None:
            for report in await self.rpc("jaxrl_load_adapters", str(folder.absolute())):
                if report != expected:
                    raise BadReplyError(f"{self.address} holds other adapters than were sent")

        await self._replace(load, label, in_flight)

    async def _replace(self, load: Callable[[], Coroutine[Any, Any, None]], label: str, in_flight: str) -> None:
        """Runs `load` while no request runs, and then forgets what was computed with the old weights."""
        await self.call(f"/pause?mode={PAUSE_MODES[in_flight]}")
        timeout: float | None = PROBE_TIMEOUT_S  # after an error, when the server may not answer at all
        try:
            await load()
            await self.call("/reset_prefix_cache")
            await self.call("/update_weight_version", {"new_version": label})
            timeout = None  # the settings'
        finally:
            await self.call("/resume", timeout=timeout)

    async def score(self, prompt: np.ndarray, tokens: np.ndarray, model: str = MODEL_NAME) -> np.ndarray:
        """f32[n]: the logprobs at temperature 1 of tokens i32[n] after a prompt, from one forward pass."""
        whole = [int(t) for t in np.concatenate([prompt, tokens])]
        sampling = {"max_tokens": 1, "prompt_logprobs": 0, "detokenize": False, "temperature": 1.0}
        body = {"model": model, "token_ids": whole, "sampling_params": sampling}
        reply = await self.call("/inference/v1/generate", body)
        entries = reply.json()["prompt_logprobs"][len(prompt) :]
        return np.array([e[str(t)]["logprob"] for e, t in zip(entries, whole[len(prompt) :])], np.float32)


def connect(index: int, address: str, settings: ClientSettings, sidecar: Sidecar | None = None) -> Server:
    """A client of the server at http://HOST:PORT, `sidecar`'s index-th or an external one; nothing is sent yet."""
    headers = {"authorization": f"Bearer {settings.key}"} if settings.key else {}
    client = httpx.AsyncClient(
        base_url=address,
        headers=headers | {"content-type": "application/json"},
        timeout=httpx.Timeout(settings.request_timeout_s, connect=CONNECT_S),
        # vLLM closes idle connections after 5 s; a request must not be in flight then.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=settings.concurrency, keepalive_expiry=2),
        trust_env=False,  # connect directly, without a proxy
    )
    return Server(index, address, client, sidecar, room=settings.concurrency)


def request(prompt: list[int], params: SamplingParams, seed: int, model: str = MODEL_NAME) -> dict[str, Any]:
    """The body of /inference/v1/generate for one completion."""
    sampling: dict[str, Any] = {
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "stop_token_ids": list(params.stop_tokens),
        "ignore_eos": True,  # stop_tokens decide where to stop
        "seed": seed,
        "logprobs": 0,  # of the sampled token
        "detokenize": bool(params.stop_strings),
        "skip_special_tokens": False,
    }
    if params.stop_strings:
        sampling |= {"stop": list(params.stop_strings), "include_stop_str_in_output": True}
    return {"model": model, "token_ids": prompt, "sampling_params": sampling}


def request_seed(seed: int, index: int) -> int:
    """A 63-bit seed for the index-th completion of a request."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1)


class Part(NamedTuple):
    """What a request has sampled: all of it, or the tokens before it was aborted."""

    completion: Completion
    whole: bool


def read_completion(
    reply: httpx.Response, params: SamplingParams, vocab_size: int, session: str, least: int
) -> Part | None:
    """The completion in a reply; None if it was aborted, without a token or before weights `least`.

    Its weights must be labelled "session/version" with versions of at least `least`; the completion carries the oldest.
    Raises BadReplyError for a reply that cannot belong to the request.
    """
    if reply.status_code != 200:
        raise BadReplyError(f"status {reply.status_code}: {message(reply)}")
    try:
        data = reply.json()
        (choice,) = data["choices"]
        aborted = choice["finish_reason"] == "abort"
        if aborted and not choice.get("token_ids"):
            return None
        tokens = np.array(choice["token_ids"], np.int32)
        content = choice["logprobs"]["content"]
        logprobs = np.array([entry["logprob"] for entry in content], np.float32)
        labels = [span["version"].partition("/") for span in choice["weight_versions"]]
        starts = [int(span["start"]) for span in choice["weight_versions"]]
        cached = int(((data.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        same = [entry["token_id"] for entry in content] == choice["token_ids"]
        reason: Literal["stop", "length"] = "length" if choice["finish_reason"] == "length" else "stop"
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BadReplyError(f"no completion ({type(error).__name__}: {error}): {reply.text[:200]!r}") from None
    if not 1 <= len(tokens) <= params.max_new_tokens or not same:
        raise BadReplyError(
            f"{len(tokens)} tokens, {len(logprobs)} logprobs; max_new_tokens is {params.max_new_tokens}"
        )
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise BadReplyError(f"a token outside the vocabulary of {vocab_size}")
    # vLLM sends -9999 for NaN, for minus infinity, and for a token without a logprob.
    if not np.isfinite(logprobs).all() or logprobs.max() > 1e-3 or logprobs.min() <= -9999:
        raise BadReplyError("an invalid logprob: NaN, above 0, or -9999")
    if not labels or any(owner != session for owner, _, _ in labels):
        names = ", ".join("".join(label) for label in labels)
        raise BadReplyError(f"the server samples from weights {names!r}, which this run did not send")
    versions = [int(version) for _, _, version in labels]
    version = min(versions)
    if aborted and version < least:  # the weights came between the choice of a server and the request
        return None
    if version < least:
        raise BadReplyError(f"weights of version {version} instead of {least} or newer")
    if params.top_p < 1 or params.top_k or params.min_p:
        logprobs = np.full_like(logprobs, math.nan)  # vLLM's are of the truncated distribution: not for training
    completion = Completion(tokens, logprobs, reason, version, cached, tuple(zip(starts[1:], versions[1:])))
    return Part(completion, whole=not aborted)


def join(begun: Completion | None, rest: Completion) -> Completion:
    """What was sampled before new weights arrived, if anything, and what followed.

    `cached` is that of the first part: what the others computed again of the prompt is not in it.
    """
    if begun is None:
        return rest
    n = len(begun.tokens)
    changed = ((n, rest.weight_version),) if rest.weight_version != begun.versions[-1] else ()
    return Completion(
        np.concatenate([begun.tokens, rest.tokens]),
        np.concatenate([begun.logprobs, rest.logprobs]),
        rest.finish_reason,
        begun.weight_version,
        begun.cached,
        (*begun.changes, *changed, *((n + first, version) for first, version in rest.changes)),
    )


def compare(tensors: dict[str, np.ndarray], report: dict[str, Any], address: str) -> None:
    """Raises BadReplyError unless the worker holds the first rows of each tensor, bit for bit."""
    try:
        for name, (crc, shape) in report["parameters"].items():
            expected = expected_checksum(tensors, name, shape, report["rank"], report["size"])
            if expected is not None and crc != expected:
                raise BadReplyError(f"{address} holds other weights than were sent: {name}")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadReplyError(f"{address} does not report its weights ({type(error).__name__}: {error})") from None


def message(reply: httpx.Response) -> str:
    """The message in an error reply."""
    try:
        error = reply.json()["error"]
        return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
    except (ValueError, KeyError, TypeError, AttributeError):
        return reply.text[:200]
