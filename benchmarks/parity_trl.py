"""Our losses beside TRL's, on the same logits, advantages and masks: relative differences of loss and gradient.

    python -m venv .venv-trl && .venv-trl/bin/pip install torch==2.13.0 && .venv-trl/bin/pip install trl
    python benchmarks/parity_trl.py --trl-python .venv-trl/bin/python

Ragged episodes of several turns with inserted tokens between them; policy, old and reference policy differ at every
token. TRL's side (peer_trl_loss.py) runs in its own environment, in float64. Ours is the packed batch that training
makes, whose weights and advantages are f32, with the logprobs in float64: rounding alone differs by about 1e-7. The
rows named "control" have a setting changed, so that they must differ. The exit code is 1 where a row is not as
expected.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.algorithms.credit import advantages
from jaxrl.algorithms.policy_gradient import Settings, make_objective, policy_gradient_loss
from jaxrl.training.packing import make_batch
from rollouts.episode import Episode, Group, Problem, Reward, Turn

PROBLEMS, GROUP, LONGEST, VOCABULARY = 6, 4, 40, 17
TOLERANCE = 1e-6  # relative


class Case(NamedTuple):
    """A loss by both names: the settings of TRL and ours."""

    name: str
    trl: dict[str, Any]
    ours: dict[str, Any]
    on_policy: bool = False  # the first update of a batch: old is the policy itself
    trainer: str = "grpo"
    same: bool = True  # False: a control
    loss: bool = True  # False: only the gradient is defined alike


GRPO = {"averaging": "sequence", "kl_coefficient": 0.04}
TRL_GRPO = {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False}
GSPO = {"ratio": "sequence", "averaging": "sequence", "clip_low": 3e-4, "clip_high": 4e-4}
TRL_GSPO = {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}
CISPO, SAPO = {"objective": "cispo", "clip_low": 1.0, "clip_high": 4.0}, {"objective": "sapo"}
TRL_CISPO = {"loss_type": "cispo", "epsilon_high": 5.0}
RLOO = {"advantage": "leave_one_out", "averaging": "constant", "constant_length": 1}
DR_GRPO = {"advantage": "group_mean", "averaging": "constant"}
CASES = (
    Case("GRPO", TRL_GRPO, GRPO),
    Case("GRPO, no KL", {"loss_type": "grpo"}, {"averaging": "sequence"}),
    Case("Dr.GRPO", {"loss_type": "dr_grpo", "scale_rewards": "none"}, DR_GRPO),
    Case("DAPO", {"loss_type": "dapo", "epsilon_high": 0.28}, {"clip_high": 0.28}),
    Case("BNPO", {"loss_type": "bnpo"}, {}),
    Case("two-sided clipping", {"loss_type": "dapo", "delta": 1.5}, {"dual_clip": 1.5}),
    Case("GSPO", TRL_GSPO, GSPO),
    Case("GSPO, wider clipping", TRL_GSPO | {"epsilon": 0.1, "epsilon_high": 0.1},
         GSPO | {"clip_low": 0.1, "clip_high": 0.1}),
    Case("CISPO", TRL_CISPO, CISPO),
    Case("CISPO, rho at most 1.3", TRL_CISPO | {"epsilon_high": 1.3}, CISPO | {"clip_high": 0.3}),
    Case("SAPO", {"loss_type": "sapo"}, SAPO | {"averaging": "sequence"}),
    Case("GRPO, first update", TRL_GRPO, GRPO, on_policy=True),
    Case("GSPO, first update", TRL_GSPO, GSPO, on_policy=True),
    Case("RLOO, first update", {"beta": 0.0}, RLOO, on_policy=True, trainer="rloo", loss=False),
    Case("control: GRPO, k2 for k3", TRL_GRPO, GRPO | {"kl_estimator": "k2"}, same=False),
    Case("control: GRPO, KL times rho", TRL_GRPO | {"use_bias_correction_kl": True}, GRPO, same=False),
    Case("control: GSPO, averaging=token", TRL_GSPO, GSPO | {"averaging": "token"}, same=False),
    Case("control: CISPO, the default bounds", TRL_CISPO, {"objective": "cispo"}, same=False),
    Case("control: SAPO, averaging=token", {"loss_type": "sapo"}, SAPO, same=False),
)  # fmt: skip


def make_groups(rng: np.random.Generator) -> list[Group]:
    """Episodes of one to three sampled turns. Each token's id is its place e * LONGEST + c + 1, to be looked up by."""
    groups = []
    for p in range(PROBLEMS):
        group = Group(Problem(f"p{p}"), [])
        rewards = rng.integers(0, 5, GROUP) / 4 if p else np.ones(GROUP)  # the first group has no signal
        for reward in rewards:
            e, place, turns = p * GROUP + len(group.episodes), 0, []
            for t in range(2 * int(rng.integers(0, 3)) + 1):
                tokens = np.arange(place, place + int(rng.integers(1, 8)), dtype=np.int32) + e * LONGEST + 1
                sampled = t % 2 == 0
                logprobs = np.full(len(tokens), -1.0, np.float32) if sampled else None
                turns.append(Turn("assistant" if sampled else "tool", tokens, sampled, logprobs))
                place += len(tokens)
            prompt = np.zeros(2, np.int32)
            group.episodes.append(Episode(group.problem, prompt, turns, Reward(float(reward), False), "finished", ""))
        groups.append(group)
    return groups


