"""The loss of supervised fine-tuning against optax."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl.algorithms import summarize
from jaxrl.algorithms.sft import sft_loss
from jaxrl.training.packing import sft_batch


def test_sft_loss_is_the_mean_cross_entropy_of_all_answer_tokens():
    rng = np.random.default_rng(0)
    V = 11
    sizes = ((3, 5), (1, 2), (4, 1), (2, 7))  # of prompt and answer
    examples = [(rng.integers(1, V, n + m), np.arange(n + m) >= n) for n, m in sizes]
    batch = sft_batch(examples, row_length=14, microbatch_rows=2)
    logits = jnp.asarray(rng.normal(size=(*batch.tokens.shape, V)), jnp.float32)  # at t: the model's output at t - 1
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(batch.tokens)[..., None], -1)[..., 0]
    loss, metrics = sft_loss(jnp.where(batch.loss_mask > 0, logprobs, -jnp.inf), batch)
    answers = np.asarray(batch.loss_mask) > 0
    nll = optax.softmax_cross_entropy_with_integer_labels(logits[answers], jnp.asarray(batch.tokens[answers]))
    assert answers.sum() == 15
    np.testing.assert_allclose(loss, nll.mean(), rtol=1e-6)
    chex.assert_trees_all_close(summarize(metrics), {"tokens": jnp.array(15.0), "nll": nll.mean()}, rtol=1e-6)
    halves = [jax.tree.map(lambda x, s=s: x[s], (logprobs, batch)) for s in (slice(0, 1), slice(1, None))]
    np.testing.assert_allclose(sum(sft_loss(*half)[0] for half in halves), loss, rtol=1e-6)
