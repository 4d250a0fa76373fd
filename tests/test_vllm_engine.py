"""The client of vLLM servers, against one that fails on request (tests/fake_vllm.py)."""

from __future__ import annotations

import asyncio
import base64
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT
from fake_vllm import FakeServer, fake_environment
from flax import nnx
from safetensors.numpy import load_file

from models.config import from_hf
from models.convert import save_hf
from models.decoder import Decoder, initialize
from rollouts.collect import generate
from rollouts.engine import PromptTooLongError, SamplingParams
from rollouts.jax_engine import JaxEngine
from rollouts.sidecar import Sidecar, SidecarError, SidecarSettings, is_loopback, main
from rollouts.vllm_engine import ClientSettings, VllmEngine, _request_seed
from rollouts.vllm_extension import CHECKED_ROWS, Guard
from rollouts.vllm_server import BadReplyError, Server, compare
from rollouts.weight_files import expected_checksum, named_tensors, write_weights

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
def engine(server):
    engine = connect(server)
    engine.load_weights(make_params(1)[1], 1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def expected():
    """What the JAX engine draws for PROMPTS with the seeds that the client sends."""
    graphdef, params = make_params(1)
    reference = JaxEngine(graphdef, params, slots=8, max_length=64)
    from rollouts.collect import episode_seed

    drawn = []
    for i, prompt in enumerate(PROMPTS):
        seed = _request_seed(episode_seed((PARAMS.seed,), i, 0), 0)
        settings = SamplingParams(max_new_tokens=6, stop_tokens=(3,), seed=seed)
        drawn.append(asyncio.run(reference.sample(prompt, settings))[0])
    return drawn


def assert_same(drawn, expected):
    assert len(drawn) == len(expected)
    for (completion,), wanted in zip(drawn, expected):
        assert completion.tokens.tolist() == wanted.tokens.tolist()
        np.testing.assert_allclose(completion.logprobs, wanted.logprobs, atol=1e-6)
        assert completion.finish_reason == wanted.finish_reason


def test_a_sequence_stays_where_its_beginning_is_cached(server, model):
    """Each conversation at one server, both servers in use; after its release it may go anywhere."""
    with FakeServer(model).start() as other:
        engine = connect(server, other)
        try:
            engine.load_weights(make_params(1)[1], 1)

            async def converse(sequence: int) -> set[int]:
                places = set()
                for turn in range(3):
                    settings = SamplingParams(max_new_tokens=3, seed=turn, sequence=sequence)
                    await engine.sample(PROMPTS[sequence], settings)
                    places.add(engine._servers_of[sequence].index)
                engine.release(sequence)
                return places

            async def all_of_them() -> list[set[int]]:
                return await asyncio.gather(*(converse(i) for i in range(1, 9)))

            places = asyncio.run(all_of_them())
            assert all(len(p) == 1 for p in places) and set.union(*places) == {0, 1}
            generate(engine, PROMPTS[:1], PARAMS)  # in the engine's own loop, after the releases
            assert engine._servers_of == {}
        finally:
            engine.close()


def test_tokens_in_tokens_out(engine, expected):
    drawn = generate(engine, PROMPTS, PARAMS)
    assert_same(drawn, expected)
    assert {c.weight_version for cs in drawn for c in cs} == {1}


@pytest.mark.parametrize(
    "fault",
    [
        "500",
        "garbage",
        "drop",
        "nan",
        "unknown",
        "long",
        "vocabulary",
        "stale",
        "old",
        "abort",
        "slow 0.3",
        "500 garbage nan drop",
    ],
)
def test_a_fault_changes_nothing(server, engine, expected, fault):
    server.faults += fault.split() if "slow" not in fault else [fault]
    served = server.served
    assert_same(generate(engine, PROMPTS, PARAMS), expected)
    assert not server.faults
    assert server.served >= served + len(PROMPTS)
    assert bool(new_events()) == (fault not in ("abort", "slow 0.3"))


def test_each_of_n_completions_has_its_own_seed(engine):
    params = SamplingParams(max_new_tokens=12, n=4, seed=3)
    (first,), (again,) = generate(engine, PROMPTS[:1], params), generate(engine, PROMPTS[:1], params)
    assert len({tuple(c.tokens) for c in first}) == 4
    assert [tuple(c.tokens) for c in first] == [tuple(c.tokens) for c in again]


def test_new_weights_and_their_version(server, engine, expected):
    engine.load_weights(make_params(2)[1], 2)
    drawn = generate(engine, PROMPTS, PARAMS)
    assert {c.weight_version for cs in drawn for c in cs} == {2}
    assert [c.tokens.tolist() for (c,) in drawn] != [c.tokens.tolist() for c in expected]
    engine.load_weights(make_params(1)[1], 3)
    assert_same(generate(engine, PROMPTS, PARAMS), expected)


def test_only_the_newest_files_are_kept(server, tmp_path):
    engine = connect(server, sync_folder=tmp_path)
    for version in (1, 2, 3):
        engine.load_weights(make_params(version)[1], version)
    (folder,) = tmp_path.iterdir()
    assert sorted(f.name for f in folder.iterdir()) == ["lock", "version_3"]
    engine.close()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_trainer_left_is_removed(server, tmp_path):
    (tmp_path / "jaxrl-0" / "version_7").mkdir(parents=True)
    (tmp_path / "jaxrl-0" / "lock").touch()
    (tmp_path / "other").mkdir()
    first, second = connect(server, sync_folder=tmp_path), connect(server, sync_folder=tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"other", f"jaxrl-{first.session}", f"jaxrl-{second.session}"}
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("fault", "words"), [("corrupt", "other weights than were sent"), ("no report", "does not say what it holds")]
)
def test_a_corrupt_transfer_is_noticed_and_repeated(server, expected, fault, words):
    engine = connect(server)
    server.faults.append(fault)
    engine.load_weights(make_params(1)[1], 1)
    assert any(words in e for e in new_events())
    assert_same(generate(engine, PROMPTS, PARAMS), expected)
    engine.close()


