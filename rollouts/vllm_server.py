"""One vLLM server as its client sees it: what is asked over HTTP, and what is accepted as an answer."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx2 as httpx
import numpy as np

from rollouts.engine import Completion, SamplingParams
from rollouts.sidecar import MODEL_NAME, SidecarError
from rollouts.weight_files import expected_checksum

PAUSE_MODES = {"finish": "wait", "abort": "abort", "keep": "keep"}  # our word for running requests -> vLLM's
PROBE_TIMEOUT_S = 20.0


class BadReplyError(RuntimeError):
    """A server answered with something that cannot be right."""


@dataclass(frozen=True)
class ClientSettings:
    """How to use the servers."""

    key: str = field(default="", repr=False)
    sync: str = "files"  # files | nccl
    sync_folder: Path = Path("/dev/shm")  # where weights are written; other machines must see it too
    in_flight: str = "finish"  # what happens to running requests when weights arrive: finish | abort | keep
    concurrency: int = 256  # requests at one replica at a time
    request_timeout_s: float = 600.0
    wait_s: float = 600.0  # without an answer from any replica before the run gives up

    def check(self) -> None:
        """Raises ValueError naming the field that is wrong."""
        if self.in_flight not in PAUSE_MODES:
            raise ValueError(f"rollout.sidecar.in_flight = {self.in_flight!r} must be one of: {', '.join(PAUSE_MODES)}")
        if self.sync not in ("files", "nccl"):
            raise ValueError(f"rollout.sidecar.sync = {self.sync!r} must be one of: files, nccl")
        for name in ("concurrency", "request_timeout_s", "wait_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"rollout.sidecar.{name} = {getattr(self, name)} must be > 0")


@dataclass(eq=False)
class Server:
    """A connection to one server, and what the engine knows of it."""

    index: int
    address: str
    http: httpx.AsyncClient
    ready: bool = False  # holds the current weights, as far as is known
    strikes: int = 0  # failures since its last completion or start
    starts: int = 0  # since its last completion
    lost: bool = False  # it was restarted as often as may be
    revivals: int = 0  # what it knew before is gone
    load: int = 0  # requests that were given to it
    posts: set[asyncio.Task[Any]] = field(default_factory=set)  # those that run
    revival: asyncio.Task[None] | None = None
    last_error: str = ""

    @property
    def reviving(self) -> bool:
        return self.revival is not None and not self.revival.done()

    async def call(self, path: str, body: dict[str, Any] | None = None, timeout: float | None = None) -> httpx.Response:
        """POSTs to an endpoint. Raises SidecarError if it is closed to us, BadReplyError for any other failure."""
        content = json.dumps(body).encode() if body is not None else None
        reply = await self.http.post(path, content=content, timeout=timeout or httpx.USE_CLIENT_DEFAULT)
        endpoint = path.partition("?")[0]
        if reply.status_code in (401, 403, 404):
            raise SidecarError(
                f"{self.address}{endpoint}: status {reply.status_code}: {message(reply)}; it must be started by python "
                "-m rollouts.sidecar, with the same JAXRL_SIDECAR_KEY here and there"
            )
        if reply.status_code != 200:
            raise BadReplyError(f"{endpoint}: status {reply.status_code}: {message(reply)}")
        return reply

    async def rpc(self, method: str, *arguments: str, timeout: float | None = None) -> list[Any]:
        """What a method of vllm_extension.WorkerExtension returns on each worker."""
        reply = await self.call("/collective_rpc", {"method": method, "args": list(arguments)}, timeout)
        try:
            return reply.json()["results"]
        except (ValueError, KeyError, TypeError):
            raise BadReplyError(f"{method}: {reply.text[:200]!r}") from None

    async def describe(self) -> list[dict[str, Any]]:
        """What each worker says of itself, see WorkerExtension.jaxrl_describe."""
        return await self.rpc("jaxrl_describe", timeout=PROBE_TIMEOUT_S)

    async def answers(self) -> bool:
        """Whether the server, down to its workers, answers soon."""
        try:
            await self.describe()
        except (httpx.HTTPError, BadReplyError, SidecarError) as error:
            self.last_error = f"{type(error).__name__}: {error}"
            return False
        return True

    async def healthy(self) -> bool:
        """Whether the server answers soon, though its workers may be busy."""
        try:
            return (await self.http.get("/health", timeout=PROBE_TIMEOUT_S)).status_code == 200
        except httpx.HTTPError as error:
            self.last_error = f"{type(error).__name__}: {error}"
            return False

    async def load_files(self, folder: Path, tensors: dict[str, np.ndarray], label: str, in_flight: str) -> None:
        """Gives it the weights in `folder`, under a label, and checks that it has them."""
        await self.call(f"/pause?mode={PAUSE_MODES[in_flight]}")
        try:
            for report in await self.rpc("jaxrl_load", str(folder.absolute())):
                compare(tensors, report, self.address)
            await self.call("/reset_prefix_cache")
            await self.call("/update_weight_version", {"new_version": label})
        finally:
            await self.call("/resume", timeout=PROBE_TIMEOUT_S)

    async def score(self, prompt: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """f32[n]: the logprobs, at temperature 1, of tokens i32[n] after a prompt, from one pass over both."""
        whole = [int(t) for t in np.concatenate([prompt, tokens])]
        sampling = {"max_tokens": 1, "prompt_logprobs": 0, "detokenize": False, "temperature": 1.0}
        body = {"model": MODEL_NAME, "token_ids": whole, "sampling_params": sampling}
        reply = await self.call("/inference/v1/generate", body)
        entries = reply.json()["prompt_logprobs"][len(prompt) :]
        return np.array([e[str(t)]["logprob"] for e, t in zip(entries, whole[len(prompt) :])], np.float32)


def request(prompt: list[int], params: SamplingParams, seed: int) -> dict[str, Any]:
    """The body of /inference/v1/generate for one completion."""
    sampling: dict[str, Any] = {
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "stop_token_ids": list(params.stop_tokens),
        "ignore_eos": True,  # stop_tokens say where to stop
        "seed": seed,
        "logprobs": 0,  # of the sampled token
        "detokenize": bool(params.stop_strings),
        "skip_special_tokens": False,
    }
    if params.stop_strings:
        sampling |= {"stop": list(params.stop_strings), "include_stop_str_in_output": True}
    return {"model": MODEL_NAME, "token_ids": prompt, "sampling_params": sampling}


def read_completion(
    reply: httpx.Response, params: SamplingParams, vocab_size: int, session: str, least: int
) -> Completion | None:
    """The completion in a reply, None if it was aborted.

    Its weights must be labelled "session/version" with versions of at least `least`; the completion carries the oldest.
    Raises BadReplyError for anything that cannot be the answer to the request.
    """
    if reply.status_code != 200:
        raise BadReplyError(f"status {reply.status_code}: {message(reply)}")
    try:
        data = reply.json()
        (choice,) = data["choices"]
        if choice["finish_reason"] == "abort":
            return None
        tokens = np.array(choice["token_ids"], np.int32)
        content = choice["logprobs"]["content"]
        logprobs = np.array([entry["logprob"] for entry in content], np.float32)
        labels = [span["version"].partition("/") for span in choice["weight_versions"]]
        cached = int(((data.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        same = [entry["token_id"] for entry in content] == choice["token_ids"]
        reason: Literal["stop", "length"] = "length" if choice["finish_reason"] == "length" else "stop"
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BadReplyError(f"no completion ({type(error).__name__}: {error}): {reply.text[:200]!r}") from None
    if not 1 <= len(tokens) <= params.max_new_tokens or not same:
        raise BadReplyError(f"{len(tokens)} tokens, {len(logprobs)} logprobs; asked for {params.max_new_tokens}")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise BadReplyError(f"a token outside of the vocabulary of {vocab_size}")
    # vLLM says -9999 for NaN, for minus infinity, and for a token that it has no logprob of.
    if not np.isfinite(logprobs).all() or logprobs.max() > 1e-3 or logprobs.min() <= -9999:
        raise BadReplyError("logprobs that are none")
    if not labels or any(owner != session for owner, _, _ in labels):
        names = ", ".join("".join(label) for label in labels)
        raise BadReplyError(f"the server samples from weights {names!r}, which this run did not send")
    version = min(int(version) for _, _, version in labels)
    if version < least:
        raise BadReplyError(f"weights of version {version}, should be {least} or newer")
    if params.top_p < 1 or params.top_k or params.min_p:
        logprobs = np.full_like(logprobs, math.nan)  # vLLM's are of the cut distribution: not to be trained on
    return Completion(tokens, logprobs, reason, version, cached)


def compare(tensors: dict[str, np.ndarray], report: dict[str, Any], address: str) -> None:
    """Raises BadReplyError unless the worker holds the first rows of each tensor bit by bit."""
    try:
        for name, (crc, shape) in report["parameters"].items():
            expected = expected_checksum(tensors, name, shape, report["rank"], report["size"])
            if expected is not None and crc != expected:
                raise BadReplyError(f"{address} holds other weights than were sent: {name}")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadReplyError(f"{address} does not say what it holds ({type(error).__name__}: {error})") from None


def message(reply: httpx.Response) -> str:
    """What an error reply says."""
    try:
        error = reply.json()["error"]
        return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
    except (ValueError, KeyError, TypeError, AttributeError):
        return reply.text[:200]
