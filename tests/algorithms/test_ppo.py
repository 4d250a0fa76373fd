"""PPO's returns, advantages, losses and critic against hand-computed cases and plain float64 recursions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms import policy_gradient, ppo
from jaxrl.algorithms.batch import Batch
from jaxrl.algorithms.objective import Outputs
from jaxrl.algorithms.ppo import Settings, make_objective
from jaxrl.errors import UserError
from jaxrl.training.packing import make_batch
from models.config import ModelConfig
from models.decoder import Decoder, initialize
from rollouts.episode import Attempt, Episode, EpisodeStatus, Group, Problem, Reward, Turn

V = 48
CONFIG = ModelConfig("qwen2", V, 32, 48, 2, 4, 2, 8, 64, qkv_bias=True, tied_embeddings=True)


def episode(lengths, solved=True, valid=(), status: EpisodeStatus = "finished", seed=0) -> Episode:
    """A prompt of 3 tokens, turns of these lengths, 2 tokens of feedback between them."""
    rng, turns = np.random.default_rng(seed), []
    for n in lengths:
        if turns:
            turns.append(Turn("user", rng.integers(1, V, 2).astype(np.int32), False))
        turns.append(Turn("assistant", rng.integers(1, V, n).astype(np.int32), True, -rng.random(n).astype(np.float32)))
    attempts = [Attempt(False, False, v) for v in valid]
    prompt = rng.integers(1, V, 3).astype(np.int32)
    return Episode(Problem("p"), prompt, turns, Reward(float(solved), solved), status, "", attempts=attempts)


def batch_of(episodes, settings: Settings, row_length=40) -> Batch:
    objective = make_objective(settings, max_new_tokens=32)
    return make_batch([Group(Problem("p"), episodes)], objective, row_length=row_length, microbatch_rows=1)[0]


def prepared(episodes, settings, kl, values) -> tuple[Batch, np.ndarray]:
    """One row with KLs of turns and values of steps as given; and where its turns begin."""
    batch = batch_of(episodes, settings)
    learned, begins = batch.loss_mask > 0, np.asarray(batch.extras["turn_begins"]) > 0
    rng = np.random.default_rng(1)
    old = np.where(learned, -rng.random(learned.shape), 0)
    turn = np.cumsum(begins, axis=1) - 1
    # Uneven over a turn's tokens, but of mean 0 there: only the mean counts.
    noise = rng.normal(size=learned.shape)
    for k in range(len(kl)):
        noise[learned & (turn == k)] -= noise[learned & (turn == k)].mean()
    reference = np.where(learned, old - np.asarray(kl)[np.clip(turn, 0, None)] - noise, 0)
    old_value = np.zeros(learned.shape)
    old_value[begins if settings.value == "turn" else learned] = values
    extras = dict(batch.extras) | {"old_value": old_value}
    batch = dataclasses.replace(batch, old_logprobs=old, reference_logprobs=reference, extras=extras)
    return make_objective(settings, max_new_tokens=32).prepare(batch), begins


# ---------------------------------------------------------------------- returns and advantages

THREE = episode([4, 3, 5], valid=(False, True, True))
VALUES = (0.1, 0.5, 0.9)


def test_returns_of_turns_are_those_of_the_paper():
    batch, begins = prepared([THREE], Settings(normalize=False), (0.2, 0.0, -0.1), VALUES)
    np.testing.assert_allclose(batch.extras["target"][begins], [0.795, 1.005, 1.005], atol=1e-6)
    np.testing.assert_allclose(batch.advantages[begins], [0.695, 0.505, 0.105], atol=1e-6)
    steps = ppo.steps_of(batch, Settings())
    np.testing.assert_allclose(steps.rewards, [-0.21, 0, 1.005], atol=1e-12)
    np.testing.assert_allclose(steps.kl, [0.2, 0, -0.1], atol=1e-12)
    learned = batch.loss_mask > 0
    assert list(batch.advantages[learned]) == list(np.repeat(batch.advantages[begins], [4, 3, 5]))
    assert not batch.advantages[~learned].any() and batch.extras["value_weight"].sum() == pytest.approx(1)
    np.testing.assert_allclose(batch.extras["value_weight"][begins], 1 / 3, rtol=1e-6)


def test_advantages_are_normalized_over_turns_not_tokens():
    batch, begins = prepared([THREE], Settings(), (0.2, 0.0, -0.1), VALUES)
    np.testing.assert_allclose(batch.advantages[begins], [1.057342, 0.284669, -1.342011], atol=1e-6)


def test_a_failure_costs_one_and_the_kl_term():
    batch, begins = prepared([episode([5], False)], Settings(normalize=False), (0.4,), (0.0,))
    np.testing.assert_allclose(batch.extras["target"][begins], [-1.02], atol=1e-6)


def test_a_turn_that_was_cut_off_is_the_last_one():
    cut = episode([4, 3], False, valid=(True,), status="truncated")
    assert list(ppo.turn_rewards(cut, Settings())) == [0.0, -1.0]


def test_an_answer_that_is_no_program_has_no_penalty():
    thought = episode([2, 2, 2], False, (False, True))
    thought.turns[0].kind = "text"
    assert list(ppo.turn_rewards(thought, Settings())) == [0.0, -0.2, -1.0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, [-0.2, -1.0]), ({"penalize_last": True}, [-0.2, -1.2]), ({"reward": "task"}, [0.0, 0.0]),
     ({"invalid_penalty": 0.5, "failed_reward": 0.0}, [-0.5, 0.0])],
)  # fmt: skip
def test_rewards_of_turns_by_settings(settings, expected):
    np.testing.assert_allclose(ppo.turn_rewards(episode([2, 2], False, (False, False)), Settings(**settings)), expected)


def test_a_turn_without_tokens_hands_its_reward_on():
    marks = ppo.turn_marks(episode([3, 0]), Settings())
    assert list(marks["turn_begins"]) == [1, 0, 0] and list(marks["turn_reward"]) == [0, 0, 1]
    marks = ppo.turn_marks(episode([0, 2], valid=(False, True)), Settings())
    assert list(marks["turn_begins"]) == [1, 0] and list(marks["turn_reward"]) == pytest.approx([0, 0.8])


def test_with_values_of_tokens_all_tokens_of_a_turn_have_its_return():
    values = np.random.default_rng(3).random(12)
    batch, _ = prepared([THREE], Settings(value="token", normalize=False), (0.2, 0.0, -0.1), values)
    learned, returns = batch.loss_mask > 0, np.repeat([0.795, 1.005, 1.005], [4, 3, 5])
    np.testing.assert_allclose(batch.extras["target"][learned], returns, atol=1e-6)
    np.testing.assert_allclose(batch.advantages[learned], returns - values, atol=1e-6)


@pytest.mark.parametrize(("gamma", "lam"), [(1, 1), (1, 0), (0.9, 0.8), (0.5, 1)])
def test_gae_is_the_sum_of_discounted_errors(gamma, lam):
    """A_s = sum_k (gamma lambda)^k delta_{s+k} within the episode, written out as that sum."""
    rng, sizes = np.random.default_rng(0), (5, 3, 1)
    rewards, values, ids = rng.normal(size=9), rng.normal(size=9), np.repeat([7, 9, 2], sizes)
    expected = []
    for part in np.split(np.arange(9), np.cumsum(sizes)[:-1]):
        r, v = rewards[part], np.append(values[part], 0)
        delta = r + gamma * v[1:] - v[:-1]
        expected += [sum((gamma * lam) ** k * delta[s + k] for k in range(len(r) - s)) for s in range(len(r))]
        if gamma == lam == 1:
            np.testing.assert_allclose(expected[-len(r) :], np.cumsum(r[::-1])[::-1] - v[:-1], rtol=1e-12)
        if lam == 0:
            np.testing.assert_allclose(expected[-len(r) :], delta, rtol=1e-12)
    np.testing.assert_allclose(ppo.gae(rewards, values, ids, gamma, lam), expected, rtol=1e-12)


def test_episodes_in_one_row_do_not_see_each_other():
    settings = Settings(kl_in_reward=0, normalize=False)
    pair = [episode([4, 3], True, seed=1), episode([2, 2], False, seed=2)]
    batch, begins = prepared(pair, settings, (0.0,) * 4, (0.0,) * 4)
    assert begins.any(axis=1).sum() == 1 and list(batch.extras["target"][begins]) == [1, 1, -1, -1]


# ---------------------------------------------------------------------- the losses


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [(0.5, 0.1, 1.0, 0.245, 0.0), (0.2, 0.1, 1.0, 0.32, -0.8), (1.2, 0.9, 1.0, 0.02, 0.2)],
)
def test_the_clipped_value_loss(value, old, target, loss, slope):
    extras = {"old_value": jnp.full((1, 1), old), "target": jnp.full((1, 1), target), "value_weight": jnp.ones((1, 1))}
    batch = Batch(*[jnp.ones((1, 1))] * 7, extras=extras)
    with jax.enable_x64(True):
        found, gradient = jax.value_and_grad(lambda v: ppo.value_loss(v, batch, 0.2)[0])(jnp.full((1, 1), value))
    assert float(found) == pytest.approx(loss, abs=1e-6) and float(gradient[0, 0]) == pytest.approx(slope, abs=1e-6)


def test_without_values_it_is_reinforce_and_the_policy_gradient_on_rewards():
    settings = Settings(kl_in_reward=0, normalize=False, minibatches=1, sampler_correction="none", value_weight=0)
    episodes = [episode([5], True, seed=1), episode([3], False, seed=2), episode([4], True, seed=3)]
    batch, _ = prepared(episodes, settings, (0.0,) * 3, (0.0,) * 3)
    assert set(batch.advantages[batch.loss_mask > 0]) == {1.0, -1.0}
    pi = jnp.asarray(batch.old_logprobs, jnp.float32)
    loss = make_objective(settings, max_new_tokens=32).loss
    gradient = jax.grad(lambda x: loss(Outputs(x, {"value": jnp.zeros_like(x)}), batch)[0])(pi)
    np.testing.assert_allclose(gradient, -batch.advantages * batch.loss_weights, atol=1e-7)  # -A grad log pi / tokens
    other = dataclasses.replace(batch, old_logprobs=None)
    same = jax.grad(lambda x: policy_gradient.policy_gradient_loss(x, other, policy_gradient.Settings())[0])(pi)
    np.testing.assert_allclose(gradient, same, atol=1e-7)


def test_the_value_is_read_at_the_end_of_the_turns_prompt():
    """Hidden states elsewhere, inserted tokens' and padding's included, have no part in the value's loss."""
    batch, begins = prepared([THREE], Settings(), (0.2, 0.0, -0.1), VALUES)
    head = jnp.asarray(np.random.default_rng(4).normal(size=begins.shape))
    gradient = jax.grad(lambda v: ppo.value_loss(v, batch, 9.0)[0])(head)
    assert (np.asarray(gradient)[begins] != 0).all() and not np.asarray(gradient)[~begins].any()
    positions = np.flatnonzero(begins[0]) - 1  # of the hidden states: the last token before each answer
    assert list(positions) == [2, 3 + 4 + 1, 3 + 4 + 2 + 3 + 1]