def test_requests_go_to_the_least_loaded_replica(server, model):
    with FakeServer(model).start() as other:
        alone = connect(other, concurrency=2)
        alone.load_weights(make_params(1)[1], 1)
        generate(alone, PROMPTS, PARAMS)  # the new one compiles; beside it, the other would take its work
        alone.close()
        engine = connect(server, other, concurrency=2)
        engine.load_weights(make_params(1)[1], 1)
        generate(engine, PROMPTS, PARAMS)
        before, other.served, server.most_running = server.served, 0, 0
        generate(engine, PROMPTS * 2, PARAMS)
        assert server.most_running <= 2
        assert other.most_running <= 2
        assert min(server.served - before, other.served) >= 6
        other.faults += ["500"] * 40  # it never works again; the other one does
        assert len(generate(engine, PROMPTS, PARAMS)) == len(PROMPTS)
        engine.close()


def test_a_server_that_comes_back_is_used_again(model, expected):
    first = FakeServer(model).start()
    engine = connect(first)
    engine.load_weights(make_params(1)[1], 1)
    port = first.server_port
    first.__exit__()

    async def sample_meanwhile():
        sampling = asyncio.gather(*(engine.sample(p, SamplingParams(max_new_tokens=2)) for p in PROMPTS))
        await asyncio.sleep(0.5)
        second = FakeServer(model, port).start()  # with other weights
        return await sampling, second

    drawn, second = asyncio.run(sample_meanwhile())
    assert {c.weight_version for cs in drawn for c in cs} == {1}
    assert_same(generate(engine, PROMPTS, PARAMS), expected)
    engine.close()
    second.__exit__()


def test_servers_that_answer_and_complete_nothing_are_an_error_within_bounds(model):
    with FakeServer(model).start() as fake:
        engine = connect(fake, wait_s=1.0, request_timeout_s=0.5)
        engine.load_weights(make_params(1)[1], 1)
        fake.faults += ["slow 2"] * 1000
        with pytest.raises(
            SidecarError, match=r"vLLM has (not answered|completed nothing) for \d s; http://127.*Timeout"
        ):
            generate(engine, PROMPTS[:2], PARAMS)
        engine.close()
    with pytest.raises(SidecarError, match="the engine is closed"):
        generate(engine, PROMPTS[:2], PARAMS)
    with pytest.raises(SidecarError, match="the engine is closed"):
        engine.load_weights(make_params(1)[1], 2)


