"""Folders of weights: each tensor's bits there and back, and one line that names the file for whatever is wrong."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT
from families import reference
from flax import nnx
from safetensors.numpy import load_file, save_file

from models import safetensors_folder
from models.adapters import attach, save_peft, start_adapters
from models.config import Lora
from models.convert import check_model, describe_model, export_model, import_model, load_hf, load_model, main
from models.files import ConversionError
from models.lora import join_params, split_params
from models.sharding import make_mesh
from models.stored import fingerprint, save_params
from rollouts.vllm.nccl import device_tensors
from rollouts.vllm.weight_files import named_tensors

DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16)
# Values that casts lose: around the smallest normal number of each type, the largest of two types, zeros.
SMALL_AND_LARGE = (2.0**-149, 2.0**-133, 2.0**-127, 2.0**-126, -(2.0**-24), 2.0**-14, 65504.0, 3.3e38, -0.0, 0.0)


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def same_bits(one: Path, other: Path) -> bool:
    a, b = tensors_of(one), tensors_of(other)
    assert a.keys() == b.keys()
    different = [n for n in a if (a[n].dtype, a[n].tobytes()) != (b[n].dtype, b[n].tobytes())]
    assert not different, different
    return True


def rewrite(folder: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
    path = folder / "model.safetensors"
    save_file({n: change(n, t) for n, t in load_file(path).items()}, path, metadata={"format": "pt"})


@pytest.fixture
def folder(tmp_path):
    reference("qwen2_tied").save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def one_line(error: pytest.ExceptionInfo | str, *words: str) -> None:
    text = error if isinstance(error, str) else str(error.value)
    assert "\n" not in text.strip() and all(word in text for word in words), text


# ---------------------------------------------------------------------- dtypes

MIXTURES = {
    "norms in f32, the rest in bf16": lambda i, name: np.float32 if "norm" in name else ml_dtypes.bfloat16,
    "the embedding in bf16, the rest in f32": lambda i, name: ml_dtypes.bfloat16 if "embed" in name else np.float32,
    "the embedding in f16, the rest in f32": lambda i, name: np.float16 if "embed" in name else np.float32,
    "all three, layer by layer": lambda i, name: DTYPES[i % 3],
    "f16 alone": lambda i, name: np.float16,
}


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("family", ["qwen2_untied", "llama_bias"])
def test_each_tensor_keeps_its_dtype_and_bits(family, mixture, tmp_path, monkeypatch):
    source = tmp_path / "hf"
    reference(family).save_pretrained(source)
    order = {name: i for i, name in enumerate(sorted(tensors_of(source)))}

    def change(name, tensor):
        dtype = MIXTURES[mixture](order[name], name)
        tensor.flat[: len(SMALL_AND_LARGE)] = SMALL_AND_LARGE
        with np.errstate(over="ignore"):
            return np.nan_to_num(tensor.astype(dtype), posinf=3.0)

    rewrite(source, change)
    assert len({t.dtype for t in tensors_of(source).values()}) == (
        1 if mixture == "f16 alone" else 2 + ("three" in mixture)
    )
    monkeypatch.setattr(safetensors_folder, "SHARD_BYTES", 100_000)
    import_model(source, tmp_path / "imported")
    export_model(tmp_path / "imported", tmp_path / "exported")
    assert (tmp_path / "exported" / "model.safetensors.index.json").is_file()
    assert same_bits(source, tmp_path / "exported")
    export_model(source, tmp_path / "straight")
    assert same_bits(source, tmp_path / "straight")


def test_transformers_computes_the_same_with_mixed_dtypes(tmp_path):
    source = tmp_path / "hf"
    reference("qwen3").save_pretrained(source)
    order = {name: i for i, name in enumerate(sorted(tensors_of(source)))}
    rewrite(source, lambda name, tensor: tensor.astype(DTYPES[order[name] % 3]))
    import_model(source, tmp_path / "imported")
    assert check_model(tmp_path / "imported", source) <= 1e-4
    export_model(tmp_path / "imported", tmp_path / "exported")
    assert check_model(tmp_path / "imported", tmp_path / "exported") <= 1e-4


def test_values_too_large_for_f16_stay(folder):
    rewrite(folder, lambda name, t: t.astype(np.float16) if "embed" in name else t * np.float32(1e6))
    params = load_hf(folder)[2]
    assert params["blocks"]["q"].dtype == jnp.float32 and params["embed"].dtype == jnp.float16
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(params))


def test_a_wanted_dtype_is_for_all_tensors(folder, tmp_path, capsys):
    rewrite(folder, lambda name, t: t.astype(ml_dtypes.bfloat16) if "norm" in name else t)
    before = tensors_of(folder)
    assert main(["import", str(folder), str(tmp_path / "imported")]) == 0
    assert main(["export", str(tmp_path / "imported"), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    after = tensors_of(tmp_path / "out")
    assert all(t.tobytes() == before[n].astype(ml_dtypes.bfloat16).tobytes() for n, t in after.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_integers_are_not_taken_for_weights(folder, tmp_path):
    rewrite(folder, lambda name, t: t.astype(np.int8) if name.endswith("layers.1.mlp.up_proj.weight") else t)
    with pytest.raises(ConversionError) as error:
        import_model(folder, tmp_path / "out")
    one_line(error, "model.safetensors", "model.layers.1.mlp.up_proj.weight", "I8", "F32, BF16, F16")


# ---------------------------------------------------------------------- adapters and their base

LORA = Lora(4, 8.0, ("q", "down"))


def lora_run(base: Path, out: Path, dtype: str = "float32", change: float = 1e-4) -> dict[str, np.ndarray]:
    """A run's folder with small adapters beside a base that it names; what the merged matrices should be."""
    config, _, params = load_hf(base, dtype=jnp.dtype(dtype))
    config, _, params = attach(config, params, LORA, jax.random.key(0))
    trained, frozen = split_params(params)
    rng = np.random.default_rng(0)
    trained = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, change**0.5, x.shape), jnp.float32), trained)
    describe_model(config, out / "model", base, base_fingerprint=fingerprint(frozen))
    (out / "config.json").write_text(json.dumps({"model": {"param_dtype": dtype, "path": str(base)}}))
    save_params(trained, out / "checkpoints" / "7" / "params")
    merged = {}
    for name in LORA.targets:
        w = np.asarray(frozen["blocks"][name][...], np.float64)
        a, b = (np.asarray(trained["blocks"][f"{name}_lora_{part}"][...], np.float64) for part in "ab")
        merged[name] = w + LORA.scale * a @ b
    return merged


