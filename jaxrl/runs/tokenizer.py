"""Tokenizers: the one of a model, or a small one trained on a task's own text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxrl.errors import UserError
from jaxrl.files import write_beside
from models.files import is_gguf
from models.gguf_tokenizer import write_tokenizer
from models.tokenizer_files import TOKENIZER_FILES, copy_tokenizer, has_tokenizer
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

    Its `ends` are the tokens that the settings of the model beside it name as the end of an answer. It decodes text as
    it was encoded, without "cleaning" the blanks before punctuation.
    Raises UserError if the folder is missing or holds no tokenizer that can be read.
    """
    from transformers import AutoTokenizer

    folder = Path(name).expanduser()
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"tokenizer folder {name!r} does not exist")
    if folder.is_dir() and not has_tokenizer(folder):
        raise UserError(f"tokenizer folder {name!r} has no tokenizer.json, vocab.json or tokenizer.model")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else name)
    except Exception as error:  # the tokenizers library raises plain Exception for a file that it cannot read
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"no tokenizer could be loaded from {name!r}: {reason}") from error
    tokenizer.clean_up_tokenization_spaces = tokenizer.split_special_tokens = False
    tokenizer.ends = known_ends(tokenizer, folder if folder.is_dir() else hub_files(name))
    return tokenizer


def known_ends(tokenizer: Any, folder: Path) -> tuple[int, ...]:
    """The tokens named as eos_token_id beside a tokenizer: in a Hugging Face folder, an imported model or a run.

    Those that the tokenizer has as special tokens: of another tokenizer the same numbers would be ordinary text.
    Raises UserError naming a file that cannot be read.
    """
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    ends: dict[int, None] = {}
    paths = [folder / "generation_config.json", folder / "config.json"]
    if folder.name == "tokenizer" and not paths[0].is_file():
        paths.append(folder.parent / "hf_config.json")
    for path in filter(Path.is_file, paths):
        try:
            named = json.loads(path.read_text()).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path} is not a JSON object: {error}") from None
        named = [] if named is None else named if isinstance(named, list) else [named]
        if not all(type(token) is int for token in named):
            raise UserError(f"{path}: eos_token_id = {named!r} must be a number or a list of numbers")
        ends |= dict.fromkeys(token for token in named if token in special)
    return tuple(ends)


def hub_files(name: str) -> Path:
    """The local folder of a hub name, with the files of its tokenizer and of its model's settings."""
    from transformers.utils.hub import cached_file

    quiet: Any = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    folders = [
        Path(path).parent for file in (*TOKENIZER_FILES, "config.json") if (path := cached_file(name, file, **quiet))
    ]
    return folders[0] if folders else Path(name)


def keep_tokenizer(name: str, model: str, kept: Path) -> None:
    """Copies the tokenizer of a folder (of any kind that holds one), a GGUF file or a hub name to `kept`.

    Its own files only. Where neither says what ends an answer, the model that it is used with does. Raises as
    load_tokenizer, and ConversionError or UnsupportedModelError for the tokenizer of a GGUF file.
    """
    partial = kept.with_name(f"{kept.name}.partial-{os.getpid()}")
    with _folder_of(name) as source:
        tokenizer: Any = load_tokenizer(str(source))
        copy_tokenizer(source if source.is_dir() else hub_files(name), partial)
    ends = tokenizer.ends
    if not ends and model:
        with _folder_of(model) as source:
            ends = known_ends(tokenizer, source)
    if set(ends) != set(known_ends(tokenizer, partial)):
        path = partial / "generation_config.json"
        settings = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(settings | {"eos_token_id": list(ends)}, indent=2) + "\n")
    os.replace(partial, kept)


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model: a folder of any kind that holds one, a GGUF file or a hub name. Raises as above."""
    with _folder_of(name) as source:
        return load_tokenizer(str(source))


@contextmanager
def _folder_of(name: str) -> Iterator[Path]:
    """Where the tokenizer of an imported model or a run is; of other folders, themselves; of a GGUF file, a new one."""
    path = Path(name).expanduser()
    if not is_gguf(path):
        yield next((p for p in (path / "tokenizer", path / "model" / "tokenizer") if p.is_dir()), path)
        return
    with TemporaryDirectory() as folder:
        write_tokenizer(path, Path(folder))
        if not has_tokenizer(Path(folder)):
            raise UserError(f"{name} holds no tokenizer; set config.model.tokenizer")
        yield Path(folder)


def template_time(run: Path) -> datetime:
    """What a run's chat template takes for the present: the run's start, kept in its folder for when it is resumed."""
    kept, config = run / "model" / "template_time.json", run / "config.json"
    if not kept.exists():
        started = datetime.fromtimestamp(config.stat().st_mtime) if config.exists() else datetime.now()
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_beside(kept, json.dumps({"now": started.isoformat(timespec="seconds")}) + "\n")
    return datetime.fromisoformat(json.loads(kept.read_text())["now"])


def train_tokenizer(corpus: Iterable[str], vocab_size: int, digits: int = 1) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` tokens with ChatML's special tokens and a chat template.

    A token has at most `digits` digits. The same corpus gives the same tokenizer. Raises UserError if the size has
    no room for all bytes.
    """
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(_SPECIAL)
    if vocab_size < smallest:
        raise UserError(f"a byte-level tokenizer has at least {smallest} tokens, not {vocab_size}")
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
