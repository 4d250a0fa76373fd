"""The KL in the reward against TRL's RLOO in a loop, and the expected gradients of every KL by enumeration."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_across import tokens_of
from test_policy_gradient import MAX_NEW_TOKENS, make_case

from jaxrl.algorithms import ppo, set_objectives
from jaxrl.algorithms.batch import Batch
from jaxrl.algorithms.policy_gradient import Settings, make_objective, policy_gradient_loss
from jaxrl.config.rules import check_settings
from jaxrl.errors import UserError
from jaxrl.training.packing import make_batch
from rollouts.episode import Episode, Group, Problem, Reward, Turn

BETA = 0.3


@pytest.mark.parametrize("old", ["trainer", "sampler"])
@pytest.mark.parametrize(("advantage", "scale"), [
    ("leave_one_out", "none"), ("group_std", "none"), ("group_mean", "std"), ("reward", "whiten"),
])  # fmt: skip
def test_advantages_equal_the_loop(advantage, scale, old):
    """RLOOTrainer: rewards - beta * (old - reference).sum(), then the group's baseline; then the batch's scale."""
    case = make_case(seed=2, problems=5)
    config = Settings(advantage=advantage, batch_scale=scale, kl_in_reward=BETA, advantage_epsilon=0, old_logprobs=old)
    objective, batches = make_objective(config, max_new_tokens=MAX_NEW_TOKENS), []
    for part in (case.groups[:2], case.groups[2:]):
        batch, log = make_batch(part, objective, row_length=40, microbatch_rows=2)
        assert log["without_gradient"] == 0
        filled = {"reference_logprobs": np.asarray(case.at(case.reference, batch))}
        filled |= {"old_logprobs": np.asarray(case.at(case.old, batch))} if old == "trainer" else {}
        batches.append(dataclasses.replace(batch, **filled))
    found: dict[int, float] = {}
    k1 = []
    for batch in objective.across(batches, case.groups):
        mask = np.asarray(batch.loss_mask) > 0
        found |= dict(zip(np.asarray(batch.tokens)[mask].tolist(), np.asarray(batch.advantages)[mask].tolist()))
        k1.append(objective.measure(batch)["kl/episode"] * (8 if batch.tokens is batches[0].tokens else 12) / 20)

    before, expected, totals, kls = case.old if old == "trainer" else case.sampler, {}, [], []
    for g in case.groups:
        kl = [sum(before[t] - case.reference[t] for t in tokens_of(e)) for e in g.episodes]
        r = np.array([e.reward.value for e in g.episodes]) - BETA * np.array(kl)
        A = {
            "leave_one_out": [x - np.delete(r, i).mean() for i, x in enumerate(r)],
            "group_std": (r - r.mean()) / r.std(ddof=1),
            "group_mean": r - r.mean(),
            "reward": r,
        }[advantage]
        totals, kls = [*totals, *r], [*kls, *kl]
        expected |= {t: a for e, a in zip(g.episodes, A) for t in tokens_of(e)}
    values = np.array(list(expected.values()))
    values = values / np.std(totals, ddof=1) if scale == "std" else values
    values = (values - values.mean()) / values.std(ddof=1) if scale == "whiten" else values
    np.testing.assert_allclose([found[t] for t in expected], values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sum(k1), np.mean(kls), rtol=1e-5)


# --- a policy of two tokens out of three, all of whose episodes can be listed ---

SEQUENCES = list(itertools.product(range(3), repeat=2))


def token_logprobs(logits: jax.Array) -> jax.Array:
    """f[9, 2] of all sequences; logits [4, 3]: of the first token, and of the second after each first one."""
    table = jax.nn.log_softmax(logits)
    return jnp.stack([jnp.stack([table[0, a], table[1 + a, b]]) for a, b in SEQUENCES])


def sequence_kl(logits: jax.Array, reference: jax.Array) -> jax.Array:
    """KL(pi || reference) of whole sequences."""
    p, q = token_logprobs(logits).sum(1), token_logprobs(reference).sum(1)
    return jnp.sum(jnp.exp(p) * (p - q))


def prefix_kl(logits: jax.Array, reference: jax.Array, reverse: bool) -> jax.Array:
    """The KL of the next token's distributions, after prefixes drawn from pi whose chance is not differentiated."""
    p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(reference)
    p, q = (q, p) if reverse else (p, q)
    chance = jax.lax.stop_gradient(jnp.concatenate([jnp.ones(1), jnp.exp(jax.nn.log_softmax(logits)[0])]))
    return jnp.sum(chance * jnp.sum(jnp.exp(p) * (p - q), axis=1))


def policies() -> tuple[jax.Array, jax.Array]:
    return tuple(jnp.asarray(x) for x in np.random.default_rng(0).normal(size=(2, 4, 3)))  # pyright: ignore


def episodes_in(groups: list[tuple[int, ...]], rewards: np.ndarray) -> list[Group]:
    """A problem for each group of sequences, given by their numbers; a token's id is 1 + 2 (its sequence) + place."""
    made = []
    for g, numbers in enumerate(groups):
        problem = Problem(str(g))
        turns = [Turn("assistant", np.array([1 + 2 * i, 2 + 2 * i], np.int32), True, np.zeros(2, np.float32))
                 for i in numbers]  # fmt: skip
        episodes = [Episode(problem, np.array([0], np.int32), [turn], Reward(float(rewards[i]), False), "finished", "")
                    for i, turn in zip(numbers, turns)]  # fmt: skip
        made.append(Group(problem, episodes))
    return made


