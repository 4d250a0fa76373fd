"""A teacher: whole runs with one, resumed and refused; what it says of packed rows; what it costs."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, on_eight_devices
from flax import nnx
from test_learner import CONFIG
from test_train import Result, final_params, without_times

from jaxrl.algorithms import distillation
from jaxrl.aot.training import stages
from jaxrl.config import Config, OptimizerConfig
from jaxrl.costs.flops import forward_flops, parameters, step_flops
from jaxrl.costs.mesh import Load, bytes_needed, choose_mesh, load_of
from jaxrl.errors import UserError
from jaxrl.reports.run_folder import own_cost, read_run
from jaxrl.reports.run_page import write_report
from jaxrl.runs.teacher import check_tokens, find_teacher, load_teacher
from jaxrl.runs.tokenizer import load_tokenizer, tokenizer_of, train_tokenizer
from jaxrl.train import main
from jaxrl.training.learner import Learner
from jaxrl.training.optimizer import make_optimizer, to_host
from jaxrl.training.packing import make_batch
from models.convert import export_model, find_model
from models.decoder import Compute, Decoder, initialize
from models.shapes import known_shape
from models.sharding import make_mesh, param_shardings
from rollouts.episode import Episode, Group, Problem, Reward, Turn

TEMPERATURE = 0.7
# As CONFIG, whose vocabulary has 64 rows, in another size.
LARGER = dataclasses.replace(CONFIG, hidden_size=48, intermediate_size=80, num_layers=3, vocab_size=80)
SMALL = [
    "--config", "configs/scramble.py", "--config.model.shape.hidden_size=32",
    "--config.model.shape.intermediate_size=64", "--config.model.tokenizer_size=300",
    "--config.task.held_out_problems=16", "--config.rollout.slots=32", "--config.batch.microbatch_rows=16",
    "--config.sft.optimizer.warmup_steps=0",
]  # fmt: skip
TEACHER = ["--config.model.shape.num_hidden_layers=4", "--config.sft.steps=60",
           "--config.grpo.steps=0", "--config.model.shape.hidden_size=48"]  # fmt: skip
STUDENT = ["--config.model.shape.num_hidden_layers=2", "--config.sft.steps=10",
           "--config.grpo.steps=20", "--config.grpo.problems_per_step=32", "--config.grpo.group_size=1",
           "--config.optimizer.learning_rate=5e-3", "--config.checkpoint.every=15",
           "--config.grpo.loss=distillation"]  # fmt: skip


def run(folder: Path, *extra: str) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*SMALL, f"--config.runs_dir={folder}", *extra])
    return Result(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    result = run(folder, *TEACHER)
    assert result.returncode == 0, result.stderr
    return folder / "scramble"


def distilled(folder: Path, teacher: Path, *extra: str) -> Result:
    return run(folder, *STUDENT, f"--config.grpo.loss.teacher={teacher}", *extra)


def steps(folder: Path) -> list[dict[str, Any]]:
    return [r for r in without_times(folder) if r["stage"] == "grpo"]


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    result = distilled(folder, teacher)
    assert result.returncode == 0, result.stderr
    return folder


def test_a_student_of_two_layers_comes_nearer_to_a_teacher_of_four(student):
    """One episode a problem is enough, whatever its reward."""
    kl = [r["distill/reverse_kl"] for r in steps(student)]
    assert np.mean(kl[-4:]) < 0.5 * np.mean(kl[:4])


def test_what_the_teacher_costs_is_in_the_record_and_the_report(student, teacher):
    config, records = find_model(teacher)[1], steps(student)
    assert config.num_layers == 4
    for r in records:
        counted = ("sampling", "old", "reference", "teacher", "update")
        assert r["flops"] == sum(r[f"flops/{name}"] for name in counted)
        assert r["flops/old"] == r["flops/reference"] == 0 < r["flops/teacher"] < r["flops/update"]
    read = read_run(student / "scramble")
    assert own_cost(read.sampled).logprobs == sum(r["flops/teacher"] for r in records)
    assert "Reverse KL to the teacher" in write_report(student / "scramble").read_text()


@pytest.mark.slow
def test_a_resumed_student_is_the_same_bit_by_bit(student, teacher):
    before, params = without_times(student), final_params(student)
    shutil.rmtree(student / "scramble" / "checkpoints" / "30")
    known = student / "scramble" / "teacher.json"
    kept = known.read_text()
    known.write_text(json.dumps(json.loads(kept) | {"fingerprint": "float32 0"}))
    result = distilled(student, teacher)
    assert result.returncode == 1 and "has other weights than when" in result.stderr, result.stderr
    known.write_text(kept)
    result = distilled(student, teacher)
    assert result.returncode == 0 and "after step 15" in result.stdout, result.stderr
    assert without_times(student) == before
    for name, value in final_params(student).items():
        assert value.tobytes() == params[name].tobytes(), name


@pytest.mark.slow
def test_adapters_learn_from_a_teacher_and_the_task(teacher, tmp_path):
    extra = ["--config.model.lora.rank=4", "--config.sft.steps=0", "--config.grpo.steps=2",
             "--config.grpo.loss.reward=task", "--config.grpo.group_size=4", "--config.grpo.loss.minibatches=2",
             "--config.grpo.loss.sampler_correction=truncate", "--config.rollout.max_staleness=1",
             "--config.rollout.temperature=0.7"]  # fmt: skip
    result = distilled(tmp_path, teacher, *extra)
    assert result.returncode == 0, result.stderr
    for r in steps(tmp_path):
        assert r["distill/reverse_kl"] > 0 and r["flops/old"] > 0 and r["grad_norm"] > 0


def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_trained(teacher, tmp_path):
    for number, (settings, message) in enumerate({
        ("--config.grpo.loss.teacher=runs/none",): "grpo.loss.teacher = 'runs/none': ",
        ("--config.model.tokenizer_size=310",): "has another tokenizer: token 300 is ",
        ("--config.model.shape.vocab_size=400",): "has a vocabulary of 304 rows, the policy one of 400",
        ("--config.grpo.group_size=1", "--config.grpo.loss.reward=task"): "grpo.group_size = 1 must be at least 2",
        ("--config.grpo.loss.teacher=",): "grpo.loss.teacher = '' must be a model",
    }.items()):  # fmt: skip
        folder = tmp_path / str(number)
        result = distilled(folder, teacher, *settings)
        assert result.returncode == 1 and message in result.stderr, result.stderr
        assert not (folder / "scramble" / "checkpoints").exists() and result.stderr.count("\n") == 1


def test_the_first_token_that_differs_is_named():
    """The teacher may have tokens that the policy lacks."""
    small, large = (train_tokenizer(["banana bandana"] * 3 + list("xyz"), size) for size in (262, 264))
    check_tokens(small, large, "teacher")
    new = large.convert_ids_to_tokens(262)
    with pytest.raises(
        UserError, match=rf"^teacher has another tokenizer: token 262 is {new!r} for .*, no token there"
    ):
        check_tokens(large, small, "teacher")
    other = train_tokenizer(["lemon melon"] * 3, 264)
    with pytest.raises(UserError, match="token 259 is"):
        check_tokens(large, other, "teacher")


def test_a_teacher_has_room_for_the_longest_episode(teacher):
    config = Config()
    config.grpo.steps, config.grpo.loss = 1, distillation.Settings(teacher=str(teacher))
    tokenizer, model = load_tokenizer(str(teacher / "model" / "tokenizer")), find_model(teacher)[1]
    found = find_teacher(config, model, tokenizer)
    assert found == model
    config.rollout.max_new_tokens = 4000
    with pytest.raises(UserError, match=r"has 4096 positions .* max_new_tokens = 4256"):
        find_teacher(config, model, tokenizer)
    config.grpo.steps = 0
    assert find_teacher(config, model, tokenizer) is None


def test_a_teacher_is_any_model_in_the_compute_dtype(teacher, tmp_path):
    """A run and what is exported of it are the same. Matrices have the compute dtype, norms and biases f32."""
    export_model(teacher, tmp_path / "hf")
    found = {}
    for name, path in (("run", teacher), ("hf", tmp_path / "hf")):
        for dtype in ("bfloat16", "float32"):
            (tmp_path / f"{name} {dtype}").mkdir()
            compute = Compute(jnp.dtype(dtype), mesh=make_mesh(devices=jax.devices()[:1]))
            found[name, dtype] = load_teacher(str(path), compute, tmp_path / f"{name} {dtype}")
    for dtype in ("bfloat16", "float32"):
        ours, theirs = (nnx.to_flat_state(found[name, dtype].params) for name in ("run", "hf"))
        for (path, a), (_, b) in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype == (jnp.float32 if str(path[-1]).endswith(("norm", "bias")) else dtype), path
            np.testing.assert_array_equal(a[...], b[...])


def test_a_teacher_may_be_a_gguf_file(tmp_path):
    pytest.importorskip("gguf")
    from gguf_files import MODELS, contents, small_bpe, vocabulary, write_gguf

    metadata, tensors = contents(MODELS["qwen2"]())
    path = write_gguf(tmp_path / "teacher.gguf", metadata | vocabulary(small_bpe()), tensors)
    config = Config()
    config.grpo.steps, config.grpo.loss = 1, distillation.Settings(teacher=str(path))
    config.rollout.max_prompt_length = config.rollout.max_new_tokens = 100
    found = find_teacher(config, CONFIG, tokenizer_of(str(path)))
    teacher = load_teacher(str(path), Compute(mesh=make_mesh(devices=jax.devices()[:1])), tmp_path)
    assert found == teacher.config and found.num_layers == 2


# What the learner does with a teacher.


def groups() -> list[Group]:
    """Episodes of two sampled turns with a tool's output between them."""
    rng = np.random.default_rng(0)

    def turn(n: int, sampled: bool = True) -> Turn:
        tokens = rng.integers(0, 64, n).astype(np.int32)
        return Turn("assistant", tokens, sampled, -rng.random(n).astype(np.float32) if sampled else None)

    def episode(problem: Problem) -> Episode:
        turns = [turn(int(rng.integers(2, 6))), turn(3, False), turn(int(rng.integers(1, 4)))]
        return Episode(problem, rng.integers(0, 64, 4).astype(np.int32), turns, Reward(0.0, False), "finished", "")

    return [Group(p, [episode(p)]) for p in map(Problem, map(str, range(12)))]


