"""The real vLLM, where `make sidecar` has been run (its CPU build is enough)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from processes import command_lines
from test_sidecar_training import episodes
from test_train import TINY, run, without_times

from jaxrl.crosscheck import main as crosscheck
from jaxrl.evaluate import main as evaluate
from models.convert import load_model
from rollouts.collect import generate
from rollouts.engine import Completion, SamplingParams
from rollouts.jax.engine import JaxEngine
from rollouts.vllm.engine import ClientSettings, VllmEngine
from rollouts.vllm.sidecar import Sidecar, SidecarSettings

ENVIRONMENT = Path(os.environ.get("JAXRL_VLLM", ROOT / ".venv-vllm"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ENVIRONMENT / ".installed").exists(), reason=f"no vLLM in {ENVIRONMENT}: make sidecar"),
]
# vLLM's CPU kernels know no narrower heads.
HEADS_OF_32 = [
    "--config.model.shape.num_attention_heads=1",
    "--config.model.shape.num_key_value_heads=1",
]
VLLM = [*HEADS_OF_32, "--config.rollout.engine=vllm", f"--config.rollout.sidecar.environment={ENVIRONMENT}"]


EVENTS: list[str] = []  # what the engine has said


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small Qwen2 with a tokenizer, as a Hugging Face folder: an untrained run, exported."""
    from models.convert import save_hf

    folder = tmp_path_factory.mktemp("run")
    assert run(folder, *HEADS_OF_32, "--config.sft.steps=1", "--config.grpo.steps=0").returncode == 0
    config, _, params = load_model(folder / "scramble")
    save_hf(params, config, folder / "hf", folder / "scramble" / "model")
    return folder / "hf"


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    """A real server with the model's weights sent to it, and the JAX engine with the same."""
    config, graphdef, params = load_model(model, dtype=np.float32)
    sidecar = Sidecar(
        SidecarSettings(
            model=model, python=ENVIRONMENT / "bin/python", dtype="float32", max_length=96, dummy_weights=True, key="k"
        ),
        tmp_path_factory.mktemp("log"),
    )
    client = ClientSettings(key="k", in_flight="abort")
    engine = VllmEngine(config, sidecar=sidecar, max_length=64, settings=client, say=EVENTS.append)
    engine.load_weights(params, 1)
    from jaxrl.runs.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(model))
    jax_engine = JaxEngine(graphdef, params, slots=8, max_length=64, tokenizer=tokenizer)
    yield engine, jax_engine, params
    engine.close()


PROMPTS = [np.arange(3, 10 + i % 4, dtype=np.int32) for i in range(8)]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_new_tokens=12, temperature=0.0),
        SamplingParams(max_new_tokens=12, temperature=0.0, stop_tokens=(0,)),
    ],
    ids=["greedy", "stop token"],
)
def test_greedy_tokens_are_the_jax_engines(served, params):
    engine, jax_engine, _ = served
    if params.stop_tokens:  # one that is drawn
        (whole,) = generate(jax_engine, PROMPTS[:1], SamplingParams(max_new_tokens=12, temperature=0.0))[0]
        params = SamplingParams(max_new_tokens=12, temperature=0.0, stop_tokens=(int(whole.tokens[5]),))
    for (ours,), (theirs,) in zip(generate(jax_engine, PROMPTS, params), generate(engine, PROMPTS, params)):
        assert ours.tokens.tolist() == theirs.tokens.tolist()
        assert ours.finish_reason == theirs.finish_reason
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)


def test_stop_strings_end_at_the_same_token(served):
    engine, jax_engine, _ = served
    greedy = SamplingParams(max_new_tokens=12, temperature=0.0)
    (whole,) = generate(jax_engine, PROMPTS[:1], greedy)[0]
    text = jax_engine.tokenizer.decode(whole.tokens[4:6])
    params = SamplingParams(max_new_tokens=12, temperature=0.0, stop_strings=(text,))
    for (ours,), (theirs,) in zip(generate(jax_engine, PROMPTS[:2], params), generate(engine, PROMPTS[:2], params)):
        assert ours.tokens.tolist() == theirs.tokens.tolist()
        assert ours.finish_reason == theirs.finish_reason