def exported_matrices(folder: Path, name: str) -> np.ndarray:
    place = {"q": "self_attn.q_proj", "down": "mlp.down_proj"}[name]
    tensors = tensors_of(folder)
    return np.stack([tensors[f"model.layers.{l}.{place}.weight"].T for l in range(3)])


def to_bfloat16(folder: Path) -> None:
    rewrite(folder, lambda name, t: t.astype(ml_dtypes.bfloat16))


def test_adapters_of_an_f32_run_are_merged_and_saved_in_f32(folder, tmp_path, recwarn):
    to_bfloat16(folder)
    expected = lora_run(folder, tmp_path / "run")
    export_model(tmp_path / "run", tmp_path / "out")
    assert {t.dtype for t in tensors_of(tmp_path / "out").values()} == {np.dtype(np.float32)}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    for name, merged in expected.items():
        np.testing.assert_allclose(exported_matrices(tmp_path / "out", name), merged, rtol=1e-6, atol=1e-8)
    assert not [w for w in recwarn if "adapters were merged" in str(w.message)]


def test_a_narrower_dtype_is_warned_of(folder, tmp_path, capsys):
    to_bfloat16(folder)
    expected = lora_run(folder, tmp_path / "run")
    with pytest.warns(UserWarning, match=r"run: adapters were merged into bfloat16 .* rounding amounts to \d+% of"):
        assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    for name, merged in expected.items():
        found = exported_matrices(tmp_path / "out", name)
        assert found.tobytes() == merged.astype(np.float32).astype(ml_dtypes.bfloat16).tobytes()


