"""The entropy bonus and the entropy mask against NumPy loops as verl and TRL write them."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from test_across import tokens_of
from test_credit import group_of, reference_advantages
from test_policy_gradient import MAX_NEW_TOKENS, Case, make_case

from jaxrl.algorithms import ppo
from jaxrl.algorithms.objective import Outputs
from jaxrl.algorithms.policy_gradient import Settings, make_objective, policy_gradient_loss
from jaxrl.training.packing import make_batch


def trl_mask(entropies: np.ndarray, share: float) -> np.ndarray:
    """GRPOTrainer.get_high_entropy_mask over the tokens of all processes."""
    return entropies >= torch.quantile(torch.tensor(entropies), 1 - share).item()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.01])
def test_the_mask_is_trls_over_all_tokens_of_the_step(share):
    groups, rng = make_case(seed=1, problems=6).groups, np.random.default_rng(0)
    for e in groups[0].episodes:  # without a gradient: their tokens count in the quantile all the same
        e.reward = groups[0].episodes[0].reward
    entropies = {t: rng.exponential() for g in groups for e in g.episodes for t in tokens_of(e)}
    table = np.array([np.float32(entropies.get(t, np.inf)) for t in range(max(entropies) + 1)])
    objective = make_objective(Settings(top_entropy=share), max_new_tokens=MAX_NEW_TOKENS)
    batches = []
    for part in (groups[:2], groups[2:]):
        batch = make_batch(part, objective, row_length=40, microbatch_rows=2)[0]
        batches.append(dataclasses.replace(batch, extras={**batch.extras, "old_entropy": table[batch.tokens]}))
    found = {}
    for batch in objective.across(batches, groups):
        mask, marks = np.asarray(batch.loss_mask) > 0, np.asarray(batch.extras["entropy_mask"])
        assert not marks[~mask].any()
        found |= dict(zip(np.asarray(batch.tokens)[mask].tolist(), marks[mask].tolist()))
    expected = trl_mask(table[sorted(entropies)].astype(np.float64), share)
    assert [found[t] for t in sorted(entropies)] == expected.tolist()


def reference(case: Case, config: Settings, pi: np.ndarray, entropy: np.ndarray, kept: np.ndarray) -> float:
    """verl's agg_loss of policy loss and entropy with one mode; TRL's mask on both, and not on the KL."""
    episodes = [
        (A, tokens_of(e))
        for g in case.groups
        for e, A in zip(g.episodes, reference_advantages([e.reward.value for e in g.episodes], config))
    ]
    total, loss = sum(len(o) for _, o in episodes), 0.0
    for A, o in episodes:
        weight = 1 / total if config.averaging == "token" else 1 / (len(episodes) * len(o))
        for t in o:
            rho = math.exp(pi[t] - case.old[t])
            policy = min(rho * A, min(max(rho, 1 - config.clip_low), 1 + config.clip_high) * A)
            d = case.reference[t] - pi[t]
            loss -= weight * kept[t] * (policy + config.entropy_coefficient * entropy[t])
            loss += weight * config.kl_coefficient * (math.exp(d) - d - 1)
    return loss


@pytest.mark.parametrize("settings", [
    {"entropy_coefficient": 0.3}, {"entropy_coefficient": 0.3, "averaging": "sequence"}, {"top_entropy": 0.4},
    {"top_entropy": 0.4, "entropy_coefficient": 0.2, "kl_coefficient": 0.1},
])  # fmt: skip
def test_loss_and_gradients_equal_the_loop(settings):
    config, case, rng = Settings(**settings), make_case(seed=2), np.random.default_rng(0)
    entropy = rng.exponential(size=len(case.pi)).astype(np.float32).astype(np.float64)
    kept = (rng.random(len(case.pi)) < 0.5) * 1.0 if config.top_entropy < 1 else np.ones(len(case.pi))
    with jax.enable_x64(True):
        batch = case.batch(config)
        batch = dataclasses.replace(
            batch, extras={"entropy_mask": case.at(kept, batch)} if config.top_entropy < 1 else {}
        )

        def loss(pi, entropy):  # NaN wherever it must not look
            return policy_gradient_loss(case.at(pi, batch), batch, config, case.at(entropy, batch))

        (value, metrics), (of_pi, of_entropy) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            jnp.asarray(case.pi), jnp.asarray(entropy)
        )
    np.testing.assert_allclose(value, reference(case, config, case.pi, entropy, kept), rtol=1e-6)
    for found, given in ((of_pi, case.pi), (of_entropy, entropy)):
        expected = np.zeros(len(given))
        for t in range(len(given)):
            up, down = given.copy(), given.copy()
            up[t], down[t] = up[t] + 1e-6, down[t] - 1e-6
            sides = [(x, entropy) if given is case.pi else (case.pi, x) for x in (up, down)]
            expected[t] = (reference(case, config, *sides[0], kept) - reference(case, config, *sides[1], kept)) / 2e-6
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
    if config.top_entropy < 1:
        sampled = [t for g in case.groups for e in g.episodes for t in tokens_of(e)]
        np.testing.assert_allclose(metrics.sums["entropy/trained"], kept[sampled].sum())


def test_episodes_without_an_advantage_have_a_bonus():
    objective = make_objective(Settings(entropy_coefficient=0.1), max_new_tokens=4)
    batch, log = make_batch([group_of([1, 1])], objective, row_length=8, microbatch_rows=1)
    assert log["without_gradient"] == 0 and objective.entropy_gradient
    zeros = jnp.zeros(batch.tokens.shape)
    gradient = jax.grad(lambda h: objective.loss(Outputs(zeros, {}, h), batch)[0])(zeros)
    np.testing.assert_allclose(gradient, -0.1 * np.asarray(batch.loss_weights))
    with pytest.raises(ValueError, match=r"entropy_coefficient = 0\.1 needs the entropy"):
        objective.loss(Outputs(zeros, {}), batch)


def test_ppo_has_both():
    objective = ppo.make_objective(ppo.Settings(entropy_coefficient=0.1, top_entropy=0.5), max_new_tokens=4)
    assert objective.entropy_gradient and "old_entropy" in objective.needs and "entropy_mask" in objective.extras