def made(rows: int = 8, mesh: Any = None) -> tuple[Any, ...]:
    """(learner, state, batch, the teacher's graphdef and parameters)."""

    def decoder(config: Any, seed: int) -> Any:
        graphdef, params = nnx.split(initialize(Decoder(config), jax.random.key(seed), scale=0.3))
        return graphdef, params if mesh is None else jax.device_put(params, param_shardings(params, mesh))

    (graphdef, params), of_teacher = decoder(CONFIG, 0), decoder(LARGER, 1)
    objective = distillation.make_objective(distillation.Settings(teacher="x"), max_new_tokens=16)
    optimizer, _ = make_optimizer(OptimizerConfig(learning_rate=1e-3), 10)
    compute = Compute(mesh=mesh)
    learner = Learner(graphdef, objective, optimizer, compute=compute, temperature=TEMPERATURE, microbatch_rows=rows)
    batch = make_batch(groups(), objective, row_length=40, microbatch_rows=rows)[0]
    return learner, learner.init(params), batch, of_teacher


def test_the_teachers_logprobs_are_those_of_each_episode_alone():
    """Packed rows of another model than the policy, against its logits of one episode after another in float64."""
    learner, state, batch, (graphdef, params) = made()
    ready = learner.prepare(state, batch, teacher=learner.logprobs_by(graphdef, params))
    found, mask = np.asarray(ready.extras["teacher_logprobs"]), np.asarray(batch.loss_mask) > 0
    assert np.asarray(batch.segment_ids).max() > 1 and not found[~mask].any()

    @jax.jit
    def logits_of(tokens: Any) -> Any:
        teacher: Decoder = nnx.merge(graphdef, params)
        return teacher(tokens[None], jnp.arange(len(tokens))[None])[0] @ teacher.unembedding().T

    for row in range(len(batch.tokens)):
        for segment in range(1, int(np.asarray(batch.segment_ids)[row].max()) + 1):
            here = np.asarray(batch.segment_ids)[row] == segment
            tokens, learned = np.asarray(batch.tokens)[row][here], mask[row][here]
            whole = np.pad(tokens, (0, 40 - len(tokens)))  # of one length; what follows a token does not change it
            logits = np.asarray(logits_of(whole), np.float64)[: len(tokens)] / TEMPERATURE
            logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            wanted = logprobs[np.arange(len(tokens) - 1), tokens[1:]]
            np.testing.assert_allclose(found[row][here][1:][learned[1:]], wanted[learned[1:]], atol=2e-5)