def expected_gradient(settings: Settings, group_size: int, rewards: np.ndarray) -> np.ndarray:
    """The gradient of the loss over all groups of that size, each weighted with its chance, tokens summed."""
    logits, reference = policies()
    groups = list(itertools.product(range(9), repeat=group_size))
    objective = make_objective(settings, max_new_tokens=2)
    batch, _ = make_batch(episodes_in(groups, rewards), objective, row_length=3, microbatch_rows=1)
    first = np.asarray(batch.tokens)[:, 1]
    chance = np.exp(np.asarray(token_logprobs(logits).sum(1)))
    by_group = [np.prod(chance[list(numbers)]) / group_size for numbers in groups for _ in numbers]
    assert len(by_group) == len(first) and (first == [1 + 2 * i for numbers in groups for i in numbers]).all()

    def at(logits):
        flat = jnp.concatenate([jnp.zeros(1), token_logprobs(logits).reshape(-1)])
        return flat[np.asarray(batch.tokens)]

    learned = np.asarray(batch.loss_mask) > 0
    ready = dataclasses.replace(
        batch,
        old_logprobs=np.asarray(at(logits)) if "old_logprobs" in objective.needs else None,
        reference_logprobs=np.asarray(at(reference)),
        loss_weights=learned * np.array(by_group)[:, None],
    )
    (ready,) = objective.across([ready], [])
    assert isinstance(ready, Batch)
    return jax.grad(lambda x: policy_gradient_loss(at(x), ready, settings)[0])(logits)


SUMMED = {"averaging": "constant", "constant_length": 1}


@pytest.mark.parametrize(("advantage", "group_size"), [("reward", 1), ("leave_one_out", 2)])
def test_k1_in_the_reward_has_the_gradient_of_the_regularized_reward(advantage, group_size):
    """-grad (E r - beta KL(pi || reference)), of whole sequences; with r = 0 that of beta KL alone."""
    with jax.enable_x64(True):
        (logits, reference), rng = policies(), np.random.default_rng(1)
        for rewards in (np.zeros(9), rng.integers(0, 5, 9) / 4):
            settings = Settings(advantage=advantage, kl_in_reward=BETA, **SUMMED)
            found = expected_gradient(settings, group_size, rewards)

            def loss(x, rewards=rewards):
                mean = jnp.sum(jnp.exp(token_logprobs(x).sum(1)) * rewards)
                return BETA * sequence_kl(x, reference) - mean

            exact = jax.grad(loss)(logits)
            # Leave-one-out of two is unbiased; the rewards in the batch are f32.
            np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-7)
            assert np.abs(exact).max() > 0.01


@pytest.mark.parametrize(("estimator", "corrected", "reverse"), [
    ("k2", False, False), ("k3", True, False), ("k3", False, True),
])  # fmt: skip
def test_a_kl_in_the_loss_takes_the_prefixes_as_they_are(estimator, corrected, reverse):
    with jax.enable_x64(True):
        logits, reference = policies()
        settings = Settings(kl_coefficient=BETA, kl_estimator=estimator, kl_corrected=corrected, **SUMMED)
        found = expected_gradient(settings, 1, np.zeros(9))
        exact = BETA * jax.grad(partial(prefix_kl, reverse=reverse))(logits, reference)
        whole = BETA * jax.grad(sequence_kl)(logits, reference)
    np.testing.assert_allclose(found, exact, atol=1e-9)
    assert np.abs(np.asarray(whole - exact)[0]).max() > 0.01  # a first token also decides what comes after it
    if not reverse:
        np.testing.assert_allclose(exact[1:], whole[1:], atol=1e-9)  # the last token has nothing after it


def test_k1_in_the_loss_has_no_gradient():
    """So it is refused: over all sequences of pi, the gradient of sum_t log pi - log reference is 0."""
    with jax.enable_x64(True):
        logits, reference = policies()
        chance = jnp.exp(token_logprobs(logits).sum(1))
        gradient = jax.grad(lambda x: jnp.sum(chance * (token_logprobs(x) - token_logprobs(reference)).sum(1)))(logits)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_what_is_refused_and_what_ppo_makes_of_it():
    with pytest.raises(UserError, match=r"grpo\.loss\.overlong = 'filter' must be none or penalty"):
        check_settings(Settings(kl_in_reward=0.1, overlong="filter"), "grpo.loss")
    with pytest.raises(UserError, match=r"grpo\.loss\.kl_in_reward = 0\.1 must be 0"):
        check_settings(set_objectives.Settings(kl_in_reward=0.1), "grpo.loss")
    assert Settings(kl_in_reward=0.1).needs_reference and not Settings().needs_reference
    objective = ppo.make_objective(ppo.Settings(), max_new_tokens=4)  # of turns, see test_ppo.py
    assert "reference_logprobs" in objective.needs and "reward" not in objective.extras
