"""Sampling alone, side by side: jaxrl's engine, transformers `generate` and vLLM on the CPU, same weights and prompts.

    python benchmarks/sampling.py --vllm-python .venv-vllm/bin/python

64 requests of 64 to 256 new tokens after prompts of 16 to 64, from Qwen2 models of 0.5M, 3M and 50M parameters with
random weights, exported by models.convert. The peers take turns, in several rounds, never two at once; transformers
(`--torch-python`, this interpreter unless told) and vLLM run in f32 and in bf16 and the better one counts. One without
an interpreter is left out, and the table says so. `generate` has one length for a whole batch: it goes on to the
longest request, and the tokens that were asked for are what counts.

    python benchmarks/sampling.py --vllm-python .venv-vllm/bin/python --model MODEL --data HumanEval.jsonl.gz

A real model (GGUF file, Hugging Face folder or run), greedy in bf16 on the first --problems of HumanEval as chat, until
its end token or 512 tokens; the tokens that were sampled are what counts. transformers is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REQUESTS, PROMPT_LENGTHS, NEW_TOKENS = 64, (16, 64), (64, 256)
WARM_UP = 2  # turns that compile
MAX_LENGTH = PROMPT_LENGTHS[1] + NEW_TOKENS[1]
DTYPES = ("float32", "bfloat16")
REAL_PROMPT, REAL_NEW_TOKENS = 640, 512
REAL = "real"  # in place of a size: --model
SIZES = {  # layers, width, MLP width, heads, kv heads, vocabulary
    "0.5M": (3, 128, 352, 4, 2, 320),
    "3M": (4, 256, 704, 4, 2, 320),
    "50M": (10, 640, 1760, 10, 2, 8192),
}
FOLDER = Path(__file__).parent


def shape(size: str) -> dict:
    """In the words of a config.json."""
    L, D, F, H, K, V = SIZES[size]
    return {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": V, "hidden_size": D,
        "intermediate_size": F, "num_hidden_layers": L, "num_attention_heads": H, "num_key_value_heads": K,
        "max_position_embeddings": 2 * MAX_LENGTH, "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0, "hidden_act": "silu", "use_sliding_window": False, "eos_token_id": 0,
    }  # fmt: skip


def requests(size: str, folder: Path, turn: int) -> list[tuple[list[int], int]]:
    """Prompts, and the number of tokens wanted after each; of a real model, at most."""
    if size == REAL:
        asked = json.loads((folder / "requests.json").read_text())
        return [(prompt, asked["new_tokens"]) for prompt in asked["prompts"]]
    rng, vocabulary = random.Random(turn), SIZES[size][-1]
    return [
        ([rng.randrange(3, vocabulary) for _ in range(rng.randint(*PROMPT_LENGTHS))], rng.randint(*NEW_TOKENS))
        for _ in range(REQUESTS)
    ]


def ends(size: str, folder: Path) -> list[int]:
    """The tokens that end an answer: none of a random model."""
    return json.loads((folder / "requests.json").read_text())["ends"] if size == REAL else []


def measure(sample, size: str, folder: Path, turns: int) -> None:
    """Prints tokens a second of each turn; `sample(requests)` returns the number of tokens. The first ones warm up."""
    import time

    rates, warm_up = [], 1 if size == REAL else WARM_UP
    for turn in range(warm_up + turns):
        batch = requests(size, folder, turn)
        start = time.perf_counter()
        tokens = sample(batch)
        rates.append(tokens / (time.perf_counter() - start))
        assert size == REAL or tokens == sum(n for _, n in batch), (tokens, sum(n for _, n in batch))
    print("RATES " + json.dumps(rates[warm_up:]), flush=True)


def export(size: str, folder: Path) -> None:
    """The random model as a Hugging Face folder."""
    import jax
    from flax import nnx

    from models.config import from_hf
    from models.convert import save_hf
    from models.decoder import Decoder, initialize

    config = from_hf(shape(size))
    params = nnx.state(initialize(Decoder(config), jax.random.key(0)))
    folder.mkdir(parents=True)
    save_hf(params, config, folder / "model")


def export_real(model: str, data: str, problems: int, folder: Path) -> None:
    """The model as a Hugging Face folder in bf16, and what is asked of it, as requests.json."""
    import jax.numpy as jnp

    from jaxrl.runs.tokenizer import keep_tokenizer, load_tokenizer
    from jaxrl.tasks import humaneval
    from models.convert import load_model, save_hf
    from rollouts.chat import chat_prompt, stop_tokens

    folder.mkdir(parents=True)
    config, _, params = load_model(Path(model), dtype=jnp.bfloat16)
    save_hf(params, config, folder / "model")
    keep_tokenizer(model, model, folder / "tokenizer")
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    task = humaneval.make_task(humaneval.Settings(path=data, held_out_problems=problems), 0)
    prompts = [chat_prompt(tokenizer, problem).tolist() for problem in task.held_out]
    asked = {"prompts": prompts, "ends": list(stop_tokens(tokenizer)), "new_tokens": REAL_NEW_TOKENS}
    (folder / "requests.json").write_text(json.dumps(asked))


def jaxrl(size: str, folder: Path, dtype: str, turns: int) -> None:
    import asyncio

    import jax.numpy as jnp
    import numpy as np

    from jaxrl.runs.host import prepare_process
    from models.convert import load_model
    from rollouts.engine import SamplingParams
    from rollouts.jax.engine import JaxEngine

    prepare_process()
    real, stop = size == REAL, tuple(ends(size, folder))
    _, graphdef, params = load_model(folder / "model", dtype=jnp.dtype(dtype) if real else jnp.float32)
    new, longest = (REAL_NEW_TOKENS, REAL_PROMPT + REAL_NEW_TOKENS) if real else (NEW_TOKENS[1], MAX_LENGTH)
    engine = JaxEngine(graphdef, params, slots=REQUESTS, max_length=longest, max_new_tokens=new, dtype=jnp.dtype(dtype))
    del params
    temperature = 0.0 if real else 1.0

    async def all_of(batch):
        samples = (
            engine.sample(
                np.array(p, np.int32),
                SamplingParams(max_new_tokens=n, seed=i, temperature=temperature, stop_tokens=stop),
            )
            for i, (p, n) in enumerate(batch)
        )
        return await asyncio.gather(*samples)

    measure(lambda batch: sum(len(c.tokens) for (c,) in asyncio.run(all_of(batch))), size, folder, turns)


def transformers(size: str, folder: Path, dtype: str, turns: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None

    def sample(batch):
        longest, new = max(len(p) for p, _ in batch), max(n for _, n in batch)
        tokens = torch.tensor([[0] * (longest - len(p)) + p for p, _ in batch])  # padded at the left
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p, _ in batch])
        with torch.inference_mode():
            out = model.generate(
                tokens, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=new,
                min_new_tokens=new, pad_token_id=0, use_cache=True,
            )  # fmt: skip
        assert out.shape == (len(batch), longest + new)
        return sum(n for _, n in batch)

    measure(sample, size, folder, turns)


def vllm(size: str, folder: Path, dtype: str, turns: int) -> None:
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    stop = ends(size, folder)
    longest = REAL_PROMPT + REAL_NEW_TOKENS if size == REAL else 2 * MAX_LENGTH
    model = LLM(
        str(folder / "model"), dtype=dtype, skip_tokenizer_init=True, max_model_len=longest,
        max_num_seqs=REQUESTS, enable_prefix_caching=False, disable_log_stats=True,
    )  # fmt: skip

    def sample(batch):
        settings = {"temperature": 0.0 if size == REAL else 1.0, "ignore_eos": True, "detokenize": False}
        params = [SamplingParams(max_tokens=n, stop_token_ids=stop, **settings) for _, n in batch]
        out = model.generate([{"prompt_token_ids": p} for p, _ in batch], params, use_tqdm=False)
        return sum(len(o.outputs[0].token_ids) for o in out)

    measure(sample, size, folder, turns)


PEERS = {"jaxrl": jaxrl, "transformers": transformers, "vllm": vllm}


def run(python: str, peer: str, size: str, folder: Path, dtype: str, turns: int) -> list[float]:
    """Tokens a second of each turn, in a process of its own; empty (with its last words shown) if it failed."""
    root = str(FOLDER.parent) if peer == "jaxrl" else ""
    cpu = {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false", "VLLM_CPU_KVCACHE_SPACE": "2", "PYTHONPATH": root}
    arguments = ["--peer", peer, "--size", size, "--folder", str(folder), "--dtype", dtype, "--turns", str(turns)]
    result = subprocess.run(
        [python, str(FOLDER / "sampling.py"), *arguments], env=os.environ | cpu, capture_output=True, text=True
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("RATES ")]
    if not lines:
        print(f"{peer} {size} {dtype} failed: {result.stderr.strip()[-800:]}", file=sys.stderr)
        return []
    return json.loads(lines[-1].removeprefix("RATES "))


def show(rates: dict[tuple[str, str, str], list[float]], sizes: list[str], missing: list[str]) -> None:
    """The table: tokens a second, median of turns; the last column compares each peer with ours, at better dtypes."""
    from rich.console import Console
    from rich.table import Table

    table = Table("parameters", "sampler", "f32 tokens/s", "bf16 tokens/s", "jaxrl is x times it", title="sampling")
    for size in sizes:
        medians = {
            peer: [statistics.median(rates[peer, size, d]) if rates.get((peer, size, d)) else 0.0 for d in DTYPES]
            for peer in PEERS
        }
        for peer, both in medians.items():
            if peer in missing:
                table.add_row(size, peer, "not measured", "", "")
                continue
            numbers = [f"{rate:,.0f}" if rate else "failed" for rate in both]
            times = f"{max(medians['jaxrl']) / max(both):.2f}" if max(both) else ""
            table.add_row(size, peer, *numbers, times)
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with torch and transformers")
    parser.add_argument("--vllm-python", help="interpreter of an environment with vLLM for CPU")
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--rounds", type=int, default=2, help="processes of each peer, in turn")
    parser.add_argument("--turns", type=int, default=3, help="counted batches of a process, after those that warm up")
    parser.add_argument("--model", help="a real model instead of the random ones")
    parser.add_argument("--data", help="HumanEval.jsonl.gz, for --model")
    parser.add_argument("--problems", type=int, default=48, help="of it")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    for name in ("--peer", "--size", "--folder", "--dtype"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        PEERS[options.peer](options.size, Path(options.folder), options.dtype, options.turns)
        return
    sys.path.insert(0, str(FOLDER.parent))
    pythons = {"jaxrl": sys.executable, "transformers": options.torch_python, "vllm": options.vllm_python}
    sizes, dtypes, rates = options.sizes.split(","), DTYPES, {}
    with tempfile.TemporaryDirectory() as root:
        if options.model:
            sizes, dtypes, pythons["transformers"] = [REAL], ["bfloat16"], None
            export_real(options.model, options.data, options.problems, Path(root) / REAL)
        else:
            for size in sizes:
                export(size, Path(root) / size)
        for _ in range(options.rounds):
            for size in sizes:
                for dtype in dtypes:
                    for peer, python in pythons.items():
                        got = run(python, peer, size, Path(root) / size, dtype, options.turns) if python else []
                        rates.setdefault((peer, size, dtype), []).extend(got)
                        print(peer, size, dtype, *(f"{rate:,.0f}" for rate in got), flush=True)
    show(rates, sizes, [peer for peer, python in pythons.items() if not python])
    if options.out:
        options.out.write_text(json.dumps({" ".join(key): values for key, values in rates.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
