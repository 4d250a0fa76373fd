"""What one GPU reaches: the share of its matmul rate in SFT and GRPO updates, the engine's tokens a second, memory.

    python benchmarks/gpu.py --out gpu.json        # one H100 or H200, under 8 minutes with compilation
    python benchmarks/gpu.py --shape tiny          # anywhere: does everything run?

Models have the shapes of Qwen2.5-Coder-0.5B and 1.5B with random weights: nothing is downloaded. Each part is a process
of its own, so that its peak of memory is its own and one that crashes or hangs takes nothing with it; a part that is
over its time is ended, and what it had measured by then stays. Needs jax, flax, optax and rich, no other package.

An update has 65,536 tokens, f32 parameters and AdamW, bf16 compute. SFT: one sequence a row; GRPO: episodes of 256 and
128 to 512 tokens, packed. FLOPs (jaxrl/costs/flops.py) are of matmuls only, causal attention once, without padding
and nothing that is computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

if "XLA_CLIENT_MEM_FRACTION" not in os.environ:  # the newer name, beside which the older one is an error
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")  # read when the device is first used
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

QWEN = {"model_type": "qwen2", "vocab_size": 151936, "num_key_value_heads": 2, "tie_word_embeddings": True}
QWEN |= {"rope_theta": 1_000_000.0, "max_position_embeddings": 32768}
SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": QWEN | {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    },
    "1.5b": QWEN | {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    },
    "tiny": QWEN | {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 512,
    },
}  # fmt: skip


Setting = tuple[str, int, int, str]  # remat, rows of a microbatch, row length, attention


class Work(NamedTuple):
    """How much each part does."""

    update_tokens: int
    settings: tuple[Setting, ...]  # in the order of trying
    prompt: int
    new_tokens: int
    batches: tuple[int, ...]  # of the engine
    matmul: int  # its size
    most_rows: int  # the search for the largest microbatch ends here


FULL = Work(
    update_tokens=65_536,
    settings=(
        ("full", 16, 2048, "auto"), ("dots", 4, 2048, "auto"), ("full", 8, 4096, "auto"), ("none", 2, 2048, "auto"),
        ("full", 32, 2048, "auto"), ("full", 8, 2048, "blocked"),
    ),
    prompt=256, new_tokens=512, batches=(64, 256), matmul=8192, most_rows=512,
)  # fmt: skip
TINY = Work(512, (("full", 2, 64, "auto"), ("none", 2, 64, "blocked")), 16, 16, (4, 8), 256, 16)

# Seconds of each part, in the order of their worth; what one leaves over goes to those after it.
BUDGETS = {"matmul": 35, "sft 1.5b": 95, "engine 1.5b": 80, "grpo 1.5b": 45}
BUDGETS |= {"sft 0.5b": 80, "engine 0.5b": 60, "grpo 0.5b": 40, "limit 1.5b": 45}
TOTAL_S = 470


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("qwen", "tiny"), default="qwen")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="for all parts together")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--setting", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        measure(options.part, TINY if options.shape == "tiny" else FULL, options.setting)
        return
    if options.out and not options.out.parent.is_dir():  # said before the measurement, not after it
        parser.error(f"--out {options.out}: there is no folder {options.out.parent}")
    lines, start = [], time.perf_counter()
    for part, budget in budgets(options.shape):
        left = options.seconds - (time.perf_counter() - start)
        later = sum(seconds for name, seconds in budgets(options.shape) if name != part and not done(name, lines))
        allowed = min(left, max(budget, left - later))
        if allowed < 5:
            note(lines, part, f"skipped: {options.seconds:.0f} s are over")
            continue
        setting = best(lines, part.replace("grpo", "sft").replace("limit", "sft"))
        run(part, options.shape, setting if part.startswith(("grpo", "limit")) else None, allowed, lines)
    show(lines)
    print(f"{time.perf_counter() - start:.0f} s in all")
    if options.out:
        options.out.write_text(json.dumps(lines, indent=1) + "\n")


def budgets(shape: str) -> list[tuple[str, float]]:
    """The parts, with their seconds; for the tiny model each kind once."""
    if shape == "qwen":
        return list(BUDGETS.items())
    return [(part.replace("1.5b", "tiny"), 60.0) for part in BUDGETS if "0.5b" not in part]


def done(part: str, lines: list[dict[str, Any]]) -> bool:
    return any(line["part"] == part for line in lines)


def note(lines: list[dict[str, Any]], part: str, message: str) -> None:
    """Prints and keeps what went wrong."""
    print(f"{part}: {message}", flush=True)
    lines.append({"part": part, "error": message})


def run(part: str, shape: str, setting: Any, seconds: float, lines: list[dict[str, Any]]) -> None:
    """One part in its own process; its JSON lines go to `lines` as they come."""
    command = [sys.executable, __file__, "--part", part, "--shape", shape, "--setting", json.dumps(setting)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    over = threading.Event()
    timer = threading.Timer(seconds, lambda: (over.set(), process.kill()))
    timer.start()
    count = len(lines)
    try:
        for text in process.stdout or ():
            if text.startswith("{"):
                lines.append(json.loads(text))
                print(text, end="", flush=True)
        code = process.wait()
    finally:
        timer.cancel()
        process.kill()
    reader.join(5)
    if over.is_set():
        note(lines, part, f"ended after its {seconds:.0f} s, with {len(lines) - count} measurements")
    elif code:
        note(lines, part, f"failed with {code}: " + " | ".join(line.strip() for line in errors[-3:])[-400:])


def best(lines: list[dict[str, Any]], part: str) -> Any:
    """The setting of the fastest measurement of a part, or None."""
    measured = [line for line in lines if line["part"] == part and "tflops" in line]
    return max(measured, key=lambda line: line["tflops"])["setting"] if measured else None


def show(lines: list[dict[str, Any]]) -> None:
    """One table, by part: updates as a share of the measured matmul rate."""
    rate = next((line["tflops"] for line in lines if line["part"] == "matmul" and "tflops" in line), None)
    device = next((line["device"] for line in lines if "device" in line), "no device")
    print(f"\n{device}; a matmul reaches {rate or 0:.4g} TFLOP/s in bf16")
    header = ("part", "setting", "TFLOP/s", "of matmul", "tokens/s", "step ms", "peak GiB", "compile s", "")
    rows: list[tuple[str, ...]] = [header]
    for line in lines:
        share = line["tflops"] / rate if rate and "tflops" in line else None
        values = (
            describe(line), number(line, "tflops"), f"{share:.1%}" if share else "", number(line, "tokens_per_s"),
            number(line, "step_ms"), number(line, "peak_gib"), number(line, "compile_s"), line.get("error", "")[:60],
        )  # fmt: skip
        rows.append((line["part"], *values))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def describe(line: dict[str, Any]) -> str:
    if "batch" in line:
        return f"batch {line['batch']}"
    if "rows" in line:
        remat, _, length, _ = line["setting"]
        return f"{line['rows']} x {length} fit, remat {remat}"
    if "setting" not in line:
        return ""
    remat, rows, length, attention = line["setting"]
    return f"{rows} x {length}, remat {remat}, attention {line.get('kernel', attention)}"


def number(line: dict[str, Any], name: str) -> str:
    return f"{line[name]:.4g}" if line.get(name) is not None else ""


# ---- in the process of a part ----


def measure(part: str, work: Work, setting: Any) -> None:
    """Prints a JSON line for each measurement of the part; what fails is printed too, and the next one is tried."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/jaxrl/xla").expanduser()))
    kind, _, shape = part.partition(" ")
    if jax.default_backend() == "cpu" and work is FULL:
        sys.exit("there is no accelerator here; --shape tiny runs anywhere")
    for attempt in attempts(kind, shape, work, setting):
        try:
            line = {"part": part, "device": jax.devices()[0].device_kind} | attempt()
        except Exception as error:  # out of memory, a kernel that is missing: the others go on
            reason = (str(error).strip() or "no message").splitlines()[0][:200]
            line = {"part": part, "error": f"{type(error).__name__}: {reason}"}
        print(json.dumps(line | {"peak_gib": peak_gib()}), flush=True)


