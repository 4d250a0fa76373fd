"""A reward model's part in the reward of sampled episodes, and the watch for what it is fooled by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jaxrl.algorithms.credit import advantages, is_usable
from jaxrl.config import Config
from jaxrl.runs.reward_model import RewardModel
from rollouts.episode import Episode, Group

SCORE, TASK = "model_score", "task_reward"  # the parts of a reward that are kept beside its value
WINDOW = 10  # steps whose means are compared
SURE = 2.0  # standard errors


def judge_groups(model: RewardModel, groups: Sequence[Group], config: Config) -> float:
    """Puts the reward model's part into the episodes' rewards, in place; returns its floating-point operations.

    With s the model's scores of a group's usable episodes, z = (s - mean) / (std + 1e-4), which a constant added to the
    group's scores does not change. The reward is z with grpo.reward = "model", and the task's + reward.weight * z with
    "both". Whether a problem is solved stays the task's verdict.
    """
    before = model.flops
    for group, scores in zip(groups, model.score_groups(groups, config.rollout)):
        usable = [(e, s) for e, s in zip(group.episodes, scores) if is_usable(e)]
        normal = advantages(np.array([s for _, s in usable]), "group_std", std_ddof=0)
        for (episode, score), z in zip(usable, normal):
            given = episode.reward
            value = z if config.grpo.reward == "model" else given.value + config.reward.weight * z
            parts = given.parts | {SCORE: float(score), TASK: float(given.value)}
            episode.reward = replace(given, value=float(value), parts=parts)
    return model.flops - before


def model_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What the reward model says of the episodes; {} where it has not judged.

    reward_model/score     the mean score: comparable over the steps of a run, because the model is the same
    reward_model/accuracy  the share of pairs of a right and a wrong episode of one problem that it orders rightly, a
                           tie counting half; left out if no problem has both
    reward_model/task      the mean of the task's reward, which is a part of the reward, or none
    """
    judged = [[e for e in g.episodes if SCORE in e.reward.parts] for g in groups]
    episodes = [e for group in judged for e in group]
    if not episodes:
        return {}
    metrics = {
        "reward_model/score": float(np.mean([e.reward.parts[SCORE] for e in episodes])),
        "reward_model/task": float(np.mean([e.reward.parts[TASK] for e in episodes])),
    }
    ordered = [value for group in judged for value in _ordered(group)]
    return metrics | ({"reward_model/accuracy": float(np.mean(ordered))} if ordered else {})


def _ordered(episodes: Sequence[Episode]) -> list[float]:
    """1, 0 or, for a tie, 1/2 of each pair of a right and a wrong episode."""
    right = [e.reward.parts[SCORE] for e in episodes if e.reward.solved]
    wrong = [e.reward.parts[SCORE] for e in episodes if not e.reward.solved]
    return [0.5 * (1.0 + float(np.sign(a - b))) for a in right for b in wrong]


@dataclass
class HackingWatch:
    """Sees when the model's score rises while the task is solved less often: the policy learns to please the model.

    The means of the last WINDOW steps are compared with those of the WINDOW steps before them. The alarm is on when
    the score's is higher and the pass rate's is lower, both by more than SURE standard errors of the difference.
    """

    scores: list[float] = field(default_factory=list)
    solved: list[float] = field(default_factory=list)
    warned: bool = False

    def look(self, metrics: dict[str, float]) -> dict[str, float]:
        """{"reward_model/alarm": 1 or 0} after a step with these metrics; {} without the model's score."""
        if "reward_model/score" not in metrics:
            return {}
        self.scores.append(metrics["reward_model/score"])
        self.solved.append(metrics["solved"])
        return {"reward_model/alarm": float(rise(self.scores) > SURE and rise(self.solved) < -SURE)}

    def warning(self, metrics: dict[str, float]) -> str:
        """A line for people when the alarm comes on, the first time; else ""."""
        if self.warned or not metrics.get("reward_model/alarm"):
            return ""
        self.warned = True
        (score, before), (now, then) = (
            (np.mean(x[-WINDOW:]), np.mean(x[-2 * WINDOW : -WINDOW])) for x in (self.scores, self.solved)
        )
        return (
            f"reward hacking? over {WINDOW} steps the reward model's score rose from {before:.3g} to {score:.3g}, "
            f"while the share of solved episodes fell from {then:.1%} to {now:.1%}"
        )


def rise(values: Sequence[float], window: int = WINDOW) -> float:
    """How many standard errors the mean of the last `window` values is above that of as many before; 0 for too few.

    Welch's t. Infinite where the two means differ and neither half varies.
    """
    if len(values) < 2 * window:
        return 0.0
    late, early = np.asarray(values[-window:]), np.asarray(values[-2 * window : -window])
    difference = float(late.mean() - early.mean())
    error = float(np.sqrt((late.var(ddof=1) + early.var(ddof=1)) / window))
    return difference / error if error else float(np.copysign(np.inf, difference)) if difference else 0.0
