"""Evaluation through a server with OpenAI's completions API."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
from test_train import TINY, run

from jaxrl.evaluate import main as evaluate
from jaxrl.tasks.scramble import WORDS
from rollouts.engine import PromptTooLongError, SamplingParams
from rollouts.openai import OpenAIEngine


class Handler(BaseHTTPRequestHandler):
    """Knows every word of the scramble task; `statuses` are what the next requests are answered with."""

    statuses: ClassVar[list[int]] = []
    bodies: ClassVar[list[dict]] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.bodies.append(body | {"authorization": self.headers.get("authorization")})
        status = self.statuses.pop(0) if self.statuses else 200
        letters = sorted(body["prompt"].partition("unscramble:")[2].split("\n")[0].split("<")[0].replace(" ", ""))
        word = next((w for w in WORDS if sorted(w) == letters), "unknown")
        choices = [{"text": " ".join(word), "finish_reason": "stop"}] * body["n"]
        reply = json.dumps({"choices": choices} if status == 200 else {"error": {"message": "no"}}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)


class Letters:
    """A tokenizer of single characters."""

    def decode(self, tokens, skip_special_tokens=True):
        return "".join(chr(t) for t in tokens)

    def encode(self, text, add_special_tokens=True):
        return [ord(c) for c in text]


@pytest.fixture
def address():
    Handler.statuses, Handler.bodies = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def sample(address: str, **settings):
    engine = OpenAIEngine(address + "/", "some-model", Letters(), key="secret", max_length=100)
    prompt = np.array([ord(c) for c in "unscramble: k o b o"], np.int32)
    return asyncio.run(engine.sample(prompt, SamplingParams(**{"max_new_tokens": 20} | settings)))


def test_text_in_text_out(address):
    first, second = sample(
        address, n=2, temperature=0.5, stop_tokens=(ord("#"),), stop_strings=("END",), seed=2**40 + 3
    )
    assert Letters().decode(first.tokens) == Letters().decode(second.tokens) == "b o o k"
    assert first.finish_reason == "stop" and np.isnan(first.logprobs).all()
    (body,) = Handler.bodies
    assert body["prompt"] == "unscramble: k o b o"
    assert (body["model"], body["authorization"]) == ("some-model", "Bearer secret")
    assert (body["n"], body["temperature"], body["max_tokens"], body["seed"]) == (2, 0.5, 20, 3)
    assert body["stop"] == ["END", "#"]


def test_a_busy_server_is_asked_again(address):
    Handler.statuses = [503, 429]
    assert len(sample(address)) == 1
    assert len(Handler.bodies) == 3


def test_what_the_api_lacks_is_an_error(address):
    with pytest.raises(ValueError, match="top_k and min_p are not part of OpenAI's API"):
        sample(address, top_k=5)
    with pytest.raises(PromptTooLongError):
        sample(address, max_new_tokens=90)
    Handler.statuses = [400]
    with pytest.raises(ValueError, match=r"/v1/completions: status 400: .*no"):
        sample(address)
    assert len(Handler.bodies) == 1


def openai(address: str) -> list[str]:
    return [
        "--config.rollout.engine=openai",
        f"--config.rollout.sidecar.addresses=('{address}',)",
        "--config.rollout.sidecar.model=some-model",
    ]


def test_evaluation_with_it(address, tmp_path, capsys):
    assert evaluate([*TINY, f"--config.runs_dir={tmp_path}", *openai(address)]) == 0
    assert "held_out/pass@1  1\n" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scramble" / "evaluation.json").read_text())
    assert scores["held_out/n"] == 16
    assert len((tmp_path / "scramble" / "samples" / "evaluation.jsonl").read_text().splitlines()) == 16


def test_evaluation_of_a_run(tmp_path, capsys):
    assert run(tmp_path, "--config.sft.steps=1", "--config.grpo.steps=0").returncode == 0
    of_the_run = [f"--config.model.path={tmp_path}/scramble", "--config.name=score"]
    assert evaluate([*TINY, f"--config.runs_dir={tmp_path}", *of_the_run]) == 0
    assert "held_out/pass@1  0\n" in capsys.readouterr().out  # it knows nothing yet
    assert (tmp_path / "score" / "evaluation.json").exists()


def test_training_with_it_is_refused(address, tmp_path):
    result = run(tmp_path, *openai(address))
    assert result.returncode == 1
    assert "must be one of: jax, vllm (or openai, to evaluate)" in result.stderr


def test_it_must_be_said_where_it_is(tmp_path, capsys):
    assert evaluate([*TINY, f"--config.runs_dir={tmp_path}", "--config.rollout.engine=openai"]) == 1
    assert "needs one of rollout.sidecar.addresses" in capsys.readouterr().err
