"""A small model, a server that fails on request, the engine that samples from it, and what that must draw."""

from __future__ import annotations

import asyncio
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_vllm import FakeServer
from flax import nnx

from models.config import from_hf
from models.convert import save_hf
from models.decoder import Decoder, initialize
from rollouts.engine import SamplingParams
from rollouts.jax.engine import JaxEngine
from rollouts.vllm.engine import VllmEngine
from rollouts.vllm.server import ClientSettings, request_seed
from rollouts.vllm.sidecar import SidecarSettings

CONFIG = from_hf(
    {
        "model_type": "qwen2", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": True,
    },
    "test",
)  # fmt: skip
PROMPTS = [np.arange(1, 5 + i % 3, dtype=np.int32) for i in range(12)]
PARAMS = SamplingParams(max_new_tokens=6, stop_tokens=(3,), seed=5)


def make_params(seed: int):
    return nnx.split(initialize(Decoder(CONFIG), jax.random.key(seed), scale=0.2))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hf"
    save_hf(make_params(0)[1], CONFIG, folder)
    return folder


@pytest.fixture(scope="module")
def server(model):
    with FakeServer(model).start() as fake:
        yield fake


EVENTS: list[str] = []  # what engines have said


def connect(*servers: FakeServer, **settings) -> VllmEngine:
    client = ClientSettings(**{"wait_s": 20.0, "request_timeout_s": 30.0} | settings)
    EVENTS.clear()
    addresses = [s.address for s in servers]
    return VllmEngine(CONFIG, addresses=addresses, max_length=48, settings=client, say=EVENTS.append)


def new_events() -> list[str]:
    events = EVENTS[:]
    EVENTS.clear()
    return events


@pytest.fixture(scope="module")
def expected():
    """What the JAX engine draws for PROMPTS with the seeds that the client sends."""
    graphdef, params = make_params(1)
    reference = JaxEngine(graphdef, params, slots=8, max_length=64)
    from rollouts.collect import episode_seed

    drawn = []
    for i, prompt in enumerate(PROMPTS):
        seed = request_seed(episode_seed((PARAMS.seed,), i, 0), 0)
        settings = SamplingParams(max_new_tokens=6, stop_tokens=(3,), seed=seed)
        drawn.append(asyncio.run(reference.sample(prompt, settings))[0])
    return drawn


def assert_same(drawn, expected):
    assert len(drawn) == len(expected)
    for (completion,), wanted in zip(drawn, expected):
        assert completion.tokens.tolist() == wanted.tokens.tolist()
        np.testing.assert_allclose(completion.logprobs, wanted.logprobs, atol=1e-6)
        assert completion.finish_reason == wanted.finish_reason


def impatient(monkeypatch) -> None:
    """Looks at servers often, and takes silence for what it is soon."""
    monkeypatch.setattr("rollouts.vllm.server.PROBE_S", 0.5)
    monkeypatch.setattr("rollouts.vllm.server.PROBE_TIMEOUT_S", 0.5)
    monkeypatch.setattr("rollouts.vllm.pulse.HANG_S", 2.0)


def settings(model: Path, environment: Path, **more) -> SidecarSettings:
    return SidecarSettings(model=model, python=environment / "bin/python", max_length=64, key="k", **more)