def make_inputs(seed: int) -> tuple[list[Group], dict[str, np.ndarray]]:
    """The episodes, and what both sides get. E episodes, C tokens of the longest possible one, V tokens in all."""
    rng = np.random.default_rng(seed)
    groups = make_groups(rng)
    E = PROBLEMS * GROUP
    written, mask = np.zeros((2, E, LONGEST), np.int64)  # there, and sampled by the model
    for turn in (t for g in groups for e in g.episodes for t in e.turns):
        written.flat[turn.tokens - 1] = 1
        mask.flat[turn.tokens - 1] = turn.sampled
    logits = rng.normal(0, 1.5, (E, LONGEST, VOCABULARY))
    ids = rng.integers(0, VOCABULARY, (E, LONGEST))
    pi = np.take_along_axis(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), ids[..., None], -1)[..., 0]
    old, reference = (pi + rng.normal(0, 0.4, pi.shape) for _ in range(2))
    inputs = {"logits": logits, "ids": ids, "written": written, "mask": mask, "old": old, "reference": reference}
    for case in CASES:
        inputs[_advantages_of(case)] = _episode_advantages(groups, Settings(**case.ours))
    return groups, inputs | {"group_size": np.array(GROUP)}


def _advantages_of(case: Case) -> str:
    return f"advantages_{case.ours.get('advantage', 'group_std')}"


def _episode_advantages(groups: list[Group], config: Settings) -> np.ndarray:
    """f64[E], as the batch has them."""
    how = {"std_ddof": config.std_ddof, "epsilon": config.advantage_epsilon}
    found = [advantages(g.rewards, config.advantage, **how) for g in groups]
    return np.concatenate(found).astype(np.float32).astype(np.float64)


def ours(case: Case, groups: list[Group], inputs: dict[str, np.ndarray]) -> tuple[float, np.ndarray]:
    """Loss, and gradient f64[E, C, V] with respect to the logits."""
    config = Settings(**case.ours)
    batch, _ = make_batch(groups, make_objective(config, max_new_tokens=LONGEST), row_length=64, microbatch_rows=2)
    place = jnp.maximum(jnp.asarray(batch.tokens) - 1, 0)
    batch = dataclasses.replace(
        batch,
        old_logprobs=None if case.on_policy else jnp.asarray(inputs["old"]).ravel()[place],
        reference_logprobs=jnp.asarray(inputs["reference"]).ravel()[place] if config.kl_coefficient else None,
    )

    def loss(logits: jax.Array) -> jax.Array:
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(inputs["ids"])[..., None], -1)[..., 0]
        return policy_gradient_loss(logprobs.ravel()[place], batch, config)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(inputs["logits"]))
    return float(value), np.asarray(gradient)


def trls(trl_python: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What peer_trl_loss.py computes of all cases."""
    cases = [case._asdict() | {"advantages": _advantages_of(case)} for case in CASES]
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        np.savez(given, allow_pickle=False, cases=json.dumps(cases), **inputs)
        peer = Path(__file__).with_name("peer_trl_loss.py")
        subprocess.run([trl_python, str(peer), str(given), str(got)], check=True)
        return dict(np.load(got))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trl-python", required=True, help="python of an environment with trl")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    groups, inputs = make_inputs(options.seed)
    theirs = trls(options.trl_python, inputs)
    print(f"{theirs['versions']}, jax {jax.__version__}; seed {options.seed}\n")
    print("| loss | TRL's settings | ours | loss differs by | gradient differs by |\n| --- | --- | --- | --- | --- |")
    wrong = 0
    for i, case in enumerate(CASES):
        loss, gradient = ours(case, groups, inputs)
        peer_loss, peer_gradient = float(theirs[f"loss_{i}"]), theirs[f"gradient_{i}"]
        scale = np.abs(inputs[_advantages_of(case)]).mean()  # a loss of centred advantages may be 0
        by_loss = abs(loss - peer_loss) / max(abs(peer_loss), scale)
        by_gradient = float(np.linalg.norm(gradient - peer_gradient) / np.linalg.norm(peer_gradient))
        agree = by_gradient < TOLERANCE and (by_loss < TOLERANCE or not case.loss)
        wrong += agree != case.same
        settings = [", ".join(f"{k}={v}" for k, v in s.items()) or "defaults" for s in (case.trl, case.ours)]
        shown = f"{by_loss:.1e}" if case.loss else "other value"
        mark = "" if agree == case.same else " (!)"
        print(f"| {case.name} | {settings[0]} | {settings[1]} | {shown} | {by_gradient:.1e}{mark} |")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
