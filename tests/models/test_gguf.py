"""GGUF files: the same logits and tokens as transformers and the models' own files, and one line for what is wrong."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from conftest import on_eight_devices
from families import randomized
from flax import nnx
from gguf import GGMLQuantizationType as Kind
from gguf_files import (
    MODELS,
    SHAPE,
    Blocks,
    contents,
    interleaved,
    model_file,
    quantized,
    small_bpe,
    vocabulary,
    write_gguf,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from models.convert import export_model, import_model, load_hf, load_model, main
from models.decoder import Compute
from models.files import ConversionError
from models.gguf import GgufTensors, hf_name, read_gguf
from models.gguf_config import open_gguf
from models.sharding import make_mesh

FORMATS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1]
REAL = Path(os.environ.get("JAXRL_MODELS", "~/.cache/jaxrl-models")).expanduser()
IDS = np.random.default_rng(1).integers(0, SHAPE["vocab_size"], (2, 40))


def real(name: str) -> Path:
    if not (REAL / name).is_file():
        pytest.skip(f"no {name} in {REAL}; set JAXRL_MODELS")
    return REAL / name


def logits(path: Path, ids: np.ndarray = IDS, **options: Any) -> np.ndarray:
    _, graphdef, params = load_model(path, dtype=jnp.float32, **options)
    model = nnx.merge(graphdef, params)
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    return np.asarray(model(jnp.asarray(ids), positions, compute=Compute()) @ model.unembedding().T)


def reference_logits(model: Any, ids: np.ndarray = IDS) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return float(np.abs(ours - theirs).max()) <= 1e-4


def one_line(text: str, *words: str) -> None:
    assert "\n" not in text.strip() and all(word in text for word in words), text


# ---------------------------------------------------------------------- logits


@pytest.mark.parametrize("family", MODELS)
def test_each_architecture_has_the_logits_of_its_model(family, tmp_path):
    path, model = model_file(tmp_path / "model.gguf", family)
    assert close(logits(path), reference_logits(model))


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_has_the_logits_of_its_values(kind, tmp_path):
    for family in ("qwen2", "llama"):
        path, model = model_file(tmp_path / f"{family}.gguf", family, kind)
        assert close(logits(path), reference_logits(model))


@pytest.mark.parametrize("family", ["qwen2", "qwen2_untied", "qwen3", "llama"])
@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0, Kind.Q4_0])
def test_transformers_reads_the_same(family, kind, tmp_path):
    path, _ = model_file(tmp_path / "model.gguf", family, kind)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    assert close(logits(path), reference_logits(theirs))


def test_a_file_without_a_name_that_says_so_and_a_mesh_give_the_same(tmp_path):
    path, model = model_file(tmp_path / "sha256-1234", "llama", Kind.Q5_0)
    assert close(logits(path, mesh=make_mesh(1, 1)), reference_logits(model))


SHARDED = """
import jax, numpy as np
from models.convert import load_hf
from models.sharding import make_mesh
whole = load_hf(PATH)[2]
for sizes in ((1, 8, 1, 1), (1, 2, 1, 4)):
    parts = load_hf(PATH, make_mesh(*sizes))[2]
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts)))
"""


def test_shards_hold_their_part_of_the_tensors(tmp_path):
    """Also where heads of a Llama model, whose rows are in another order, and blocks are cut."""
    path, _ = model_file(tmp_path / "model.gguf", "llama_bias", Kind.Q4_1)
    on_eight_devices(SHARDED.replace("PATH", repr(str(path))))


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_sliding_window_makes_it_mistral(name, tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    model = randomized(lambda: MistralForCausalLM(MistralConfig(**SHAPE, head_dim=32, sliding_window=9)))
    model.config.model_type = "llama"  # for the names
    metadata, tensors = contents(model)
    metadata = {key.replace("llama.", f"{name}."): value for key, value in metadata.items()}
    metadata |= {"general.architecture": name, f"{name}.attention.sliding_window": 9}
    metadata |= {f"{name}.attention.key_length": 32, f"{name}.rope.dimension_count": 32}
    path = write_gguf(tmp_path / "model.gguf", metadata, tensors)
    assert open_gguf(path)[1].windows == (9, 9) and open_gguf(path)[1].model_type == "mistral"
    assert close(logits(path), reference_logits(model))


def test_a_window_as_long_as_the_context_is_none(tmp_path):
    metadata, tensors = contents(randomized(MODELS["qwen2"]))
    write_gguf(tmp_path / "model.gguf", metadata | {"qwen2.attention.sliding_window": 256}, tensors)
    assert open_gguf(tmp_path / "model.gguf")[1].windows == ()


def test_llama_3_1_scaling_is_found_from_its_factors(tmp_path):
    path, model = model_file(tmp_path / "model.gguf", "llama3")
    ids = np.random.default_rng(2).integers(0, 320, (1, 256))
    assert close(logits(path, ids), reference_logits(model, ids))
    fields, config, _ = open_gguf(path)
    scaling = {name: model.config.rope_parameters[name] for name in fields["rope_scaling"]}
    assert fields["rope_scaling"] == scaling and config.rope_theta == 500_000.0
    metadata, tensors = contents(randomized(MODELS["llama"]))
    ones = {"rope_freqs.weight": np.ones(8, np.float32)}
    assert open_gguf(write_gguf(tmp_path / "ones.gguf", metadata, tensors | ones))[1].rope_scaling is None


K_QUANTS = [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_XS, Kind.IQ2_XXS, Kind.TQ1_0, Kind.MXFP4]


@pytest.mark.parametrize("kind", K_QUANTS)
def test_formats_that_are_only_decoded_have_the_packages_values(kind, tmp_path):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (1200, 512 // block, size), dtype=np.uint8)
    blocks = raw.reshape(1200, -1).view(Blocks)
    blocks.kind = kind
    tensors = {"token_embd.weight": blocks, "blk.0.attn_k.weight": blocks[:64]}
    tensors["blk.0.attn_k.weight"].kind = kind
    path = write_gguf(tmp_path / "x.gguf", {"general.architecture": "llama"}, tensors)
    file = GgufTensors(read_gguf(path), (8, 2), "token_embd.weight", True)
    with np.errstate(all="ignore"):
        whole = gguf.quants.dequantize(np.asarray(blocks), kind)
        embedding, k = "model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight"
        assert np.array_equal(file.read(embedding), whole, equal_nan=True)
        part = (slice(37, 1111), slice(40, 296))
        assert np.array_equal(file.read(embedding, part), whole[part], equal_nan=True)
        narrow = file.read(embedding, part, ml_dtypes.bfloat16)
        assert np.array_equal(narrow, whole[part].astype(ml_dtypes.bfloat16), equal_nan=True)
        assert np.array_equal(interleaved(file.read(k), 2), whole[:64], equal_nan=True)
        rows = slice(5, 50)  # not whole heads
        assert np.array_equal(file.read(k, (rows, slice(None))), file.read(k)[rows], equal_nan=True)


# ---------------------------------------------------------------------- heads that are second copies


def two_copies(path: Path, embedding: Kind, head: Kind, difference: float = 0.0) -> Any:
    """A file of a tied model whose matrix is stored twice, in these formats; what each of them holds."""
    model: Any = randomized(MODELS["qwen2"])
    metadata, tensors = contents(model)
    matrix = model.model.embed_tokens.weight.detach().numpy()
    other = matrix + difference * np.random.default_rng(0).normal(0, matrix.std(), matrix.shape)
    tensors |= {"token_embd.weight": quantized(matrix, embedding), "output.weight": quantized(other, head)}
    write_gguf(path, metadata | vocabulary(small_bpe()), tensors)
    return [
        gguf.quants.dequantize(np.asarray(tensors[name]), kind)
        for name, kind in (("token_embd.weight", embedding), ("output.weight", head))
    ]


@pytest.mark.parametrize(
    ("embedding", "head", "kept"),
    [
        (Kind.Q4_0, Kind.Q8_0, 1),
        (Kind.Q8_0, Kind.Q4_1, 0),
        (Kind.Q5_0, Kind.F16, 1),
        (Kind.Q8_0, Kind.Q8_0, 0),
        (Kind.F16, Kind.F32, 1),
        (Kind.F32, Kind.F32, 0),
    ],
)
def test_two_quantizations_of_one_matrix_are_one(embedding, head, kept, tmp_path):
    path = tmp_path / "model.gguf"
    copies = two_copies(path, embedding, head)
    config, _, params = load_hf(path, dtype=jnp.float32)
    assert config.tied_embeddings and "unembed" not in params
    assert np.array_equal(np.asarray(params["embed"][...]), copies[kept])
    apart, _, params = load_hf(path, dtype=jnp.float32, untie=True)
    assert not apart.tied_embeddings
    assert np.array_equal(np.asarray(params["embed"][...]), copies[0])
    assert np.array_equal(np.asarray(params["unembed"][...]), copies[1])


@pytest.mark.parametrize(
    ("embedding", "head", "difference"),
    [(Kind.Q4_0, Kind.Q8_0, 1.0), (Kind.Q8_0, Kind.Q8_0, 0.05), (Kind.F16, Kind.F32, 1e-3), (Kind.F32, Kind.F32, 1e-6)],
)
def test_another_matrix_is_a_head_of_its_own(embedding, head, difference, tmp_path):
    two_copies(tmp_path / "model.gguf", embedding, head, difference)
    assert not open_gguf(tmp_path / "model.gguf")[1].tied_embeddings


def test_the_command_keeps_or_drops_the_second_copy(tmp_path, capsys):
    path = tmp_path / "model.gguf"
    two_copies(path, Kind.Q4_0, Kind.Q8_0)
    assert main(["import", str(path), str(tmp_path / "tied"), "--check"]) == 0
    assert main(["import", str(path), str(tmp_path / "untied"), "--untie", "--check"]) == 0
    assert main(["check", str(path)]) == 0
    differences = [float(line.split(":")[-1]) for line in capsys.readouterr().out.splitlines() if "difference" in line]
    assert len(differences) == 3 and max(differences) <= 1e-4
    for name, tied in (("tied", True), ("untied", False)):
        export_model(tmp_path / name, tmp_path / f"{name}_hf")
        config = AutoConfig.from_pretrained(tmp_path / f"{name}_hf")
        assert config.tie_word_embeddings is tied
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}_hf", dtype=torch.float32)
        assert close(logits(tmp_path / name), reference_logits(theirs))


# ---------------------------------------------------------------------- import and export


def test_dtypes_of_an_import(tmp_path):
    path, _ = model_file(tmp_path / "model.gguf", "qwen2_untied", Kind.F16)
    for family, name, expected in ((Kind.F16, "f16", "float16"), (Kind.Q8_0, "q8", "float32")):
        file, _ = model_file(tmp_path / f"{name}.gguf", "llama", family)
        params = load_hf(file)[2]
        assert params["blocks"]["q"].dtype == expected and params["final_norm"].dtype == jnp.float32
    assert main(["import", str(path), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    params = load_model(tmp_path / "out")[2]
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"bfloat16"}
    exact = load_hf(path, dtype=jnp.float32)[2]
    for ours, wide in zip(jax.tree.leaves(params), jax.tree.leaves(exact)):
        assert np.array_equal(np.asarray(ours), np.asarray(wide).astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "llama3"])
def test_exports_are_models_for_transformers(family, tmp_path):
    path, model = model_file(tmp_path / "model.gguf", family, Kind.Q8_0)
    import_model(path, tmp_path / "imported")
    export_model(tmp_path / "imported", tmp_path / "exported")
    export_model(path, tmp_path / "straight")
    for name in ("exported", "straight"):
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
        assert close(reference_logits(theirs), reference_logits(model))
        assert type(theirs) is type(model)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        text = tokenizer.apply_chat_template([{"role": "user", "content": "x = 12"}], tokenize=False)
        assert text == "<|im_start|>user\nx = 12<|im_end|>\n"
        assert theirs.generation_config.eos_token_id == [2]
    exported, straight = (sorted(p.name for p in (tmp_path / n).iterdir()) for n in ("exported", "straight"))
    assert exported == straight


def test_parts_of_a_split_file_are_one_model(tmp_path):
    _, model = model_file(tmp_path / "model.gguf", "llama", Kind.Q8_0, split_max_tensors=8)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 3 and parts[0].name == "model-00001-of-00003.gguf"
    assert close(logits(parts[0]), reference_logits(model))
    with pytest.raises(ConversionError, match=r"part 2 of 3: give the first, model-00001-of-00003.gguf"):
        load_model(parts[1])
    renamed = parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ConversionError, match=r"one of 3 parts, so its name must end with -00001-of-00003.gguf"):
        load_model(renamed)
    renamed.rename(parts[0])
    parts[2].unlink()
    with pytest.raises(ConversionError, match=r"model-00003-of-00003.gguf, a part of model-00001"):
        load_model(parts[0])


# ---------------------------------------------------------------------- errors


def without(*names: str):
    def change(metadata, tensors):
        for name in names:
            (metadata if name in metadata else tensors).pop(name)

    return change


def putting(**values: Any):
    return lambda metadata, tensors: metadata.update({k.replace("__", "."): v for k, v in values.items()})


def storing(name: str, value: np.ndarray):
    return lambda metadata, tensors: tensors.update({name: value})


BROKEN: list[tuple[Any, list[str]]] = [
    (
        putting(general__architecture="gemma2"),
        ["general.architecture 'gemma2' is not supported", "qwen2, qwen3, llama"],
    ),
    (without("blk.1.ffn_up.weight"), ["tensor blk.1.ffn_up.weight is missing"]),
    (without("blk.0.attn_q.bias"), ["tensor blk.0.attn_q.bias is missing"]),
    (without("token_embd.weight"), ["tensor token_embd.weight is missing"]),
    (storing("blk.7.ffn_up.weight", np.zeros((128, 64), np.float32)), ["unexpected tensor blk.7.ffn_up.weight"]),
    (storing("cls.weight", np.zeros(3, np.float32)), ["unexpected tensor cls.weight"]),
    (
        storing("blk.1.attn_k.weight", np.zeros((31, 64), np.float32)),
        ["tensor blk.1.attn_k.weight has shape (31, 64), should be (32, 64)"],
    ),
    (storing("output_norm.weight", np.zeros(64, np.int8)), ["tensor output_norm.weight is I8", "Q4_K"]),
    (storing("rope_freqs.weight", np.arange(1, 9, dtype=np.float32)), ["rope_freqs.weight is not Llama 3.1's"]),
    (storing("rope_freqs.weight", np.ones(7, np.float32)), ["rope_freqs.weight has shape (7,)", "(8,) and F32"]),
    (without("qwen2.block_count"), ["qwen2.block_count is missing"]),
    (putting(qwen2__feed_forward_length=[128, 128]), ["qwen2.feed_forward_length must be a number, is [128, 128]"]),
    (putting(qwen2__attention__head_count_kv=[2, 2]), ["num_key_value_heads must be a whole number > 0, is [2, 2]"]),
    (putting(qwen2__expert_count=8), ["qwen2.expert_count 8 is not supported; supported: 0"]),
    (putting(qwen2__rope__scaling__type="yarn"), ["qwen2.rope.scaling.type 'yarn' is not supported"]),
    (putting(qwen2__attention__sliding_window=32), ["qwen2.attention.sliding_window 32 is not supported"]),
    (putting(qwen2__rope__dimension_count=8), ["qwen2.rope.dimension_count 8 differs from the size of a head, 16"]),
    (putting(qwen2__logit_scale=0.5), ["qwen2.logit_scale 0.5 is not supported"]),
    (putting(general__alignment=0), ["general.alignment must be more than 0, is 0"]),
    (
        putting(tokenizer__ggml__pre="viking"),
        ["pre-tokenizer (tokenizer.ggml.pre) 'viking' is not supported", "smollm"],
    ),
    (without("tokenizer.ggml.pre"), ["pre-tokenizer (tokenizer.ggml.pre) None is not supported"]),
    (putting(tokenizer__ggml__model="t5"), ["tokenizer.ggml.model 't5' is not supported; supported: gpt2, llama"]),
    (putting(tokenizer__ggml__model="llama"), ["tokenizer.ggml.scores must hold a score for each"]),
    (putting(tokenizer__ggml__eos_token_id=310), ["tokenizer.ggml.eos_token_id is 310, but there are 300 tokens"]),
    (putting(tokenizer__ggml__token_type=[1, 1]), ["320 tokens, but 2 entries in tokenizer.ggml.token_type"]),
    (putting(tokenizer__ggml__tokens=["a"] * 320), ["token 'a' has the ids 0 and 1"]),
    (putting(tokenizer__ggml__token_type="x"), ["tokenizer.ggml.token_type must be a list, is 'x'"]),
    (putting(tokenizer__ggml__bos_token_id=0.5), ["tokenizer.ggml.bos_token_id must be a whole number, is 0.5"]),
    (putting(tokenizer__ggml__tokens=[1, 2]), ["tokenizer.ggml.tokens must be a list of texts"]),
    (putting(qwen2__rope__freq_base=0.0), ["qwen2.rope.freq_base must be more than 0, is 0.0"]),
    (putting(tokenizer__ggml__merges=["q zzzz"]), ["its tokenizer is broken", "zzzz"]),
]


@pytest.mark.parametrize(("change", "words"), BROKEN, ids=[words[0][:50] for _, words in BROKEN])
def test_what_is_wrong_is_said_in_one_line(change, words, tmp_path, capsys):
    metadata, tensors = contents(randomized(MODELS["qwen2"]))
    metadata |= vocabulary(small_bpe())
    change(metadata, tensors)
    alignment = metadata.pop("general.alignment", None)
    path = tmp_path / "model.gguf"
    if alignment is not None:
        metadata["general.alignmenT"] = alignment  # the package would use it
    write_gguf(path, metadata, tensors)
    path.write_bytes(path.read_bytes().replace(b"general.alignmenT", b"general.alignment"))
    assert main(["import", str(path), str(tmp_path / "out")]) == 2
    one_line(capsys.readouterr().err, "error: ", str(path), *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.gguf"]  # nothing half-written


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"PK\x03\x04" + data[4:], "is not a GGUF file: it begins with b'PK"),
        (lambda data: b"", "is not a GGUF file: it begins with b''"),
        (lambda data: data[:100], "is truncated: it ends inside its header, at byte 100"),
        (lambda data: data[:7000], "is truncated: it ends inside its header, at byte 7000"),
        (lambda data: data[:9000], "is truncated: tensor token_embd.weight ends at byte"),
        (lambda data: data[:-3000], "is truncated: tensor blk."),
        (lambda data: data[:4] + b"\x01\0\0\0" + data[8:], "is GGUF version 1; supported: 2 and 3"),
        (lambda data: data[:4] + b"\0\0\0\x03" + data[8:], "is big-endian; supported: 2 and 3"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "is truncated: it ends inside its header"),
        (lambda data: data[:16] + b"\xff" * 8 + data[24:], "truncated"),
        (lambda data: data.replace(b"qwen2.block_count", b"qwen2.block_coun\xff"), "is not UTF-8"),
        (lambda data: data.replace(b"blk.1.ffn_up", b"blk.1.attn_q"), "tensor blk.1.attn_q.weight is there twice"),
        (lambda data: data.replace(norm(64, 0), norm(64, 99)), "output_norm.weight is in the unknown format 99; "),
        (lambda data: data.replace(norm(64, 0), norm(65, 8)), "has shape (65,), which Q8_0 does not allow"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(damage, words, tmp_path, capsys):
    path, _ = model_file(tmp_path / "model.gguf")
    path.write_bytes(damage(path.read_bytes()))
    assert main(["import", str(path), str(tmp_path / "out")]) == 2
    one_line(capsys.readouterr().err, "error: ", str(path), words)


def norm(size: int, kind: int) -> bytes:
    """What a header says about output_norm.weight: name, one dimension, format."""
    name = b"output_norm.weight"
    return struct.pack("<Q", len(name)) + name + struct.pack("<IQI", 1, size, kind)


def test_files_that_are_missing_or_no_models_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (["import", "models/none.gguf", "out"], ["check", "none.gguf"], ["export", "none.gguf", "out"]):
        assert main(command) == 2
        one_line(capsys.readouterr().err, "error: model file", "none.gguf' does not exist")
    Path("model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert main(["import", "model.safetensors", "out"]) == 2
    one_line(capsys.readouterr().err, "model.safetensors is not a GGUF file")


def test_a_file_without_a_tokenizer_is_still_a_model(tmp_path):
    metadata, tensors = contents(randomized(MODELS["qwen2"]))
    path = write_gguf(tmp_path / "model.gguf", metadata, tensors)
    import_model(path, tmp_path / "imported")
    assert sorted(p.name for p in (tmp_path / "imported").iterdir()) == ["hf_config.json", "model.json", "params"]


# ---------------------------------------------------------------------- memory

PEAK = """
import re, sys
from pathlib import Path
import jax
jax.numpy.zeros(3)
from models.convert import load_hf
import models.gguf
# Not ru_maxrss, which a new process has from its parent.
peak_so_far = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = peak_so_far()
_, _, params = load_hf(Path(sys.argv[1]), dtype=sys.argv[2])
print((peak_so_far() - before) / sum(x.nbytes for x in jax.tree.leaves(params)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_of_loading(dtype, tmp_path):
    """At most as much as from safetensors (tests/models/test_convert.py)."""
    path = real("qwen2.5-coder-0.5b.gguf")
    command = [sys.executable, "-c", PEAK, str(path), dtype]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(out.stdout.split()[-1]) <= 1.2


# ---------------------------------------------------------------------- real files


@pytest.mark.parametrize(
    ("name", "kept"), [("qwen2.5-coder-0.5b.gguf", Kind.Q8_0), ("qwen2.5-coder-1.5b.gguf", Kind.Q6_K)]
)
def test_qwens_second_copy_is_recognized(name, kept):
    path = real(name)
    fields, config, tensors = open_gguf(path)
    assert config.tied_embeddings and tensors._stored["model.embed_tokens.weight"].kind is kept
    assert not open_gguf(path, untie=True)[1].tied_embeddings
    published = {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "vocab_size": 151_936, "max_position_embeddings": 32_768}
    assert {field: fields[field] for field in published} == published


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m.gguf", "qwen2.5-coder-0.5b.gguf"])
def test_transformers_reads_the_same_from_real_files(name, capsys):
    assert main(["check", str(real(name))]) == 0
    assert float(capsys.readouterr().out.split(":")[-1]) <= 5e-4  # of logits around 20


@pytest.mark.slow
def test_real_tensors_have_the_packages_values():
    path = real("qwen2.5-coder-0.5b.gguf")
    tensors, seen = open_gguf(path, untie=True)[2], set()
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.tensor_type not in seen:
            seen.add(tensor.tensor_type)
            theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(tensors.read(hf_name(tensor.name)), theirs)
    assert seen == {Kind.Q5_0, Kind.F32, Kind.Q8_0, Kind.Q6_K, Kind.Q4_K}


def test_config_json_is_what_transformers_wants(tmp_path):
    path, model = model_file(tmp_path / "model.gguf", "llama3")
    (tmp_path / "config.json").write_text(json.dumps(open_gguf(path)[0]))
    theirs = AutoConfig.from_pretrained(tmp_path)
    same = ("hidden_size", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "head_dim")
    assert {name: getattr(theirs, name) for name in same} == {name: getattr(model.config, name) for name in same}
