"""Any server with OpenAI's completions API as a sampler for evaluation: text in, text out, without logprobs."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Literal

import httpx2 as httpx
import numpy as np
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential

from rollouts.control import controls_of
from rollouts.engine import Completion, PromptTooLongError, SamplingParams, UnsupportedError

MAX_STOPS = 4  # stop strings that the API takes
ATTEMPTS = 6


class OpenAIEngine:
    """See rollouts.engine.Engine for the protocol.

    A prompt is sent as text, and the returned text is encoded again, so the tokens need not be those that the server
    sampled; the logprobs are NaN, which training refuses. The API does not have top_k, min_p and more than four stop
    strings: these are errors. Where stop strings leave no room for all stop tokens, the server's own end of text is
    relied on.

    Args:
        address: http://host:port, without /v1.
        model: the server's name of the model.
        tokenizer: has `decode(tokens) -> str` and `encode(text, add_special_tokens=False) -> ids`.
        key: sent as the bearer token; "": none.
    """

    def __init__(
        self,
        address: str,
        model: str,
        tokenizer: Any,
        *,
        key: str = "",
        max_length: int,
        concurrency: int = 64,
        timeout_s: float = 600.0,
    ):
        self.address, self.model, self.tokenizer, self.max_length = address.rstrip("/"), model, tokenizer, max_length
        self.version = 0
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._concurrency, self._timeout_s = concurrency, timeout_s
        self._room: asyncio.Semaphore | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def load_weights(self, params: Any, version: int) -> None:
        """Raises RuntimeError: the server has its own weights."""
        raise RuntimeError("rollout.engine = 'openai' cannot be given weights; it is for evaluation only")

    def release(self, sequence: int) -> None:
        """Nothing to do: the server manages its own cache."""

    def unload(self) -> None:
        """Its weights are not in this process."""

    def close(self) -> None:
        """Nothing to free."""

    async def sample(self, prompt: np.ndarray, params: SamplingParams) -> list[Completion]:
        """`params.n` completions. Raises ValueError for what the API does not have or the server refuses."""
        if params.top_k or params.min_p:
            raise UnsupportedError("top_k and min_p are not part of OpenAI's API; use rollout.engine = 'vllm' or 'jax'")
        if params.sequence and params.stop_strings:
            raise UnsupportedError("OpenAI's API leaves out the stop string, so an answer cannot continue after it")
        if len(prompt) + params.max_new_tokens > self.max_length:
            raise PromptTooLongError(f"a prompt of {len(prompt)} tokens does not fit max_length {self.max_length}")
        if len(params.stop_strings) > MAX_STOPS:
            raise UnsupportedError(f"{len(params.stop_strings)} stop strings; OpenAI's API takes up to {MAX_STOPS}")
        stops = [self.tokenizer.decode([t], skip_special_tokens=False) for t in params.stop_tokens]
        start = self.tokenizer.encode("")  # servers put it before every prompt
        prompt = prompt[len(start) :] if len(start) and list(prompt[: len(start)]) == list(start) else prompt
        body = {
            "model": self.model,
            "prompt": self.tokenizer.decode(prompt, skip_special_tokens=False),
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "n": params.n,
            "seed": params.seed % 2**31,
            "stop": [*params.stop_strings, *stops][:MAX_STOPS],
        }
        async with self._semaphore():
            choices = (await self._post("/v1/completions", body))["choices"]
        if len(choices) != params.n:
            raise UnsupportedError(f"{self.address} returned {len(choices)} completions instead of {params.n}")
        return [self._completion(choice) for choice in choices]

    def _completion(self, choice: dict[str, Any]) -> Completion:
        controls = controls_of(self.tokenizer)
        text = controls.escape(choice["text"], by_model=True)
        tokens = np.array(controls.encode(text, before="."), np.int32)
        reason: Literal["stop", "length"] = "length" if choice["finish_reason"] == "length" else "stop"
        return Completion(tokens, np.full(len(tokens), math.nan, np.float32), reason, self.version)

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The reply as JSON; retries while the server is busy or cannot be reached."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_may_pass), stop=stop_after_attempt(ATTEMPTS), wait=wait_exponential(0.2, 10),
            reraise=True,
        ):  # fmt: skip
            with attempt:
                async with httpx.AsyncClient(headers=self._headers, timeout=self._timeout_s, trust_env=False) as http:
                    reply = await http.post(self.address + path, json=body)
                if 400 <= reply.status_code < 500 and reply.status_code not in (408, 429):
                    raise UnsupportedError(f"{self.address}{path}: status {reply.status_code}: {reply.text[:300]}")
                reply.raise_for_status()
                return reply.json()
        raise AssertionError("AsyncRetrying returns or raises")

    def _semaphore(self) -> asyncio.Semaphore:
        """One per event loop; each `collect` has a loop of its own."""
        loop = asyncio.get_running_loop()
        if self._room is None or self._loop is not loop:
            self._room, self._loop = asyncio.Semaphore(self._concurrency), loop
        return self._room


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, httpx.HTTPError)
