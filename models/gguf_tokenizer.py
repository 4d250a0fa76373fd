"""The tokenizer in a GGUF file's metadata, as the files of a folder that transformers loads.

Names of the metadata: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file names the expression that cuts
text into words, but does not hold it. Those below are of the models' own tokenizer.json; "default" and "gpt-2" are
llama.cpp's (https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from models.config import UnsupportedModelError
from models.files import ConversionError, reason_of
from models.gguf import GgufFile, read_gguf
from models.gguf_config import end_tokens

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
_BLANK = "\u2581"  # SentencePiece's
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _TAIL
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class _Words:
    """How byte-level BPE cuts text into words: expressions, one after the other on the pieces of the one before."""

    patterns: tuple[str, ...]
    composed: bool = False  # whether the text is first put into Unicode's form NFC
    whole: bool = False  # whether a word that is a token is not merged from its letters
    begins: bool = False  # whether a text begins with the bos token where the file does not say


_WORDS = {
    "qwen2": _Words((_QWEN2,), composed=True),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _Words((_LLAMA3,), whole=True, begins=True)),
    "tekken": _Words((_TEKKEN,), whole=True, begins=True),
    **dict.fromkeys(("smollm", "starcoder", "refact"), _Words((r"\p{N}", _GPT2))),
    "gpt-2": _Words((_GPT2,)),
    "default": _Words((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}


def write_tokenizer(path: Path, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json of a GGUF file into `folder`.

    Every token has the id that the file gives it. Tokens at the end that the file calls unused, which only fill up the
    vocabulary, are left out. A file without a tokenizer writes nothing.

    Raises UnsupportedModelError naming a tokenizer that is not known, ConversionError for one that is broken, and as
    `read_gguf` does.
    """
    file = read_gguf(path)
    given = {k.removeprefix("tokenizer.ggml."): v for k, v in file.metadata.items() if k.startswith("tokenizer.ggml.")}
    if "model" not in given:
        return
    tokens, kinds = _vocabulary(file, given)
    try:
        tokenizer = _built(file, given, tokens, kinds)
    except (UnsupportedModelError, ConversionError):
        raise
    except Exception as error:  # the tokenizers library raises plain Exception for merges that do not fit
        raise ConversionError(f"{path}: its tokenizer is broken: {reason_of(error)}") from None
    roles = {role: given.get(f"{name}_token_id") for role, name in _ROLES.items()}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {role: tokens[i] for role, i in roles.items() if i is not None}
    if template := file.metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    generation = {"bos_token_id": roles["bos_token"], "eos_token_id": end_tokens(file.metadata)}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, value in (("tokenizer_config.json", settings), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _vocabulary(file: GgufFile, given: dict[str, Any]) -> tuple[list[str], list[int]]:
    """The tokens by id, and the kind of each."""
    tokens = given.get("tokens")
    if not tokens or not isinstance(tokens[0], str):
        raise ConversionError(f"{file.path}: tokenizer.ggml.tokens must be a list of texts")
    kinds = given.get("token_type") or [NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise ConversionError(
            f"{file.path}: {len(tokens)} tokens, but {len(kinds)} entries in tokenizer.ggml.token_type"
        )
    used = max((i + 1 for i, kind in enumerate(kinds) if kind != UNUSED), default=0)
    for key, value in given.items():
        if key.endswith("_token_id") and not 0 <= value < used:
            raise ConversionError(f"{file.path}: tokenizer.ggml.{key} is {value}, but there are {used} tokens")
    ids: dict[str, int] = {}
    for i, token in enumerate(tokens[:used]):
        if ids.setdefault(token, i) != i:
            raise ConversionError(f"{file.path}: token {token!r} has the ids {ids[token]} and {i}")
    return tokens[:used], kinds[:used]


def _built(file: GgufFile, given: dict[str, Any], tokens: list[str], kinds: list[int]) -> Tokenizer:
    makers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if given["model"] not in makers:
        raise UnsupportedModelError(
            f"{file.path}: tokenizer.ggml.model {given['model']!r} is not supported; supported: {', '.join(makers)}"
        )
    tokenizer, begins = makers[given["model"]](file, given, tokens, kinds)
    ends = {given[key] for key in ("bos_token_id", "padding_token_id") if key in given} | set(end_tokens(file.metadata))
    added = [i for i, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED, UNKNOWN) or i in ends]
    # All of them are in the vocabulary already, with the ids of the file, which they keep.
    for i in added:
        token = AddedToken(tokens[i], normalized=False, special=kinds[i] != USER_DEFINED or i in ends)
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    around = [given.get("add_bos_token", begins) and "bos", "A", given.get("add_eos_token", False) and "eos"]
    ids = {tokens[given[f"{name}_token_id"]]: given[f"{name}_token_id"] for name in ("bos", "eos") if name in around}
    if ids:
        pieces = [tokens[given[f"{name}_token_id"]] if name != "A" else "$A" for name in around if name]
        tokenizer.post_processor = processors.TemplateProcessing(single=pieces, special_tokens=list(ids.items()))
    return tokenizer


def _byte_level(file: GgufFile, given: dict[str, Any], tokens: list[str], kinds: list[int]) -> tuple[Tokenizer, bool]:
    """BPE over bytes, and whether a text begins with the bos token if the file does not say."""
    name = given.get("pre")
    if name not in _WORDS:
        raise UnsupportedModelError(
            f"{file.path}: pre-tokenizer (tokenizer.ggml.pre) {name!r} is not supported; supported: {', '.join(_WORDS)}"
        )
    words, vocabulary = _WORDS[name], {token: i for i, token in enumerate(tokens)}
    merges = [(merge[: (cut := merge.find(" ", 1))], merge[cut + 1 :]) for merge in given.get("merges", ())]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=words.whole))
    if words.composed:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in words.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, words.begins


def _sentencepiece(
    file: GgufFile, given: dict[str, Any], tokens: list[str], kinds: list[int]
) -> tuple[Tokenizer, bool]:
    """BPE over characters with a score for each token, and bytes for characters without a token; begins with bos.

    A blank is put before a text, and before what follows a special token, as llama.cpp does.
    """
    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if given.get(key):
            raise UnsupportedModelError(f"{file.path}: tokenizer.ggml.{key} is not supported")
    scores = given.get("scores")
    if scores is None or len(scores) != len(given["tokens"]):
        raise ConversionError(f"{file.path}: tokenizer.ggml.scores must hold a score for each of its tokens")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    unknown = tokens[given.get("unknown_token_id", 0)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(tokens, kinds, scores, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=BYTE in kinds,
        )
    )
    prefix = given.get("add_space_prefix", True)
    blanks = normalizers.Replace(" ", _BLANK)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), blanks] if prefix else [blanks])
    steps = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return tokenizer, True


def _merges(tokens: list[str], kinds: list[int], scores: list[float], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that make a token, the best scores first; of one score, the longest left parts first."""
    found = [
        (scores[i], cut, token[:cut], token[cut:])
        for i, token in enumerate(tokens)
        if kinds[i] == NORMAL
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    found.sort(key=lambda pair: pair[:2], reverse=True)
    return [(left, right) for _, _, left, right in found]
