"""The policy-gradient loss against float64 NumPy loops over ragged episodes, and the identities between its variants.

Every token of the test episodes has an id of its own, so that a logprob is looked up by token: `values[batch.tokens]`.
The references below know nothing about rows, packing or masks.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_credit import group_of, reference_advantages

from jaxrl.algorithms import combine, summarize
from jaxrl.algorithms.batch import Batch
from jaxrl.algorithms.policy_gradient import (
    Settings,
    episode_sum,
    kl_estimate,
    make_objective,
    policy_gradient_loss,
    sampler_weight,
)
from jaxrl.config.rules import check_settings
from jaxrl.errors import UserError
from jaxrl.training.packing import make_batch
from rollouts.episode import Episode, Group, Problem, Reward, Turn

MAX_NEW_TOKENS = 12


@dataclasses.dataclass
class Case:
    """Groups of episodes and, by token id, the logprobs of the four policies (f64[N], exact in f32)."""

    groups: list[Group]
    pi: np.ndarray
    old: np.ndarray
    sampler: np.ndarray
    reference: np.ndarray

    def batch(self, config: Settings, row_length: int = 40, with_old: bool = True) -> Batch:
        """The packed batch in f64, with garbage wherever a loss must not look."""
        objective = make_objective(config, max_new_tokens=MAX_NEW_TOKENS)
        batch, _ = make_batch(self.groups, objective, row_length=row_length, microbatch_rows=2)
        batch = dataclasses.replace(
            batch,
            old_logprobs=self.at(self.old, batch) if with_old else None,
            reference_logprobs=self.at(self.reference, batch) if config.kl_coefficient else None,
        )
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if x.dtype == np.float32 else jnp.asarray(x), batch)

    def at(self, values, batch: Batch):
        return jnp.where(jnp.asarray(batch.loss_mask) > 0, jnp.asarray(values)[batch.tokens], jnp.nan)

    def loss(self, config: Settings, with_old: bool = True, **batch_settings):
        """Loss, gradient by token id, summarized metrics."""
        with jax.enable_x64(True):
            batch = self.batch(config, with_old=with_old, **batch_settings)
            function = jax.value_and_grad(
                lambda pi: policy_gradient_loss(self.at(pi, batch), batch, config), has_aux=True
            )
            (loss, metrics), gradient = jax.jit(function)(jnp.asarray(self.pi))
            return float(loss), np.asarray(gradient), {k: float(v) for k, v in summarize(metrics).items()}


def make_case(seed: int = 0, problems: int = 4, G: int = 4, max_turns: int = 2, spread: float = 0.4) -> Case:
    """Ragged episodes of one or two sampled turns with a tool's output between; rewards in quarters."""
    rng = np.random.default_rng(seed)
    ids = itertools.count(1)
    sampler = [0.0]  # of id 0, the padding

    def draw(n: int) -> np.ndarray:
        return np.array([next(ids) for _ in range(n)], np.int32)

    def turn(role, n: int) -> Turn:
        logprobs = -rng.exponential(1.0, n).astype(np.float32)
        sampler.extend(logprobs)
        return Turn(role, draw(n), role == "assistant", logprobs if role == "assistant" else None)

    groups = []
    for p in range(problems):
        problem = Problem(f"p{p}")
        group = Group(problem, [])
        for _ in range(G):
            prompt = turn("user", int(rng.integers(1, 5))).tokens
            turns = [turn("assistant", int(rng.integers(1, 7)))]
            for _ in range(int(rng.integers(0, max_turns))):
                turns += [turn("tool", int(rng.integers(1, 4))), turn("assistant", int(rng.integers(1, 6)))]
            reward = Reward(float(rng.integers(0, 5)) / 4, False)
            group.episodes.append(Episode(problem, prompt, turns, reward, "finished", ""))
        groups.append(group)
    behaviour = np.array(sampler)

    def near(values: np.ndarray, scale: float) -> np.ndarray:
        return (values + rng.normal(0, scale, len(values))).astype(np.float32).astype(np.float64)

    old = near(behaviour, spread)
    return Case(groups, near(old, spread), old, behaviour, near(old, spread))


# --- the references ---