def test_no_server_at_all_is_an_error_within_bounds(model):
    with FakeServer(model).start() as fake:
        engine = connect(fake, wait_s=1.0)
        engine.load_weights(make_params(1)[1], 1)
    start = time.monotonic()
    with pytest.raises(SidecarError, match=r"vLLM has not answered for 1 s; http://127"):
        generate(engine, PROMPTS, PARAMS)
    assert time.monotonic() - start < 15
    engine.close()
    said: list[str] = []
    client = ClientSettings(wait_s=0.5)
    with pytest.raises(SidecarError, match="does not answer"):
        VllmEngine(CONFIG, addresses=["http://127.0.0.1:9"], max_length=8, settings=client, say=said.append)
    assert len(said) == 1 and said[0].endswith("waiting for it, 0 s at most")


def test_a_cancelled_request_leaves_no_trace(server, engine):
    async def cancel():
        server.faults.append("slow 1")
        task = asyncio.create_task(engine.sample(PROMPTS[0], PARAMS))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.2)

    asyncio.run(cancel())
    assert all(r.load == 0 and not r.posts for r in engine.replicas)
    assert len(generate(engine, PROMPTS, PARAMS)) == len(PROMPTS)


def test_the_key_is_asked_for(model):
    with FakeServer(model, key="secret").start() as fake:
        with pytest.raises(SidecarError, match="the key is missing or wrong"):
            connect(fake, key="guess")
        engine = connect(fake, key="secret")
        engine.load_weights(make_params(1)[1], 1)
        engine.close()


def test_wrong_requests(server, engine):
    sample = lambda prompt, **settings: asyncio.run(engine.sample(np.array(prompt), SamplingParams(**settings)))  # noqa: E731
    with pytest.raises(ValueError, match="empty"):
        sample([])
    with pytest.raises(ValueError, match="vocabulary of 64"):
        sample([64])
    with pytest.raises(PromptTooLongError, match="max_length 48"):
        sample([1] * 40, max_new_tokens=9)
    assert np.isnan(sample([1], max_new_tokens=2, top_k=5)[0].logprobs).all()
    with pytest.raises(ValueError, match=r"rollout\.sidecar\.in_flight = 'drop' must be one of"):
        ClientSettings(in_flight="drop").check()
    with pytest.raises(SidecarError, match="another model"):
        VllmEngine(from_hf({**vars_of(CONFIG), "vocab_size": 65}, "x"), addresses=[server.address], max_length=8)
    with pytest.raises(SidecarError, match="64 tokens"):
        VllmEngine(CONFIG, addresses=[server.address], max_length=65)


def vars_of(config):
    from models.config import to_hf

    return to_hf(config)


# ---------------------------------------------------------------------- weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_written_weights_are_what_safetensors_reads(tmp_path, dtype):
    _, params = make_params(3)
    tensors = named_tensors(params, CONFIG, dtype)
    write_weights(tensors, dtype, tmp_path / "new")
    read = load_file(tmp_path / "new" / "model.safetensors")
    save_hf(jax.tree.map(lambda x: x.astype(dtype), params), CONFIG, tmp_path / "hf")
    wanted = load_file(tmp_path / "hf" / "model.safetensors")
    assert read.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert read[name].tobytes() == tensor.tobytes(), name
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_no_room_for_the_weights_is_an_error(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        write_weights(named_tensors(make_params(0)[1], CONFIG, "float32"), "float32", tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1, 2])
def test_checksums_follow_tensor_parallel_workers(size):
    """Against the shares as vLLM's layers cut them: rows of q, k, v, gate, up, embedding; columns of o, down."""
    import zlib

    tensors = named_tensors(make_params(4)[1], CONFIG, "float32")
    layer = "model.layers.1."
    for rank in range(size):

        def rows(name, rank=rank):
            return np.split(tensors[name], size)[rank]

        def columns(name, rank=rank):
            return np.split(tensors[name], size, axis=1)[rank]

        held = {
            "model.embed_tokens.weight": rows("model.embed_tokens.weight"),
            "model.norm.weight": tensors["model.norm.weight"],
            layer + "self_attn.qkv_proj.weight": np.concatenate(
                [rows(f"{layer}self_attn.{x}_proj.weight") for x in "qkv"]
            ),
            layer + "self_attn.qkv_proj.bias": np.concatenate([rows(f"{layer}self_attn.{x}_proj.bias") for x in "qkv"]),
            layer + "self_attn.o_proj.weight": columns(layer + "self_attn.o_proj.weight"),
            layer + "mlp.down_proj.weight": columns(layer + "mlp.down_proj.weight"),
            layer + "mlp.gate_up_proj.weight": np.concatenate(
                [rows(layer + "mlp.gate_proj.weight"), rows(layer + "mlp.up_proj.weight")]
            ),
        }
        report = {"rank": rank, "size": size, "parameters": {}}
        for name, tensor in held.items():
            first = tensor[:CHECKED_ROWS]
            assert expected_checksum(tensors, name, list(tensor.shape), rank, size) == zlib.crc32(first.tobytes()), name
            report["parameters"][name] = [zlib.crc32(first.tobytes()), list(tensor.shape)]
        compare(tensors, report, "here")
        report["parameters"]["model.norm.weight"][0] ^= 1
        with pytest.raises(BadReplyError, match=r"other weights than were sent: model\.norm\.weight"):
            compare(tensors, report, "here")