def test_conversations_are_the_same_in_both_engines(served):
    """Turns of one sequence, with inserted tokens between: the JAX engine's cache against vLLM."""
    engine, jax_engine, _ = served

    async def converse(sampler, sequence: int) -> list[Completion]:
        tokens, completions = PROMPTS[sequence % 8], []
        for turn in range(3):
            settings = SamplingParams(max_new_tokens=6, temperature=0.0, sequence=sequence)
            (completion,) = await sampler.sample(tokens, settings)
            completions.append(completion)
            tokens = np.concatenate([tokens, completion.tokens, np.arange(5 + turn, dtype=np.int32) + 20])
        sampler.release(sequence)
        return completions

    async def all_of_them(sampler) -> list[list[Completion]]:
        return list(await asyncio.gather(*(converse(sampler, i) for i in range(1, 12))))

    for ours, theirs in zip(asyncio.run(all_of_them(jax_engine)), asyncio.run(all_of_them(engine))):
        assert [c.cached > 0 for c in ours] == [False, True, True]
        for a, b in zip(ours, theirs):
            assert a.tokens.tolist() == b.tokens.tolist()
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_logprobs_are_of_the_temperature_scaled_distribution(served, temperature):
    """By what fraction of draws they promise, and against scores of the same tokens at temperature 1."""
    engine, _, _ = served
    params = SamplingParams(max_new_tokens=1, temperature=temperature, n=200, seed=7)
    (drawn,) = generate(engine, PROMPTS[:1], params)
    tokens = np.array([c.tokens[0] for c in drawn])
    probabilities = {int(c.tokens[0]): float(np.exp(c.logprobs[0])) for c in drawn}
    likeliest = max(probabilities, key=lambda t: probabilities[t])
    p = probabilities[likeliest]
    assert abs((tokens == likeliest).mean() - p) < 5 * np.sqrt(p * (1 - p) / len(tokens)) + 1e-9
    assert sum(probabilities.values()) <= 1 + 1e-4


def test_the_same_request_gives_the_same_tokens(served):
    engine, _, _ = served
    params = SamplingParams(max_new_tokens=12, n=3, seed=11)
    first, second = generate(engine, PROMPTS, params), generate(engine, PROMPTS, params)
    assert [c.tokens.tolist() for cs in first for c in cs] == [c.tokens.tolist() for cs in second for c in cs]
    assert len({tuple(c.tokens) for c in first[0]}) == 3


def test_more_prompts_at_once_than_a_batch_takes(served):
    """On CPU a seeded request whose prompt came in two chunks ended the server."""
    engine, _, _ = served
    prompts = [np.full(60, 3 + i, np.int32) for i in range(80)]
    drawn = generate(engine, prompts, SamplingParams(max_new_tokens=3))
    assert len(drawn) == 80
    assert not EVENTS


@pytest.mark.parametrize("mode", ["finish", "abort", "keep", "recompute"])
def test_weights_that_arrive_while_sampling(served, mode):
    """Every completion says the oldest weights that it was sampled with, and none is lost."""
    engine, _, params = served
    object.__setattr__(engine.settings, "in_flight", mode)
    version = engine.version
    long = SamplingParams(max_new_tokens=50, n=4)
    drawn: list = []
    sampling = threading.Thread(target=lambda: drawn.extend(generate(engine, PROMPTS * 4, long)))
    sampling.start()
    time.sleep(0.3)
    engine.load_weights(params, version + 1)
    sampling.join()
    versions = {c.weight_version for cs in drawn for c in cs}
    assert len(drawn) == len(PROMPTS) * 4 and all(len(cs) == 4 for cs in drawn)
    assert versions <= {version, version + 1}
    if mode == "abort":
        assert versions == {version + 1} or min(versions) == version  # those that were done before
    (later,) = generate(engine, PROMPTS[:1], long)
    assert {c.weight_version for c in later} == {version + 1}


