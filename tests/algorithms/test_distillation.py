"""Distillation: the exact gradient over all outcomes, the metric, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms import policy_gradient
from jaxrl.algorithms.batch import Batch
from jaxrl.algorithms.distillation import TEACHER, Settings, make_objective
from jaxrl.algorithms.objective import Outputs
from jaxrl.config import Config
from jaxrl.config.plugins import PLUGINS, make_settings, settle
from jaxrl.config.rules import check_settings
from jaxrl.errors import UserError
from jaxrl.training.packing import make_batch
from jaxrl.training.reinforce import objective_of
from rollouts.episode import Episode, Group, Problem, Reward, Turn

V, T = 3, 3  # tokens of the vocabulary, tokens of an episode
EPISODES = np.array(list(itertools.product(range(V), repeat=T)))  # all of them
PREFIXES = [s for n in range(T) for s in itertools.product(range(V), repeat=n)]  # the states, in order
STATES = np.array([[PREFIXES.index(tuple(e[:t])) for t in range(T)] for e in EPISODES])  # [V^T, T]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def tables(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [states, V] of the policy and of the teacher."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(len(PREFIXES), V)), 2 * rng.normal(size=(len(PREFIXES), V))


def of_tokens(logits: Any) -> Any:
    """The logprob of each token of all episodes, [V^T, T]."""
    return jax.nn.log_softmax(jnp.asarray(logits))[STATES, EPISODES]


def all_episodes(old: np.ndarray, teacher: np.ndarray, rewards: Any = 0.0, kept: bool = False) -> Batch:
    """Every episode, one a row, weighed by its probability under the old policy: the sum is the expectation."""
    ones, logprobs = np.ones(EPISODES.shape), np.asarray(of_tokens(old))
    weights = np.exp(logprobs.sum(1, keepdims=True)) * ones
    return Batch(
        EPISODES, np.arange(T) + 0 * EPISODES, 1 + 0 * EPISODES, ones, weights, rewards * ones, logprobs,
        old_logprobs=logprobs if kept else None, extras={TEACHER: np.asarray(of_tokens(teacher))},
    )  # fmt: skip


def kl_held(logits: Any, old: np.ndarray, teacher: np.ndarray) -> jax.Array:
    """The sum over t of KL(pi(. | s_t) || teacher(. | s_t)), its states weighed as the old policy visits them."""
    p, of_old = jax.nn.log_softmax(jnp.asarray(logits)), np.asarray(jax.nn.log_softmax(jnp.asarray(old)))
    visits = np.array([np.exp(sum(of_old[PREFIXES.index(s[:n]), s[n]] for n in range(len(s)))) for s in PREFIXES])
    return jnp.sum(visits[:, None] * jnp.exp(p) * (p - jax.nn.log_softmax(jnp.asarray(teacher))))


@pytest.mark.parametrize("kept", [False, True], ids=["one update", "first of several"])
def test_the_expected_gradient_is_that_of_the_kl_in_every_state(kept):
    student, teacher = tables()
    objective = make_objective(Settings(teacher="x", coefficient=0.7), max_new_tokens=T)
    batch = all_episodes(student, teacher, kept=kept)

    def loss(logits):
        return objective.loss(Outputs(of_tokens(logits), {}), batch)[0]

    def whole(logits):  # with states that move: the KL of whole episodes, another gradient
        return jnp.sum(jnp.exp(of_tokens(logits).sum(1)) * (of_tokens(logits) - of_tokens(teacher)).sum(1))

    found, wanted = jax.grad(loss)(student), jax.grad(kl_held)(student, student, teacher)
    np.testing.assert_allclose(found, 0.7 * wanted, atol=1e-12)
    assert np.abs(wanted).max() > 0.1
    assert float(kl_held(student, student, teacher)) == pytest.approx(float(whole(student)), abs=1e-12)
    assert np.abs(jax.grad(whole)(student) - wanted).max() > 0.01


def test_in_a_later_update_the_gradient_is_that_of_the_importance_weighted_reward():
    """States and rewards are those of the old policy; the weights of its tokens are exact without clipping."""
    old, teacher = tables()
    student = old + 0.1 * tables(1)[0]
    settings = Settings(teacher="x", clip_low=1.0, clip_high=float("inf"))
    batch = all_episodes(old, teacher, kept=True)
    value, gradient = jax.value_and_grad(
        lambda x: make_objective(settings, max_new_tokens=T).loss(Outputs(of_tokens(x), {}), batch)[0]
    )(student)

    def expected(logits):
        ratio = jnp.exp(jax.nn.log_softmax(logits) - np.asarray(jax.nn.log_softmax(old)))
        kl = np.asarray(jax.nn.log_softmax(old) - jax.nn.log_softmax(teacher))
        visits = np.asarray(jnp.exp(of_tokens(old).sum(1)))
        return sum(visits[i] * (ratio * kl)[STATES[i, t], EPISODES[i, t]] for i in range(len(visits)) for t in range(T))

    wanted, slope = jax.value_and_grad(expected)(jnp.asarray(student))
    assert float(value) == pytest.approx(float(wanted), abs=1e-12)
    np.testing.assert_allclose(gradient, slope, atol=1e-12)


def test_a_student_that_descends_becomes_the_teacher():
    student, teacher = tables()
    objective = make_objective(Settings(teacher="x"), max_new_tokens=T)
    extras = {TEACHER: of_tokens(teacher)}
    plain = all_episodes(student, teacher)

    @jax.jit
    def step(logits):
        weights = jnp.exp(jax.lax.stop_gradient(of_tokens(logits)).sum(1, keepdims=True)) * jnp.ones((1, T))
        batch = dataclasses.replace(plain, loss_weights=weights, extras=extras)
        return logits - jax.grad(lambda x: objective.loss(Outputs(of_tokens(x), {}), batch)[0])(logits)

    assert float(kl_held(student, student, teacher)) > 1
    for _ in range(2000):
        student = step(student)
    assert 0 <= float(kl_held(student, student, teacher)) < 1e-3
    found, wanted = (np.exp(np.asarray(of_tokens(x)).sum(1)) for x in (student, teacher))
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_the_metric_is_the_mean_over_learned_tokens():
    student, teacher = tables()
    batch = all_episodes(student, teacher)
    mask = np.zeros(EPISODES.shape)
    mask[:, 1:] = 1
    mask[::2] = 0
    batch = dataclasses.replace(batch, loss_mask=mask, loss_weights=np.asarray(batch.loss_weights) * mask)
    wild = jnp.where(mask > 0, of_tokens(student), jnp.inf)
    value, metrics = make_objective(Settings(teacher="x"), max_new_tokens=T).loss(Outputs(wild, {}), batch)
    per_token = np.asarray(of_tokens(student) - of_tokens(teacher))[mask > 0]
    assert float(metrics.sums["distill/reverse_kl"]) == pytest.approx(per_token.sum(), rel=1e-12)
    assert float(metrics.sums["tokens"]) == mask.sum()
    assert float(value) == pytest.approx(float((np.asarray(batch.loss_weights)[mask > 0] * per_token).sum()), rel=1e-12)


def test_the_advantage_of_the_task_is_added():
    """Their sum is the loss: the policy gradient's is linear in the advantage of a first update."""
    student, teacher = tables()
    rewards = np.random.default_rng(3).normal(size=(len(EPISODES), 1))
    both = Settings(teacher="x", reward="task", coefficient=0.3)
    losses = []
    for settings, of_task in ((both, rewards), (dataclasses.replace(both, reward="none"), 0.0)):
        batch = all_episodes(student, teacher, of_task)
        losses.append(make_objective(settings, max_new_tokens=T).loss(Outputs(of_tokens(student), {}), batch)[0])
    plain = policy_gradient.policy_gradient_loss(
        of_tokens(student), all_episodes(student, teacher, rewards), policy_gradient.Settings()
    )[0]
    assert float(losses[0]) == pytest.approx(float(losses[1] + plain), abs=1e-12)