def test_answers_do_not_change_the_value_of_their_own_turn():
    batch, begins = prepared([THREE], Settings(), (0.2, 0.0, -0.1), VALUES)
    model = initialize(Decoder(CONFIG), jax.random.key(0), scale=0.2)
    second = np.flatnonzero(begins[0])[1]
    changed = np.array(batch.tokens)
    changed[0, second : second + 3] = (changed[0, second : second + 3] + 1) % V

    def hidden(tokens):
        return np.asarray(model(jnp.asarray(tokens), jnp.asarray(batch.positions), jnp.asarray(batch.segment_ids)))

    before, after = hidden(batch.tokens)[0], hidden(changed)[0]
    places = np.flatnonzero(begins[0]) - 1
    np.testing.assert_array_equal(before[places[:2]], after[places[:2]])
    assert np.abs(before[places[2]] - after[places[2]]).max() > 1e-4


def test_explained_variance():
    batch, _ = prepared([THREE], Settings(), (0.2, 0.0, -0.1), VALUES)
    target, values = np.array([0.795, 1.005, 1.005]), np.array(VALUES)
    found = ppo.measurements(batch, Settings())
    assert found["value/explained_variance"] == pytest.approx(1 - np.var(target - values) / np.var(target), rel=1e-5)
    assert found["kl/turn"] == pytest.approx(0.1 / 3)
    same = [episode([4, 2], False, seed=1), episode([3], False, seed=2)]
    batch, _ = prepared(same, Settings(), (0.2, 0.1, 0.3), VALUES)
    assert "value/explained_variance" not in ppo.measurements(batch, Settings())


@pytest.mark.parametrize(
    "settings", [{"dynamic_sampling": True}, {"advantage": "group_mean"}, {"overlong": "filter"}], ids=str
)
def test_statistics_of_groups_are_refused(settings):
    with pytest.raises(UserError, match=r"grpo\.loss\.\w+ = .* must be"):
        make_objective(Settings(**settings), max_new_tokens=8)
