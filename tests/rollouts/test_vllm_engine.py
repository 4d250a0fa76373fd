"""The client of vLLM servers, against one that fails on request (tests/support/fake_vllm.py)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import httpx2 as httpx
import numpy as np
import pytest
from fake_vllm import FakeServer
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

from models.config import from_hf
from rollouts.collect import generate
from rollouts.engine import Completion, PromptTooLongError, SamplingParams
from rollouts.vllm.engine import VllmEngine
from rollouts.vllm.server import ClientSettings, join, read_completion
from rollouts.vllm.sidecar import SidecarError


@pytest.fixture(scope="module")
def engine(server):  # noqa: F811
    engine = connect(server)
    engine.load_weights(make_params(1)[1], 1)
    yield engine
    engine.close()


def test_a_sequence_stays_where_its_beginning_is_cached(server, model):  # noqa: F811
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


def test_tokens_in_tokens_out(engine, expected):  # noqa: F811
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
        "abort 0",
        "abort 3",
        "slow 0.3",
        "500 garbage nan drop",
    ],
)
def test_a_fault_changes_nothing(server, engine, expected, fault):  # noqa: F811
    server.faults += [fault] if fault.startswith(("slow", "abort")) else fault.split()
    served = server.served
    assert_same(generate(engine, PROMPTS, PARAMS), expected)
    assert not server.faults
    assert server.served >= served + len(PROMPTS)
    assert bool(new_events()) != fault.startswith(("abort", "slow"))


def test_each_of_n_completions_has_its_own_seed(engine):
    params = SamplingParams(max_new_tokens=12, n=4, seed=3)
    (first,), (again,) = generate(engine, PROMPTS[:1], params), generate(engine, PROMPTS[:1], params)
    assert len({tuple(c.tokens) for c in first}) == 4
    assert [tuple(c.tokens) for c in first] == [tuple(c.tokens) for c in again]


def test_versions_of_what_is_joined():
    def part(n: int, version: int, changes: tuple[tuple[int, int], ...] = ()) -> Completion:
        return Completion(np.arange(n, dtype=np.int32), np.zeros(n, np.float32), "length", version, changes=changes)

    joined = join(join(join(None, part(3, 1, ((2, 2),))), part(2, 2)), part(4, 5, ((1, 6),)))
    assert joined.versions.tolist() == [1, 1, 2, 2, 2, 5, 6, 6, 6]
    assert joined.tokens.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]


@pytest.mark.parametrize("stop", [(), ("never",)])
def test_an_aborted_request_is_continued(server, engine, stop):  # noqa: F811
    """Greedily, so that the parts are those of one completion; with stop strings it is sampled anew."""
    greedy = SamplingParams(max_new_tokens=6, temperature=0.0, stop_strings=stop)
    (whole,) = generate(engine, PROMPTS[:1], greedy)[0]
    asked = len(server.requests)
    server.faults += ["abort 2", "abort 0", "abort 1"]
    object.__setattr__(engine.settings, "in_flight", "recompute")
    try:
        (parts,) = generate(engine, PROMPTS[:1], greedy)[0]
    finally:
        object.__setattr__(engine.settings, "in_flight", "finish")
    assert parts.tokens.tolist() == whole.tokens.tolist()
    np.testing.assert_allclose(parts.logprobs, whole.logprobs, atol=1e-5)
    assert (parts.finish_reason, parts.weight_version, parts.changes) == ("length", engine.version, ())
    begun = (0, 0, 0, 0) if stop else (0, 2, 2, 3)  # tokens that a request begins with
    requests = server.requests[asked:]
    prompt, first = PROMPTS[0].tolist(), requests[0]["sampling_params"]["seed"]
    assert [r["token_ids"] for r in requests] == [prompt + whole.tokens.tolist()[:n] for n in begun]
    assert [r["sampling_params"]["max_tokens"] for r in requests] == [6 - n for n in begun]
    assert [r["sampling_params"]["seed"] for r in requests] == [first + n for n in begun]


def test_a_part_of_older_weights_is_not_kept(server, engine):  # noqa: F811
    """New weights that arrive between the choice of a server and the request abort what it has begun with the old."""
    reply = httpx.Response(200, json=_aborted(f"{engine.sync.session}/{engine.version}"))
    parameters = SamplingParams(max_new_tokens=6), CONFIG.vocab_size, engine.sync.session
    part = read_completion(reply, *parameters, engine.version)
    assert part is not None and not part.whole and part.completion.tokens.tolist() == [5]
    assert read_completion(reply, *parameters, engine.version + 1) is None


def _aborted(label: str) -> dict:
    choice = {
        "finish_reason": "abort",
        "token_ids": [5],
        "logprobs": {"content": [{"token_id": 5, "logprob": -1.0}]},
        "weight_versions": [{"version": label, "start": 0, "end": 1}],
    }
    return {"choices": [choice]}


def test_new_weights_and_their_version(server, engine, expected):  # noqa: F811
    engine.load_weights(make_params(2)[1], 2)
    drawn = generate(engine, PROMPTS, PARAMS)
    assert {c.weight_version for cs in drawn for c in cs} == {2}
    assert [c.tokens.tolist() for (c,) in drawn] != [c.tokens.tolist() for c in expected]
    engine.load_weights(make_params(1)[1], 3)
    assert_same(generate(engine, PROMPTS, PARAMS), expected)


def test_only_the_newest_files_are_kept(server, tmp_path):  # noqa: F811
    engine = connect(server, sync_folder=tmp_path)
    for version in (1, 2, 3):
        engine.load_weights(make_params(version)[1], version)
    (folder,) = tmp_path.iterdir()
    assert sorted(f.name for f in folder.iterdir()) == ["lock", "version_3"]
    engine.close()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_trainer_left_is_removed(server, tmp_path):  # noqa: F811
    (tmp_path / "jaxrl-0" / "version_7").mkdir(parents=True)
    (tmp_path / "jaxrl-0" / "lock").touch()
    (tmp_path / "other").mkdir()
    first, second = connect(server, sync_folder=tmp_path), connect(server, sync_folder=tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"other", f"jaxrl-{first.sync.session}", f"jaxrl-{second.sync.session}"}
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("fault", "words"), [("corrupt", "other weights than were sent"), ("no report", "does not report its weights")]
)
def test_a_corrupt_transfer_is_noticed_and_repeated(server, expected, fault, words):  # noqa: F811
    engine = connect(server)
    server.faults.append(fault)
    engine.load_weights(make_params(1)[1], 1)
    assert any(words in e for e in new_events())
    assert_same(generate(engine, PROMPTS, PARAMS), expected)
    engine.close()


def test_requests_go_to_the_least_loaded_replica(server, model):  # noqa: F811
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


def test_a_server_that_comes_back_is_used_again(model, expected):  # noqa: F811
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


def test_servers_that_answer_and_complete_nothing_are_an_error_within_bounds(model):  # noqa: F811
    with FakeServer(model).start() as fake:
        engine = connect(fake)
        engine.load_weights(make_params(1)[1], 1)
        engine.settings = replace(engine.settings, wait_s=1.0, request_timeout_s=0.5)
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


def test_no_server_at_all_is_an_error_within_bounds(model):  # noqa: F811
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


def test_a_cancelled_request_leaves_no_trace(server, engine):  # noqa: F811
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


def test_the_key_is_asked_for(model):  # noqa: F811
    with FakeServer(model, key="secret").start() as fake:
        with pytest.raises(SidecarError, match="the key is missing or wrong"):
            connect(fake, key="guess")
        engine = connect(fake, key="secret")
        engine.load_weights(make_params(1)[1], 1)
        engine.close()


def test_wrong_requests(server, engine):  # noqa: F811
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
