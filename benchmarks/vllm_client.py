"""Tokens a second through rollouts/vllm/engine.py and through vLLM's own benchmark client: same server, same prompts.

    python benchmarks/vllm_client.py [--environment .venv-vllm] [--requests 512] [--concurrency 64] [--layers 4]

Both clients in turn, `--rounds` times, against one server; vLLM's (`vllm bench serve`) needs pandas and datasets in
its environment. Prompts are of 64 random ASCII characters, and each request is for exactly --new-tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import string
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from transformers import AutoTokenizer

from jaxrl.runs.tokenizer import train_tokenizer
from models.config import from_hf
from models.convert import save_hf
from models.decoder import Decoder, initialize
from rollouts.collect import generate
from rollouts.engine import SamplingParams
from rollouts.vllm.engine import ClientSettings, VllmEngine
from rollouts.vllm.sidecar import MODEL_NAME, Sidecar, SidecarSettings, new_key

# `vllm bench serve`, whose console script looks for a distribution called vllm and misses that of the CPU build.
BENCH_SERVE = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--environment", type=Path, default=Path(".venv-vllm"))
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rng = random.Random(0)
    texts = ["".join(rng.choices(string.ascii_lowercase + " ", k=64)) for _ in range(options.requests)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train_tokenizer(texts, 300).save_pretrained(folder / "described" / "tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(folder / "described" / "tokenizer")
        config = from_hf(
            {
                "model_type": "qwen2", "vocab_size": -(-len(tokenizer) // 16) * 16, "hidden_size": 256,
                "intermediate_size": 704, "num_hidden_layers": options.layers, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
                "rope_theta": 1e4, "tie_word_embeddings": True,
            },
            "benchmark",
        )  # fmt: skip
        params = nnx.state(initialize(Decoder(config), jax.random.key(0)))
        save_hf(params, config, folder / "model", folder / "described")
        key = new_key()
        settings = SidecarSettings(
            model=folder / "model",
            python=options.environment / "bin/python",
            dtype="float32",
            max_length=256,
            max_sequences=options.concurrency,
            key=key,
            arguments=("--no-enable-prefix-caching",),
        )
        sidecar = Sidecar(settings, folder / "log")
        client = ClientSettings(key, concurrency=options.concurrency)
        engine = VllmEngine(config, sidecar=sidecar, max_length=255, settings=client)
        ours, theirs = [], []
        try:
            engine.load_weights(params, 0)
            prompts = [np.array(tokenizer.encode(t), np.int32) for t in texts]
            sampling = SamplingParams(max_new_tokens=options.new_tokens)
            generate(engine, prompts, sampling)  # warm-up
            for _ in range(options.rounds):
                start = time.perf_counter()
                drawn = generate(engine, prompts, sampling)
                ours.append(sum(len(c.tokens) for (c,) in drawn) / (time.perf_counter() - start))
                theirs.append(bench_serve(options, sidecar.addresses[0], folder, texts, key))
        finally:
            engine.close()
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(json.dumps({"jaxrl_tokens_per_s": ours, "vllm_bench_tokens_per_s": theirs, "ratio": ratio}, indent=2))


def bench_serve(options: argparse.Namespace, address: str, folder: Path, texts: list[str], key: str) -> float:
    """Output tokens a second by vLLM's client."""
    data = folder / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    command = [
        str(options.environment.absolute() / "bin/python"), "-c", BENCH_SERVE,
        "--backend", "vllm", "--base-url", address, "--model", MODEL_NAME, "--tokenizer", str(folder / "model"),
        "--dataset-name", "custom", "--dataset-path", str(data), "--custom-output-len", str(options.new_tokens),
        "--skip-chat-template", "--num-prompts", str(len(texts)), "--max-concurrency", str(options.concurrency),
        "--ignore-eos", "--disable-tqdm", "--temperature", "1.0", "--disable-shuffle",
    ]  # fmt: skip
    environment = os.environ | {"OPENAI_API_KEY": key, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = re.search(r"Output token throughput \(tok/s\):\s+([\d.]+)", result.stdout)
    if not found:
        raise SystemExit(f"vllm bench failed:\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}")
    return float(found[1])


if __name__ == "__main__":
    main()
