"""Training and sampling at the same time on four devices: `two_threads.py turns` ends, `two_threads.py none` may hang.

Run by tests/training/test_memory.py in a process of its own, because a deadlock ends the process.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from threading import RLock, Thread

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl.algorithms.sft import make_objective
from jaxrl.runs.policy import random_params
from jaxrl.training.learner import Learner
from jaxrl.training.packing import sft_batch
from models.config import from_hf
from models.decoder import Compute
from models.sharding import make_mesh
from rollouts.collect import generate
from rollouts.engine import SamplingParams
from rollouts.jax.engine import JaxEngine

FIELDS = {"model_type": "qwen2", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


def main(locked: bool, rounds: int) -> None:
    mesh, turns = make_mesh(1, 2, 1, 2), RLock() if locked else nullcontext()
    graphdef, params = random_params(from_hf(FIELDS), 0, mesh, jnp.float32)
    compute = Compute(mesh=mesh)
    learner = Learner(graphdef, make_objective(), optax.sgd(1e-3), compute=compute, microbatch_rows=2, turns=turns)
    engine = JaxEngine(graphdef, params, slots=8, max_length=32, unroll=False, mesh=mesh, turns=turns)
    state = learner.init(jax.tree.map(jnp.copy, params))
    rng = np.random.default_rng(0)
    rows = [(rng.integers(1, 64, 30).astype(np.int32), np.arange(30) > 5) for _ in range(24)]
    batch = sft_batch(rows, row_length=32, microbatch_rows=2)
    prompts = [rng.integers(1, 64, 8).astype(np.int32) for _ in range(8)]
    sampled: list[int] = []

    def sample() -> None:
        for version in range(rounds):
            engine.load_weights(params, version)
            found = generate(engine, prompts, SamplingParams(max_new_tokens=16, seed=1))
            sampled.append(sum(int(c.tokens.sum()) for cs in found for c in cs))

    thread = Thread(target=sample)
    thread.start()
    losses = []
    for _ in range(rounds):
        state, metrics = learner.update(state, batch)
        losses.append(metrics["loss"])
    thread.join()
    assert len(set(sampled)) == 1, "the same weights and seeds gave other tokens"
    assert losses[-1] < losses[0], losses
    print("both threads have ended")


if __name__ == "__main__":
    main(sys.argv[1] == "turns", int(sys.argv[2]))
