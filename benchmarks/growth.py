"""How cost grows: time and memory of a small model's gradient, and its compile time, against one size at a time.

    python benchmarks/growth.py --out growth.json --plot docs/results/growth.png

Sizes: tokens of a row, layers, rows (a GRPO group's episodes), vocabulary. Time is that of Learner's gradient of one
microbatch (best of some), memory is what the compiler gives its temporaries, and the process's peak. For groups the
time of sampling them is there too. Each sweep is a process of its own, from small to large, so that the peak is the
last point's; a point whose temporaries exceed --limit-gib is not run. Slopes are of log cost over log size, by least
squares over the larger half of the points: 1 is linear, 2 quadratic.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

BASE = {"length": 256, "layers": 2, "rows": 4, "vocabulary": 512}
SWEEPS = {
    "length": (256, 512, 1024, 2048, 4096, 8192, 16384),
    "layers": (2, 4, 8, 16, 32),
    "rows": (2, 4, 8, 16, 32, 64),
    "vocabulary": (512, 2048, 8192, 32768, 131072),
}
FIXED = {"length": {"rows": 1}, "rows": {"length": 96}}  # instead of BASE
TITLES = {"length": "tokens of a row", "layers": "layers", "rows": "episodes of a group", "vocabulary": "vocabulary"}
COSTS = {"time_s": "gradient, s", "temporary_gib": "temporaries, GiB", "compile_s": "compilation, s"}
COSTS |= {"peak_gib": "process's growth, GiB", "sample_s": "sampling, s"}


def peak_gib() -> float:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(sweep: str, size: int, limit_gib: float, before: float) -> dict[str, Any]:
    """One point: compiles the gradient, and runs it if it fits. `before`: the process's memory without any model."""
    import jax
    import jax.numpy as jnp

    from jaxrl.algorithms.policy_gradient import Settings, make_objective
    from jaxrl.config import OptimizerConfig
    from jaxrl.runs.policy import random_params
    from jaxrl.training.learner import Learner
    from jaxrl.training.optimizer import make_optimizer
    from jaxrl.training.packing import Example, pack
    from models.config import from_hf
    from models.decoder import Compute
    from models.sharding import make_mesh

    shape = BASE | FIXED.get(sweep, {}) | {sweep: size}
    rows, length, vocabulary = shape["rows"], shape["length"], shape["vocabulary"]
    config = from_hf({
        "model_type": "qwen2", "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": shape["layers"],
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": vocabulary, "tie_word_embeddings": True,
        "max_position_embeddings": length,
    })  # fmt: skip
    graphdef, params = random_params(config, 0, make_mesh(), jnp.dtype(jnp.float32))
    optimizer, _ = make_optimizer(OptimizerConfig(), 100)
    objective = make_objective(Settings(), max_new_tokens=length)
    learner = Learner(graphdef, objective, optimizer, compute=Compute(), microbatch_rows=rows)
    rng = np.random.default_rng(0)
    learned = np.arange(length) >= length // 4
    draw = partial(rng.integers, 0, vocabulary, length)
    examples = [
        Example(str(i), draw().astype(np.int32), learned, np.where(learned, -5.0, 0).astype(np.float32), 1.0)
        for i in range(rows)
    ]
    batch = next(learner.microbatches(pack(examples, np.ones(rows), length, rows)))
    gradient = learner._zeros(params)
    start = time.perf_counter()
    compiled = learner._accumulate.lower(params, gradient, batch).compile()
    point: dict[str, Any] = {"sweep": sweep, "size": size, "compile_s": time.perf_counter() - start}
    point["temporary_gib"] = compiled.memory_analysis().temp_size_in_bytes / 2**30
    if point["temporary_gib"] > limit_gib:
        return point | {"left_out": f"its temporaries exceed {limit_gib:g} GiB"}
    seconds: list[float] = []
    while len(seconds) < 2 or (sum(seconds) < 2 and len(seconds) < 20):
        start = time.perf_counter()
        gradient, *_ = compiled(params, gradient, batch)
        jax.block_until_ready(gradient)
        seconds.append(time.perf_counter() - start)
    point |= {"time_s": min(seconds), "peak_gib": peak_gib() - before}
    return point | ({"sample_s": sampling(graphdef, params, rows)} if sweep == "rows" else {})


