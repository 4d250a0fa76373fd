"""Weights on their way to vLLM servers: files, checksums, NCCL; and who may send any."""

from __future__ import annotations

import asyncio
import base64
import ctypes
import json
import os
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_vllm import FakeServer
from flax import nnx
from safetensors.numpy import load_file
from vllm_clients import (
    CONFIG,
    PARAMS,
    PROMPTS,
    assert_same,
    connect,
    expected,  # noqa: F401
    make_params,
    model,  # noqa: F401
    new_events,
    server,  # noqa: F401
)

from models.adapters import attach
from models.config import Lora
from models.convert import save_hf
from models.lora import join_params, split_params
from rollouts.collect import generate
from rollouts.vllm.extension import CHECKED_ROWS, Guard
from rollouts.vllm.nccl import NcclSender
from rollouts.vllm.server import BadReplyError, ClientSettings, compare
from rollouts.vllm.sidecar import SidecarError
from rollouts.vllm.weight_files import (
    adapter_tensors,
    expected_adapters,
    expected_checksum,
    named_tensors,
    write_weights,
)
from rollouts.vllm.weight_sync import WeightSync


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
        self.sent, self.calls, self.current = [], [], threading.local()

    def cudaSetDevice(self, number):
        self.current.device = number.value  # of this thread alone, as in CUDA
        return 0

    def ncclGetUniqueId(self, unique_id):
        unique_id._obj.internal[:] = list(range(128))
        return 0

    def ncclCommInitRank(self, group, world_size, unique_id, rank):
        self.calls.append(("join", world_size, rank, bytes(unique_id)))
        self.device = self.current.device
        group._obj.value = 1
        return 0

    def ncclAllReduce(self, source, target, count, kind, operation, group, stream):
        self.calls.append(("all-reduce", count.value, kind, operation))
        return 0

    def ncclBroadcast(self, source, target, count, kind, root, group, stream):
        assert (source.value, root, kind) == (target.value, 0, 7)
        assert self.current.device == self.device
        self.sent.append(ctypes.string_at(source.value, 4 * count.value))
        return 0

    def ncclCommAbort(self, group):
        self.calls.append(("abort",))
        return 0

    def cudaDeviceSynchronize(self):
        return 0


def test_weights_by_nccl(monkeypatch, model, expected):  # noqa: F811
    """The group, the order of the tensors and the checks, with a stand-in for the library; GPUs are not needed."""
    fake = FakeNccl()
    monkeypatch.setattr("rollouts.vllm.nccl._libraries", lambda: (fake, fake))
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


def test_nccl_works_on_the_device_that_holds_the_weights(monkeypatch):
    """Each call may come from another thread, where CUDA's current device is 0 until it is set."""
    tensor, fake, device = jnp.arange(3, dtype=jnp.float32), FakeNccl(), SimpleNamespace(local_hardware_id=3)
    monkeypatch.setattr("rollouts.vllm.nccl.jax.device_put", lambda value, onto: jnp.asarray(value))
    sender = NcclSender((fake, fake), device)
    for call in (lambda: sender.join(2), lambda: sender.broadcast(tensor)):
        with ThreadPoolExecutor(1) as thread:
            thread.submit(call).result()
    assert fake.device == 3 and fake.sent == [np.asarray(tensor).tobytes()]


def test_nccl_needs_gpus(server):  # noqa: F811
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


LORA = Lora(4, 6.0, ("q", "v", "down"), rank_stabilized=True)


def with_adapters():
    config, _, params = attach(CONFIG, make_params(1)[1], LORA, jax.random.key(2))
    adapters, _ = split_params(params)
    for i, (_, variable) in enumerate(nnx.to_flat_state(adapters)):
        variable.set_value(jax.random.normal(jax.random.key(i), variable.shape))
    return config, join_params(adapters, params)


def test_adapters_alone_are_what_merging_adds(tmp_path):
    """As PEFT computes it from the folder: W + lora_alpha / r B A, in float64."""
    config, params = with_adapters()
    written = write_weights(adapter_tensors(params, config, "float32"), "float32", tmp_path / "new", LORA)
    fields = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert not fields["use_rslora"] and sorted(fields["target_modules"]) == ["down_proj", "q_proj", "v_proj"]
    read = load_file(tmp_path / "new" / "adapter_model.safetensors")
    assert read.keys() == written.keys() and len(read) == 2 * 3 * CONFIG.num_layers
    base = named_tensors(params, CONFIG, "float32")
    merged = named_tensors(params, config, "float32")
    for name, tensor in merged.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        wanted = base[name].astype(np.float64)
        if f"{stem}.lora_A.weight" in read:
            a, b = (read[f"{stem}.lora_{part}.weight"].astype(np.float64) for part in "AB")
            wanted = wanted + fields["lora_alpha"] / fields["r"] * b @ a
            assert np.abs(wanted - base[name]).max() > 0.1
        np.testing.assert_allclose(tensor, wanted, atol=1e-5)


def test_a_joined_matrix_without_some_adapters_is_expected_to_lack_them():
    config, params = with_adapters()
    tensors = adapter_tensors(params, config, "float32")
    sums = expected_adapters(tensors)
    assert len(sums) == 2 * CONFIG.num_layers
    a, b = sums["model.layers.1.self_attn.qkv_proj"]
    assert a[1] is b[1] is None
    assert b[2] == zlib.crc32(tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"].tobytes("C"))


@pytest.mark.parametrize(
    ("settings", "room", "why"),
    [
        ({}, 8, ""),
        ({}, 0, "room for adapters of rank 0, not 4"),
        ({"sync": "nccl"}, 8, "nccl"),
        ({"lora": "merged"}, 8, ""),
    ],
)
def test_adapters_travel_alone_where_the_servers_take_them(tmp_path, settings, room, why):
    config, _ = with_adapters()
    sync = WeightSync(config, ClientSettings(sync_folder=tmp_path, **settings))
    said = []
    sync.prepare([{"dtype": "float32", "lora_rank": 8}, {"dtype": "float32", "lora_rank": room}], said.append)
    assert sync.adapters_only == (not settings and room == 8)
    assert len(said) == bool(why) and all(why in line for line in said)
    sync.close()
