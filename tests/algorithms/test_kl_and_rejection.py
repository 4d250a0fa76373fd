"""The corrected KL against the exact gradient, and rejection of whole episodes against a NumPy loop."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms.batch import Batch
from jaxrl.algorithms.policy_gradient import Settings, policy_gradient_loss, sampler_weight
from jaxrl.config.rules import check_settings
from jaxrl.errors import UserError


def one_token_rows(V: int, weights: np.ndarray) -> Batch:
    """A row for each of V tokens, weighted with its chance: the loss is an expectation."""
    ones, ids = np.ones((V, 1)), np.ones((V, 1), np.int32)
    return Batch(np.arange(V)[:, None], ids, ids, ones, weights[:, None], 0 * ones, 0 * ones)


@pytest.mark.parametrize(("estimator", "corrected", "drawn_from", "exact"), [
    ("k2", False, "pi", "forward"), ("k3", False, "pi", "reverse"), ("k3", True, "pi", "forward"),
    ("k3", True, "old", "forward"),
])  # fmt: skip
def test_expected_gradients_of_the_kl_term(estimator, corrected, drawn_from, exact):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        logits, old_logits, reference = (jax.nn.log_softmax(jnp.asarray(rng.normal(size=5))) for _ in range(3))
        old = logits if drawn_from == "pi" else old_logits
        batch = one_token_rows(5, np.asarray(jnp.exp(old)))
        batch = dataclasses.replace(batch, old_logprobs=old[:, None], reference_logprobs=reference[:, None],
                                    behaviour_logprobs=old[:, None])  # fmt: skip
        config = Settings(kl_coefficient=1.0, kl_estimator=estimator, kl_corrected=corrected)

        def loss(x):
            return policy_gradient_loss(jax.nn.log_softmax(x)[:, None], batch, config)[0]

        def kl(x):
            p, q = jax.nn.log_softmax(x), reference
            return jnp.sum(jnp.exp(p) * (p - q)) if exact == "forward" else jnp.sum(jnp.exp(q) * (q - p))

        np.testing.assert_allclose(jax.grad(loss)(logits), jax.grad(kl)(logits), atol=1e-12)


def test_rejection_drops_episodes_by_the_geometric_mean_of_their_ratios():
    ids = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
    mask = np.array([[0, 1, 1, 0, 1, 0]], np.float64)
    log_ratio = np.array([[0, 2.0, -1.8, 0, 1.0, 0]])  # means 0.1 and 1.0
    zeros = np.zeros((1, 6))
    batch = Batch(ids, ids, ids, mask, mask, zeros, zeros)
    config = Settings(sampler_correction="reject", sampler_correction_level="sequence")
    weight, outside = sampler_weight(jnp.asarray(log_ratio), jnp.asarray(zeros), batch, config)
    for name in (1, 2):
        here = (ids == name) & (mask > 0)
        kept = 0.5 <= np.exp(log_ratio[here].mean()) <= 2.0
        assert (np.asarray(weight)[here] == kept).all() and (np.asarray(outside)[here] != kept).all()


@pytest.mark.parametrize("settings", [
    {"kl_corrected": True}, {"kl_corrected": True, "kl_coefficient": 0.1, "kl_estimator": "k2"},
    {"sampler_correction": "reject"},
])  # fmt: skip
def test_settings_without_effect_are_refused(settings):
    with pytest.raises(UserError, match="needs"):
        check_settings(Settings(**settings), "grpo.loss")
