"""PPO with a learned value of each turn, as RLEF trains code models from execution feedback (arXiv 2410.02089).

The policy is one of tokens, the value one of turns: V(c_t) is read at the last token of turn t's prompt, before its
first token is drawn. pi and old are the policies of policy_gradient.py, rho_ref is the reference. Turn t has the
tokens a_t and the reward

    R_t = r_t - kl_in_reward * mean over a_t of (log old - log rho_ref)

With value = "turn" the steps of an episode are its turns, with "token" its sampled tokens, where R_t stands at the last
token of its turn and inserted tokens are skipped. Generalized advantage estimation (arXiv 1506.02438) over the steps:

    delta_s = R_s + gamma V_{s+1} - V_s      A_s = delta_s + gamma gae_lambda A_{s+1}      target_s = A_s + V_s

with gamma = gae_lambda = 1 that is RLEF's return-to-go minus the value. All of this is computed once, before the first
update on a batch, on the host in float64. A is then normalized over the steps of the update's batch. The loss is that
of policy_gradient.py, and with V' the value now and V the one before

    value_weight * mean over steps of max((V' - target)^2, (clip(V', V - value_clip, V + value_clip) - target)^2) / 2

The paper does not say how the policy's loss is averaged over tokens; `averaging` does. Settings: docs/reference/ppo.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Le

from jaxrl.algorithms import LossMetrics, policy_gradient
from jaxrl.algorithms.batch import Array, Batch
from jaxrl.algorithms.credit import finite_rewards
from jaxrl.algorithms.objective import Credit, Objective, Outputs
from jaxrl.config.rules import AboveZero, Count, Infinite, NonNegative, Positive, Share, check_settings
from jaxrl.config.training import OptimizerConfig
from jaxrl.errors import UserError
from models.heads import Head
from rollouts.episode import Episode

VALUE = "value"
EXTRAS = ("turn_begins", "turn_reward", "old_value", "target", "value_weight")


@dataclass
class Settings(policy_gradient.Settings):
    """PPO with a critic; the policy's settings are those of the policy gradient."""

    minibatches: Positive = 4
    sampler_correction: Literal["none", "truncate", "mask", "reject"] = "truncate"
    sampler_ratio_max: Annotated[float, Ge(1), Infinite] = 1.0
    value: Literal["turn", "token"] = "turn"  # a value for each turn (RLEF) or each sampled token
    gamma: Share = 1.0  # discount of a step: of a turn, or of a token
    gae_lambda: Share = 1.0  # 1: return-to-go minus value
    normalize: bool = True  # advantages, over the steps of the update's batch
    advantage_epsilon: NonNegative = 1e-8  # added to their std
    reward: Literal["outcome", "task"] = "outcome"  # task: the episode's own, penalties of its environment included
    solved_reward: AboveZero = 1.0  # of "outcome", at the last turn
    failed_reward: Annotated[float, Le(0)] = -1.0
    invalid_penalty: NonNegative = 0.2  # of "outcome", for each answer that is not a program, but not the last one
    penalize_last: bool = False  # the last one too
    kl_in_reward: NonNegative = 0.05  # beta, of the mean over a turn's tokens; 0: no reference model is kept for it
    value_clip: Annotated[float, Ge(0), Infinite] = 0.2  # most that an update may move a value; .inf: no limit
    value_weight: NonNegative = 0.5  # of the value's loss; only matters where critic = "head"
    critic: Literal["own", "head"] = "own"  # a decoder of its own (with LoRA: adapters), or a head on the policy's
    critic_scale: NonNegative = 0.02  # standard deviation of the head's initial weights
    critic_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))
    critic_warmup_steps: Count = 0  # steps of the stage in which only the critic is trained

    @property
    def decoders(self) -> int:
        return 1 + (self.critic == "own")

    def check(self, where: str = "grpo.loss") -> None:
        """Raises UserError for settings that contradict each other."""
        super().check(where)
        fixed = {
            "dynamic_sampling": False,
            "advantage": "group_std",
            "credit": "episode",
            "batch_scale": "none",
            "overlong": "none",
            "old_logprobs": "trainer",
        }
        for name, only in fixed.items():
            if getattr(self, name) != only:
                raise UserError(
                    f"{where}.{name} = {getattr(self, name)!r} must be {only!r}: the critic of PPO takes the place of "
                    "statistics within a group"
                )