class FakeNccl:
    """Stands for libnccl and libcudart: keeps what is broadcast from the pointers that it is given."""

    def __init__(self):
        self.sent, self.calls = [], []

    def ncclGetUniqueId(self, unique_id):
        unique_id._obj.internal[:] = list(range(128))
        return 0

    def ncclCommInitRank(self, group, world_size, unique_id, rank):
        self.calls.append(("join", world_size, rank, bytes(unique_id)))
        group._obj.value = 1
        return 0

    def ncclAllReduce(self, source, target, count, kind, operation, group, stream):
        self.calls.append(("all-reduce", count.value, kind, operation))
        return 0

    def ncclBroadcast(self, source, target, count, kind, root, group, stream):
        assert (source.value, root, kind) == (target.value, 0, 7)
        self.sent.append(ctypes.string_at(source.value, 4 * count.value))
        return 0

    def ncclCommAbort(self, group):
        self.calls.append(("abort",))
        return 0

    def cudaDeviceSynchronize(self):
        return 0


def test_weights_by_nccl(monkeypatch, model, expected):
    """The group, the order of the tensors and the checks, with a stand-in for the library; GPUs are not needed."""
    fake = FakeNccl()
    monkeypatch.setattr("rollouts.nccl._libraries", lambda: (fake, fake))
    with FakeServer(model).start() as first, FakeServer(model).start() as second:
        first.nccl = second.nccl = fake
        engine = connect(first, second, sync="nccl")
        engine.load_weights(make_params(1)[1], 1)
        assert fake.calls == [("join", 3, 0, bytes(range(128))), ("all-reduce", 1, 7, 0)]
        assert [s.infos[0]["rank_offset"] for s in (first, second)] == [1, 2]
        assert base64.b64decode(first.infos[0]["nccl_unique_id_b64"]) == bytes(range(128))
        assert first.infos[1:] == ["/start_weight_update", "/finish_weight_update"]
        assert_same(generate(engine, PROMPTS, PARAMS), expected)
        assert not new_events()

        fake.sent.clear()
        engine.load_weights(make_params(2)[1], 2)  # the group stays
        assert len(fake.calls) == 2

        fake.sent.clear()
        first.faults.append("broken link")
        engine.load_weights(make_params(1)[1], 3)  # files take over
        assert_same(generate(engine, PROMPTS, PARAMS), expected)
        assert any("by NCCL" in event for event in new_events())
        assert fake.calls[-1] == ("abort",)

        fake.sent.clear()
        engine.load_weights(make_params(1)[1], 4)  # in a new group
        assert [c[0] for c in fake.calls] == ["join", "all-reduce", "abort", "join", "all-reduce"]
        assert_same(generate(engine, PROMPTS, PARAMS), expected)
        engine.close()


def test_nccl_needs_gpus(server):
    with pytest.raises(SidecarError, match="needs a trainer on NVIDIA GPUs; use 'files'"):
        connect(server, sync="nccl")


# ---------------------------------------------------------------------- the server's guard


@pytest.mark.parametrize(
    ("key", "path", "header", "allowed"),
    [
        ("", "/v1/completions", "", True),
        ("", "/collective_rpc", "", False),
        ("", "/collective_rpc", "Bearer ", False),
        ("", "/update_weights", "", False),
        ("", "/v1/completions/", "", False),
        ("k", "/health", "", True),
        ("k", "/v1/completions", "", False),
        ("k", "/v1/completions", "Bearer k", True),
        ("k", "/collective_rpc", "Bearer k2", False),
        ("k", "/collective_rpc", "Bearer k", True),
        ("k", "/metrics", "", False),
    ],
)
def test_guard(monkeypatch, key, path, header, allowed):
    monkeypatch.setenv("JAXRL_SIDECAR_KEY", key)
    sent = []

    async def app(scope, receive, send):
        sent.append("app")

    async def send(message):
        sent.append(message.get("status"))

    scope = {"type": "http", "path": path, "headers": [(b"authorization", header.encode())] if header else []}
    asyncio.run(Guard(app)(scope, None, send))
    assert (sent == ["app"]) == allowed
    if not allowed:
        assert sent[0] == 401