def test_the_samplers_logprobs_may_stand_for_old():
    student, teacher = tables()
    batch = all_episodes(student, teacher)
    sampler = np.asarray(batch.behaviour_logprobs) - 0.1
    batch = dataclasses.replace(batch, behaviour_logprobs=sampler)
    found = {}
    for old in ("trainer", "sampler"):
        objective = make_objective(Settings(teacher="x", old_logprobs=old), max_new_tokens=T)
        found[old] = objective.loss(Outputs(of_tokens(student), {}), batch)[1].sums["distill/reverse_kl"]
    assert float(found["trainer"] - found["sampler"]) == pytest.approx(0.1 * EPISODES.size, rel=1e-9)


def episode(problem: str, reward: float, status: Any = "finished") -> Episode:
    turn = Turn("assistant", np.ones(2, np.int32), True, -np.ones(2, np.float32))
    tool = Turn("output", np.ones(2, np.int32), False)
    last = Turn("assistant", np.ones(1, np.int32), True, -np.ones(1, np.float32))
    return Episode(Problem(problem), np.ones(1, np.int32), [turn, tool, last], Reward(reward, False), status, "")


def test_credit_alone_and_beside_the_task():
    """Alone every episode trains, whatever its reward, and one is enough of a problem."""
    single = [Group(Problem("a"), [episode("a", float("nan"))]), Group(Problem("b"), [episode("b", 1.0, "truncated")])]
    alone = make_objective(Settings(teacher="x"), max_new_tokens=4)
    batch, log = make_batch(single, alone, row_length=8, microbatch_rows=1)
    assert log["without_gradient"] == log["groups_too_small"] == log["groups_without_signal"] == 0
    assert np.asarray(batch.loss_mask).sum() == 6 and not np.asarray(batch.advantages).any()
    assert batch.extras.keys() == {TEACHER} and alone.smallest_group == 1
    filtered = make_objective(Settings(teacher="x", overlong="filter"), max_new_tokens=4)
    assert make_batch(single, filtered, row_length=8, microbatch_rows=1)[1]["overlong_filtered"] == 1
    pair = [Group(Problem("a"), [episode("a", 0.0), episode("a", 1.0)])]
    both = make_objective(Settings(teacher="x", reward="task", advantage="group_mean"), max_new_tokens=4)
    batch, _ = make_batch(pair, both, row_length=8, microbatch_rows=1)
    assert sorted(np.unique(batch.advantages)) == [-0.5, 0, 0.5] and both.smallest_group == 2
    equal = Group(Problem("a"), [episode("a", 0.0), episode("a", 0.0)])
    assert all(objective.signal(equal) for objective in (alone, both))  # so that no run stops for want of a gradient


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dynamic_sampling": True, "reward": "task"}, "dynamic_sampling = True must be False"),
        ({"advantage": "group_mean"}, r"advantage = 'group_mean' needs"),
        ({"std_ddof": 0}, r"std_ddof = 0 needs"),
        ({"advantage_epsilon": 0.1}, r"advantage_epsilon = 0\.1 needs"),
        ({"overlong": "penalty"}, r"overlong = 'penalty' needs"),
        ({"coefficient": 0.0}, r"coefficient = 0\.0 must be > 0"),
        ({"reward": "some"}, r"reward = 'some' must be one of"),
        ({"kl_estimator": "k1", "reward": "task"}, "kl_estimator = 'k1' must be"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(UserError, match=rf"^grpo\.loss\.{message}"):
        check_settings(Settings(teacher="x", **settings), "grpo.loss")
    if "reward" not in settings and "coefficient" not in settings:
        check_settings(Settings(teacher="x", reward="task", **settings), "grpo.loss")


def config_of(loss: Any, size: int) -> Config:
    config = Config()
    config.grpo.loss, config.grpo.group_size = loss, size
    settle(config)
    check_settings(config)
    return config


def test_a_teacher_is_named_and_needed():
    with pytest.raises(UserError, match=r"grpo\.loss\.teacher = '' must be a model"):
        objective_of(config_of(Settings(), 8))


@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [
        ("policy_gradient", {}, 2), ("set_objectives", {"objective_k": 3}, 3), ("spo", {"q0": "group"}, 2),
        ("spo", {"q0": "reference"}, 1), ("ppo", {}, 1), ("sft", {}, 1), ("distillation", {"teacher": "x"}, 1),
        ("distillation", {"teacher": "x", "reward": "task"}, 2),
    ],
)  # fmt: skip
def test_the_smallest_group_of_each_objective(name, settings, least):
    loss = make_settings(PLUGINS["objective"], name, **settings)
    assert objective_of(config_of(loss, least)).smallest_group == least
    if least > 1:
        with pytest.raises(UserError, match=rf"grpo\.group_size = {least - 1} must be at least {least}"):
            objective_of(config_of(loss, least - 1))