def empty_gib() -> float:
    """Memory of this process with everything imported and something compiled."""
    import jax

    import jaxrl.training.learner  # noqa: F401
    import rollouts.jax.engine  # noqa: F401

    jax.jit(lambda x: x + 1)(0.0).block_until_ready()
    return peak_gib()


def sampling(graphdef: Any, params: Any, rows: int) -> float:
    """Seconds of sampling a group of `rows` episodes of 64 tokens each."""
    import numpy as np

    from rollouts.collect import generate
    from rollouts.engine import SamplingParams
    from rollouts.jax.engine import JaxEngine

    engine = JaxEngine(graphdef, params, slots=rows, max_length=96, max_new_tokens=64, unroll=True)
    prompt, best = np.arange(32, dtype=np.int32), float("inf")
    for _ in range(4):
        start = time.perf_counter()
        generate(engine, [prompt], SamplingParams(max_new_tokens=64, n=rows))
        best = min(best, time.perf_counter() - start)
    return best


def run(sweep: str, sizes: list[int], limit_gib: float) -> list[dict[str, Any]]:
    """A sweep in a process of its own: its points, as far as it came."""
    command = [sys.executable, __file__, "--sweep", sweep, "--limit-gib", str(limit_gib), "--sizes", json.dumps(sizes)]
    points = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if line.startswith("{"):
                print(line, end="", flush=True)
                points.append(json.loads(line))
    if process.returncode:
        print(f"the sweep over {sweep} ended with {process.returncode}", file=sys.stderr)
    return points


def slope(points: list[dict[str, Any]], cost: str) -> float | None:
    """Of log cost over log size, by least squares over the larger half of the points (two at least)."""
    known = [(p["size"], p[cost]) for p in points if p.get(cost)]
    known = known[min(len(known) // 2, len(known) - 2) :] if len(known) > 1 else []
    if not known:
        return None
    size, spent = np.log(np.array(known, float)).T
    return float(np.polyfit(size, spent, 1)[0])


def report(points: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Prints and returns the slope of each cost in each sweep."""
    slopes = {}
    for sweep in dict.fromkeys(p["sweep"] for p in points):
        some = [p for p in points if p["sweep"] == sweep]
        slopes[sweep] = {cost: slope(some, cost) for cost in COSTS if any(cost in p for p in some)}
        print(
            f"{TITLES[sweep]:20s}", "  ".join(f"{COSTS[c]}: {s:.2f}" for c, s in slopes[sweep].items() if s is not None)
        )
    return slopes


def plot(points: list[dict[str, Any]], slopes: dict[str, dict[str, float | None]], path: Path) -> None:
    """One picture: a panel a sweep, all costs over the size, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(slopes), figsize=(4.2 * len(slopes), 3.8), squeeze=False)
    for panel, (sweep, costs) in zip(panels[0], slopes.items()):
        for cost, fitted in costs.items():
            known = [(p["size"], p[cost]) for p in points if p["sweep"] == sweep and p.get(cost)]
            label = COSTS[cost] + (f" (slope {fitted:.2f})" if fitted is not None else "")
            panel.loglog(*zip(*known), "o-", markersize=3, label=label)
        panel.set(xlabel=TITLES[sweep], xscale="log", yscale="log")
        panel.set_xscale("log", base=2)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SWEEPS, action="append", help="again for more than one; without it: all")
    parser.add_argument("--limit-gib", type=float, default=6.0)
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    parser.add_argument("--plot", type=Path, help="draw them here")
    parser.add_argument("--sizes", type=json.loads, help="instead of the sweep's own, as a JSON list")
    parser.add_argument("--sweep", help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.sweep:
        before = empty_gib()
        for size in options.sizes:
            print(json.dumps(measure(options.sweep, size, options.limit_gib, before)), flush=True)
        return
    points = []
    for sweep in options.only or SWEEPS:
        points += run(sweep, options.sizes or list(SWEEPS[sweep]), options.limit_gib)
    slopes = report(points)
    if options.out:
        options.out.write_text(json.dumps({"points": points, "slopes": slopes}, indent=1) + "\n")
    if options.plot:
        plot(points, slopes, options.plot)


if __name__ == "__main__":
    main()