def test_the_guard_closes_websockets(monkeypatch):
    monkeypatch.setenv("JAXRL_SIDECAR_KEY", "")
    sent = []

    async def send(message):
        sent.append(message["type"])

    asyncio.run(Guard(None)({"type": "websocket", "path": "/v1/realtime", "headers": []}, None, send))
    assert sent == ["websocket.close"]


# ---------------------------------------------------------------------- servers of our own


def settings(model: Path, environment: Path, **more) -> SidecarSettings:
    return SidecarSettings(model=model, python=environment / "bin/python", max_length=64, key="k", **more)


def test_settings_that_cannot_be_started(model, tmp_path, capsys):
    environment = fake_environment(tmp_path / "env")
    for wrong, message in (
        ({"python": tmp_path / "none/bin/python"}, "make sidecar"),
        ({"model": tmp_path}, "config.json is missing"),
        ({"host": "0.0.0.0", "key": ""}, "set JAXRL_SIDECAR_KEY"),
        ({"replicas": 2, "tensor_parallel": 2, "devices": ("0", "1")}, "need 4 devices, 2 are given"),
    ):
        values = {"model": model, "python": environment / "bin/python", "key": "k"} | wrong
        with pytest.raises(SidecarError, match=message):
            SidecarSettings(**values).check()
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")
    assert main(["--model", str(tmp_path), "--environment", str(environment)]) == 1
    assert "config.json is missing" in capsys.readouterr().err


