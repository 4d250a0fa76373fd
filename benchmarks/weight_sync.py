"""Seconds to give vLLM the weights of a 0.5B model by files, beside `cp` of the same bytes.

    python benchmarks/weight_sync.py [--environment .venv-vllm] [--dtype float32] [--rounds 3]

Qwen2.5-Coder-0.5B's shape with random weights. `write` is the trainer's part (transposed into /dev/shm), `load` is
vLLM's (copied and repacked for its kernels, checksums compared), `sync` is what a training step waits for.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from models.config import from_hf
from models.convert import describe_hf
from models.decoder import Decoder, initialize
from rollouts.vllm.engine import ClientSettings, VllmEngine
from rollouts.vllm.sidecar import Sidecar, SidecarSettings, new_key
from rollouts.vllm.weight_files import named_tensors, write_weights

SHAPE = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 151_936,
    "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
SHM = Path("/dev/shm/jaxrl-benchmark")


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--environment", type=Path, default=Path(".venv-vllm"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    config = from_hf(SHAPE, "benchmark")
    make = jax.jit(lambda key: nnx.state(initialize(Decoder(config, jnp.dtype("float32")), key)))
    params = make(jax.random.key(0))
    times: dict[str, list[float]] = {"cp": [], "write": [], "sync": []}
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "model"
        describe_hf(config, model, model)
        key = new_key()
        settings = SidecarSettings(
            model=model,
            python=options.environment / "bin/python",
            dtype=options.dtype,
            max_length=256,
            dummy_weights=True,
            tokenizer=False,
            key=key,
        )
        sidecar = Sidecar(settings, Path(temporary) / "log")
        engine = VllmEngine(config, sidecar=sidecar, max_length=128, settings=ClientSettings(key))
        try:
            for version in range(options.rounds + 1):  # the first is not counted
                shutil.rmtree(SHM, ignore_errors=True)
                SHM.mkdir()
                tensors = named_tensors(params, config, options.dtype)
                write = seconds(write_weights, tensors, options.dtype, SHM / "written")
                source = SHM / "written" / "model.safetensors"
                size = source.stat().st_size
                cp = seconds(subprocess.run, ["cp", str(source), str(SHM / "copy")])
                shutil.rmtree(SHM)
                sync = seconds(engine.load_weights, params, version)
                if version:
                    for name, value in (("cp", cp), ("write", write), ("sync", sync)):
                        times[name].append(value)
        finally:
            engine.close()
            shutil.rmtree(SHM, ignore_errors=True)
    best = {name: min(values) for name, values in times.items()}
    ratios = {name: best[name] / best["cp"] for name in ("write", "sync")}
    print(json.dumps({"gb": size / 1e9, "seconds": times, "best": best, "times_cp": ratios}, indent=2))


if __name__ == "__main__":
    main()
