"""Our adapters in the real vLLM, where `make sidecar` has been run (its CPU build is enough)."""

from __future__ import annotations

import json
import os
import subprocess

import jax
import numpy as np
import pytest
from flax import nnx
from test_lora import ALL, adapted, host_values
from test_vllm import ENVIRONMENT, PROMPTS, pytestmark  # noqa: F401 (slow, and skipped without vLLM)

from jaxrl.crosscheck import decoder_forward
from models.adapters import save_peft
from models.config import ModelConfig
from models.convert import save_hf
from models.decoder import Decoder, initialize
from models.lora import split_params
from rollouts.collect import generate
from rollouts.engine import SamplingParams
from rollouts.jax.engine import JaxEngine
from rollouts.vllm.engine import ClientSettings, VllmEngine
from rollouts.vllm.sidecar import Sidecar, SidecarSettings

SERVE = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
base, adapter, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
llm = LLM(
    model=base, dtype="float32", enforce_eager=True, skip_tokenizer_init=True, max_model_len=64, max_num_seqs=8,
    enable_lora=True, max_lora_rank=8, enable_chunked_prefill=False, max_num_batched_tokens=512,
)
settings = SamplingParams(temperature=0.0, max_tokens=8, detokenize=False, logprobs=0)
for request in (None, LoRARequest("adapter", 1, adapter)):
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], settings, lora_request=request, use_tqdm=False)
    drawn = [o.outputs[0] for o in outputs]
    logprobs = [[p[t].logprob for p, t in zip(d.logprobs, d.token_ids)] for d in drawn]
    print("DRAWN " + json.dumps([(list(d.token_ids), l) for d, l in zip(drawn, logprobs)]))
"""


def test_vllm_samples_with_our_adapters(tmp_path):
    config = ModelConfig("qwen2", 199, 64, 112, 2, 2, 1, 32, 128, qkv_bias=True, tied_embeddings=True)
    graphdef, plain = nnx.split(initialize(Decoder(config), jax.random.key(0), scale=0.2))
    save_hf(plain, config, tmp_path / "base")
    with_lora, adapted_graphdef, params = adapted(config, plain, ALL, size=0.2)
    save_peft(host_values(params), with_lora, tmp_path / "adapter")
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "2",
        "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "TORCH_COMPILE_DISABLE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **os.environ,
    }  # fmt: skip
    for name in ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH"):
        environment.pop(name, None)
    prompts = json.dumps([p.tolist() for p in PROMPTS])
    folders = [str(tmp_path / "base"), str(tmp_path / "adapter")]
    result = subprocess.run(
        [str(ENVIRONMENT / "bin/python"), "-c", SERVE, *folders, prompts],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    found = [json.loads(line[6:]) for line in result.stdout.splitlines() if line.startswith("DRAWN ")]
    assert len(found) == 2, result.stdout[-2000:] + result.stderr[-3000:]
    greedy = SamplingParams(max_new_tokens=8, temperature=0.0)
    for drawn, (graph, weights) in zip(found, ((graphdef, plain), (adapted_graphdef, params))):
        engine = JaxEngine(graph, weights, slots=8, max_length=64)
        for (ours,), (tokens, logprobs) in zip(generate(engine, PROMPTS, greedy), drawn):
            assert ours.tokens.tolist() == tokens
            np.testing.assert_allclose(ours.logprobs, logprobs, atol=1e-3)
    assert found[0] != found[1]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.5)])
def test_vllm_samples_with_adapters_that_travel_alone(tmp_path, dtype, tolerance):
    """Two versions, the second for prompts that are cached with the first, and a server that is killed."""
    config = ModelConfig("qwen2", 199, 64, 112, 2, 2, 1, 32, 128, qkv_bias=True, tied_embeddings=True)
    _, plain = nnx.split(initialize(Decoder(config), jax.random.key(0), scale=0.2))
    save_hf(plain, config, tmp_path / "base")
    with_lora, graphdef, first = adapted(config, plain, ALL, size=0.2)
    second = jax.tree.map(lambda x: x, first)
    for _, variable in nnx.to_flat_state(split_params(second)[0]):
        variable.set_value(-variable[...] * 1.5)
    settings = SidecarSettings(
        model=tmp_path / "base", python=ENVIRONMENT / "bin/python", dtype=dtype, max_length=64, dummy_weights=True,
        tokenizer=False, lora_rank=with_lora.lora.rank, max_sequences=8, key="k",
        arguments=("--block-size", "32"),  # shorter than the prompts, so that the prefix cache holds them
    )  # fmt: skip
    events = []
    sidecar = Sidecar(settings, tmp_path / "log")
    engine = VllmEngine(with_lora, sidecar=sidecar, max_length=64, settings=ClientSettings("k"), say=events.append)
    sampling = SamplingParams(max_new_tokens=8, temperature=1.0, seed=3)
    long = [np.tile(p, 5) for p in PROMPTS]  # more than a block of the prefix cache
    try:
        for version, params in ((1, first), (2, second), (2, second)):
            if sidecar.pids(0) and version == engine.version:
                sidecar.kill(0)
            engine.load_weights(params, version)
            forward = decoder_forward(graphdef, params, dtype, 64)
            for prompt, (drawn,) in zip(long, generate(engine, long, sampling), strict=True):
                assert drawn.weight_version == version
                wanted = forward(prompt, drawn.tokens).logprobs
                np.testing.assert_allclose(drawn.logprobs, wanted, atol=tolerance)
        assert engine.sync.adapters_only and engine.restarts == 1
        assert sorted(p.name for p in engine.sync.folder.iterdir()) == ["base", "lock", "version_2"]
    finally:
        engine.close()