def test_adapters_of_a_bf16_run_are_saved_in_bf16(folder, tmp_path):
    """Of an f32 base, which the run rounded before it began; changes large enough to be worth it are not warned of."""
    expected = lora_run(folder, tmp_path / "run", "bfloat16", change=1.0)
    export_model(tmp_path / "run", tmp_path / "out")
    for name, merged in expected.items():
        found = exported_matrices(tmp_path / "out", name)
        assert found.dtype == ml_dtypes.bfloat16
        np.testing.assert_allclose(found.astype(np.float64), merged, rtol=2**-8, atol=1e-6)


def test_servers_in_f32_get_what_adapters_add_to_bf16_weights(folder):
    """Rounded once, to the server's dtype, on both ways to it."""
    config, _, params = load_hf(folder, dtype=jnp.bfloat16)
    config, _, params = attach(config, params, LORA, jax.random.key(0))
    trained, frozen = split_params(params)
    trained = jax.tree.map(lambda x: jnp.full(x.shape, 1e-3), trained)
    params = join_params(trained, frozen)
    change = LORA.scale * LORA.rank * 1e-6
    for tensors in (named_tensors(params, config, "float32"), dict(device_tensors(params, config, "float32"))):
        for l in range(3):
            w = np.asarray(frozen["blocks"]["q"][...][l], np.float64)
            found = np.asarray(tensors[f"model.layers.{l}.self_attn.q_proj.weight"]).T
            np.testing.assert_allclose(found - w, change, rtol=0.01)


def test_another_base_is_refused(folder, tmp_path, capsys):
    lora_run(folder, tmp_path / "run")
    load_model(tmp_path / "run")
    rewrite(
        folder, lambda name, t: np.nextafter(t, np.float32(9)) if name.endswith("layers.2.mlp.up_proj.weight") else t
    )
    with pytest.raises(ConversionError) as error:
        load_model(tmp_path / "run")
    one_line(error, str(tmp_path / "run"), "were trained beside other weights than those of", str(folder))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    one_line(capsys.readouterr().err, "error: ", "beside other weights")
    config, graphdef, params = load_hf(folder)
    for lora in (None, LORA):
        with pytest.raises(ConversionError, match="were trained beside other weights than those of the model"):
            start_adapters(config, graphdef, params, lora, str(tmp_path / "run"), jax.random.key(0), make_mesh())
    shutil.rmtree(folder)
    with pytest.raises(ConversionError) as error:
        load_model(tmp_path / "run")
    one_line(error, str(tmp_path / "run"), "has adapters for", str(folder), "does not exist")


def test_the_same_base_elsewhere_is_accepted(folder, tmp_path):
    """The same weights in shards, and imported."""
    lora_run(folder, tmp_path / "run")
    expected = jax.tree.leaves(load_model(tmp_path / "run")[2])
    path = tmp_path / "run" / "model" / "model.json"
    import_model(folder, tmp_path / "imported")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source": str(tmp_path / "imported")}))
    for ours, theirs in zip(jax.tree.leaves(load_model(tmp_path / "run")[2]), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_fingerprints_tell_bits_names_and_places(folder):
    params = load_hf(folder)[2]
    first = fingerprint(params)
    assert fingerprint(load_hf(folder, make_mesh(devices=jax.devices()[:1]))[2]) == first
    whole = load_hf(folder, dtype=jnp.bfloat16)[2]
    narrow = fingerprint(whole)
    assert narrow.split()[0] == "bfloat16" and first.split()[0] == "float32" and narrow != first
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), whole)
    assert fingerprint(wide).split()[1] == narrow.split()[1]  # the same values
    flat = dict(nnx.to_flat_state(params))

    def changed(path, change):
        return fingerprint(
            nnx.from_flat_state([(p, v.replace(change(v[...])) if p == path else v) for p, v in flat.items()])
        )

    seen = {first}
    for path in flat:
        seen |= {changed(path, lambda x: x.at[(-1,) * x.ndim].multiply(-1.0)), changed(path, lambda x: x[::-1])}
    assert len(seen) == 1 + 2 * len(flat)


# ---------------------------------------------------------------------- files that are not as they should be


