"""The automatic mesh: as little sharding of weights as fits, tensor only with too few rows or too little memory."""

from __future__ import annotations

from functools import partial, reduce

import pytest

from jaxrl.config import Config, MeshConfig
from jaxrl.config.rules import check_settings
from jaxrl.costs import flops as cost
from jaxrl.costs.chips import chip_of
from jaxrl.costs.mesh import USABLE, Load, bytes_needed, choose_mesh, load_of
from models.shapes import SHAPES, known_shape

V5E, V5P = 16 * 2**30, 95 * 2**30


def shape(name):
    config = known_shape(name)
    assert config is not None
    return config


def test_published_sizes():
    """Parameters as the models' papers and cards give them, in billions."""
    published = {
        "Qwen2.5-Coder-0.5B": 0.49, "Qwen2.5-Coder-1.5B": 1.54, "Qwen2.5-Coder-3B": 3.09, "Qwen2.5-Coder-7B": 7.61,
        "Qwen2.5-Coder-14B": 14.7, "Qwen2.5-Coder-32B": 32.5, "Llama-3.1-8B": 8.03, "Llama-3.1-70B": 70.6,
    }  # fmt: skip
    assert set(published) == set(SHAPES)
    for name, billions in published.items():
        assert cost.parameters(shape(name)) / 1e9 == pytest.approx(billions, rel=0.01), name
    assert known_shape("Qwen/Qwen2.5-Coder-1.5B-Instruct") == known_shape("Qwen2.5-Coder-1.5B")
    assert known_shape("gpt2") is None


def test_a_small_model_is_not_sharded():
    assert choose_mesh(shape("Qwen2.5-Coder-0.5B"), 8, Load(8, 1024), V5P) == (8, 1, 1, 1)
    assert choose_mesh(shape("Qwen2.5-Coder-0.5B"), 1, Load(8, 1024)) == (1, 1, 1, 1)