def reference_loss(case: Case, config: Settings, pi: np.ndarray, old: np.ndarray) -> float:
    """The loss as the papers write it; `pi` is differentiated, case.pi stands where a gradient is stopped."""
    episodes = []  # (advantage, sampled token ids)
    for group in case.groups:
        for e, A in zip(group.episodes, reference_advantages([e.reward.value for e in group.episodes], config)):
            episodes.append((A, [t for turn in e.turns if turn.sampled for t in turn.tokens]))
    E, total = len(episodes), sum(len(o) for _, o in episodes)
    low, high = 1 - config.clip_low, 1 + config.clip_high

    loss = 0.0
    for A, o in episodes:
        sequence_ratio = math.exp(sum(pi[t] - old[t] for t in o) / len(o))
        frozen_sequence_ratio = math.exp(sum(case.pi[t] - old[t] for t in o) / len(o))
        episode_importance = math.exp(sum(old[t] - case.sampler[t] for t in o))
        terms = []
        for t in o:
            rho = sequence_ratio if config.ratio == "sequence" else math.exp(pi[t] - old[t])
            frozen = frozen_sequence_ratio if config.ratio == "sequence" else math.exp(case.pi[t] - old[t])
            if config.objective == "clip":
                J = min(rho * A, min(max(rho, low), high) * A)
                if config.dual_clip and A < 0:
                    J = max(J, config.dual_clip * A)
            elif config.objective == "cispo":
                J = min(max(frozen, low), high) * A * pi[t]
            else:
                tau = config.sapo_tau_positive if A > 0 else config.sapo_tau_negative
                J = 4 / tau / (1 + math.exp(-tau * (rho - 1))) * A
            c = math.exp(old[t] - case.sampler[t])
            if config.sampler_correction_level == "sequence":
                c = episode_importance
            if config.sampler_correction == "none":
                c = 1.0
            elif config.sampler_correction == "truncate":
                c = min(c, config.sampler_ratio_max)
            elif not config.sampler_ratio_min <= c <= config.sampler_ratio_max:
                c = 0.0
            d = case.reference[t] - pi[t]
            kl = {"k2": d * d / 2, "k3": math.exp(d) - d - 1}[config.kl_estimator]
            terms.append(c * J - config.kl_coefficient * kl)
        weight = {
            "token": 1 / total,
            "sequence": 1 / (E * len(o)),
            "constant": 1 / (E * (config.constant_length or MAX_NEW_TOKENS)),
        }[config.averaging]
        loss -= weight * sum(terms)
    return loss


