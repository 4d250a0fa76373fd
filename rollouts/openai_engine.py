"""Any server with OpenAI's completions API as a sampler, for evaluation: text in, text out, no weights, no logprobs."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Literal

import httpx2 as httpx
import numpy as np
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential

from rollouts.engine import Completion, PromptTooLongError, SamplingParams

MAX_STOPS = 4  # that the API takes
ATTEMPTS = 6


class OpenAIEngine:
    """See rollouts.engine.Engine for the protocol.

    A prompt is sent as its text, and a text that comes back is encoded again, so the tokens need not be those that
    the server drew; the logprobs are NaN, which no training accepts. top_k, min_p and more than four stop strings are
    not in the API: an error. Where strings leave no room for all stop tokens, the server's own end of text must do.

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
        """Raises RuntimeError: the server has its own."""
        raise RuntimeError("rollout.engine = 'openai' cannot be given weights; it is for evaluation only")

    def release(self, sequence: int) -> None:
        """Nothing: the server keeps what it likes."""

    def close(self) -> None:
        """Nothing to let go of."""

    async def sample(self, prompt: np.ndarray, params: SamplingParams) -> list[Completion]:
        """`params.n` completions. Raises ValueError for what the API lacks or the server refuses."""
        if params.top_k or params.min_p:
            raise ValueError("top_k and min_p are not part of OpenAI's API; use rollout.engine = 'vllm' or 'jax'")
        if params.sequence and params.stop_strings:
            raise ValueError("an answer cannot go on after a stop string that OpenAI's API leaves out of it")
        if len(prompt) + params.max_new_tokens > self.max_length:
            raise PromptTooLongError(f"a prompt of {len(prompt)} tokens does not fit max_length {self.max_length}")
        if len(params.stop_strings) > MAX_STOPS:
            raise ValueError(f"{len(params.stop_strings)} stop strings; OpenAI's API takes at most {MAX_STOPS}")
        stops = [self.tokenizer.decode([t], skip_special_tokens=False) for t in params.stop_tokens]
        start = self.tokenizer.encode("")  # which servers put before every prompt
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
            raise ValueError(f"{self.address} answered with {len(choices)} completions, asked for {params.n}")
        return [self._completion(choice) for choice in choices]

    def _completion(self, choice: dict[str, Any]) -> Completion:
        tokens = np.array(self.tokenizer.encode(choice["text"], add_special_tokens=False), np.int32)
        reason: Literal["stop", "length"] = "length" if choice["finish_reason"] == "length" else "stop"
        return Completion(tokens, np.full(len(tokens), math.nan, np.float32), reason, self.version)

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer in JSON; tries again while the server is busy or cannot be reached."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_may_pass), stop=stop_after_attempt(ATTEMPTS), wait=wait_exponential(0.2, 10),
            reraise=True,
        ):  # fmt: skip
            with attempt:
                async with httpx.AsyncClient(headers=self._headers, timeout=self._timeout_s, trust_env=False) as http:
                    reply = await http.post(self.address + path, json=body)
                if 400 <= reply.status_code < 500 and reply.status_code not in (408, 429):
                    raise ValueError(f"{self.address}{path}: status {reply.status_code}: {reply.text[:300]}")
                reply.raise_for_status()
                return reply.json()
        raise AssertionError("AsyncRetrying returns or raises")

    def _semaphore(self) -> asyncio.Semaphore:
        """One for each event loop, of which there is one for each `collect`."""
        loop = asyncio.get_running_loop()
        if self._room is None or self._loop is not loop:
            self._room, self._loop = asyncio.Semaphore(self._concurrency), loop
        return self._room


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, httpx.HTTPError)
