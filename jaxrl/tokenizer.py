"""Tokenizers: the one of a model, or a small one trained on a task's own text; prompts and answers as tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from rollouts.episode import Problem

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_SPECIAL = [END_OF_TEXT, TURN_START, TURN_END]

# ChatML without line breaks between messages: a few tokens, which count in a small model.
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Pieces that merges do not cross: a line break with its indentation, a digit, a word or other signs with the blank
# before them, blanks. Digits one by one, so that a number is copied digit by digit.
_PIECES = r"\n *|\d| ?[A-Za-z_]+| ?[^\sA-Za-z_\d]+| +"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder (tokenizer.json, or vocab.json and merges.txt) or a hub name.

    Raises ValueError if the folder is missing or holds no tokenizer that can be read.
    """
    from transformers import AutoTokenizer

    folder = Path(name).expanduser()
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ValueError(f"tokenizer folder {name!r} does not exist")
    if folder.is_dir() and not any((folder / f).exists() for f in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise ValueError(f"tokenizer folder {name!r} has no tokenizer.json, vocab.json or tokenizer.model")
    try:
        return AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else name)
    except Exception as error:  # the tokenizers library raises plain Exception for a file that it cannot read
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"no tokenizer could be loaded from {name!r}: {reason}") from error


def train_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` tokens with ChatML's special tokens and a chat template.

    The same corpus gives the same tokenizer. Raises ValueError if the size has no room for all bytes.
    """
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(_SPECIAL)
    if vocab_size < smallest:
        raise ValueError(f"a byte-level tokenizer has at least {smallest} tokens, not {vocab_size}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=TURN_END, pad_token=END_OF_TEXT)
    # Named as special, or the text of a turn's start would be parsed as one wherever it occurs.
    tokenizer.add_special_tokens({"additional_special_tokens": [TURN_START]})
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def chat_prompt(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> np.ndarray:
    """i32[n]: the problem's messages by the chat template, with the header of the answer; or its plain prompt.

    Special tokens that are written in a message or prompt stay text. Raises ValueError for a problem with neither
    messages nor a prompt, and for messages where the tokenizer has no chat template.
    """
    if problem.messages:
        if tokenizer.chat_template is None:
            raise ValueError(f"problem {problem.id} has chat messages, but the tokenizer has no chat template")
        tokens = _encode_messages(tokenizer, problem.messages)
    elif problem.prompt:
        start = [t for t in tokenizer.encode("") if t == tokenizer.bos_token_id]  # for models that begin with one
        tokens = start + _encode_text(tokenizer, problem.prompt)
    else:
        raise ValueError(f"problem {problem.id} has neither messages nor a prompt")
    return np.asarray(tokens, np.int32)


def _encode_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> list[int]:
    if not any(token in m["content"] for m in messages for token in tokenizer.all_special_tokens):
        return tokenizer.encode(_rendered(tokenizer, messages), add_special_tokens=False)
    # A special token written in a message must not end its turn: the template is encoded around the contents.
    text = _rendered(tokenizer, [m | {"content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)])
    tokens: list[int] = []
    for i, piece in enumerate(re.split("\ue000(\\d+)\ue001", text)):
        if i % 2:
            tokens += _encode_text(tokenizer, messages[int(piece)]["content"])
        else:
            tokens += tokenizer.encode(piece, add_special_tokens=False)
    return tokens


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> str:
    text: Any = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    return text


def _encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def answer_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    """i32[n]: an answer as the model should give it, with the token that ends it."""
    return np.asarray([*_encode_text(tokenizer, text), stop_tokens(tokenizer)[0]], np.int32)


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end an answer; the first is the one to train on. Raises ValueError if there is none."""
    vocabulary = tokenizer.get_vocab()
    names = [TURN_END, tokenizer.eos_token, END_OF_TEXT]
    tokens = tuple(dict.fromkeys(vocabulary[name] for name in names if name in vocabulary))
    if not tokens:
        raise ValueError("the tokenizer has no end-of-sequence token")
    return tokens