class Steps(NamedTuple):
    """The S steps that have a value and an advantage, in the order of rows, and the n learned tokens in them."""

    index: tuple[np.ndarray, np.ndarray]  # i64[S] twice: row, and where the value stands: the step's first token
    episodes: np.ndarray  # i64[S], another number for each episode
    rewards: np.ndarray  # f64[S], R
    values: np.ndarray  # f64[S], before the update
    of_token: np.ndarray  # i64[n], the step of each learned token
    kl: np.ndarray  # f64[turns], the mean over a turn's tokens of log old - log rho_ref; 0 without a reference


def make_objective(settings: Settings, *, max_new_tokens: int) -> Objective:
    """The objective of these settings. Raises UserError for a wrong one."""
    check_settings(settings, "grpo.loss")
    # Its KL in the reward is that of turns.
    plain = policy_gradient.make_objective(
        dataclasses.replace(settings, kl_in_reward=0.0), max_new_tokens=max_new_tokens
    )

    def credit(episodes: Sequence[Episode]) -> list[Credit]:
        finite_rewards(episodes)
        return [Credit(0.0, turn_marks(e, settings)) for e in episodes]

    def loss(outputs: Outputs, batch: Batch) -> tuple[jax.Array, LossMetrics]:
        value, metrics = plain.loss(outputs, batch)
        error, clipped = value_loss(outputs.heads[VALUE], batch, settings.value_clip)
        totals = {"value/loss": error, "value/clip_fraction": clipped}
        totals = {name: jax.lax.stop_gradient(x) for name, x in totals.items()}
        return value + settings.value_weight * error, metrics._replace(totals=totals)

    return dataclasses.replace(
        plain,
        name="ppo",
        loss=loss,
        credit=credit,
        needs=plain.needs
        | {"heads", "old_logprobs"}
        | ({"reference_logprobs"} if settings.needs_reference else frozenset()),
        heads=(Head(VALUE, scale=settings.critic_scale, own=settings.critic == "own"),),
        heads_optimizer=settings.critic_optimizer,
        heads_first=settings.critic_warmup_steps,
        extras=(*EXTRAS, *plain.extras),
        prepare=lambda batch: with_advantages(batch, settings),
        measure=lambda batch: measurements(batch, settings),
        zero_credit_trains=True,
        smallest_group=1,
    )


def turn_marks(episode: Episode, settings: Settings) -> dict[str, np.ndarray]:
    """turn_begins and turn_reward f64[n] of the n learned tokens: 1 at a turn's first token; r_t at its last.

    A turn is what the model samples at once. One without tokens has no value: its reward is that of the turn before (of
    the next, if it is the first). Learned tokens that nobody sampled belong to the turn before them.
    """
    rewards = iter(turn_rewards(episode, settings))
    length = sum(len(turn.tokens) for turn in episode.turns if turn.learned)
    begins, given, place, waiting = np.zeros(length), np.zeros(length), 0, 0.0
    for turn in episode.turns:
        n = len(turn.tokens) if turn.learned else 0
        if turn.sampled:
            waiting += next(rewards)
            begins[place : place + n][:1] = 1.0
        place += n
        if place:
            given[place - 1] += waiting
            waiting = 0.0
    return {"turn_begins": begins, "turn_reward": given}


def turn_rewards(episode: Episode, settings: Settings) -> np.ndarray:
    """r of each sampled turn, f64[turns], without the KL term. A turn that was cut off is the last one."""
    turns = sum(turn.sampled for turn in episode.turns)
    if settings.reward == "task":
        last = np.append(np.zeros(max(turns - 1, 0)), episode.reward.value)
        return last if episode.reward.turns is None else np.asarray(episode.reward.turns, np.float64)
    rewards = np.zeros(turns)
    sampled = [turn for turn in episode.turns if turn.sampled]
    tried = [number for number, turn in enumerate(sampled) if turn.kind != "text"]  # the others are not programs
    for number, attempt in zip(tried, episode.attempts):
        if not attempt.valid and (number < turns - 1 or settings.penalize_last):
            rewards[number] -= settings.invalid_penalty
    rewards[-1:] += settings.solved_reward if episode.reward.solved else settings.failed_reward
    return rewards


