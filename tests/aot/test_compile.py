"""Compiling for TPU slices without a TPU: what fits, and which collectives the programs may have.

The tests that need the TPU compiler are skipped without libtpu (make aot).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

from jaxrl.aot.fit import phases_of, too_large
from jaxrl.aot.hlo import Collective, collectives
from jaxrl.aot.program import Program, bytes_per_device
from jaxrl.aot.roofline import times_of
from jaxrl.aot.topology import find_libtpu, tpu_topology
from jaxrl.aot.training import model_of, stages
from jaxrl.compile import main
from jaxrl.config import Config
from jaxrl.costs.flops import adapter_parameters, parameters
from models.config import ModelConfig
from models.sharding import MeshSizes, make_mesh

needs_libtpu = pytest.mark.skipif(find_libtpu() is None, reason="no libtpu; make aot")
CONFIG = """
from jaxrl.config import Config
def get_config():
    config = Config(name="small")
    config.model.shape.hidden_size = 256
    config.model.shape.intermediate_size = 512
    config.model.shape.vocab_size = 4096
    config.model.shape.num_hidden_layers = LAYERS
    config.model.remat = "full"
    config.rollout.engine = "vllm"
    config.rollout.max_prompt_length = config.rollout.max_new_tokens = 128
    config.grpo.steps = 1
    config.grpo.problems_per_step = config.grpo.group_size = 4
    config.grpo.loss.minibatches = 2
    config.batch.microbatch_rows = 4
    config.mesh.fsdp = -1
    return config
"""
LAYERS, D, F, V, ROWS, T = 4, 256, 512, 4096, 4, 256


def small(layers: int = LAYERS) -> Config:
    space: dict = {}
    exec(CONFIG.replace("LAYERS", str(layers)), space)
    return space["get_config"]()


def programs(config: Config, topology: str = "v5e:2x2", sizes: MeshSizes = (1, 4, 1, 1)) -> list[Program]:
    mesh = tpu_topology(topology).mesh(sizes)
    (stage,) = stages(config, model_of(config), mesh)
    return stage.programs


def compiled(program: Program) -> jax.stages.Compiled:
    return program.function.lower(*program.arguments, **program.static).compile()


@needs_libtpu
def test_every_pass_is_counted_and_what_is_known_before_it_once():
    config = small()
    once = {p.name: p.runs for p in programs(config)}
    config.grpo.loss.epochs, config.grpo.loss.top_entropy = 3, 0.2
    assert {p.name: p.runs for p in programs(config)} == {
        "accumulate": 3 * once["accumulate"], "apply": 3 * 2, "outputs": once["logprobs"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict[str, list[Collective]]:
    """The collectives of each program of a small model's GRPO update on four v5e chips, weights over fsdp."""
    return {p.name: collectives(compiled(p).as_text() or "") for p in programs(small())}


def weights(config: ModelConfig) -> int:
    """Numbers in the matrices of one layer."""
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return config.hidden_size * heads + 3 * config.hidden_size * config.intermediate_size


