"""Linear heads beside the decoder: trained with it, saved with it, and seen by nobody else."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import value_head
from conftest import ROOT, on_eight_devices
from flax import nnx
from test_learner import CONFIG, groups
from test_train import final_params, run, without_times

from jaxrl.algorithms import LossMetrics
from jaxrl.algorithms.batch import Batch
from jaxrl.algorithms.credit import token_weights
from jaxrl.algorithms.objective import Credit, Objective, Outputs
from jaxrl.aot.training import stages
from jaxrl.config import Config, OptimizerConfig
from jaxrl.errors import CheckpointError
from jaxrl.training.checkpoint import Checkpoints
from jaxrl.training.learner import Learner
from jaxrl.training.optimizer import make_optimizer
from jaxrl.training.packing import make_batch
from models.adapters import attach
from models.config import Lora, ModelConfig
from models.convert import check_model, load_model
from models.convert import main as convert
from models.decoder import Compute, Decoder, initialize
from models.heads import Head, head_outputs, with_heads, without_heads
from models.sharding import make_mesh, param_shardings
from rollouts.episode import Episode

LORA = Lora(4, 6.0, ("q", "down"))
WIDE = dataclasses.replace(CONFIG, num_layers=1, hidden_size=128, head_dim=32)  # large enough to be offloaded


def regression(head: Head = Head("score", after=True)) -> Objective:
    """A head learns a target for each token; the decoder is trained only through it."""

    def credit(episodes):
        return [Credit(1.0, {"target": target_of(e)}) for e in episodes]

    def loss(outputs: Outputs, batch: Batch) -> tuple[jax.Array, LossMetrics]:
        error = jnp.where(batch.loss_mask > 0, outputs.heads[head.name] - batch.extras["target"], 0.0)
        sums = {"tokens": jnp.sum(batch.loss_mask), "error": jax.lax.stop_gradient(jnp.sum(error**2))}
        return jnp.sum(batch.loss_weights * error**2), LossMetrics(sums, {})

    return Objective("regression", loss, credit, lambda n: token_weights(n, "token"), heads=(head,), extras=("target",))


def target_of(episode: Episode) -> np.ndarray:
    """f64[n]: a function of each sampled token."""
    return np.concatenate([np.sin(turn.tokens) for turn in episode.turns if turn.learned])


def batch(objective: Objective, rows: int) -> Batch:
    return make_batch(groups(3), objective, row_length=24, microbatch_rows=rows)[0]


@cache
def decoder(config: ModelConfig, lora: Lora | None):
    """A random decoder's graphdef and parameters, on the host."""
    graphdef, params = nnx.split(initialize(Decoder(config), jax.random.key(0), scale=0.1))
    if lora is not None:
        _, graphdef, params = attach(config, params, lora, jax.random.key(1))
    return graphdef, jax.device_get(params)


def learner_and_state(
    rows=8, *, lora=None, mesh=None, objective=None, config: ModelConfig = CONFIG, offload=False, rate=3e-2
):
    graphdef, values = decoder(config, lora)
    params = jax.device_put(values, None if mesh is None else param_shardings(values, mesh))
    optimizer, _ = make_optimizer(OptimizerConfig(learning_rate=rate, offload=offload), 100)
    compute, objective = Compute(mesh=mesh), objective or regression()
    learner = Learner(graphdef, objective, optimizer, compute=compute, microbatch_rows=rows, offload=offload)
    return learner, learner.init(params, seed=2)


def stepped(learner, state, steps):
    """The state after some updates, and the error of each."""
    whole, errors = batch(learner.objective, learner.microbatch_rows), []
    for _ in range(steps):
        state, metrics = learner.update(state, whole)
        errors.append(metrics["error"])
    return state, errors


# ---------------------------------------------------------------------- learning


