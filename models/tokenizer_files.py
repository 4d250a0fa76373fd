"""The files of a tokenizer, and copies of them that both transformers 4 and 5 load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")  # a tokenizer has one of them
TOKENIZER_FILES = (
    *VOCABULARIES, "tokenizer_config.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
_OF_VERSION_5 = ("TokenizersBackend", "SentencePieceBackend")  # classes that version 4 does not have
_WRITTEN_BY_VERSION_5 = ("backend", "is_local", "local_files_only")  # needed by neither version


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a tokenizer."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the files of a tokenizer, changing only what transformers 4 cannot read (`make_portable`)."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, target)
    make_portable(target)


def make_portable(folder: Path) -> None:
    """Rewrites a tokenizer_config.json saved by transformers 5 so that version 4 loads the same tokenizer.

    Version 5 names a class that 4 does not have, and writes a list of special tokens where 4 expects a mapping.
    """
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    settings = json.loads(path.read_text())
    changed = dict(settings)
    if settings.get("tokenizer_class") in _OF_VERSION_5:
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    if changed != settings:
        changed = {name: value for name, value in changed.items() if name not in _WRITTEN_BY_VERSION_5}
        path.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n")
