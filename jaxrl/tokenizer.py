"""Tokenizers: the one of a model, or a small one trained on a task's own text; prompts and answers as tokens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from rollouts.episode import Problem

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# ChatML without newlines after roles: a few tokens a message, which counts in a small model.
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Pieces that merges do not cross: a line break with its indentation, single digits, words with a blank before, rest.
_PIECES = r"\n *|\d| ?[A-Za-z_]+| ?[^\sA-Za-z_\d]+| +"


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a folder or a hub name (transformers' AutoTokenizer).

    Raises ValueError if the folder is missing or holds no tokenizer.
    """
    from transformers import AutoTokenizer, Qwen2TokenizerFast

    folder = Path(name)
    if name.startswith((".", "/", "~")) and not folder.expanduser().is_dir():
        raise ValueError(f"tokenizer folder {name!r} does not exist")
    try:
        if (folder / "vocab.json").exists() and not (folder / "tokenizer.json").exists():
            return Qwen2TokenizerFast.from_pretrained(str(folder))
        return AutoTokenizer.from_pretrained(str(folder.expanduser()) if folder.expanduser().is_dir() else name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"no tokenizer could be loaded from {name!r}: {reason}") from None


def train_tokenizer(corpus: Iterable[str], size: int) -> Any:
    """A byte-level BPE tokenizer of at most `size` tokens with digits one by one, and ChatML's special tokens."""
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=TURN_END, pad_token=END_OF_TEXT)
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def chat_prompt(tokenizer: Any, problem: Problem) -> np.ndarray:
    """i32[n]: the problem's messages by the chat template, with the header of the answer; or its plain prompt."""
    if problem.messages:
        text = tokenizer.apply_chat_template(list(problem.messages), add_generation_prompt=True, tokenize=False)
    elif problem.prompt:
        text = problem.prompt
    else:
        raise ValueError(f"problem {problem.id} has neither messages nor a prompt")
    return np.asarray(tokenizer.encode(text, add_special_tokens=False), np.int32)


def answer_tokens(tokenizer: Any, text: str) -> np.ndarray:
    """i32[n]: an answer as the model should give it, with the token that ends it."""
    return np.asarray([*tokenizer.encode(text, add_special_tokens=False), stop_tokens(tokenizer)[0]], np.int32)


def stop_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer; the first is the one to train on."""
    vocabulary = tokenizer.get_vocab()
    names = [TURN_END, tokenizer.eos_token, END_OF_TEXT]
    return tuple(dict.fromkeys(vocabulary[name] for name in names if name in vocabulary))