def shard(folder: Path) -> dict[str, str]:
    """Cuts the file of a folder in two; the index's weight_map."""
    tensors = sorted(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    placed = {}
    for i, part in enumerate((tensors[::2], tensors[1::2]), 1):
        name = f"model-{i:05d}-of-00002.safetensors"
        save_file(dict(part), folder / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(dict(part), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return placed


@pytest.mark.parametrize("newer", ["model.safetensors", "model.safetensors.index.json"])
def test_shards_beside_a_whole_file_are_refused(folder, newer):
    whole = (folder / "model.safetensors").read_bytes()
    shard(folder)
    load_hf(folder)
    (folder / "model.safetensors").write_bytes(whole)
    for path in folder.glob("model*"):
        os.utime(path, (2e9, 2e9) if path.name == newer else (1e9, 1e9))
    with pytest.raises(ConversionError) as error:
        load_hf(folder)
    one_line(
        error, str(folder), "both model.safetensors and model.safetensors.index.json", f"({newer} is newer)", "remove"
    )
    (folder / "model.safetensors.index.json").unlink()
    load_hf(folder)  # shards that nothing names do no harm


def test_an_index_of_the_whole_file_is_read(folder):
    placed = dict.fromkeys(tensors_of(folder), "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    load_hf(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "index.json:1: not JSON"),
        ("[]", "must hold a JSON object, holds a list"),
        ("{}", "weight_map must be an object"),
        ('{"weight_map": []}', "weight_map must be an object"),
        ('{"weight_map": {}}', "weight_map must be an object"),
        ('{"weight_map": {"x": 3}}', "weight_map['x'] must be the name of a file beside it, is 3"),
        ('{"weight_map": {"x": "../model.safetensors"}}', "must be the name of a file beside it"),
        ('{"weight_map": {"x": ""}}', "must be the name of a file beside it"),
        ('{"weight_map": {"x": "config.json"}}', "config.json is truncated or not a safetensors file"),
        ('{"weight_map": {"x": "none.safetensors"}}', "none.safetensors, named by"),
        ("\udcff", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_odd_indices_are_named(folder, text, words):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConversionError) as error:
        load_hf(folder)
    one_line(error, str(folder), words)


def test_a_tensor_in_two_shards_is_refused(folder):
    shard(folder)
    first = folder / "model-00001-of-00002.safetensors"
    second = load_file(folder / "model-00002-of-00002.safetensors")
    name = min(second)
    save_file(load_file(first) | {name: second[name] + 1}, first)
    with pytest.raises(ConversionError) as error:
        load_hf(folder)
    one_line(error, name, "model-00001-of-00002.safetensors and model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", b"", "config.json:1: not JSON"),
        ("config.json", b"[]", "config.json: must hold a JSON object, holds a list"),
        ("config.json", b"\xff\xfe{", "config.json: cannot be read"),
        ("config.json", b"[" * 100_000, "config.json: cannot be read"),
        ("config.json", b'{"hidden_size": ' + b"9" * 5000 + b"}", "config.json: cannot be read"),
        ("model.safetensors", b"", "model.safetensors is truncated or not a safetensors file"),
        (
            "model.safetensors",
            b"\x08\0\0\0\0\0\0\0[1, 2]  ",
            "model.safetensors is truncated or not a safetensors file",
        ),
        ("model.safetensors", b"\xff" * 64, "model.safetensors is truncated or not a safetensors file"),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}", "holds no tensors"),
    ],
)
def test_odd_files_are_named(folder, file, content, words, tmp_path, capsys):
    (folder / file).write_bytes(content)
    assert main(["import", str(folder), str(tmp_path / "out")]) == 2
    one_line(capsys.readouterr().err, "error: ", str(folder), words)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*partial*"))


def test_a_byte_order_mark_before_config_json_is_read(folder):
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())
    load_hf(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_files_that_may_not_be_read_are_named(folder, file, tmp_path, capsys, monkeypatch):
    if os.geteuid() == 0:  # whom no permission stops
        read_text, opened = Path.read_text, safetensors_folder.safe_open

        def refused(path, otherwise, *args, **kwargs):
            if Path(path).name == file:
                raise PermissionError(13, "Permission denied", str(path))
            return otherwise(path, *args, **kwargs)

        monkeypatch.setattr(Path, "read_text", lambda p, *a, **k: refused(p, read_text, *a, **k))
        monkeypatch.setattr(safetensors_folder, "safe_open", lambda p, *a, **k: refused(p, opened, *a, **k))
    else:
        (folder / file).chmod(0)
    assert main(["import", str(folder), str(tmp_path / "out")]) == 2
    one_line(capsys.readouterr().err, "error: ", str(folder / file), "cannot be read: Permission denied")


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: {},
        lambda fields: fields | {"windows": 3},
        lambda fields: fields | {"lora": {"rank": 3}},
        lambda fields: fields | {"rope_scaling": [1]},
        lambda fields: fields | {"hidden_size": None},
        lambda fields: fields | {"model_type": "gpt2"},
        lambda fields: [fields],
    ],
)
def test_odd_descriptions_are_named(folder, change, tmp_path, capsys):
    import_model(folder, tmp_path / "imported")
    path = tmp_path / "imported" / "model.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert main(["export", str(tmp_path / "imported"), str(tmp_path / "out")]) == 2
    one_line(capsys.readouterr().err, "error: ", str(path))


