"""Tokenizers of GGUF files against the models' own files, transformers' reader and plain implementations."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import CHATML, SHAPE, model_file, small_bpe, split_by, vocabulary, write_gguf
from test_gguf import real
from tokenizers import SentencePieceBPETokenizer, pre_tokenizers
from transformers import AutoTokenizer

from models.config import UnsupportedModelError
from models.convert import import_model
from models.gguf_tokenizer import _GPT2, _LLAMA3, _QWEN2, _TEKKEN, write_tokenizer

TEXTS = [
    "",
    " ",
    "def f(x):\n    return [v for v in x if v > 1_234]\n\n\n\tpass  \r\n ",
    "Don't you'll WE'RE it's 'S 12345 3.14159 ²½Ⅷ ٣٤",
    "naïve e\u0301te\u0301 日本語 한국어 🙂👩‍🚀 \x00\u200b\ufeff ß ﬁ",
    "camelCaseWords HTTPServer x+=1;y**=2 // -- ((1234)) $a<=b^~|c!",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "  leading   and trailing   ",
    "a\u2581b \u2581",
]


def made(metadata: dict[str, Any], folder: Path, architecture: str = "llama") -> Any:
    """The tokenizer of a file with this metadata alone, read from the folder that it is written to."""
    path = write_gguf(folder / "x.gguf", {"general.architecture": architecture} | metadata, {})
    write_tokenizer(path, folder / "tokenizer")
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


def same(one: Any, other: Any, texts: list[str]) -> bool:
    """Whether two tokenizers have the same ids for all these texts, and the same texts for the ids."""
    for text in texts:
        ours = one.encode(text, add_special_tokens=False)
        theirs = other.encode(text, add_special_tokens=False)
        theirs = getattr(theirs, "ids", theirs)
        assert ours == theirs, (text, ours, theirs)
        assert one.decode(ours) == other.decode(theirs, skip_special_tokens=False)
    return True


PIECES = {
    "smollm": None,  # digits one by one, then GPT-2's words
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama-bpe": split_by(_LLAMA3),
    "qwen2": split_by(_QWEN2),
    "tekken": split_by(_TEKKEN),
}


@pytest.mark.parametrize("pre", PIECES)
def test_byte_level_tokenizers_have_the_ids_of_their_source(pre, tmp_path):
    source = small_bpe(PIECES[pre])
    ours = made(vocabulary(source, pre), tmp_path)
    texts = TEXTS if pre != "qwen2" else [text for text in TEXTS if "\u0301" not in text]  # which is composed first
    assert same(ours, source, texts)
    assert len(ours) == source.get_vocab_size() and ours.convert_tokens_to_ids("<|im_end|>") == 2
    assert ours.eos_token == "<|im_end|>" and ours.pad_token == "<|endoftext|>" and ours.chat_template == CHATML


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken"])
def test_transformers_cuts_into_the_same_words(pre, tmp_path):
    ours = made(vocabulary(small_bpe(PIECES[pre]), pre), tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    cut = [t.backend_tokenizer.pre_tokenizer.pre_tokenize_str for t in (ours, theirs)]
    for text in TEXTS:
        assert cut[0](text) == cut[1](text)


def test_words_of_llama_cpps_default(tmp_path):
    ours = made(vocabulary(small_bpe(), "default"), tmp_path).backend_tokenizer.pre_tokenizer
    pieces = [piece for piece, _ in ours.pre_tokenize_str("foo((1234567 it's x<=9")]
    assert pieces == ["foo", "((", "123", "456", "7", "Ġit", "'", "s", "Ġx", "<=", "9"]


def test_gpt2s_words_are_those_of_the_tokenizers_library():
    own, library = split_by(_GPT2), pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in TEXTS:
        assert own.pre_tokenize_str(text) == library.pre_tokenize_str(text)


@pytest.mark.parametrize("place", [0, 100, 297])
def test_special_tokens_keep_their_ids_wherever_they_stand(place, tmp_path):
    metadata = vocabulary(small_bpe(), "smollm")
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    ordinary = tokens[3:300]
    moved = [*ordinary[:place], *tokens[:3], *ordinary[place:]]
    metadata |= {"tokenizer.ggml.tokens": [*moved, "<tool>", *tokens[301:]]}
    metadata |= {"tokenizer.ggml.token_type": [3 if t in tokens[:3] else 1 for t in moved] + [4] + kinds[301:]}
    for name, token in (("bos", "<|im_start|>"), ("eos", "<|im_end|>"), ("padding", "<|endoftext|>")):
        metadata[f"tokenizer.ggml.{name}_token_id"] = moved.index(token)
    ours = made(metadata, tmp_path)
    assert ours.convert_ids_to_tokens(list(range(300))) == moved and len(ours) == 301
    assert ours.encode("<|im_start|>") == [place + 1] and ours.encode("a<tool>b")[1] == 300
    special = {token.content for token in ours.added_tokens_decoder.values() if token.special}
    assert special == set(tokens[:3])  # <tool> is the model's to write
    assert ours.decode([place + 1, 300], skip_special_tokens=True) == "<tool>"


@pytest.mark.parametrize(("pre", "flags", "around"), [
    ("smollm", {}, (False, False)),
    ("llama-bpe", {}, (True, False)),
    ("llama-bpe", {"tokenizer.ggml.add_bos_token": False}, (False, False)),
    ("smollm", {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, (True, True)),
])  # fmt: skip
def test_texts_begin_and_end_as_the_file_says(pre, flags, around, tmp_path):
    ours = made(vocabulary(small_bpe(), pre) | flags, tmp_path)
    plain = ours.encode("x", add_special_tokens=False)
    assert ours.encode("x") == [1] * around[0] + plain + [2] * around[1]


def test_all_ends_of_an_answer_are_kept(tmp_path):
    metadata = vocabulary(small_bpe()) | {"tokenizer.ggml.eot_token_id": 1, "tokenizer.ggml.eom_token_id": 2}
    made(metadata | {"tokenizer.ggml.eos_token_id": 0}, tmp_path)
    assert json.loads((tmp_path / "tokenizer" / "generation_config.json").read_text())["eos_token_id"] == [0, 1, 2]


# ---------------------------------------------------------------------- SentencePiece


def small_sentencepiece() -> dict[str, Any]:
    """The metadata of a tokenizer with scores: trained pieces, the earlier the better, and bytes for the rest."""
    trained = SentencePieceBPETokenizer(add_prefix_space=True)
    trained.train_from_iterator([Path(json.__file__).read_text()], vocab_size=250, show_progress=False)
    merges = [left + right for left, right in json.loads(trained.to_str())["model"]["merges"]]
    letters = sorted(set(trained.get_vocab()) - set(merges), key=trained.get_vocab().__getitem__)
    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256)), *merges, *(c for c in letters if len(c) == 1)]
    ranks = [-float(i) for i in range(len(merges))]
    scores = [0.0] * 259 + ranks + [-1e4 - i for i in range(len(tokens) - 259 - len(merges))]
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)],
        "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip


def by_scores(text: str, metadata: dict[str, Any]) -> list[int]:
    """SentencePiece's BPE, plainly: the neighbours whose union has the best score are joined, the leftmost first."""
    ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    scores, pieces = metadata["tokenizer.ggml.scores"], list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        pairs = [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in ids]
        if not pairs:
            return [i for p in pieces for i in ([ids[p]] if p in ids else [ids[f"<0x{b:02X}>"] for b in p.encode()])]
        _, i = min(pairs)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def test_sentencepiece_is_merged_by_scores(tmp_path):
    metadata = small_sentencepiece()
    ours = made(metadata, tmp_path)
    for text in TEXTS[2:6] + TEXTS[7:]:
        found = ours.encode(text, add_special_tokens=False)
        assert found == by_scores(text, metadata), text
        assert ours.decode(found) == text.replace("\u2581", " ")
    assert ours.encode("x") == [1, *by_scores("x", metadata)]
    assert ours.convert_ids_to_tokens(list(range(len(ours)))) == metadata["tokenizer.ggml.tokens"]
    without_prefix = made(metadata | {"tokenizer.ggml.add_space_prefix": False}, tmp_path)
    assert without_prefix.encode(" x", add_special_tokens=False) == by_scores("x", metadata)


