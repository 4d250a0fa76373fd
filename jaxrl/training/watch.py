"""Whether a run still learns: it stops, saved, when its sandbox judges nothing or its updates change nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxrl.config import GRPOConfig
from rollouts.episode import Episode, Group

UNJUDGED = 0.5  # share of episodes; with more than that there is nothing to trust
UNJUDGED_STEPS = 3  # in a row
FEWEST_STEPS = 10  # of a stage that is expected to have a gradient


@dataclass
class Watch:
    """Looks at every step of a stage.

    Args:
        settings: of the GRPO stage.
        steps: of the stage that are still to do.
        whole: whether those are all of them.
    """

    settings: GRPOConfig
    steps: int
    whole: bool = True
    unjudged: int = 0  # steps in a row
    without_gradient: int = 0  # steps in a row
    seen: int = 0

    def look(self, metrics: Mapping[str, float]) -> str:
        """Why the run should stop after the step with these metrics; "" if it should not."""
        self.seen += 1
        self.unjudged = self.unjudged + 1 if metrics.get("unjudged", 0.0) > UNJUDGED else 0
        self.without_gradient = self.without_gradient + 1 if self._learned_nothing(metrics) else 0
        if self.unjudged >= UNJUDGED_STEPS:
            return (
                f"in each of the last {self.unjudged} steps more than half of the episodes could not be judged "
                "(sandbox_error; python -m sandbox doctor, and samples/ in the run's folder, say more)"
            )
        patience = self.settings.patience
        if patience and self.without_gradient >= patience:
            return f"none of the last {self.without_gradient} steps had a gradient (grpo.patience = {patience}); {WHY}"
        if self.whole and self.seen == self.steps == self.without_gradient and patience and self.steps >= FEWEST_STEPS:
            return f"none of the stage's {self.steps} steps had a gradient, nothing was learned; {WHY}"
        return ""

    def _learned_nothing(self, metrics: Mapping[str, float]) -> bool:
        """No update, none with a gradient, or one that only pulls to the reference policy or to more entropy."""
        loss = self.settings.loss
        pulled = loss.needs_reference or getattr(loss, "entropy_coefficient", 0.0) > 0
        return bool(not metrics.get("grad_norm") or (pulled and metrics.get("groups/zero_variance") == 1.0))


WHY = "all episodes of a problem had the same reward: the problems are too hard or too easy for this model"


def why_unjudged(groups: Sequence[Group]) -> str:
    """How many episodes could not be judged, and the commonest reason, if they are more than half; else ""."""
    episodes = [e for g in groups for e in g.episodes]
    failed = [e for e in episodes if e.status == "sandbox_error"]
    if len(failed) <= UNJUDGED * len(episodes):
        return ""
    (reason, _), *_ = Counter(map(_reason, failed)).most_common(1)
    return f"{len(failed)} of {len(episodes)} episodes could not be judged (sandbox_error: {reason})"


def _reason(episode: Episode) -> str:
    verdict = episode.reward.verdict
    lines = verdict.stderr.strip().splitlines() if verdict is not None else []
    return lines[-1] if lines else "a tool call failed; python -m sandbox doctor says more"
