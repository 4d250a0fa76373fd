"""Evaluation of a policy on held-out problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rollouts.collect import Environment, collect
from rollouts.engine import Engine
from rollouts.episode import Group, Problem


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that at least one of k samples is correct, unbiased from `samples` drawn (arXiv 2107.03374, equation 1).

    1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n - c + 1 .. n} (1 - k / i). Raises ValueError if k > samples.
    """
    if not 0 < k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, there are {samples}")
    return 1.0 - float(np.prod(1.0 - k / np.arange(samples - correct + 1, samples + 1)))


def evaluate(
    engine: Engine, environment: Environment, problems: Sequence[Problem], samples: int, seed: Sequence[int]
) -> tuple[dict[str, float], list[Group]]:
    """held_out/pass@1 (and pass@k for k = samples), also by difficulty where problems have one; and the episodes.

    Every evaluation draws with the same seeds, so two policies differ by their weights only. Episodes in which the
    sandbox failed count as not solved, and are reported as held_out/sandbox_errors.
    """
    groups = collect(engine, environment, problems, samples, seed)
    scores: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        correct = sum(e.reward.solved for e in group.episodes)
        for k in {1, samples}:
            scores[f"held_out/pass@{k}"].append(pass_at_k(samples, correct, k))
        if "difficulty" in group.problem.meta:
            name = f"held_out/pass@1/difficulty_{group.problem.meta['difficulty']}"
            scores[name].append(correct / samples)
    metrics = {name: float(np.mean(values)) for name, values in sorted(scores.items())}
    episodes = [e for g in groups for e in g.episodes]
    metrics["held_out/n"] = len(problems)
    metrics["held_out/length"] = float(np.mean([e.sampled_length for e in episodes]))
    metrics["held_out/sandbox_errors"] = sum(e.status == "sandbox_error" for e in episodes)
    return metrics, groups
