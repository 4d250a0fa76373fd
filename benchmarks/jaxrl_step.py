"""jaxrl's side of grpo_step.py: its engine, environment, batch and learner, as the trainer uses them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import workload as w
from flax import nnx

from jaxrl.algorithms.policy_gradient import Settings, make_objective
from jaxrl.config import OptimizerConfig
from jaxrl.runs.host import prepare_process
from jaxrl.training.learner import Learner
from jaxrl.training.optimizer import make_optimizer
from jaxrl.training.packing import make_batch
from models.adapters import attach
from models.config import LORA_TARGETS, Lora, from_hf
from models.decoder import Compute, Decoder, initialize
from models.lora import split_params
from rollouts.collect import collect
from rollouts.engine import SamplingParams
from rollouts.environments.dialogue import Budget
from rollouts.environments.single_turn import SingleTurn
from rollouts.episode import Problem, Reward, Submission
from rollouts.jax.engine import JaxEngine


class Numbers:
    """A tokenizer whose text is the token ids."""

    def decode(self, tokens: Sequence[int], **_: object) -> str:
        return " ".join(map(str, tokens))


# Rows of a microbatch; at the medium size 4, 8, 16 and 32 differ by less than the noise, 10%.
ROWS = {"small": 8, "medium": 8, "large": 8, "smollm2": 2, "qwen": 2}


def matmul_gflops(dtype: jnp.dtype, n: int = 2048) -> float:
    """GFLOP/s of an n^3 matmul in this process."""
    a = jnp.ones((n, n), dtype)
    f = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    f(a).block_until_ready()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        f(a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9


def make_model(work: w.Work, dtype: jnp.dtype) -> tuple[nnx.GraphDef, nnx.State]:
    """Random weights: f32, or with adapters, which are f32, in the dtype that the model computes in."""
    config = from_hf(work.shape)
    graphdef, params = nnx.split(initialize(Decoder(config), jax.random.key(0)))
    if not work.lora:
        return graphdef, params
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    lora = Lora(work.lora, alpha=16.0, targets=LORA_TARGETS)
    return attach(config, params, lora, jax.random.key(1))[1:]


def main() -> None:
    options = w.arguments(__doc__)
    work, rows = options.work, options.rows or ROWS[options.size]
    prepare_process()
    compute, length = Compute(jnp.dtype(options.dtype), unroll=True), work.prompt_length + work.new_tokens
    graphdef, params = make_model(work, compute.dtype)
    first = jax.tree.map(np.array, split_params(params)[0])
    engine = JaxEngine(
        graphdef,
        params,
        slots=work.rows,
        max_length=length,
        max_new_tokens=work.new_tokens,
        dtype=compute.dtype,
        unroll=True,
    )
    sampling, budget = SamplingParams(max_new_tokens=work.new_tokens), Budget(work.new_tokens)

    async def score(problem: Problem, submission: Submission) -> Reward:
        return Reward(w.reward([int(token) for token in submission.text.split()], work), False)

    environment = SingleTurn(Numbers(), lambda p: np.asarray(p.answer, np.int32), score, sampling, budget)
    objective = make_objective(Settings(), max_new_tokens=work.new_tokens)
    optimizer, _ = make_optimizer(OptimizerConfig(learning_rate=1e-4), options.steps)
    learner = Learner(graphdef, objective, optimizer, compute=compute, microbatch_rows=rows)
    state = learner.init(params)
    seconds, phases, tokens = [], {"sample": [], "batch": [], "update": []}, 0
    for step in range(options.steps + w.WARM_UP):
        clock = [time.perf_counter()]
        problems = [Problem(str(i), answer=prompt) for i, prompt in enumerate(w.prompts(step, work))]
        groups = collect(engine, environment, problems, work.samples, (0, step))
        clock.append(time.perf_counter())
        batch, _ = make_batch(groups, objective, row_length=length, microbatch_rows=rows)
        clock.append(time.perf_counter())
        state, _ = learner.update(state, batch)
        jax.block_until_ready(state.params)
        engine.load_weights(state.params, step + 1)
        clock.append(time.perf_counter())
        for name, spent in zip(phases, np.diff(clock)):
            phases[name].append(float(spent))
        seconds.append(clock[-1] - clock[0])
        tokens += sum(e.sampled_length for g in groups for e in g.episodes)
    rate = matmul_gflops(compute.dtype)
    changes = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), first, jax.device_get(split_params(state.params)[0])
    )
    done = {"tokens": tokens, "updates": options.steps + w.WARM_UP, "moved": max(jax.tree.leaves(changes))}
    w.report("jaxrl", f"jax {jax.__version__}, matmul {rate:.0f} GFLOP/s", options, seconds, done, phases)


if __name__ == "__main__":
    main()