def test_a_server_that_ends_says_why(model, tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho starting\necho 'ValueError: no GPU here' >&2\nexit 3\n")
    python.chmod(0o755)
    sidecar = Sidecar(settings(model, tmp_path), tmp_path / "log")
    sidecar.start(0)
    with pytest.raises(SidecarError, match=r"ended with code 3: ValueError: no GPU here \(log: .*replica_0\.log\)"):
        sidecar.wait_until_healthy(0)


@pytest.mark.parametrize("fault", ["die", "hang", "oom"])
def test_an_owned_server_is_restarted(model, tmp_path, expected, monkeypatch, fault):
    """Killed, stopped or out of memory in the middle of sampling: it comes back with the current weights."""
    monkeypatch.setattr("rollouts.vllm_engine.PROBE_S", 0.5)
    monkeypatch.setattr("rollouts.vllm_server.PROBE_TIMEOUT_S", 2.0)
    faults = tmp_path / "faults"
    monkeypatch.setenv("FAKE_FAULTS", str(faults))
    sidecar = Sidecar(settings(model, fake_environment(tmp_path / "env")), tmp_path / "log")
    client = ClientSettings(key="k", wait_s=60.0, request_timeout_s=60.0)
    engine = VllmEngine(CONFIG, sidecar=sidecar, max_length=48, settings=client)
    try:
        engine.load_weights(make_params(1)[1], 4)
        generate(engine, PROMPTS[:2], PARAMS)
        faults.write_text(f"\n\n\n{fault}\n")
        drawn = generate(engine, PROMPTS, PARAMS)
        assert_same(drawn, expected)
        assert {c.weight_version for cs in drawn for c in cs} == {4}
        assert engine.restarts == 1
    finally:
        engine.close()
    assert not sidecar.alive(0)


@pytest.mark.parametrize("when", ["before the weights", "after it was found well"])
def test_a_server_that_stops_while_it_takes_weights_is_restarted(model, tmp_path, expected, monkeypatch, when):
    """No request would notice it, and requests wait much longer than this test."""
    monkeypatch.setattr("rollouts.vllm_engine.PROBE_S", 0.5)
    monkeypatch.setattr("rollouts.vllm_server.PROBE_TIMEOUT_S", 2.0)
    monkeypatch.setenv("FAKE_FAULTS", str(tmp_path / "faults"))
    sidecar = Sidecar(settings(model, fake_environment(tmp_path / "env")), tmp_path / "log")
    engine = VllmEngine(CONFIG, sidecar=sidecar, max_length=48, settings=ClientSettings(key="k"))

    def stop() -> None:
        os.kill(sidecar.processes[0].pid, signal.SIGSTOP)

    async def answers_and_stops(server: Server) -> bool:
        monkeypatch.setattr(Server, "answers", answers)
        found = await answers(server)
        stop()
        return found

    try:
        engine.load_weights(make_params(1)[1], 4)
        if when == "before the weights":
            stop()
            engine.load_weights(make_params(1)[1], 5)
        else:
            answers = Server.answers
            monkeypatch.setattr(Server, "answers", answers_and_stops)
            (tmp_path / "faults").write_text("500\n")
        assert_same(generate(engine, PROMPTS, PARAMS), expected)
        assert engine.restarts == 1
    finally:
        engine.close()


def test_weights_that_are_gone_are_not_the_servers_fault(model, tmp_path, expected, monkeypatch):
    """Sent by NCCL they are in no file, and the next update uses them up: a server that comes back waits for it."""
    monkeypatch.setenv("FAKE_FAULTS", str(tmp_path / "faults"))
    sidecar = Sidecar(settings(model, fake_environment(tmp_path / "env")), tmp_path / "log")
    engine = VllmEngine(CONFIG, sidecar=sidecar, max_length=48, settings=ClientSettings(key="k"), say=EVENTS.append)
    tries = iter(range(5))

    def write(weights):
        if next(tries, None) is not None:
            raise RuntimeError("Array has been deleted")
        return original(weights)

    try:
        engine.load_weights(params := make_params(1)[1], 1)
        original = engine._write
        monkeypatch.setattr(engine, "_write", write)
        engine._weights.params, engine._weights.tensors = params, None
        (tmp_path / "faults").write_text("500\n")
        new_events()
        assert_same(generate(engine, PROMPTS, PARAMS), expected)
        assert sum("WriteError: weights of version 1: Array has been deleted" in e for e in new_events()) == 5
        assert engine.restarts == 0
    finally:
        engine.close()


def test_one_server_that_is_lost_ends_nothing_while_another_works(model, tmp_path, expected, monkeypatch):
    sidecar = Sidecar(settings(model, fake_environment(tmp_path / "env"), replicas=2), tmp_path / "log")
    engine = VllmEngine(CONFIG, sidecar=sidecar, max_length=48, settings=ClientSettings(key="k"))
    command = sidecar._command
    try:
        engine.load_weights(make_params(1)[1], 1)
        monkeypatch.setattr(sidecar, "_command", lambda i: command(i) if i else ["/bin/false"])
        sidecar.kill(0)
        while not engine.replicas[0].lost:
            assert_same(generate(engine, PROMPTS, PARAMS), expected)
        for version in (2, 3):
            engine.load_weights(make_params(version)[1], version)
            assert {c.weight_version for cs in generate(engine, PROMPTS, PARAMS) for c in cs} == {version}
    finally:
        engine.close()


def test_a_server_that_always_fails_ends_the_run(model, tmp_path, monkeypatch):
    (tmp_path / "faults").write_text("oom\n" * 1000)
    monkeypatch.setenv("FAKE_FAULTS", str(tmp_path / "faults"))
    sidecar = Sidecar(settings(model, fake_environment(tmp_path / "env")), tmp_path / "log")
    engine = VllmEngine(CONFIG, sidecar=sidecar, max_length=48, settings=ClientSettings(key="k"))
    try:
        engine.load_weights(make_params(1)[1], 1)
        with pytest.raises(SidecarError, match=r"restarted 3 times in vain; http://127.*MemoryError: out of memory"):
            generate(engine, PROMPTS, PARAMS)
        with pytest.raises(SidecarError, match="in vain"):
            engine.load_weights(make_params(1)[1], 2)
    finally:
        engine.close()


def test_servers_die_with_their_owner(model, tmp_path):
    """Also when it is killed: the kernel sees to it."""
    environment = fake_environment(tmp_path / "env")
    command = [sys.executable, "-m", "rollouts.sidecar", "--model", str(model), "--environment", str(environment)]
    command += ["--port", "18473", "--max-length", "64", "--log-folder", str(tmp_path / "log")]
    owner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert owner.stdout is not None
    assert b"http://127.0.0.1:18473" in owner.stdout.readline()
    (server,) = (int(pid) for pid in Path(f"/proc/{owner.pid}/task/{owner.pid}/children").read_text().split())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline = time.monotonic() + 10
    while _runs(server):
        assert time.monotonic() < deadline, "the server outlived its owner"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
