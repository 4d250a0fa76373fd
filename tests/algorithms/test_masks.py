"""What a tool printed is read by the model and never learned, unless the setting says so."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms.batch import fill_behaviour
from jaxrl.algorithms.policy_gradient import Settings, make_objective, policy_gradient_loss
from jaxrl.training.packing import make_batch
from models.config import ModelConfig
from models.decoder import Decoder, initialize
from rollouts.episode import Episode, Group, Problem, Reward, Turn

V = 48
CONFIG = ModelConfig("qwen2", V, 32, 48, 2, 4, 2, 8, 64, qkv_bias=True, tied_embeddings=True)
LOSSES = [
    {}, {"averaging": "sequence", "kl_coefficient": 0.1}, {"ratio": "sequence"}, {"objective": "cispo"},
    {"objective": "sapo", "sampler_correction": "truncate", "sampler_correction_level": "sequence"},
]  # fmt: skip


def episode(seed: int, reward: float, learn_inserted: bool = False) -> Episode:
    """Prompt, answer, tool output, answer."""
    rng = np.random.default_rng(seed)

    def turn(n: int, sampled: bool) -> Turn:
        tokens = rng.integers(1, V, n).astype(np.int32)
        if not sampled:
            return Turn("output", tokens, False, learned=learn_inserted, status="passed")
        return Turn("assistant", tokens, True, -rng.random(n).astype(np.float32))

    turns = [turn(4, True), turn(3, False), turn(5, True)]
    prompt = rng.integers(1, V, 3).astype(np.int32)
    return Episode(Problem("p"), prompt, turns, Reward(reward, reward > 0), "finished", "")


def batch_of(loss: Settings, learn_inserted: bool = False):
    groups = [Group(Problem("p"), [episode(0, 1.0, learn_inserted), episode(1, 0.0, learn_inserted)])]
    return make_batch(groups, make_objective(loss, max_new_tokens=12), row_length=15, microbatch_rows=1)[0]


def inserted(batch) -> np.ndarray:
    """bool[B, T]: where the tool output stands."""
    return (np.asarray(batch.positions) >= 7) & (np.asarray(batch.positions) < 10)


def logprobs_of(logits, batch):
    """f32[B, T]: at t the logprob of token t by the logits at t - 1."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), jnp.asarray(batch.tokens)[:, 1:, None], -1)[..., 0]
    return jnp.pad(chosen, ((0, 0), (1, 0)))


@pytest.mark.parametrize("settings", LOSSES, ids=str)
def test_logits_at_tool_output_have_no_gradient(settings):
    loss = Settings(**settings)
    batch = batch_of(loss)
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(*batch.tokens.shape, V)), jnp.float32)
    batch = dataclasses.replace(batch, reference_logprobs=logprobs_of(logits * 0.9, batch))
    gradient = jax.jit(jax.grad(lambda z: policy_gradient_loss(logprobs_of(z, batch), batch, loss)[0]))(logits)
    per_token = np.abs(np.asarray(gradient)).sum(-1)[:, :-1]  # at t: the logits that predict token t + 1
    of_tool, of_model = inserted(batch)[:, 1:], np.asarray(batch.loss_mask)[:, 1:] > 0
    assert of_tool.sum() == 6 and (per_token[of_tool] == 0).all()
    assert (per_token[of_model] > 0).all() and (per_token[~of_model] == 0).all()


def test_tool_output_changes_what_comes_after_it():
    batch, model = batch_of(Settings()), initialize(Decoder(CONFIG), jax.random.key(0), scale=0.2)

    def logprobs(tokens):
        hidden = model(tokens, jnp.asarray(batch.positions), jnp.asarray(batch.segment_ids))
        return logprobs_of(hidden @ model.unembedding().T, dataclasses.replace(batch, tokens=tokens))

    tokens, other = (
        np.asarray(batch.tokens),
        np.where(inserted(batch), (np.asarray(batch.tokens) + 1) % V, batch.tokens),
    )
    change = np.abs(np.asarray(logprobs(jnp.asarray(tokens)) - logprobs(jnp.asarray(other))))
    positions, sampled = np.asarray(batch.positions), np.asarray(batch.loss_mask) > 0
    assert (change[sampled & (positions >= 10)] > 1e-4).all()  # read
    assert (change[sampled & (positions < 7)] == 0).all()  # and not before it was there


def test_the_setting_that_learns_tool_output():
    """As in the ablation of R1-Code-Interpreter: nobody sampled these tokens, so the trainer's logprobs stand in."""
    loss = Settings(sampler_correction="mask")
    batch = batch_of(loss, learn_inserted=True)
    where = inserted(batch)
    assert (
        np.isnan(np.asarray(batch.behaviour_logprobs)[where]).all() and (np.asarray(batch.loss_mask)[where] == 1).all()
    )
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(*batch.tokens.shape, V)), jnp.float32)
    filled = fill_behaviour(batch, logprobs_of(logits, batch))
    sampled = ~where & (np.asarray(batch.loss_mask) > 0)
    for array in (filled.behaviour_logprobs, batch.behaviour_logprobs):
        np.testing.assert_array_equal(np.asarray(array)[sampled], np.asarray(batch.behaviour_logprobs)[sampled])
    value, gradient = jax.value_and_grad(lambda z: policy_gradient_loss(logprobs_of(z, filled), filled, loss)[0])(
        logits
    )
    assert np.isfinite(value) and (np.abs(np.asarray(gradient)).sum(-1)[:, :-1][where[:, 1:]] > 0).all()