def steps_of(batch: Batch, settings: Settings) -> Steps:
    """The steps of a batch whose old_value, old_logprobs and (with kl_in_reward) reference_logprobs are known."""
    learned = np.asarray(batch.loss_mask) > 0
    rows, places = np.nonzero(learned)

    def of_tokens(x: Array | None) -> np.ndarray:
        return np.asarray(x, np.float64)[learned]

    episodes = rows * (learned.shape[1] + 1) + np.asarray(batch.segment_ids)[learned]
    begins = (np.diff(episodes, prepend=-1) != 0) | (of_tokens(batch.extras["turn_begins"]) > 0.5)
    turns = np.cumsum(begins) - 1
    kl = np.zeros(begins.sum())
    if settings.kl_in_reward:
        log_ratio = of_tokens(batch.old_logprobs) - of_tokens(batch.reference_logprobs)
        kl = np.bincount(turns, log_ratio) / np.bincount(turns)
    ends = np.append(begins[1:], True)[: len(begins)]
    rewards, values = of_tokens(batch.extras["turn_reward"]), of_tokens(batch.extras["old_value"])
    rewards[ends] -= settings.kl_in_reward * kl
    if settings.value == "token":
        return Steps((rows, places), episodes, rewards, values, np.arange(len(rows)), kl)
    of_turns = np.bincount(turns, rewards, minlength=len(kl))
    return Steps((rows[begins], places[begins]), episodes[begins], of_turns, values[begins], turns, kl)


def gae(
    rewards: np.ndarray, values: np.ndarray, episodes: np.ndarray, gamma: float = 1.0, gae_lambda: float = 1.0
) -> np.ndarray:
    """Advantages f64[S] of steps with rewards and values f64[S], those of an episode one after another.

    An episode's end has the value 0: one that was cut off has failed.
    """
    advantages, later, value = np.zeros(len(rewards)), 0.0, 0.0
    for s in reversed(range(len(rewards))):
        if s + 1 == len(rewards) or episodes[s + 1] != episodes[s]:
            later = value = 0.0
        later = rewards[s] + gamma * value - values[s] + gamma * gae_lambda * later
        advantages[s], value = later, values[s]
    return advantages


def with_advantages(batch: Batch, settings: Settings) -> Batch:
    """The batch with advantages, and the targets and weights of its values."""
    steps, learned = steps_of(batch, settings), np.asarray(batch.loss_mask) > 0
    advantages = gae(steps.rewards, steps.values, steps.episodes, settings.gamma, settings.gae_lambda)
    target, weight = np.zeros(learned.shape, np.float32), np.zeros(learned.shape, np.float32)
    target[steps.index], weight[steps.index] = advantages + steps.values, 1 / max(len(advantages), 1)
    if settings.normalize and len(advantages):
        advantages = (advantages - advantages.mean()) / (advantages.std() + settings.advantage_epsilon)
    of_tokens = np.zeros(learned.shape, np.float32)
    of_tokens[learned] = advantages[steps.of_token]
    extras = dict(batch.extras) | {"target": target, "value_weight": weight}
    return dataclasses.replace(batch, advantages=of_tokens, extras=extras)


def measurements(batch: Batch, settings: Settings) -> dict[str, float]:
    """What a batch says about the critic before the update, over its steps.

    value/explained_variance is 1 - Var(target - V) / Var(target). It is left out where only the KL term tells the
    targets apart: there is nothing to explain then, and the number would be dust divided by dust.
    """
    steps = steps_of(batch, settings)
    if not len(steps.values):
        return {}
    target = np.asarray(batch.extras["target"], np.float64)[steps.index]
    found = {"value/mean": steps.values.mean(), "value/target": target.mean()}
    if settings.kl_in_reward:
        found["kl/turn"] = steps.kl.mean()
    plain = steps_of(batch, dataclasses.replace(settings, kl_in_reward=0.0)).rewards
    returns = gae(plain, np.zeros_like(plain), steps.episodes, settings.gamma)
    if len(np.unique(returns)) > 1:
        found["value/explained_variance"] = 1 - (target - steps.values).var() / target.var()
    return {name: float(x) for name, x in found.items()}


def value_loss(values: Array, batch: Batch, clip: float) -> tuple[jax.Array, jax.Array]:
    """The clipped loss of the values f32[B, T], a mean over steps; and the share of steps at which clipping acts."""
    weight = jnp.asarray(batch.extras["value_weight"])
    old, target = jnp.asarray(batch.extras["old_value"]), jnp.asarray(batch.extras["target"])
    values = jnp.where(weight > 0, values, 0.0)  # not a product: what stands elsewhere may be inf
    near = jnp.clip(values, old - clip, old + clip)
    error = jnp.maximum((values - target) ** 2, (near - target) ** 2) / 2
    return jnp.sum(weight * error), jnp.sum(weight * (values != near))
