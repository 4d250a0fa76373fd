"""What a step's episodes and times say, as numbers for the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jaxrl.errors import TrainingError
from rollouts.episode import Episode, Group


def episode_metrics(groups: Sequence[Group], has_signal: Callable[[Group], bool]) -> dict[str, float]:
    """What the sampled episodes say, before any update. Shares and means of nothing are left out.

    groups/zero_variance is the share of groups without a signal: those whose episodes have no credit.
    """
    episodes = [e for g in groups for e in g.episodes]
    rewards = np.array([e.reward.value for e in episodes])
    lengths = [e.sampled_length for e in episodes]
    calls = [status for e in episodes for status in e.calls]
    some = {
        "length/solved": [n for n, e in zip(lengths, episodes) if e.reward.solved],
        "length/unsolved": [n for n, e in zip(lengths, episodes) if not e.reward.solved],
        "calls/failed": [status != "passed" for status in calls],
    }
    return (
        {
            "reward/mean": float(rewards.mean()),
            "reward/std": float(rewards.std()),
            "solved": float(np.mean([e.reward.solved for e in episodes])),
            "length/mean": float(np.mean(lengths)),
            "unjudged": float(np.mean([e.status == "sandbox_error" for e in episodes])),
            "truncated": float(np.mean([e.status == "truncated" for e in episodes])),
            "groups/zero_variance": float(np.mean([not has_signal(g) for g in groups])),
            "tokens": float(sum(lengths)),
            "turns/mean": sum(t.sampled for e in episodes for t in e.turns) / len(episodes),
            "calls/mean": len(calls) / len(episodes),
        }
        | {name: float(np.mean(values)) for name, values in some.items() if values}
        | solved_by_turn(episodes)
    )


def solved_by_turn(episodes: Sequence[Episode]) -> dict[str, float]:
    """The share of episodes solved with at most k programs, and of programs that are none; {} without programs.

    An environment submits programs until one passes the public tests: only the last one of an episode is solved.
    """
    attempts = [e.attempts for e in episodes]
    most = max(map(len, attempts), default=0)
    if not most:
        return {}
    shares = {f"solved/turn_{k}": np.mean([any(a.solved for a in tried[:k]) for tried in attempts])
              for k in range(1, most + 1)}  # fmt: skip
    shares["turns/invalid"] = np.mean([not a.valid for tried in attempts for a in tried])
    return {name: float(share) for name, share in shares.items()}


def staleness(groups: Sequence[Group], step: int, limit: int, streamed: bool = False) -> dict[str, float]:
    """How many versions older than the policy the weights were that sampled the tokens to learn from.

    Tokens that are too old to be learned from count as staleness/masked; replayed episodes do not count. Nothing is
    measured with a limit of 0, except in a stream. Raises TrainingError if another token is older than `limit`: it must
    never be trained on.
    """
    ages, learned = [np.zeros(0, int)], [np.zeros(0, bool)]
    for episode in (e for g in groups for e in g.episodes if not e.source):
        sampled = [turn for turn in episode.turns if turn.sampled]
        for turn, version in zip(sampled, episode.weight_versions):
            ages.append(
                np.broadcast_to(step - 1 - (version if turn.versions is None else turn.versions), turn.tokens.shape)
            )
            learned.append(np.ones(len(turn.tokens), bool) if turn.fresh is None else turn.fresh)
    age, fresh = np.concatenate(ages), np.concatenate(learned)
    if max(age[fresh], default=0) > limit:
        raise TrainingError(
            f"step {step}: a token was sampled {max(age[fresh])} versions ago, rollout.max_staleness is {limit}"
        )
    if not len(age) or not (limit or streamed):
        return {}
    shares = {f"staleness/{n}": float(np.mean(age == n)) for n in range(int(age.max()) + 1)}
    return {"staleness": float(np.mean(age[fresh])), "staleness/masked": float(np.mean(~fresh)), **shares}


def sandbox_seconds(groups: Sequence[Group]) -> float:
    """Wall time that the programs of these episodes took in the sandbox, one after another."""
    verdicts = [e.reward.verdict for g in groups for e in g.episodes]
    return sum(v.wall_s for v in verdicts if v is not None)


def utilization(metrics: dict[str, float], peak_flops: float) -> dict[str, float]:
    """Tokens a second of the whole step, and the share of the devices' peak that its updates reached (MFU)."""
    seconds = metrics.get("time/train_s", metrics["time/step_s"])
    mfu = metrics["flops/update"] / (seconds * peak_flops)
    return {"time/mfu": mfu, "time/tokens_per_s": metrics["tokens"] / metrics["time/step_s"]}
