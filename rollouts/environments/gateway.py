"""An OpenAI-compatible endpoint in front of an engine, so that an agent from outside can play episodes.

Each session is one conversation, at its own address: http://127.0.0.1:PORT/SESSION/v1 takes the API's
/chat/completions. The first request's messages are the prompt. Every later request must have the whole conversation so
far, as it was, and something new at its end; only what is new is encoded. So the episode has the tokens that were
sampled, with their logprobs and versions, and nothing is ever tokenized a second time. A request that changes what was
said, or that comes while another one is being answered, is an error, and its session is over: it would be another
episode.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from rollouts.engine import PromptTooLongError
from rollouts.environments.dialogue import Dialogue, EpisodeOverError
from rollouts.episode import Problem
from rollouts.template import TemplateError

LONGEST_BODY = 64 << 20  # bytes of a request
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "logit_bias")
UNSUPPORTED = ("tools", "functions", "response_format", "logprobs")


class RequestError(Exception):
    """A request that cannot be answered, with its HTTP status; the message goes to the agent."""

    def __init__(self, message: str, status: int = 400, code: str = "invalid_request"):
        super().__init__(message)
        self.status, self.code = status, code


class Session:
    """The conversation of one episode, on the episode's event loop.

    Args:
        dialogue: the episode in the making; its problem gets the agent's first messages.
        encode: prompt tokens i32[n] of a problem.
        ignore_sampling: requests may ask for another temperature and so on, and do not get it; else that is an error.
    """

    def __init__(self, dialogue: Dialogue, encode: Callable[[Problem], np.ndarray], ignore_sampling: bool = False):
        self.name = secrets.token_urlsafe(16)  # nobody else on this machine can guess it
        self.dialogue, self.loop = dialogue, asyncio.get_running_loop()
        self.over: EpisodeOverError | None = None  # why there can be no more turns
        self.ended = asyncio.Event()
        self._encode, self._ignore_sampling = encode, ignore_sampling
        self._messages: list[dict[str, str]] = []  # as the agent knows them
        self._answering: asyncio.Task[Any] | None = None
        self.submission: str | None = None  # handed in with the end
        self.refused = ""  # why the last request that was not answered was not
        self.error: Exception | None = None  # of the engine, or a mistake in the code: not the agent's

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The response to the body of a request. Raises RequestError."""
        try:
            if self.over is not None or self.ended.is_set():
                raise RequestError(f"the session is over: {self.refused or 'it was ended'}", 410, "no_session")
            if self._answering:
                raise self._broken("a request came while another one was being answered; a session is one conversation")
            self._answering = asyncio.current_task()
            try:
                return await self._answer(body)
            finally:
                self._answering = None
        except EpisodeOverError as over:  # out of turns or tokens before the first token of an answer
            self.over, self.refused = over, f"the episode is over ({over.status})"
            raise RequestError(self.refused, 400, "context_length_exceeded") from None
        except RequestError as error:
            self.refused = str(error)
            raise
        except Exception as error:
            self.error = error
            raise

    async def stop(self) -> None:
        """Ends the session, and an answer that is still being sampled: the episode is over with what it has."""
        self.ended.set()
        if answering := self._answering:
            answering.cancel()
            await asyncio.wait([answering])

    async def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        stops = self._check(body)
        new = self._new_messages([_message(m, i) for i, m in enumerate(body["messages"])])
        dialogue, before = self.dialogue, len(self.dialogue.turns)
        try:
            if self._messages:
                dialogue.replies([(m["content"], m["role"]) for m in new])  # type: ignore[misc]
            else:
                dialogue.problem = dataclasses.replace(dialogue.problem, messages=tuple(new), prompt=None)
                dialogue.prompt = self._encode(dialogue.problem)
        except (PromptTooLongError, TemplateError) as error:
            raise self._broken(str(error)) from None
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 0
        own = dialogue.budget
        rooms = [n for n in (limit, own.turn_tokens) if n]
        dialogue.budget = dataclasses.replace(own, turn_tokens=min(rooms) if rooms else 0)
        reason = "stop"
        try:
            text = await dialogue.sample(stops)
            reason = "stop" if dialogue.ended or any(s in text for s in stops) else "length"
        except EpisodeOverError as over:
            if not any(turn.sampled for turn in dialogue.turns[before:]):
                raise
            self.over, reason, text = over, "length", dialogue.turns[-1].text  # the last answer there is
        finally:
            dialogue.budget = own
        content = _before_any(text, stops)
        self._messages += [*new, {"role": "assistant", "content": content}]
        turn, before_it = dialogue.turns[-1], len(dialogue.tokens) - len(dialogue.turns[-1].tokens)
        return _response(str(body.get("model") or "jaxrl"), content, reason, before_it, len(turn.tokens))

    def _check(self, body: dict[str, Any]) -> tuple[str, ...]:
        """The stop strings of a request. Raises RequestError for what cannot be had."""
        for name in UNSUPPORTED:
            if body.get(name):
                raise RequestError(f"{name} is not supported: put what the model should know into the messages")
        if body.get("n") not in (None, 1):
            raise RequestError("n must be 1: an episode is one conversation")
        if not isinstance(body.get("messages"), list):
            raise RequestError("messages must be a list of messages")
        for name in ("max_completion_tokens", "max_tokens"):
            limit = body.get(name)
            if limit is not None and (type(limit) is not int or limit < 1):
                raise RequestError(f"{name} = {limit!r} must be a whole number of at least 1")
        params = self.dialogue.params
        has = {"temperature": params.temperature, "top_p": params.top_p}
        for name in SAMPLING:
            value = body.get(name)
            if (
                value not in (None, has.get(name), 0 if name.endswith("penalty") else None)
                and not self._ignore_sampling
            ):
                wanted = f"{has[name]:g}, as this run samples," if name in has else "left out"
                raise RequestError(f"{name} = {value} must be {wanted} or rollout.environment.ignore_sampling be True")
        stop = body.get("stop") or []
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
            raise RequestError("stop must be a text, or a list of texts")
        return tuple(stops)

    def _new_messages(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """What a request adds to the conversation. Raises RequestError, and ends the session, if it changes it."""
        known = self._messages
        for i, (old, message) in enumerate(zip(known, messages)):
            same = old["role"] == message["role"] and old["content"].strip() == message["content"].strip()
            if not same:
                raise self._broken(
                    f"messages[{i}] is not what was said: it was {old['role']!r} {_short(old['content'])}, and is "
                    f"{message['role']!r} {_short(message['content'])}; a session is one conversation that only grows"
                )
        new = messages[len(known) :]
        if not new or new[-1]["role"] not in ("user", "tool", "system"):
            raise self._broken("messages must end with a new message of role user or tool")
        if any(m["role"] == "assistant" for m in new) and known:
            raise self._broken("messages has an answer that this session did not give")
        return new

    def _broken(self, reason: str) -> RequestError:
        """Ends the session: what follows would not be the episode that was sampled."""
        self.over = EpisodeOverError("sandbox_error", reason)
        return RequestError(reason, 409, "session_broken")


class Gateway:
    """The server, in threads of its own; 127.0.0.1 only."""

    def __init__(self, port: int = 0):
        self.other: Callable[[list[str], dict[str, Any]], dict[str, Any]] | None = None  # answers other POSTs
        self.sessions: dict[str, Session] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True, name="gateway").start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def url(self, session: Session) -> str:
        """The base URL that an agent gets for a session."""
        return f"{self.address}/{session.name}/v1"

    def open(self, session: Session) -> None:
        self.sessions[session.name] = session

    def close(self, session: Session) -> None:
        self.sessions.pop(session.name, None)

    def post(self, path: list[str], body: dict[str, Any]) -> dict[str, Any]:
        """The response to a POST. Raises RequestError."""
        if len(path) == 4 and path[1:] == ["v1", "chat", "completions"]:
            session = self._session(path[0])
            try:
                return asyncio.run_coroutine_threadsafe(session.complete(body), session.loop).result()
            except CancelledError:
                raise RequestError("the session is over: it was ended", 410, "no_session") from None
        if self.other is not None:
            return self.other(path, body)
        raise RequestError("there is only POST /SESSION/v1/chat/completions", 404, "not_found")

    def get(self, path: list[str]) -> dict[str, Any]:
        """The response to a GET. Raises RequestError."""
        if len(path) == 3 and path[1:] == ["v1", "models"]:
            self._session(path[0])
            return {"object": "list", "data": [{"id": "jaxrl", "object": "model", "owned_by": "jaxrl"}]}
        raise RequestError("there is only GET /SESSION/v1/models", 404, "not_found")

    def _session(self, name: str) -> Session:
        try:
            return self.sessions[name]
        except KeyError:
            raise RequestError("there is no such session, or it is over", 404, "no_session") from None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._reply(lambda: gateway.get(self._path()))

            def do_POST(self) -> None:
                self._reply(lambda: gateway.post(self._path(), self._body()))

            def _path(self) -> list[str]:
                return self.path.partition("?")[0].strip("/").split("/")

            def _body(self) -> dict[str, Any]:
                size = self.headers.get("content-length", "")
                if not size.isdigit() or int(size) > LONGEST_BODY:
                    self.close_connection = True  # what it sends is not read
                    raise RequestError(f"a request needs a content-length of at most {LONGEST_BODY} bytes", 413)
                try:
                    body = json.loads(self.rfile.read(int(size)))
                except (ValueError, RecursionError):
                    raise RequestError("the body must be JSON") from None
                if not isinstance(body, dict):
                    raise RequestError("the body must be a JSON object")
                self.stream = bool(body.get("stream"))
                return body

            def _reply(self, answer: Callable[[], dict[str, Any]]) -> None:
                self.stream, status = False, 200
                try:
                    found = answer()
                except RequestError as error:
                    status, self.stream = error.status, False
                    found = {"error": {"message": str(error), "type": "invalid_request_error", "code": error.code}}
                except Exception as error:  # the engine's, which the episode raises, too
                    status, self.stream = 500, False
                    found = {"error": {"message": f"{type(error).__name__}: {error}", "type": "server_error"}}
                data = _events(found) if self.stream else json.dumps(found).encode()
                with contextlib.suppress(ConnectionError):  # an agent that was ended does not read it
                    self.send_response(status)
                    self.send_header("content-type", "text/event-stream" if self.stream else "application/json")
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def _message(message: Any, place: int) -> dict[str, str]:
    """{"role", "content"} of a message of the API. Raises RequestError for what is not text."""
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"messages[{place}] must be an object with a role of: {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, list):
        texts = [p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str)]
        content = "".join(texts) if len(texts) == len(content) else None
    if not isinstance(content, str):
        raise RequestError(f"messages[{place}].content must be a text, or a list of parts of type text")
    return {"role": ROLES[role], "content": content}


def _response(model: str, content: str, reason: str, prompt: int, sampled: int) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": reason}
    usage = {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}
    name = f"chatcmpl-{secrets.token_hex(12)}"
    return {"id": name, "object": "chat.completion", "created": int(time.time()), "model": model, "choices": [choice],
            "usage": usage}  # fmt: skip


def _events(response: dict[str, Any]) -> bytes:
    """The response as a stream of one event."""
    (choice,) = response["choices"]
    chunk = response | {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": choice["message"],
                        "finish_reason": choice["finish_reason"]}]}  # fmt: skip
    return f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()


def _before_any(text: str, stops: tuple[str, ...]) -> str:
    """The text before the first stop string, which the API leaves out."""
    return text[: min((place for s in stops if (place := text.find(s)) >= 0), default=len(text))]


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