def attempts(kind: str, shape: str, work: Work, setting: Any) -> Iterator[Callable[[], dict[str, Any]]]:
    """The measurements of a part."""
    if kind == "matmul":
        yield lambda: matmul(work.matmul)
    elif kind == "sft":
        for each in work.settings:
            yield partial(update, shape, kind, each, work)
    elif kind == "grpo":
        yield partial(update, shape, kind, setting or work.settings[0], work)
    elif kind == "limit":
        yield partial(largest_microbatch, shape, setting or work.settings[0], work)
    else:
        engines: dict[str, Any] = {}
        for batch in work.batches:
            yield partial(engine_rate, shape, batch, work, engines)


def random_params(config: Any, mesh: Any, dtype: Any) -> tuple[Any, Any]:
    """A decoder with random weights. (jaxrl.runs.policy has this too, but needs more packages.)"""
    import jax
    from flax import nnx

    from models.decoder import Decoder, initialize
    from models.sharding import param_shardings

    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, dtype)))
    make = lambda key: nnx.state(initialize(Decoder(config, dtype), key))  # noqa: E731
    return graphdef, jax.jit(make, out_shardings=param_shardings(abstract, mesh))(jax.random.key(0))


def peak_gib() -> float | None:
    import jax

    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 2**30 if stats else None


