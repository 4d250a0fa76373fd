"""Episodes that new weights interrupt in vLLM: is each token's logprob that of its own version of the weights?

    python -m benchmarks.in_flight --model smollm2-135m.gguf --problems mbpp.jsonl [--mode recompute] [--steps 10]

Ten GRPO steps on MBPP as a stream, with vLLM as the sampler and configs/real/mbpp.py's settings in f32; a bonus for
entropy changes the weights in every step, whatever the rewards. Every version of them is kept, and afterwards the
decoder scores each token with the version that vLLM names for it. What `python -m jaxrl.crosscheck` finds between vLLM
and the decoder is the measure; with --mode keep, tokens after a change attend to keys and values of older weights, and
differ accordingly.
"""

from __future__ import annotations

import argparse
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs.real.mbpp import get_config as mbpp_config
from jaxrl.algorithms import policy_gradient
from jaxrl.config import Config
from jaxrl.crosscheck import decoder_forward
from jaxrl.files import read_metrics
from jaxrl.runs import engines
from jaxrl.tasks import mbpp
from jaxrl.train import train
from models.convert import load_model
from rollouts.engine import Completion, SamplingParams
from rollouts.vllm.engine import VllmEngine


class Sampled(NamedTuple):
    prompt: np.ndarray
    completion: Completion


def get_config(options: argparse.Namespace) -> Config:
    config = mbpp_config()
    config.name, config.runs_dir = f"in_flight_{options.mode}", str(options.folder)
    config.model.path = str(options.model)
    config.task = mbpp.Settings(path=str(options.problems), held_out_problems=8)
    config.model.compute_dtype = "float32"
    config.grpo.steps, config.grpo.problems_per_step, config.grpo.group_size = options.steps, 2, 4
    config.grpo.patience = 0  # do not stop because nothing is solved
    config.grpo.loss = policy_gradient.Settings(sampler_correction="truncate", entropy_coefficient=0.1)
    config.rollout.engine = "vllm"
    config.rollout.sidecar.in_flight = options.mode
    config.rollout.max_staleness = 2
    config.rollout.stream.episodes = 8
    config.evaluation.at_start = False
    config.checkpoint.every = 0
    return config


def watched_run(config: Config, versions: Path) -> list[Sampled]:
    """Trains; every version of the weights goes to versions/N.npz. Returns what was sampled."""
    sampled: list[Sampled] = []

    class Watched(VllmEngine):
        async def sample(self, prompt: np.ndarray, params: SamplingParams) -> list[Completion]:
            completions = await super().sample(prompt, params)
            if params.temperature:  # not the evaluation's
                sampled.extend(Sampled(prompt, completion) for completion in completions)
            return completions

        def load_weights(self, params: object, version: int) -> None:
            np.savez(versions / f"{version}.npz", *(np.asarray(leaf) for leaf in jax.tree.leaves(params)))
            super().load_weights(params, version)

    engines.VllmEngine = Watched
    train(config)
    return sampled


def differences(model: Path, versions: Path, sampled: list[Sampled]) -> Iterator[tuple[str, np.ndarray]]:
    """Where tokens are, by which weights they are scored, and vLLM's logprobs less the decoder's."""
    length = max(len(prompt) + len(completion.tokens) for prompt, completion in sampled)
    _, graphdef, first = load_model(model, dtype=jnp.float32)
    structure = jax.tree.structure(first)
    for file in sorted(versions.glob("*.npz"), key=lambda path: int(path.stem)):
        arrays = np.load(file)
        params = jax.tree.unflatten(structure, [arrays[name] for name in arrays.files])
        forward = decoder_forward(graphdef, params, "float32", length)
        for prompt, completion in sampled:
            began, own = completion.weight_version == int(file.stem), completion.versions == int(file.stem)
            if own.any() or began:
                gap = completion.logprobs - forward(prompt, completion.tokens).logprobs
                yield "before a change" if began else "after a change", gap[own]
                if began:
                    yield "after a change, scored by the weights before it", gap[~own]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--problems", type=Path, required=True, help="MBPP, JSON Lines")
    parser.add_argument("--mode", choices=("keep", "recompute"), default="recompute")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/in_flight"),
        help="needs room for steps + 1 copies of the weights in f32",
    )
    options = parser.parse_args()
    versions = options.folder / f"versions_{options.mode}"
    config = get_config(options)
    for old in (versions, options.folder / config.name):
        shutil.rmtree(old, ignore_errors=True)
    versions.mkdir(parents=True)
    sampled = watched_run(config, versions)
    print("| | tokens | largest difference | mean |\n| --- | ---: | ---: | ---: |")
    found = defaultdict(list)
    for place, gaps in differences(options.model, versions, sampled):
        if len(gaps):
            found[place].append(np.abs(gaps))
    for place, gaps in sorted(found.items()):
        every = np.concatenate(gaps)
        print(f"| {place} | {len(every):,} | {every.max():.1e} | {every.mean():.1e} |")
    steps = [r for r in read_metrics(options.folder / config.name / "metrics.jsonl") if r["stage"] == "grpo"]
    print(f"{len(sampled)} completions, {sum(bool(s.completion.changes) for s in sampled)} of them of several versions")
    print(f"seconds a step, median: {np.median([r['time/step_s'] for r in steps]):.1f}")
    shutil.rmtree(versions)


if __name__ == "__main__":
    main()