def test_transformers_makes_the_same_merges(tmp_path):
    ours = made(small_sentencepiece(), tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    texts = [text for text in TEXTS[2:6] if not text.startswith(" ")]
    assert [ours.encode(text) for text in texts] == [theirs.encode(text) for text in texts]


def test_other_kinds_of_sentencepiece_are_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.ggml\.remove_extra_whitespaces is not supported"):
        made(small_sentencepiece() | {"tokenizer.ggml.remove_extra_whitespaces": True}, tmp_path)


# ---------------------------------------------------------------------- real files


def many_texts(data: Path) -> list[str]:
    """A few thousand: lines of real code, Unicode, digits, blanks, special tokens."""
    rows = gzip.open(data / "humaneval" / "HumanEval.jsonl.gz", "rt").read().splitlines()
    code = [row["prompt"] + row["canonical_solution"] for row in map(json.loads, rows)]
    lines = [line for text in code for line in text.splitlines()][:2500]
    rng = np.random.default_rng(0)
    drawn = ["".join(chr(c) for c in rng.integers(32, top, 20) if not 0xD800 <= c < 0xE000)
             for top in (127, 0x250, 0x3100, 0x1F700) for _ in range(150)]  # fmt: skip
    digits = [" ".join(str(n) for n in rng.integers(0, 10**k, 3)) for k in range(1, 18) for _ in range(10)]
    special = ["<|im_start|>system\nx<|im_end|>\n", "<|endoftext|>", "a<|im_end|>b <|im_start|>"]
    return [*code, *lines, *drawn, *digits, *special, *TEXTS]


def test_qwens_tokenizer_is_qwens_own(data, tmp_path):
    write_tokenizer(real("qwen2.5-coder-0.5b.gguf"), tmp_path)
    ours, own = AutoTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(data / "qwen_tokenizer")
    texts = many_texts(data)
    assert len(texts) > 3000 and same(ours, own, texts)
    assert ours.convert_ids_to_tokens(list(range(151_646))) == own.convert_ids_to_tokens(list(range(151_646)))
    assert len(ours) == 151_665  # with Qwen2.5's newer special tokens, without padding
    assert ours.convert_tokens_to_ids(["<tool_call>", "<|fim_prefix|>", "<|file_sep|>"]) == [151657, 151659, 151664]


def test_smollm2_has_its_special_tokens_at_the_beginning(tmp_path):
    write_tokenizer(real("smollm2-135m.gguf"), tmp_path)
    ours = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode("<|endoftext|><|im_start|><|im_end|><repo_name><empty_output>") == [0, 1, 2, 3, 16]
    assert len(ours) == 49_152 and ours.convert_ids_to_tokens(17) == "!"
    assert ours.convert_ids_to_tokens(ours.encode("x1 23")) == ["x", "1", "Ġ", "2", "3"]
    prompt = ours.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)["input_ids"]
    assert prompt[:4] == [1, *ours.encode("system\nYou")] and prompt.count(2) == 2


def test_an_imported_file_has_its_tokenizer(tmp_path):
    path, _ = model_file(tmp_path / "model.gguf")
    import_model(path, tmp_path / "out")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")) == 300 < SHAPE["vocab_size"]