@pytest.mark.parametrize("name, devices, hbm", [("Qwen2.5-Coder-7B", 64, V5E), ("Llama-3.1-70B", 64, V5P)])
def test_the_smallest_fsdp_that_fits(name, devices, hbm):
    config, load = shape(name), Load(devices, 4096)
    data, fsdp, context, tensor = choose_mesh(config, devices, load, hbm)
    assert data * fsdp == devices and context == tensor == 1
    assert bytes_needed(config, (data, fsdp, 1, 1), load) <= hbm
    assert bytes_needed(config, (data * 2, fsdp // 2, 1, 1), load) > USABLE * hbm
    assert bytes_needed(config, (data, fsdp, 1, 1), load) > 22 * cost.parameters(config) / fsdp


def state_bytes(**settings):
    config = Config()
    for name, value in settings.items():
        *path, last = name.split("__")
        setattr(reduce(getattr, path, config), last, value)
    return load_of(config).state_bytes


def test_what_is_kept_of_a_parameter():
    """Itself, its bf16 form, two gradients, two moments: fewer with the settings for that."""
    assert state_bytes(grpo__steps=1) == 4 + 2 + 2 * 4 + 8 == state_bytes(sft__steps=1)
    assert state_bytes(grpo__steps=1, grpo__loss__kl_coefficient=0.01) == 26
    assert state_bytes(grpo__steps=1, grpo__loss__kl_coefficient=0.01, model__offload_reference=True) == 22
    assert state_bytes(grpo__steps=1, rollout__max_staleness=2) == 26  # those that wait for the sampler
    assert state_bytes(sft__steps=1, rollout__max_staleness=2) == 22
    assert state_bytes(grpo__steps=1, optimizer__state="bfloat16", model__param_dtype="bfloat16") == 12
    assert state_bytes(
        grpo__steps=1, sft__steps=1, optimizer__state="int8", sft__optimizer__state="int8"
    ) == pytest.approx(16.1)
    assert state_bytes(grpo__steps=1, sft__steps=1, optimizer__state="int8") == 22  # SFT's moments are in f32
    assert state_bytes(grpo__steps=1, optimizer__offload=True) == 14
    assert state_bytes(grpo__steps=1, model__lora__rank=16) < 7


def test_the_engine_needs_whole_weights_and_its_part_of_the_cache():
    config, load = shape("Qwen2.5-Coder-3B"), Load(16, 4096)  # 36 layers, 2 kv heads of 128
    sampling = load._replace(sampler_bytes=2, cached_tokens=256 * 4096)
    more = bytes_needed(config, (1, 16, 1, 1), sampling) - bytes_needed(config, (1, 16, 1, 1), load)
    assert more == 2 * cost.parameters(config) + 256 * 4096 // 16 * (2 * 36 * 2 * 128 * 2)
    assert choose_mesh(config, 16, load, V5E)[1] < choose_mesh(config, 16, sampling, V5E)[1]
    run = Config()
    run.grpo.steps, run.rollout.slots, run.rollout.max_prompt_length, run.rollout.max_new_tokens = 1, 4, 30, 70
    assert load_of(run)[4:7] == (2, 400, False)
    run.rollout.max_staleness = 1  # it decodes while the trainer updates
    assert load_of(run)[4:7] == (2, 800, False)
    run.sft.steps, run.grpo.steps, run.rollout.max_staleness = 1, 0, 0
    assert load_of(run)[4:7] == (2, 800, True)
    run.rollout.engine = "vllm"
    assert load_of(run)[4:6] == (0, 0)


def test_an_engine_for_evaluations_alone_is_not_in_memory_beside_activations():
    config, load = shape("Qwen2.5-Coder-3B"), Load(16, 4096)
    sampling = load._replace(sampler_bytes=2, cached_tokens=256 * 4096)
    training = bytes_needed(config, (1, 16, 1, 1), load)
    both, apart = (bytes_needed(config, (1, 16, 1, 1), x) for x in (sampling, sampling._replace(apart=True)))
    assert training < apart < both
    state = load.state_bytes * cost.parameters(config) / 16
    assert both - apart == pytest.approx(min(both - training, training - state))


def test_gathering_for_a_sampler_is_between_two_updates():
    config, load = shape("Qwen2.5-Coder-3B"), Load(16, 4096)
    training, count = bytes_needed(config, (1, 16, 1, 1), load), cost.parameters(config)
    state = load.state_bytes * count / 16
    assert bytes_needed(config, (1, 16, 1, 1), load._replace(gathered_bytes=0.1)) == training
    gathered, passing = load._replace(gathered_bytes=4.0), load.passing_bytes * count / 16
    assert bytes_needed(config, (1, 16, 1, 1), gathered) == pytest.approx(state - passing + 4 * count)
    assert bytes_needed(config, (1, 16, 1, 1), gathered._replace(ahead=True)) == pytest.approx(training + 4 * count)
    run = Config()
    run.grpo.steps = 1
    assert (
        load_of(run).gathered_bytes == 0 and load_of(run, 4).gathered_bytes == 1
    )  # 4 bytes over a process's 4 devices
    run.rollout.max_staleness = 1  # what is gathered is what waits for the sampler
    assert load_of(run, 4).state_bytes == load_of(run).state_bytes - 4 and load_of(run, 4).ahead


def test_what_fits_nowhere_is_sharded_over_everything():
    config, load = shape("Llama-3.1-70B"), Load(4, 4096)
    sizes = choose_mesh(config, 4, load, V5E)
    assert sizes[0] == 1 and bytes_needed(config, sizes, load) <= bytes_needed(config, (1, 4, 1, 1), load)


def test_tensor_where_the_memory_is_too_small_for_fsdp_alone():
    """More along tensor means less of a layer's weights gathered, but more rows' activations on a device."""
    config, load = shape("Llama-3.1-70B"), Load(64, 512, state_bytes=2)
    needed = bytes_needed(config, (1, 64, 1, 1), load)
    assert choose_mesh(config, 64, load, 1.1 * needed)[3] == 1
    sizes = choose_mesh(config, 64, load, 0.9 * needed)
    assert sizes[3] > 1 and bytes_needed(config, sizes, load) < 0.9 * needed


def test_tensor_only_with_fewer_rows_than_devices():
    config = shape("Llama-3.1-8B")  # 32 heads, 8 kv heads
    assert choose_mesh(config, 16, Load(16, 4096), V5E)[3] == 1
    assert choose_mesh(config, 16, Load(4, 4096), V5E)[3] == 4
    with pytest.raises(ValueError, match=r"microbatch_rows = 1 rows .* 64 devices"):
        choose_mesh(config, 64, Load(1, 4096), V5E)
    assert choose_mesh(config, 64, Load(1, 8192), V5E, (0, 0, 0, 0)) == (1, 1, 64, 1)


def test_as_few_devices_to_a_row_as_the_rows_allow():
    config = shape("Llama-3.1-8B")
    choose = partial(choose_mesh, config, 64, hbm=V5E, wanted=(0, 0, 0, 0))
    assert choose(load=Load(64, 4096))[2] == 1
    assert choose(load=Load(8, 32_768))[2:] == (8, 1)  # tensor stays 1
    assert choose(load=Load(8, 32_764))[2:] == (4, 2)  # 8 does not divide a row
    assert choose_mesh(config, 64, Load(8, 32_768), V5E, (0, 0, 4, 0))[2:] == (4, 2)
    assert choose_mesh(config, 4, Load(1, 4352), wanted=(0, 0, 0, 0)) == (1, 1, 2, 2)  # 4 x 128 does not divide 4352
    with pytest.raises(ValueError, match=r"mesh.context = 8 must divide a row's 350 tokens"):
        choose_mesh(config, 64, Load(16, 350), V5E, (0, 0, 8, 0))


def test_tensor_stays_within_a_process():
    config = shape("Llama-3.1-8B")
    assert choose_mesh(config, 16, Load(4, 4096), V5E, together=4) == (1, 4, 1, 4)
    with pytest.raises(ValueError, match="cannot be divided over 16 devices; choose a multiple of 8 rows"):
        choose_mesh(config, 16, Load(4, 4096), V5E, together=2)
    assert choose_mesh(config, 16, Load(4, 4096), V5E, (0, 0, 1, 4), together=2) == (1, 4, 1, 4)


def test_sizes_that_are_no_numbers_of_devices():
    for name, size in (("context", True), ("fsdp", -2)):
        with pytest.raises(ValueError, match=f"mesh.{name} = {size} must be a number of devices"):
            check_settings(MeshConfig(**{name: size}), "mesh")


def test_given_sizes_are_kept():
    config, load = shape("Qwen2.5-Coder-1.5B"), Load(16, 4096)  # 12 heads, 2 kv heads
    assert choose_mesh(config, 16, load, V5E, (0, 4, 1, 2)) == (2, 4, 1, 2)
    assert choose_mesh(config, 16, load, V5E, (1, -1, 1, 1)) == (1, 16, 1, 1)
    assert choose_mesh(config, 16, load, V5E, (0, -1, 1, 0)) == (1, 16, 1, 1)
    assert choose_mesh(config, 16, load, V5E, (-1, 1, 1, 4)) == (4, 1, 1, 4)  # 4 is a multiple of 2 kv heads
    with pytest.raises(ValueError, match=r"mesh.tensor = 8 must divide the model's 12 attention heads"):
        choose_mesh(config, 16, load, V5E, (1, -1, 1, 8))
    with pytest.raises(ValueError, match=r"mesh.tensor = 3 must divide the model's 2 kv heads or be a multiple"):
        choose_mesh(config, 12, load, V5E, (1, -1, 1, 3))
    with pytest.raises(ValueError, match="3 x 0 x 1 x 0 does not fit 16 devices"):
        choose_mesh(config, 16, load, V5E, (3, 0, 1, 0))


def test_chips_by_their_kind():
    for kind, name in (
        ("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p"), ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"), ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA H100 80GB HBM3", "h100"), ("v5e", "v5e"),
        ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
    ):  # fmt: skip
        chip = chip_of(kind)
        assert chip is not None and chip.name == name
    assert chip_of("cpu") is None