@pytest.mark.parametrize(
    "lora", [pytest.param(None, id="dense"), pytest.param(LORA, id="lora", marks=pytest.mark.slow)]
)
def test_a_head_learns_and_goes_on_from_a_checkpoint_bit_by_bit(lora, tmp_path):
    learner, state = learner_and_state(4, lora=lora)
    before = jax.device_get(state)
    state, first = stepped(learner, state, 6)
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(6, state, {})
    checkpoints.wait()
    expected, second = stepped(learner, state, 20)
    assert min(second) < 0.3 * first[0]
    for path, variable in nnx.to_flat_state(expected.params):
        changed = (np.asarray(variable[...]) != np.asarray(dict(nnx.to_flat_state(before.params))[path][...])).any()
        assert changed == (lora is None or "_lora_" in path[-1]) or path == ("embed",), path  # the decoder learns too
    restored = Checkpoints(tmp_path, 2).restore(6, learner.abstract(expected.params))
    found, errors = stepped(learner, restored, 20)
    chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(expected))
    assert errors == second
    assert {p.name for p in (tmp_path / "6").iterdir() if p.is_dir()} == {"params", "opt_state", "place", "heads"}
    assert (tmp_path / "6" / "heads" / "checksums.json").is_file()


@pytest.mark.parametrize("after", [False, True])
def test_the_gradient_of_a_head_is_the_closed_form(after):
    """d/dw sum_t c_t (w h_t + b - y_t)^2 = sum_t 2 c_t (w h_t + b - y_t) h_t, in float64."""
    learner, state = learner_and_state(16, objective=regression(Head("score", after, scale=0.5)))
    whole = batch(learner.objective, 16)
    found = without_heads(learner._gradient(state.weights, whole)[0])[1]
    model = nnx.merge(decoder(CONFIG, None)[0], state.params)
    hidden = np.asarray(model(whole.tokens, whole.positions, whole.segment_ids), np.float64)
    if not after:
        hidden = np.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
    w, b = (np.asarray(state.heads["score"][part][...], np.float64) for part in ("weight", "bias"))
    c, y = np.asarray(whole.loss_weights, np.float64), np.asarray(whole.extras["target"], np.float64)
    slope = 2 * c * (hidden @ w + b - y)
    np.testing.assert_allclose(found["score"]["bias"][...], slope.sum(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found["score"]["weight"][...], np.einsum("bt,btd->d", slope, hidden), atol=2e-6)
    assert np.abs(w).max() > 0.3 and np.abs(slope).max() > 1e-3


def test_the_cut_into_microbatches_does_not_matter():
    (one, errors), (other, measured) = (
        stepped(*learner_and_state(n, objective=regression(Head("score", True, 0.5)), rate=1e-3), 1) for n in (8, 3)
    )
    assert errors == pytest.approx(measured, rel=1e-5)
    chex.assert_trees_all_close(other.heads, one.heads, atol=1e-5)


def test_masked_tokens_have_no_gradient():
    for objective, name in (
        (regression(), "score"),
        (value_head.make_objective(value_head.Settings(), max_new_tokens=9), "value"),
    ):
        whole = batch(objective, 4)
        rng = np.random.default_rng(0)
        logprobs, values = rng.normal(size=(2, *whole.tokens.shape)).astype(np.float32)
        whole = dataclasses.replace(whole, advantages=whole.loss_mask)
        masked = np.asarray(whole.loss_mask) == 0
        outputs = Outputs(jnp.where(masked, jnp.inf, logprobs), {name: jnp.where(masked, jnp.nan, values)})
        (loss, _), gradient = jax.value_and_grad(objective.loss, has_aux=True)(outputs, whole)
        assert np.isfinite(loss) and masked.any()
        per_token = np.asarray(gradient.heads[name])
        assert (per_token[masked] == 0).all() and (per_token[~masked] != 0).all()
        assert (np.asarray(gradient.logprobs)[masked] == 0).all()


def test_before_and_after():
    heads = (Head("value"), Head("reward", after=True))
    hidden = jnp.arange(6.0).reshape(1, 3, 2)
    state = nnx.State(
        {h.name: {"weight": nnx.Param(jnp.array([1.0, 10.0])), "bias": nnx.Param(jnp.array(0.5))} for h in heads}
    )
    outputs = head_outputs(heads, state, hidden)
    np.testing.assert_array_equal(outputs["reward"], [[10.5, 32.5, 54.5]])
    np.testing.assert_array_equal(outputs["value"], [[0, 10.5, 32.5]])


@pytest.mark.slow
def test_the_optimizer_state_of_the_decoder_is_in_host_memory_and_that_of_heads_is_not():
    state, errors = stepped(*learner_and_state(16, config=WIDE, offload=True, rate=1e-3), 3)
    leaves = jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
    kinds = {jax.tree_util.keystr(path): leaf.sharding.memory_kind for path, leaf in leaves}
    assert "pinned_host" in kinds.values() and errors[-1] < errors[0]
    of_heads = [kind for name, kind in kinds.items() if "heads" in name]
    assert len(of_heads) == 4 and "pinned_host" not in of_heads


ON_EIGHT_DEVICES = """
import tempfile, pathlib
import chex, jax
from test_heads import LORA, learner_and_state, stepped
from jaxrl.training.checkpoint import Checkpoints
from models.sharding import make_mesh
for lora in (None, LORA):
    state, expected = stepped(*learner_and_state(8, lora=lora), 3)
    learner, start = learner_and_state(8, lora=lora, mesh=make_mesh(2, 2, 1, 2))
    after, errors = stepped(learner, start, 3)
    assert max(abs(a - b) for a, b in zip(errors, expected)) < 1e-4, (errors, expected)
    chex.assert_trees_all_close(jax.device_get(after.heads), jax.device_get(state.heads), atol=2e-3)
    checkpoints = Checkpoints(pathlib.Path(tempfile.mkdtemp()), 2)
    checkpoints.save(3, after, {})
    checkpoints.wait()
    restored = checkpoints.restore(3, learner.abstract(after.params))
    same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), restored.heads, after.heads)
    assert all(jax.tree.leaves(same))
    (one, a), (two, b) = (stepped(learner, s, 1) for s in (after, restored))
    chex.assert_trees_all_equal(jax.device_get(one), jax.device_get(two))
    assert a == b
print("the same on eight devices")
"""


@pytest.mark.slow
def test_heads_train_under_a_mesh():
    assert "the same on eight devices" in on_eight_devices(ON_EIGHT_DEVICES)


# ---------------------------------------------------------------------- what must be known before the update


def test_prepare_sees_the_heads_old_outputs_on_learned_tokens():
    objective = value_head.make_objective(value_head.Settings(scale=1.0), max_new_tokens=9)
    learner, state = learner_and_state(4, objective=objective)
    plain = batch(objective, 4)
    learned = np.asarray(plain.loss_mask) > 0
    ready = learner.prepare(state, plain)
    logprobs, heads, _ = learner.outputs(state, plain)
    np.testing.assert_array_equal(ready.extras["old_value"], np.where(learned, heads["value"], 0))
    np.testing.assert_array_equal(ready.advantages, ready.extras["returns"] - np.asarray(ready.extras["old_value"]))
    assert np.abs(heads["value"][learned]).min() > 0 and np.abs(heads["value"][~learned]).max() > 0
    np.testing.assert_allclose(logprobs, learner.logprobs(state.params, plain), atol=1e-5)
    forgetful = dataclasses.replace(objective, prepare=lambda b: dataclasses.replace(b, extras={}))
    learner.objective = forgetful
    with pytest.raises(ValueError, match=r"objective baseline: prepare gives the extras \[\], must give"):
        learner.prepare(state, plain)


def test_an_objective_names_what_it_needs():
    objective = regression()
    with pytest.raises(
        ValueError, match=r"needs \['values'\] must be among: heads, old_entropy, old_logprobs, reference_logprobs"
    ):
        dataclasses.replace(objective, needs=frozenset({"values"}))
    with pytest.raises(ValueError, match="extras must name old_score"):
        dataclasses.replace(objective, needs=frozenset({"heads"}))


def test_a_checkpoint_with_other_heads_is_an_error_in_one_line(tmp_path):
    (learner, state), (other, _) = learner_and_state(), learner_and_state(objective=regression(Head("value", True)))
    plain, without = learner_and_state(objective=dataclasses.replace(regression(), heads=()))
    checkpoints = Checkpoints(tmp_path, 4)
    checkpoints.save(1, state, {})
    checkpoints.save(2, without, {})
    checkpoints.wait()
    checkpoints = Checkpoints(tmp_path, 4)  # as another process has it
    assert {p.name for p in (tmp_path / "2").iterdir() if p.is_dir()} == {"params", "opt_state", "place"}
    for step, like, saved, wanted in (
        (1, plain, "the heads score", "no heads"),
        (2, learner, "no heads", "the heads score"),
        (1, other, "the heads score", "the heads value"),
    ):
        with pytest.raises(CheckpointError, match=f"has {saved}, but the objective trains {wanted}") as error:
            checkpoints.restore(step, like.abstract(state.params))
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- nobody else sees them

VALUE = [f"--config.grpo.loss={ROOT / 'tests' / 'support' / 'value_head.py'}", "--config.grpo.loss.scale=0.1"]
SHORT = [
    "--config.sft.steps=2",
    "--config.grpo.steps=4",
    "--config.checkpoint.every=2",
    "--config.grpo.loss.minibatches=2",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run with a value head, from a plug-in, that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    result = run(folder, *VALUE, *SHORT)
    assert result.returncode == 0, result.stderr
    return folder


def test_a_run_with_a_head_learns_its_value_and_is_exported_without_it(whole, tmp_path):
    folder = whole / "scramble"
    records = [r for r in without_times(whole) if r["stage"] == "grpo"]
    assert all(np.isfinite(r["value/error"]) for r in records) and len(records) == 4
    assert not (folder / "checkpoints" / "2" / "heads").exists()  # the end of SFT
    heads = json.loads((folder / "checkpoints" / "6" / "heads" / "_METADATA").read_text())["tree_metadata"]
    assert len(heads) == 2 and all("value" in name for name in heads)
    _, graphdef, params = load_model(folder)
    assert jax.tree.structure(params) == jax.tree.structure(
        nnx.split(nnx.eval_shape(lambda: nnx.merge(graphdef, params)))[1]
    )
    assert convert(["export", str(folder), str(tmp_path / "hf")]) == 0
    assert check_model(folder, tmp_path / "hf") <= 1e-4


@pytest.mark.slow
def test_a_run_with_a_head_that_was_stopped_ends_bit_by_bit_the_same(whole, tmp_path):
    from jaxrl import train

    saved = Checkpoints.save

    def stopping(self, step, state, place):
        saved(self, step, state, place)
        if step == 4:
            self.wait()
            raise OSError("stopped by the test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Checkpoints, "save", stopping)
        assert "stopped by the test" in run(tmp_path, *VALUE, *SHORT).stderr
    result = run(tmp_path, *VALUE, *SHORT)
    assert result.returncode == 0 and "resuming" in result.stdout, result.stderr
    assert without_times(tmp_path) == without_times(whole)
    expected = final_params(whole)
    for name, value in final_params(tmp_path).items():
        assert value.tobytes() == expected[name].tobytes(), name


def test_the_sampler_and_its_cost_do_not_change():
    """What jaxrl.compile lowers for the JAX engine, with a head in the objective and without one."""
    mesh, model = make_mesh(devices=jax.devices()[:1]), CONFIG
    config = Config(name="x")
    config.rollout.engine, config.grpo.steps, config.sft.steps = "jax", 1, 0
    (plain,) = stages(config, model, mesh)
    config.grpo.loss = value_head.Settings(name=str(ROOT / "tests" / "support" / "value_head.py"))
    (headed,) = stages(config, model, mesh)
    sampling, same = ([p for p in stage.programs if p.sampler] for stage in (plain, headed))
    assert len(sampling) == len(same) > 0
    for one, other in zip(sampling, same):
        assert (one.name, one.flops, one.runs) == (other.name, other.flops, other.runs)
        assert str(one.arguments) == str(other.arguments)
    assert "heads" in headed.resident and "heads" not in plain.resident
    assert "outputs" in {p.name for p in headed.programs} and "outputs" not in {p.name for p in plain.programs}


def test_without_heads_the_state_is_the_decoder_itself():
    learner, state = learner_and_state(objective=dataclasses.replace(regression(), heads=()))
    assert state.heads is None and state.weights is state.params
    assert without_heads(state.params)[0] is state.params and with_heads(state.params, None) is state.params
    assert jax.tree.structure(learner.abstract(state.params)) == jax.tree.structure(state)