@pytest.mark.slow
def test_the_cut_into_microbatches_does_not_matter():
    outcomes = []
    for rows in (1, 8):
        learner, state, batch, teacher = made(rows)
        ready = learner.prepare(state, batch, teacher=learner.logprobs_by(*teacher))
        outcomes.append(learner.update(state, ready)[1])
    for name in ("loss", "grad_norm", "distill/reverse_kl"):
        assert outcomes[0][name] == pytest.approx(outcomes[1][name], rel=1e-4), name
    assert outcomes[0]["distill/reverse_kl"] == pytest.approx(outcomes[0]["loss"], rel=1e-4)  # averaged over tokens


def test_what_is_in_host_memory_gives_the_same():
    learner, state, batch, (graphdef, params) = made()
    near, far = (learner.logprobs_by(graphdef, p)(batch) for p in (params, to_host(params, "model.offload_reference")))
    np.testing.assert_array_equal(near, far)
    with pytest.raises(ValueError, match="distillation needs a teacher"):
        learner.prepare(state, batch)


ON_EIGHT = """
import sys; sys.path[:0] = ["tests/training"]
import jax, numpy as np
from test_distilled_runs import made
from models.shapes import known_shape
from models.sharding import make_mesh
found = []
for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(2, 2, 1, 2)):
    learner, state, batch, (graphdef, params) = made(8, mesh)
    ready = learner.prepare(state, batch, teacher=learner.logprobs_by(graphdef, params))
    found.append((ready.extras["teacher_logprobs"], learner.update(state, ready)[1]["grad_norm"]))
assert not params["blocks"]["gate"][...].sharding.is_fully_replicated
np.testing.assert_allclose(found[1][0], found[0][0], atol=1e-4)
np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-3)
print("the same on eight devices")
"""