def test_evaluation_through_the_openai_api_gives_the_same_texts(served, model, tmp_path, monkeypatch):
    engine, _, _ = served
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    common = [*TINY, *HEADS_OF_32, f"--config.model.path={model}", "--config.evaluation.temperature=0"]
    through_api = [
        "--config.rollout.engine=openai",
        f"--config.rollout.sidecar.addresses=('{engine.replicas[0].address}',)",
        "--config.rollout.sidecar.model=policy",
    ]
    texts = []
    for name, more in (("jax", []), ("api", through_api)):
        assert evaluate([*common, *more, f"--config.runs_dir={tmp_path}", f"--config.name={name}"]) == 0
        lines = (tmp_path / name / "samples" / "evaluation.jsonl").read_text().splitlines()
        texts.append([json.loads(line)["text"] for line in lines])
    assert texts[0] == texts[1]
    assert len(texts[0]) == 16


def test_twenty_steps_agree_with_the_trainer(served, tmp_path, monkeypatch):
    """With a running server, which held other weights before."""
    engine, _, _ = served
    monkeypatch.setenv("JAXRL_SIDECAR_KEY", "k")
    addresses = f"--config.rollout.sidecar.addresses=('{engine.replicas[0].address}',)"
    result = run(tmp_path, *VLLM, addresses, "--config.grpo.steps=20", "--config.rollout.mismatch_limit=1e-3")
    assert result.returncode == 0, result.stderr
    steps = [r for r in without_times(tmp_path) if r["stage"] == "grpo"]
    assert len(steps) == 20
    assert all(0 < r["mismatch/max"] <= 1e-3 for r in steps)
    assert engine.sidecar.alive(0)  # whose end is not the run's business


def test_killed_in_the_middle_of_sampling(tmp_path):
    """kill -9 of the server during training, ahead of the trainer: the run goes on with a new one."""
    stop = threading.Event()

    def kill() -> None:
        log = tmp_path / "scramble" / "samples"
        while not stop.is_set() and not list(log.glob("0*8.jsonl")):
            time.sleep(0.05)
        for pid, line in command_lines().items():
            if b"vllm.entrypoints.openai.api_server" in line.split(b"\0") and str(tmp_path).encode() in line:
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        result = run(
            tmp_path, *VLLM, "--config.grpo.steps=12", "--config.rollout.mismatch_limit=1e-3",
            "--config.grpo.loss.minibatches=1", "--config.rollout.max_staleness=0",
        )  # fmt: skip
    finally:
        stop.set()
        killer.join()
    assert result.returncode == 0, result.stderr
    assert "sampler: http://127.0.0.1" in result.stdout
    assert len(episodes(tmp_path)) == 12 * 2 * 4


def test_crosscheck_agrees(served, model, capsys, monkeypatch):
    engine, _, _ = served
    monkeypatch.setenv("JAXRL_SIDECAR_KEY", "k")
    assert crosscheck(["--model", str(model), "--sidecar", engine.replicas[0].address, *FEW]) == 0
    assert capsys.readouterr().out.count("agrees") == 6


FEW = ["--dtypes", "float32", "--prompts", "8", "--prompt-length", "12", "--new-tokens", "16"]


def test_crosscheck_notices_an_output_head_that_kept_its_old_weights(model, capsys, monkeypatch):
    """vLLM's CPU kernels with the repacking taken out (see vllm_extension.repack_linear_layers)."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "support"))
    broken = ["--vllm-argument=--worker-extension-cls", "--vllm-argument=vllm_without_repacking.WorkerExtension"]
    assert crosscheck(["--model", str(model), "--environment", str(ENVIRONMENT), *FEW, *broken]) == 1
    out = capsys.readouterr().out
    assert "vllm / decoder: the first difference is at prompt 0, new token 0: token" in out
    assert "jax engine / decoder" in out and out.count("agrees") == 3  # the other three pairs