@needs_libtpu
def test_the_vocabulary_stays_where_it_is(found):
    """Neither table nor its gradient travels in a loop; logits are never gathered."""
    for name, collectives_ in found.items():
        for c in collectives_:
            for array in c.arrays:
                elements = array.bytes // 2
                assert not (c.loops and elements >= V * D // 4 and {V, V // 4} & set(array.shape)), f"{name}: {c}"
                logits = {V, V // 4} & set(array.shape) and D not in array.shape and len(array.shape) > 1
                assert not (logits and array.bytes > 8 * ROWS * T), f"{name}: {c}"


@needs_libtpu
def test_weights_are_gathered_once_a_pass(found):
    """Forward, and again backward (with what is computed again), in bf16, over fsdp, one layer at a time."""
    layer = 2 * weights(model_of(small()))
    for name, passes in (("accumulate", 2), ("logprobs", 1)):
        gathers = [c for c in found[name] if c.kind == "all-gather" and c.loops == (LAYERS,)]
        assert {c.group for c in gathers} == {4}
        assert sum(c.bytes for c in gathers) == pytest.approx(passes * layer, rel=0.1), name


@needs_libtpu
def test_gradients_are_reduced(found):
    """Every weight's f32 gradient goes round the ring once: (n - 1) / n of it is sent by each chip."""
    reducing = ("reduce-scatter", "collective-permute", "all-reduce")
    sent = sum(c.count * c.sent for c in found["accumulate"] if c.kind in reducing and c.loops == (LAYERS,))
    ring = LAYERS * 4 * weights(model_of(small())) * 3 / 4
    assert 0.9 * ring <= sent <= 2.2 * ring
    assert not [c for c in found["logprobs"] if c.kind in reducing and c.loops == (LAYERS,) and c.bytes > 8 * ROWS * T]


@needs_libtpu
def test_the_command(tmp_path, capsys):
    config, out = tmp_path / "small.py", tmp_path / "out.json"
    config.write_text(CONFIG.replace("LAYERS", "2"))
    assert main(["--config", str(config), "--topology", "v5e:2x2", "--json", str(out)]) == 0
    printed, result = capsys.readouterr().out, json.loads(out.read_text())
    assert "grpo: fits" in printed and "MFU" in printed
    (stage,) = result["stages"]
    assert result["mesh"] == {"data": 1, "fsdp": 4, "context": 1, "tensor": 1} and result["row_length"] == T
    assert [p["name"] for p in stage["programs"]] == ["accumulate", "apply", "logprobs"]
    kept = stage["resident"]  # f32 parameters in quarters, but for norms and biases; Adam's two moments
    assert kept["parameters"] == pytest.approx(4 * result["parameters"] / 4, rel=0.02)
    assert kept["optimizer state"] == pytest.approx(2 * kept["parameters"], rel=0.01)
    accumulate = stage["programs"][0]
    assert accumulate["memory"]["arguments"] == pytest.approx(2 * kept["parameters"], rel=0.05)
    assert stage["needed"] >= sum(kept.values()) + accumulate["memory"]["temporaries"]


@needs_libtpu
def test_the_engine_decodes_without_gathering_weights():
    pytest.importorskip("rollouts.jax.programs")
    config, slots, length = small(2), 16, 256
    config.rollout.engine, config.rollout.slots, config.grpo.loss.minibatches = "jax", slots, 1
    model, mesh = model_of(config), tpu_topology("v5e:2x2").mesh((1, 4, 1, 1))
    (stage,) = stages(config, model, mesh)
    prefill, decode = stage.programs[-2:]
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert decode.runs == 128  # tokens of 16 episodes in as many slots
    cache = 2 * 2 * (slots // 4) * length * model.num_kv_heads * model.head_dim * 2  # bf16 keys and values, two layers
    assert cache <= bytes_per_device(stage.resident["sampler's cache"]) <= 1.2 * cache
    for c in collectives(compiled(decode).as_text() or ""):
        assert c.bytes <= 16 * slots * D, str(c)  # activations of the slots, no layer's weights, no logits


@needs_libtpu
def test_with_lora_only_adapters_have_gradient_and_moments():
    config = small(2)
    config.model.lora.rank, config.model.param_dtype, config.grpo.loss.kl_coefficient = 8, "bfloat16", 0.1
    model = model_of(config)
    (stage,) = stages(config, model, tpu_topology("v5e:2x2").mesh((1, 4, 1, 1)))
    accumulate, apply, logprobs = stage.programs
    gradient = jax.tree.leaves(accumulate.arguments[1])
    assert sum(g.size for g in gradient) == adapter_parameters(model) > 0
    assert {g.dtype for g in gradient} == {jnp.dtype("float32")}
    held = {name: bytes_per_device(tree) for name, tree in stage.resident.items()}
    assert held["reference"] < held["parameters"] / 4  # its frozen part is the policy's
    assert held["optimizer state"] == pytest.approx(2 * held["reference"], rel=0.01)
    assert accumulate.flops < 3 * logprobs.flops  # frozen matrices have no gradient
    assert compiled(accumulate).memory_analysis() and compiled(apply).memory_analysis()
    config.model.offload_reference = True
    (offloaded,) = stages(config, model, tpu_topology("v5e:2x2").mesh((1, 4, 1, 1)))
    assert "reference" not in offloaded.resident


@needs_libtpu
def test_what_does_not_fit_is_said_in_one_line(tmp_path, capsys):
    config = tmp_path / "small.py"
    config.write_text(CONFIG.replace("LAYERS", "2"))
    single = "--config.grpo.loss.minibatches=1"  # without a program for old logprobs, which would fit
    assert main(["--config", str(config), "--topology", "v5e:2x2", "--model", "Qwen2.5-Coder-7B", single]) == 1
    printed = capsys.readouterr().out
    assert "does NOT fit" in printed and "of 15.75G" in printed and "Traceback" not in printed


@needs_libtpu
@pytest.mark.slow
def test_compile_time_does_not_grow_with_the_layers():
    """In instructions that the compiler makes, which do not depend on what else the machine does; and in seconds."""
    sizes, seconds = [], []
    for layers in (2, 16):
        start = time.process_time()
        sizes.append(len((compiled(programs(small(layers))[0]).as_text() or "").splitlines()))
        seconds.append(time.process_time() - start)
    assert sizes[1] < 1.1 * sizes[0]
    assert seconds[1] < 1.5 * seconds[0]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--topology", "v5e:3x3"], "known for v5e: 1x1, 2x2"),
        (["--topology", "v5x:2x2"], "did you mean v5"),
        (["--model", "Qwen2.5-Coder-8B"], "did you mean Qwen2.5-Coder-"),
        (["--config.mesh.tensor=3"], "must divide the model's 4 attention heads"),
        (["--stage", "sft"], "sft.steps is 0"),
        (["--config.modl=1"], "did you mean config.model"),
        (["--config.model.remat=all"], "model.remat = 'all' must be one of: none, dots, full"),
        (["--config.model.param_dtype=f32"], "model.param_dtype = 'f32' must be one of"),
        (["--config.rollout.slots=0"], "rollout.slots = 0 must be >= 1"),
        (["--config.batch.microbatch_rows=0"], "batch.microbatch_rows = 0 must be >= 1"),
        (["--json", "nowhere/out.json"], "the folder nowhere does not exist"),
    ],
)
@needs_libtpu
def test_mistakes_are_one_line(tmp_path, capsys, arguments, words):
    config = tmp_path / "small.py"
    config.write_text(CONFIG.replace("LAYERS", "2"))
    assert main(["--config", str(config), "--topology", "v5e:2x2", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_programs_are_lowered_for_gpus(tmp_path):
    config, out = tmp_path / "small.py", tmp_path / "out.json"
    config.write_text(CONFIG.replace("LAYERS", "2"))
    command = [
        sys.executable,
        "-m",
        "jaxrl.compile",
        "--config",
        str(config),
        "--topology",
        "h100:4",
        "--json",
        str(out),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    (stage,) = json.loads(out.read_text())["stages"]
    assert [p["name"] for p in stage["lowered"]] == ["accumulate", "apply", "logprobs"]
    assert all(p["stablehlo_bytes"] > 1000 for p in stage["lowered"])


def test_without_libtpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxrl.aot.topology.find_libtpu", lambda: None)
    config = tmp_path / "small.py"
    config.write_text(CONFIG.replace("LAYERS", "2"))
    assert main(["--config", str(config)]) == 2
    assert "make aot" in capsys.readouterr().err


def test_the_compilers_refusal():
    message = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.71G of 15.75G hbm. Exceeded hbm
    capacity by 4.96G."""
    assert too_large(message) == "the compiler needs 20.71G of 15.75G"
    assert "\n" not in too_large("RESOURCE_EXHAUSTED: something\nelse")


def test_roofline_of_a_large_matmul():
    """At 2 x 8192^3 operations on one v5e chip: 1.0995e12 / 197e12 s; three bf16 matrices through 819 GB/s."""
    from jaxrl.costs.chips import chip_of

    chip = chip_of("v5e")
    assert chip is not None
    times = times_of(chip, 1, 2 * 8192**3, 3 * 2 * 8192**2, [])
    assert times.compute == pytest.approx(5.581e-3, rel=1e-3) and times.hbm == pytest.approx(4.916e-4, rel=1e-3)
    assert times.limit == "compute" and times.best == times.compute and times.worst == times.compute + times.hbm


def test_plain_jax_starts_quietly():
    """libtpu beside the environment is not seen by JAX itself: no search for TPUs, nothing on stderr."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "TPU"))}
    code = "import jax; print(jax.devices()[0].platform)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "cpu" and result.stderr == ""


def test_bytes_of_shards():
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = jax.make_mesh((1,), ("fsdp",))
    array = jax.ShapeDtypeStruct((8, 4), jax.numpy.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    assert bytes_per_device({"a": array, "b": array}) == 2 * 8 * 4 * 2


def phases(config: Config, name: str = "grpo") -> dict[str, float]:
    """Of a stage whose programs all need 10 bytes more than what is resident."""
    mesh = make_mesh(devices=jax.devices()[:1])
    stage = next(s for s in stages(config, model_of(config), mesh) if s.name == name)
    measured = [{"name": p.name, "memory": {"total": 10.0 + i, "resident": 0.0}} for i, p in enumerate(stage.programs)]
    assert ("published parameters" in stage.resident) is (config.rollout.max_staleness > 0 and name == "grpo")
    assert ("sampler's cache" in stage.resident) is (config.rollout.engine == "jax" and name == "grpo")
    return phases_of(stage, 100.0, measured)


def test_a_sampler_ahead_is_in_memory_beside_the_trainer():
    config = small(2)
    assert phases(config) == {"accumulate": 110, "apply": 111, "logprobs": 112}
    config.rollout.max_staleness = 1
    assert phases(config) == {"accumulate": 110, "apply": 111, "logprobs": 112}  # vLLM's memory is elsewhere
    config.rollout.engine, config.rollout.slots = "jax", 8
    assert phases(config) == {
        f"{p} beside decode": 224 + i - 100 for i, p in enumerate(("accumulate", "apply", "logprobs"))
    }
    config.rollout.max_staleness = 0
    assert phases(config) == {"accumulate": 110, "apply": 111, "logprobs": 112, "prefill": 113, "decode": 114}


@needs_libtpu
def test_each_process_of_several_gathers_the_parameters_for_its_sampler():
    """On its own chips, four to a host: between two updates or, where they wait for the sampler, all the time."""
    config = small(2)
    for name, several in (("v5e:2x2", False), ("v5e:2x4", True)):
        topology = tpu_topology(name)
        mesh = topology.mesh((1, topology.chips, 1, 1))
        for staleness in (0, 1):
            config.rollout.max_staleness = staleness
            (stage,) = stages(config, model_of(config), mesh)
            assert (stage.gathered is not None) is several
            kept, whole = stage.resident["parameters"], 4.0 * parameters(model_of(config))
            waiting = bytes_per_device(stage.resident["published parameters"]) if staleness else 0
            if several:
                assert bytes_per_device(stage.gathered) == pytest.approx(whole / 4, rel=0.01)
            assert waiting == (bytes_per_device(stage.gathered if several else kept) if staleness else 0)
            assert ("weights for the sampler" in phases_of(stage, 0.0, [])) is (several and not staleness)


def test_evaluations_of_sft_need_the_engine_for_a_while():
    config = small(2)
    config.rollout.engine, config.rollout.slots, config.sft.steps, config.grpo.steps = "jax", 8, 1, 0
    (stage,) = stages(config, model_of(config), make_mesh(devices=jax.devices()[:1]))
    assert [(p.name, p.runs, p.resident) for p in stage.programs[2:]] == [("prefill", 0, ()), ("decode", 0, ())]
    assert phases(config, "sft") == {"accumulate": 110, "apply": 111, "prefill": 112, "decode": 113}


def test_the_model_may_be_a_gguf_file(tmp_path):
    from gguf_files import model_file

    config = small()
    config.model.path = str(model_file(tmp_path / "model.gguf")[0])
    assert model_of(config).num_layers == 2 and model_of(config).tied_embeddings