def matmul(n: int) -> dict[str, Any]:
    """The rate of an n^3 matmul in bf16 with f32 accumulation."""
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(jnp.bfloat16))
    b = multiply(a, a).block_until_ready()
    seconds = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(10):
            b = multiply(a, a)
        b.block_until_ready()
        seconds = min(seconds, (time.perf_counter() - start) / 10)
    return {"tflops": 2 * n**3 / seconds / 1e12, "step_ms": seconds * 1e3}


def make_learner(shape: str, kind: str, setting: Setting) -> tuple[Any, Any, Any]:
    """Learner, its state with f32 parameters, and the model's configuration."""
    import jax.numpy as jnp

    from jaxrl.algorithms import policy_gradient, sft
    from jaxrl.algorithms.policy_gradient import Settings
    from jaxrl.config import OptimizerConfig
    from jaxrl.training.learner import Learner
    from jaxrl.training.optimizer import make_optimizer
    from models.config import from_hf
    from models.decoder import Compute
    from models.sharding import make_mesh

    remat, rows, length, attention = setting
    config, mesh = from_hf(SHAPES[shape]), make_mesh()
    graphdef, params = random_params(config, mesh, jnp.dtype(jnp.float32))
    rl = policy_gradient.make_objective(Settings(), max_new_tokens=length)
    objective = sft.make_objective() if kind == "sft" else rl
    optimizer, _ = make_optimizer(OptimizerConfig(), 100)
    compute = Compute(jnp.dtype(jnp.bfloat16), remat=remat, mesh=mesh, attention=attention)
    learner = Learner(graphdef, objective, optimizer, compute=compute, microbatch_rows=rows)
    return learner, learner.init(params), config


