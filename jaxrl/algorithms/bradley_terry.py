"""The reward model's objective: of two answers, the better one should score higher.

Bradley and Terry (1952): an answer of score a is preferred to one of score b with chance sigmoid(a - b). The loss is

    - sum over pairs of weight * log sigmoid(score(chosen) - score(rejected))

with the weights of `pair_weights`. Only differences count: a constant added to all scores of
a question changes nothing.

Both members of a pair are in one row. The chosen one's last token carries the pair: it is the only learned token, its
extra `rejected_back` says how many tokens before it the rejected one's last token is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.algorithms import LossMetrics
from jaxrl.algorithms.batch import Array, Batch
from jaxrl.algorithms.objective import Objective, Outputs
from models.heads import Head

REWARD = Head("reward", after=True, scale=0.02, bias=False)  # a bias would have no gradient
REJECTED = "rejected_back"


def make_reward_objective() -> Objective:
    """The objective of the reward model's stage. It learns from pairs, not from episodes."""

    def loss(outputs: Outputs, batch: Batch) -> tuple[jax.Array, LossMetrics]:
        return bradley_terry_loss(outputs.heads[REWARD.name], batch)

    def no_credit(_) -> list:
        raise ValueError("a reward model learns from pairs of answers, not from episodes")

    return Objective(
        name="bradley_terry",
        loss=loss,
        credit=no_credit,
        token_weights=lambda lengths: np.ones(len(lengths)),
        heads=(REWARD,),
        extras=(REJECTED,),
        vocabulary=False,
    )


def bradley_terry_loss(scores: Array, batch: Batch) -> tuple[jax.Array, LossMetrics]:
    """The loss in nats, of scores f32[B, T] at every token. The batch has a learned token for each pair.

    Metrics: accuracy (a tie counts half) and margin, the mean score(chosen) - score(rejected), over the pairs.
    """
    mask = batch.loss_mask > 0
    margin = jnp.where(mask, pair_margins(scores, batch), 0.0)
    right = jnp.where(mask, 0.5 * (1.0 + jnp.sign(margin)), 0.0)
    pairs = {"tokens": jnp.sum(batch.loss_mask), "accuracy": jnp.sum(right), "margin": jnp.sum(margin)}
    sums = {name: jax.lax.stop_gradient(value) for name, value in pairs.items()}
    return -jnp.sum(batch.loss_weights * jax.nn.log_sigmoid(margin)), LossMetrics(sums, {})


def pair_margins(scores: Array, batch: Batch) -> jax.Array:
    """score(chosen) - score(rejected) f32[B, T] where loss_mask is 1; anything elsewhere."""
    back = jnp.asarray(batch.extras[REJECTED]).astype(jnp.int32)
    rejected = jnp.arange(back.shape[1])[None] - back
    scores = jnp.asarray(scores)
    return scores - jnp.take_along_axis(scores, rejected, axis=1)


def pair_weights(questions: Sequence[str], average: str, answers: Sequence[tuple[str, str]] = ()) -> np.ndarray:
    """The weight f64[P] of each pair in the loss; `questions` are the pairs'.

    pair      1 / P
    question  1 / (Q * pairs of the question): Q questions weigh the same (InstructGPT, arXiv 2203.02155, equation 1)
    answers   1 / (Q n (n - 1)), with n the question's distinct `answers` (AceCoder, arXiv 2502.01718, section 2.3)
    """
    of_question = Counter(questions)
    if average == "pair":
        return np.full(len(questions), 1 / max(len(questions), 1))
    if average == "question":
        return np.array([1 / (len(of_question) * of_question[q]) for q in questions])
    distinct: dict[str, set[str]] = {q: set() for q in of_question}
    for question, both in zip(questions, answers, strict=True):
        distinct[question].update(both)
    counts = {q: len(texts) for q, texts in distinct.items()}
    return np.array([1 / (len(of_question) * counts[q] * (counts[q] - 1)) for q in questions])