@pytest.mark.slow
def test_a_teacher_is_sharded_over_the_mesh():
    assert "the same on eight devices" in on_eight_devices(ON_EIGHT)


# What it costs.


def test_the_flops_of_a_teacher():
    counts = [(100, 10.0), (50, 20.0)]
    plain = step_flops(CONFIG, [], counts, old=False, reference=False)
    found = step_flops(CONFIG, [], counts, old=False, reference=False, teacher=LARGER)
    extra = forward_flops(LARGER, 100, 10.0) + forward_flops(LARGER, 50, 20.0)
    assert found == plain | {"flops/teacher": extra, "flops": plain["flops"] + extra}


def test_the_memory_of_a_teacher():
    student, small, teacher = (known_shape(f"Qwen2.5-Coder-{size}") for size in ("3B", "1.5B", "14B"))
    assert student is not None and small is not None and teacher is not None
    config, sizes = Config(), (4, 4, 1, 1)
    config.grpo.steps = 1
    for offload, dtype, itemsize in ((False, "auto", 2), (False, "float32", 4), (True, "auto", 0)):
        config.model.offload_reference, config.model.compute_dtype = offload, dtype
        alone, both = (bytes_needed(student, sizes, load_of(config, 0, model)) for model in (None, small))
        assert both - alone == itemsize * parameters(small) / 4
    load, hbm = Load(16, 2048), 95 * 2**30
    assert choose_mesh(student, 16, load, hbm) == (16, 1, 1, 1)
    with_teacher = load._replace(teacher=teacher)
    data, fsdp, _, _ = sizes = choose_mesh(student, 16, with_teacher, hbm)
    assert data * fsdp == 16 and fsdp > 1 and bytes_needed(student, sizes, with_teacher) < hbm
    # Offloaded, it is there while no activations are, but whole.
    apart = bytes_needed(student, sizes, with_teacher._replace(teacher_apart=True))
    assert bytes_needed(student, sizes, load) < apart <= bytes_needed(student, sizes, with_teacher)
    with pytest.raises(UserError, match=r"mesh\.tensor = 16 must divide the teacher's 40 attention heads"):
        choose_mesh(student, 16, with_teacher, None, (1, 1, 1, 16))


def test_the_plan_of_a_run_has_the_teacher(teacher):
    """Its parameters stay in memory, as a run loads them, and its executable runs once for each microbatch."""
    config, mesh = Config(name="x"), make_mesh(devices=jax.devices()[:1])
    config.grpo.steps, config.model.compute_dtype = 1, "bfloat16"
    config.grpo.loss = distillation.Settings(name="distillation", teacher=str(teacher))
    loaded = load_teacher(str(teacher), Compute(jnp.dtype("bfloat16"), mesh=mesh), teacher)
    (stage,) = stages(config, CONFIG, mesh)
    planned = stage.resident["teacher"]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), planned) == jax.tree.map(
        lambda x: (x.shape, x.dtype), loaded.params
    )
    programs = {p.name: p for p in stage.programs}
    assert programs["teacher"].runs == programs["accumulate"].runs and programs["teacher"].resident == (0,)
    rows, length = np.shape(programs["teacher"].arguments[1].tokens)
    assert programs["teacher"].flops == forward_flops(loaded.config, rows * length, length / 2)
    config.model.offload_reference = True
    (stage,) = stages(config, CONFIG, mesh)
    assert "teacher" not in stage.resident and not {p.name: p for p in stage.programs}["teacher"].resident