def reference_gradient(case: Case, config: Settings, old: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences over every token id."""
    gradient = np.zeros(len(case.pi))
    for t in range(1, len(case.pi)):
        up, down = case.pi.copy(), case.pi.copy()
        up[t] += step
        down[t] -= step
        gradient[t] = (reference_loss(case, config, up, old) - reference_loss(case, config, down, old)) / (2 * step)
    return gradient


VARIANTS = {
    "grpo": {"averaging": "sequence", "kl_coefficient": 0.04},
    "dr_grpo": {"advantage": "group_mean", "averaging": "constant"},
    "dr_grpo_100": {"advantage": "group_mean", "averaging": "constant", "constant_length": 100},
    "rloo": {"advantage": "leave_one_out"},
    "dapo": {"clip_high": 0.28, "std_ddof": 0},
    "dual_clip": {"dual_clip": 1.5},
    "gspo": {"ratio": "sequence", "averaging": "sequence", "clip_low": 0.1, "clip_high": 0.15},
    "gspo_token_average": {"ratio": "sequence", "clip_low": 0.1, "dual_clip": 1.2},
    "cispo": {"objective": "cispo", "clip_low": 1.0, "clip_high": 0.5},
    "cispo_both_bounds": {"objective": "cispo"},
    "cispo_sequence": {"objective": "cispo", "ratio": "sequence", "kl_coefficient": 0.1, "kl_estimator": "k2"},
    "sapo": {"objective": "sapo", "averaging": "sequence"},
    "sapo_token": {"objective": "sapo", "sapo_tau_positive": 1.3, "sapo_tau_negative": 2.0},
    "k2": {"kl_coefficient": 0.1, "kl_estimator": "k2"},
    "truncate_token": {"sampler_correction": "truncate", "sampler_ratio_max": 1.2},
    "truncate_sequence": {"sampler_correction": "truncate", "sampler_correction_level": "sequence"},
    "mask_token": {"sampler_correction": "mask", "sampler_ratio_min": 0.8, "sampler_ratio_max": 1.4},
    "mask_sequence_kl": {
        "sampler_correction": "mask", "sampler_correction_level": "sequence", "kl_coefficient": 0.1,
    },
    "sampler_is_old": {"old_logprobs": "sampler"},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradient_equal_the_papers_formulas(name):
    config = Settings(**VARIANTS[name])
    case = make_case()
    old = case.sampler if config.old_logprobs == "sampler" else case.old
    loss, gradient, _ = case.loss(config)
    # The batch keeps weights and advantages in f32, hence the tolerances.
    np.testing.assert_allclose(loss, reference_loss(case, config, case.pi, old), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradient, reference_gradient(case, config, old), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo", "sapo", "truncate_token", "mask_sequence_kl"])
def test_single_update_takes_pi_itself_as_old(name):
    config = Settings(**VARIANTS[name])
    case = make_case(seed=1, spread=0.2)
    loss, gradient, metrics = case.loss(config, with_old=False)
    np.testing.assert_allclose(loss, reference_loss(case, config, case.pi, case.pi), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradient, reference_gradient(case, config, case.pi), rtol=1e-5, atol=1e-8)
    assert metrics["clip_fraction"] == 0 and metrics["kl/old"] == 0


# --- identities ---


@pytest.mark.parametrize("averaging", ["token", "sequence", "constant"])
@pytest.mark.parametrize("objective", ["clip", "cispo", "sapo"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_on_policy_gradient_is_reinforce(objective, ratio, averaging):
    config = Settings(objective=objective, ratio=ratio, averaging=averaging, dual_clip=3.0)
    case = make_case(seed=2)
    _, gradient, _ = case.loss(config, with_old=False)
    episodes = [e for g in case.groups for e in g.episodes]
    expected = np.zeros(len(case.pi))
    for group in case.groups:
        for e, A in zip(group.episodes, reference_advantages([e.reward.value for e in group.episodes], config)):
            length = {
                "token": sum(e.sampled_length for e in episodes),
                "sequence": len(episodes) * e.sampled_length,
                "constant": len(episodes) * MAX_NEW_TOKENS,
            }[averaging]
            for turn in e.turns:
                if turn.sampled:
                    expected[turn.tokens] = -A / length  # d(-A log pi / length) / d log pi
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


def test_gspo_with_one_token_is_grpo():
    case = make_case(seed=3, max_turns=1)
    for group in case.groups:
        for e in group.episodes:
            (only,) = e.turns
            assert only.logprobs is not None
            e.turns = [dataclasses.replace(only, tokens=only.tokens[:1], logprobs=only.logprobs[:1])]
    token, sequence = (case.loss(Settings(ratio=r, averaging="sequence")) for r in ("token", "sequence"))
    chex.assert_trees_all_close(token, sequence, rtol=1e-12)
    assert token[2]["clip_fraction"] > 0


def test_sequence_ratio_reaches_every_token_of_the_episode_and_no_other():
    case = make_case(seed=4)
    config = Settings(ratio="sequence", clip_low=1.0, clip_high=1e6)
    _, gradient, _ = case.loss(config)
    for group in case.groups:
        for e in group.episodes:
            of_episode = np.concatenate([gradient[t.tokens] for t in e.turns if t.sampled])
            np.testing.assert_allclose(of_episode, of_episode[0], rtol=1e-12)
            assert np.all(gradient[e.prompt] == 0)
    assert len(np.unique(np.round(gradient[gradient != 0], 12))) > len(case.groups)


def test_dual_clip_bounds_the_loss_of_a_bad_token_that_became_likely():
    case = make_case(seed=5, problems=1, G=2, max_turns=1)
    for e, reward in zip(case.groups[0].episodes, (0.0, 1.0)):
        e.reward = Reward(reward, False)
    bad = case.groups[0].episodes[0].turns[0].tokens
    case.pi, case.old = case.old.copy(), case.old.copy()
    case.pi[bad] = case.old[bad] + math.log(10)
    config = Settings(advantage="group_mean")
    _, free, _ = case.loss(config)
    _, clipped, metrics = case.loss(dataclasses.replace(config, dual_clip=3.0))
    total = case.groups[0].episodes[0].sampled_length + case.groups[0].episodes[1].sampled_length
    np.testing.assert_allclose(free[bad], 10 * 0.5 / total, rtol=1e-5)  # rho A, unbounded in PPO's clip
    assert np.all(clipped[bad] == 0)
    np.testing.assert_allclose(metrics["clip_fraction"], len(bad) / total, rtol=1e-6)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_estimates_average_to_the_divergence(estimator):
    rng = np.random.default_rng(0)
    p_logits = rng.normal(size=50)
    p = np.exp(p_logits) / np.exp(p_logits).sum()
    q_logits = p_logits + rng.normal(0, 0.01, 50)  # near p, where the biased k2 is right to second order
    q = np.exp(q_logits) / np.exp(q_logits).sum()
    with jax.enable_x64(True):
        mean = float(jnp.sum(p * kl_estimate(jnp.log(p), jnp.log(q), estimator)))
    np.testing.assert_allclose(mean, np.sum(p * np.log(p / q)), rtol=0.02 if estimator == "k2" else 1e-8)


def test_the_gradients_of_the_kl_estimates_are_those_of_the_two_divergences():
    """Exact expectations over a small vocabulary, of a policy far from its reference."""
    rng = np.random.default_rng(0)
    logits, reference = rng.normal(0, 2, (2, 7))

    def expected(estimate, logits):  # over tokens drawn from the policy, whose probabilities are not differentiated
        p = jax.nn.log_softmax(logits)
        return jnp.sum(jax.lax.stop_gradient(jnp.exp(p)) * estimate(p, jax.nn.log_softmax(reference)))

    def divergence(a, b):
        p, q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
        return jnp.sum(jnp.exp(p) * (p - q))

    with jax.enable_x64(True):
        to_reference = jax.grad(divergence)(logits, reference)
        from_reference = jax.grad(divergence, argnums=1)(reference, logits)
        for name, gradient in (("k2", to_reference), ("k3", from_reference)):
            got = jax.grad(lambda x, name=name: expected(partial(kl_estimate, estimator=name), x))(logits)
            np.testing.assert_allclose(got, gradient, rtol=1e-9)
        k1 = jax.grad(lambda x: expected(lambda p, q: p - q, x))(logits)  # why it is refused
        np.testing.assert_allclose(k1, np.zeros(7), atol=1e-12)
    assert np.abs(to_reference).max() > 0.1 and np.abs(to_reference - from_reference).max() > 0.1


# --- how the batch is cut and packed changes nothing ---


@pytest.mark.parametrize("name", ["grpo", "gspo", "mask_sequence_kl"])
def test_microbatches_add_up_to_the_batch(name):
    config = Settings(**VARIANTS[name])
    case = make_case(seed=6)
    with jax.enable_x64(True):
        batch = case.batch(config, row_length=20)
        rows = len(batch.tokens)
        assert rows >= 6

        def run(part: Batch):
            function = jax.value_and_grad(lambda x, part: policy_gradient_loss(x, part, config), has_aux=True)
            (loss, metrics), gradient = jax.jit(function)(case.at(case.pi, part), part)
            return loss, metrics, gradient

        whole_loss, whole_metrics, whole_gradient = run(batch)
        for cuts in ([0, 1, 4, rows], list(range(rows + 1))):
            parts = [run(jax.tree.map(lambda x, a=a, b=b: x[a:b], batch)) for a, b in itertools.pairwise(cuts)]
            losses, metrics, gradients = zip(*parts)
            np.testing.assert_allclose(sum(losses), whole_loss, rtol=1e-12)
            chex.assert_trees_all_close(jnp.concatenate(gradients), whole_gradient, rtol=1e-12)
            total = metrics[0]
            for part in metrics[1:]:
                total = combine(total, part)
            chex.assert_trees_all_close(total, whole_metrics, rtol=1e-12)


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo", "mask_sequence_kl"])
def test_packing_changes_nothing(name):
    config = Settings(**VARIANTS[name])
    case = make_case(seed=7)
    results = [case.loss(config, row_length=length) for length in (18, 25, 64, 400)]
    rng = np.random.default_rng(0)
    case.groups = [case.groups[i] for i in rng.permutation(len(case.groups))]
    for group in case.groups:
        group.episodes = [group.episodes[i] for i in rng.permutation(len(group.episodes))]
    results.append(case.loss(config, row_length=25))
    for other in results[1:]:
        chex.assert_trees_all_close(results[0], other, rtol=1e-6, atol=1e-9)  # weights and advantages are f32


def test_padding_rows_and_an_empty_batch_give_zero():
    case = make_case()
    config = Settings(ratio="sequence", kl_coefficient=0.1, sampler_correction="mask")
    case.groups = []
    loss, gradient, metrics = case.loss(config)
    assert loss == 0 and np.all(gradient == 0) and set(metrics.values()) == {0.0}


def test_episode_sum():
    values = jnp.array([[1.0, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    ids = jnp.array([[1, 1, 2, 0, 0], [1, 2, 2, 2, 3]])
    expected = jnp.array([[3.0, 3, 3, 9, 9], [6, 24, 24, 24, 10]])
    chex.assert_trees_all_equal(episode_sum(values, ids), expected)


# --- metrics ---


def test_metrics_equal_loops_over_tokens():
    case = make_case(seed=8)
    config = Settings(kl_coefficient=0.1, sampler_correction="mask", sampler_ratio_min=0.7, sampler_ratio_max=1.5)
    _, _, metrics = case.loss(config)
    clipped, kl_old, kl_reference, mismatch, outside, largest = [], [], [], [], [], 0.0
    for group in case.groups:
        for e, A in zip(group.episodes, reference_advantages([e.reward.value for e in group.episodes], config)):
            for t in (t for turn in e.turns if turn.sampled for t in turn.tokens):
                rho = math.exp(case.pi[t] - case.old[t])
                clipped.append((A > 0 and rho > 1.2) or (A < 0 and rho < 0.8))
                kl_old.append(rho - 1 - math.log(rho))
                d = case.reference[t] - case.pi[t]
                kl_reference.append(math.exp(d) - 1 - d)
                log_c = case.old[t] - case.sampler[t]
                mismatch.append(math.exp(log_c) - 1 - log_c)
                outside.append(not 0.7 <= math.exp(log_c) <= 1.5)
                largest = max(largest, abs(log_c))
    expected = {
        "tokens": len(clipped),
        "clip_fraction": np.mean(clipped),
        "kl/old": np.mean(kl_old),
        "kl/reference": np.mean(kl_reference),
        "mismatch/kl": np.mean(mismatch),
        "mismatch/clipped": np.mean(outside),
        "mismatch/max": largest,
    }
    assert metrics.keys() == expected.keys()
    chex.assert_trees_all_close(metrics, {k: float(v) for k, v in expected.items()}, rtol=1e-9)
    assert 0 < metrics["clip_fraction"] < 1 and 0 < metrics["mismatch/clipped"] < 1


# --- wrong settings ---


@pytest.mark.parametrize("field, value, message", [
    ("advantage", "grpo", "group_std, group_mean, leave_one_out"),
    ("objective", "ppo", "clip, cispo, sapo"),
    ("ratio", "episode", "token, sequence"),
    ("averaging", "mean", "token, sequence, constant"),
    ("kl_estimator", "k4", "k2, k3"),
    ("kl_estimator", "k1", "k2 or k3: the gradient of k1 is 0 in expectation"),
    ("sampler_correction", "tis", "none, truncate, mask"),
    ("sampler_correction_level", "turn", "token, sequence"),
    ("old_logprobs", "engine", "trainer, sampler"),
    ("overlong", "mask", "none, penalty, filter"),
    ("std_ddof", 2, "one of: 0, 1"),
    ("dual_clip", 0.5, r"0 \(off\) or > 1"),
    ("clip_low", 1.5, r"in \(0, 1\]"),
    ("minibatches", 0, ">= 1"),
])  # fmt: skip
def test_a_wrong_setting_names_the_field_and_what_is_allowed(field, value, message):
    config = Settings(**{field: value})
    with pytest.raises(UserError, match=rf"grpo\.loss\.{field} = .*{message}"):
        check_settings(config, "grpo.loss")
    with pytest.raises(ValueError, match=rf"grpo\.loss\.{field}"):
        make_objective(config, max_new_tokens=8)


def test_correcting_for_a_sampler_that_is_the_old_policy_is_an_error():
    with pytest.raises(ValueError, match=r"sampler_correction = 'mask' needs grpo\.loss\.old_logprobs = 'trainer'"):
        Settings(old_logprobs="sampler", sampler_correction="mask").check()


def test_a_kl_term_needs_reference_logprobs():
    config = Settings(kl_coefficient=0.1)
    batch, _ = make_batch([group_of([0, 1])], make_objective(config, max_new_tokens=8), row_length=8, microbatch_rows=1)
    with pytest.raises(ValueError, match=r"needs batch\.reference_logprobs"):
        policy_gradient_loss(jnp.zeros(batch.tokens.shape), batch, config)


def test_a_bound_of_one_does_not_count_rounding():
    """Equal logprobs that were rounded differently are not corrected; a ratio above the bound is."""
    settings = Settings(sampler_correction="truncate", sampler_ratio_max=1.0)
    old = jnp.array([[1e-6, -1e-6, 0.01, -0.3]])
    weight, outside = sampler_weight(
        old, jnp.zeros_like(old), Batch(*[None] * len(Batch.__dataclass_fields__)), settings
    )
    assert outside.tolist() == [[False, False, True, False]]
    np.testing.assert_allclose(weight, [[1, np.exp(-1e-6), 1, np.exp(-0.3)]], rtol=1e-6)
