"""Tokenizers: the one of a model, or a small one trained on a task's own text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from rollouts.chat import END_OF_TEXT, TURN_END, TURN_START

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_SPECIAL = [END_OF_TEXT, TURN_START, TURN_END]

# ChatML without line breaks between messages: a few tokens, which count in a small model.
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Pieces that merges do not cross: a line break with its indentation, a digit, a word or other signs with the blank
# before them, blanks. Digits one by one (or a few together), so that a number is copied digit by digit.
_PIECES = r"\n *|\d{1,%d}| ?[A-Za-z_]+| ?[^\sA-Za-z_\d]+| +"


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


def train_tokenizer(corpus: Iterable[str], vocab_size: int, digits: int = 1) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` tokens with ChatML's special tokens and a chat template.

    A token has at most so many `digits`. The same corpus gives the same tokenizer. Raises ValueError if the size has
    no room for all bytes.
    """
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(_SPECIAL)
    if vocab_size < smallest:
        raise ValueError(f"a byte-level tokenizer has at least {smallest} tokens, not {vocab_size}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES % digits), behavior="isolated"),
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
