"""Training alone: the model's FLOP/s in Learner.update, as a share of what a large matmul reaches in the same process.

    python benchmarks/training_rate.py --size medium --size large --out rate.json

The shapes are those of workload.py, in whole rows; several row lengths and microbatches are tried. Updates and matmuls
(2048^3, f32, or bf16 with f32 accumulation) take turns, so that both see the same machine, and the best of each counts.
FLOPs are those of jaxrl/costs/flops.py: matmuls only, causal attention once, nothing that is computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import workload as w
from flax import nnx
from rich.console import Console
from rich.table import Table

from jaxrl.algorithms.batch import token_counts
from jaxrl.algorithms.policy_gradient import Settings, make_objective
from jaxrl.config import OptimizerConfig
from jaxrl.costs.flops import update_flops
from jaxrl.runs.host import prepare_process
from jaxrl.training.learner import Learner
from jaxrl.training.optimizer import make_optimizer
from jaxrl.training.packing import Example, pack
from models.config import ModelConfig, from_hf
from models.decoder import Compute, Decoder, initialize

# Rows of a microbatch and tokens of a row: 84 are those of grpo_step.py.
LAYOUTS = ((8, 84), (32, 84), (8, 256), (16, 256), (4, 512), (8, 512), (4, 1024))
TOKENS = 8192  # of an update, at least one microbatch
Pieces = dict[str, float]


def batch_of(config: ModelConfig, rows: int, length: int) -> Any:
    """About TOKENS tokens in whole rows, three quarters of them learned."""
    rng = np.random.default_rng(0)
    count = max(1, TOKENS // (rows * length)) * rows
    learned = np.arange(length) >= length // 4
    logprobs = np.where(learned, -np.log(config.vocab_size), 0).astype(np.float32)
    tokens = rng.integers(0, config.vocab_size, (count, length)).astype(np.int32)
    examples = [Example(str(i), tokens[i], learned, logprobs, float(rng.standard_normal())) for i in range(count)]
    return pack(examples, np.full(count, 1 / (count * learned.sum())), length, rows)


def seconds_of(f: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(f())
    return time.perf_counter() - start


def phases(learner: Learner, state: Any, batch: Any, rounds: int) -> Pieces:
    """Seconds of the update's programs, each alone: the best of `rounds`."""
    microbatches = list(learner.microbatches(batch))
    best: Pieces = dict.fromkeys(("zeros", "forward", "gradient", "apply"), float("inf"))
    for _ in range(rounds):
        spent, start = {}, time.perf_counter()
        gradient = jax.block_until_ready(learner._zeros(state.params))
        spent["zeros"] = time.perf_counter() - start
        spent["forward"] = seconds_of(partial(learner._logprobs, state.params, microbatches[0])) * len(microbatches)
        start = time.perf_counter()
        for microbatch in microbatches:
            gradient, *_ = learner._accumulate(state.params, gradient, microbatch)
        jax.block_until_ready(gradient)
        spent["gradient"] = time.perf_counter() - start
        start = time.perf_counter()
        state, *_ = jax.block_until_ready(learner.apply_program(state)(state, gradient))
        spent["apply"] = time.perf_counter() - start
        best = {name: min(best[name], spent[name]) for name in best}
    return best


def measure(size: str, dtype: jnp.dtype, layout: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Rates of updates and of matmuls beside them."""
    rows, length = layout
    config = from_hf(w.SIZES[size].shape | {"max_position_embeddings": length})
    graphdef, params = nnx.split(initialize(Decoder(config), jax.random.key(0)))
    optimizer, _ = make_optimizer(OptimizerConfig(), 100)
    objective = make_objective(Settings(), max_new_tokens=length)
    learner = Learner(graphdef, objective, optimizer, compute=Compute(dtype, unroll=True), microbatch_rows=rows)
    state, batch, a = learner.init(params), batch_of(config, rows, length), jnp.ones((2048, 2048), dtype)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    multiply(a).block_until_ready()
    state, _ = learner.update(state, batch)
    updates, matmuls = [], []
    for _ in range(rounds):
        matmuls += [seconds_of(lambda: multiply(a)) for _ in range(3)]
        start = time.perf_counter()
        state, _ = learner.update(state, batch)
        updates.append(time.perf_counter() - start)
    flops = update_flops(config, *token_counts(batch))
    rate, matmul = flops / min(updates) / 1e9, 2 * 2048**3 / min(matmuls) / 1e9
    return {
        "size": size, "dtype": dtype.name, "rows": rows, "length": length, "update_s": updates, "gflops": rate,
        "matmul_gflops": matmul, "share": rate / matmul, "phases": phases(learner, state, batch, rounds),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=w.SIZES, action="append", help="again for more than one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), action="append", help="without it: both")
    parser.add_argument("--layout", action="append", help="ROWSxLENGTH, e.g. 8x256; without it: several")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    options = parser.parse_args()
    prepare_process()
    layouts = [(int(rows), int(length)) for rows, length in (t.split("x") for t in options.layout or ())] or LAYOUTS
    table = Table("size", "dtype", "microbatch", "update s", "GFLOP/s", "matmul", "share", "phases, s")
    lines = []
    for size in options.size or ("medium", "large"):
        for dtype in options.dtype or ("float32", "bfloat16"):
            for layout in layouts:
                line = measure(size, jnp.dtype(dtype), layout, options.rounds)
                lines.append(line)
                shown = ", ".join(f"{name} {s:.3f}" for name, s in line["phases"].items())
                table.add_row(
                    size, dtype, "{} x {}".format(*layout), f"{min(line['update_s']):.3f}", f"{line['gflops']:.0f}",
                    f"{line['matmul_gflops']:.0f}", f"{line['share']:.0%}", shown,
                )  # fmt: skip
                print(json.dumps(line), flush=True)
    Console(width=150).print(table)
    if options.out:
        options.out.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