def test_damaged_parameters_are_named(folder, tmp_path, capsys):
    import_model(folder, tmp_path / "imported")
    shutil.rmtree(tmp_path / "imported" / "params")
    (tmp_path / "imported" / "params").mkdir()
    for _ in range(2):
        assert main(["export", str(tmp_path / "imported"), str(tmp_path / "out")]) == 2
        one_line(capsys.readouterr().err, "error: ", str(tmp_path / "imported" / "params"))
        shutil.rmtree(tmp_path / "imported" / "params", ignore_errors=True)


def test_a_name_that_is_neither_folder_nor_model_is_named(monkeypatch, tmp_path):
    import huggingface_hub

    def nobody(*args, **kwargs):
        raise OSError("no network\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nobody)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConversionError) as error:
        load_model("runs/typo")
    one_line(error, "'runs/typo'", str(tmp_path / "runs" / "typo"), "the hub does not provide this model: no network")


# ---------------------------------------------------------------------- a full disk

COMMAND = [sys.executable, "-m", "models.convert"]


def run(*arguments: object, limit: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which may not write files of more bytes than this."""
    within = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
    variables = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300,
        preexec_fn=within if limit else None,
    )  # fmt: skip


@pytest.mark.parametrize("limit", [10, 100_000])  # no room for config.json, for the weights
@pytest.mark.parametrize("command", ["import", "export"])
def test_a_full_disk_is_said_in_one_line(folder, command, limit, tmp_path):
    source = folder
    if command == "export":
        source = tmp_path / "imported"
        import_model(folder, source)
    result = run(command, source, tmp_path / "out", limit=limit)
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and str(tmp_path / "out") in lines[0] and "cannot be written" in lines[0], result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*partial*"))


def test_peft_folders_on_a_full_disk_too(folder, tmp_path):
    config, _, params = load_hf(folder)
    config, _, params = attach(config, params, LORA, jax.random.key(0))
    values = {str(path[-1]): np.asarray(v[...]) for path, v in nnx.to_flat_state(split_params(params)[0])}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ConversionError) as error:
            save_peft(values, config, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    one_line(error, f"{tmp_path / 'out'} cannot be written")
    assert not list(tmp_path.glob("out*"))


def test_a_user_without_a_home_folder(folder, tmp_path):
    """HOME unset, and a user that the system does not know: ~ is named, anything else works."""
    program = (
        "import os, sys; os.environ.pop('HOME', None); os.path.expanduser = lambda path: path\n"
        "os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)\n"
        "from models.convert import main\n"
        "from jaxrl.runs.host import prepare_process\n"
        "prepare_process()\n"
        f"assert main(['import', {str(folder)!r}, {str(tmp_path / 'out')!r}]) == 0\n"
        "sys.exit(main(['check', '~/model']))\n"
    )
    variables = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    one_line(result.stderr.strip().splitlines()[-1], "error: ~/model: the user's folder is not known; set HOME")