def make_rows(kind: str, vocabulary: int, setting: Setting, work: Work, tokens: int) -> Any:
    """A batch of about so many tokens: whole rows for SFT, packed episodes for GRPO."""
    import numpy as np

    from jaxrl.training.packing import Example, pack

    _, rows, length, _ = setting
    rng = np.random.default_rng(0)
    tokens, examples = max(tokens // length // rows, 1) * rows * length, []
    while tokens >= length:
        n = length if kind == "sft" else work.prompt + int(rng.integers(work.new_tokens // 4, work.new_tokens + 1))
        learned = np.arange(n) >= (1 if kind == "sft" else work.prompt)
        drawn = rng.integers(0, vocabulary, n).astype(np.int32)
        logprobs = np.where(learned, -np.log(vocabulary), 0.0).astype(np.float32)
        examples.append(Example(str(len(examples)), drawn, learned, logprobs, float(rng.standard_normal())))
        tokens -= n
    weight = 1 / sum(example.learned.sum() for example in examples)
    return pack(examples, np.full(len(examples), weight), length, rows)


def update(shape: str, kind: str, setting: Setting, work: Work) -> dict[str, Any]:
    """The rate of Learner.update."""
    import jax

    from jaxrl.algorithms.batch import token_counts
    from jaxrl.costs.flops import update_flops
    from models.attention import kernel_of

    learner, state, config = make_learner(shape, kind, setting)
    batch = make_rows(kind, config.vocab_size, setting, work, work.update_tokens)
    start = time.perf_counter()
    state, _ = learner.update(state, batch)
    jax.block_until_ready(state.params)
    compile_s, seconds = time.perf_counter() - start, []
    for _ in range(3):
        start = time.perf_counter()
        state, _ = learner.update(state, batch)
        jax.block_until_ready(state.params)
        seconds.append(time.perf_counter() - start)
    counts = token_counts(batch)
    fill = {"fill": counts[0] / batch.tokens.size}
    numbers = fill | {
        "tflops": update_flops(config, *counts) / min(seconds) / 1e12,
        "tokens_per_s": counts[0] / min(seconds),
    }
    compute = learner.compute
    kernel = kernel_of(compute.attention, compute.mesh, compute.dtype)
    return numbers | {"step_ms": min(seconds) * 1e3, "compile_s": compile_s, "setting": setting, "kernel": kernel}


def largest_microbatch(shape: str, setting: Setting, work: Work) -> dict[str, Any]:
    """The most rows of a microbatch that fit: foretold from two compiled programs, then run."""
    import jax

    start, (remat, _, length, attention) = time.perf_counter(), setting
    of_rows = lambda rows: (remat, rows, length, attention)  # noqa: E731
    learner, state, config = make_learner(shape, "sft", of_rows(2))
    stats = jax.devices()[0].memory_stats()
    limit, used = (stats["bytes_limit"] if stats else 2**33), []
    for rows in (2, 4):
        batch = make_rows("sft", config.vocab_size, of_rows(rows), work, 0)
        memory = learner._accumulate.lower(state.params, state.params, batch).compile().memory_analysis()
        used.append(memory.temp_size_in_bytes)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((state, state.params)))  # the gradient is like the parameters
    a_row = max((used[1] - used[0]) / 2, 1)
    rows = max(1, min(int((0.97 * limit - held - used[0]) / a_row) + 2, work.most_rows))
    numbers = {"predicted_rows": rows, "row_gib": a_row / 2**30, "setting": of_rows(rows)}
    while rows and not fits(learner, state, make_rows("sft", config.vocab_size, of_rows(rows), work, 0)):
        rows = rows * 7 // 8
        del learner, state  # the failed update has used it up
        learner, state, _ = make_learner(shape, "sft", of_rows(rows))
    return numbers | {"rows": rows, "compile_s": time.perf_counter() - start}


def fits(learner: Any, state: Any, batch: Any) -> bool:
    """Whether an update of one microbatch, the whole batch, is within the memory."""
    import jax

    learner.microbatch_rows = len(batch.tokens)
    try:
        jax.block_until_ready(learner.update(state, batch)[0].params)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def engine_rate(shape: str, batch: int, work: Work, engines: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second of JaxEngine, bf16, prefill included."""
    import jax.numpy as jnp
    import numpy as np

    from models.config import from_hf
    from models.sharding import make_mesh
    from rollouts.collect import generate
    from rollouts.engine import SamplingParams
    from rollouts.jax.engine import JaxEngine

    config = from_hf(SHAPES[shape])
    engines["model"] = engines.get("model") or random_params(config, make_mesh(), jnp.dtype(jnp.bfloat16))
    engines.pop("engine", None)  # the cache of the batch before
    engine = engines["engine"] = JaxEngine(
        *engines["model"], slots=batch, max_length=work.prompt + work.new_tokens, max_new_tokens=work.new_tokens,
        dtype=jnp.dtype(jnp.bfloat16), unroll=False,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, config.vocab_size, work.prompt).astype(np.int32) for _ in range(batch)]
    start = time.perf_counter()
    generate(engine, prompts, SamplingParams(max_new_tokens=4))
    compile_s, seconds = time.perf_counter() - start, []
    for _ in range(2):
        start = time.perf_counter()
        generate(engine, prompts, SamplingParams(max_new_tokens=work.new_tokens))
        seconds.append(time.perf_counter() - start)
    numbers = {"batch": batch, "tokens_per_s": batch * work.new_tokens / min(seconds), "compile_s": compile_s}
    return numbers | {"step_ms": min(seconds) / work.new_tokens * 1e3}


if __name__ == "__main__":
    main()
