"""Small tokenizers with the published structure of Llama 3.1's, Mistral's and Qwen3's: files as a hub has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxrl.runs.tokenizer import load_tokenizer

CORPUS = ["user assistant system tool def f(x):\n    return x + 1\n", "the answer is [1, 2, 3] Hello world"] * 4

# Every header has its own tokens, contents are trimmed, the date is in the system message, tools' replies are JSON.
LLAMA = """{{- bos_token }}
{%- set today = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- set rules = messages[0]['content'] | trim if messages[0]['role'] == 'system' else '' %}
{%- set messages = messages[1:] if messages[0]['role'] == 'system' else messages %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + today + '\n\n' + rules + '<|eot_id|>' }}
{%- for message in messages %}
{%- if message.tool_calls %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{{- '<|python_tag|>' + message.tool_calls[0].function.name + '<|eom_id|>' }}
{%- elif message.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + message.content | tojson + '<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""

# No header of an answer: it follows the end of the instruction, with a blank. System messages stand in the last one.
MISTRAL = """{{- bos_token }}
{%- set rules = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}
{%- for message in messages if message.role != 'system' %}
{%- if message.role == 'user' %}
{{- '[INST] ' + (rules if loop.last or loop.index0 + 2 >= loop.length else '') + message.content + ' [/INST]' }}
{%- elif message.role == 'assistant' %}
{{- ' ' + message.content + eos_token }}
{%- else %}
{{- raise_exception('only system, user and assistant') }}
{%- endif %}
{%- endfor %}"""

# Reasoning is left out of earlier answers, and there is room for it in the last; tool replies are the user's.
QWEN = """{%- set ns = namespace(query=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.query = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set said = m.content or '' %}
{%- set thought = m.reasoning_content or '' %}
{%- if '</think>' in said %}
{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set said = said.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.query and (loop.last or thought) %}
{{- '<think>\n' + thought + '\n</think>\n\n' }}
{%- endif %}
{{- said }}
{%- for call in m.tool_calls or [] %}
{{- '\n<tool_call>\n' + call.function | tojson + '\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}
{%- else %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}"""


def llama(folder: Path) -> Any:
    """Special tokens are flagged in tokenizer.json and named nowhere; the ends are in generation_config.json."""
    tokenizer = _byte_level()
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag"]
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", special=True, normalized=False) for name in names])
    start = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", start)]
    )
    ends = [tokenizer.token_to_id(f"<|{name}|>") for name in ("end_of_text", "eom_id", "eot_id")]
    settings = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "clean_up_tokenization_spaces": True}
    return _saved(tokenizer, folder, settings | {"chat_template": LLAMA}, {"eos_token_id": ends})


def qwen(folder: Path) -> Any:
    """Some control tokens are not flagged as special."""
    tokenizer = _byte_level()
    for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])
    for name in ("tool_call", "tool_response", "think"):
        tokenizer.add_tokens([AddedToken(f"<{slash}{name}>", normalized=False) for slash in ("", "/")])
    tokenizer.add_tokens([AddedToken("<|fim_prefix|>", normalized=False)])
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": QWEN}
    return _saved(tokenizer, folder, settings, {"eos_token_id": [tokenizer.token_to_id("<|im_end|>")]})


def mistral(folder: Path) -> Any:
    """Converted from SentencePiece: a blank before every text, bytes for what has no piece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    specials, bytes_ = ["<unk>", "<s>", "</s>"], [f"<0x{i:02X}>" for i in range(256)]
    texts = [line for text in CORPUS for line in text.splitlines()]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=[*specials, *bytes_]))
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [t for t in described["added_tokens"] if t["content"] in specials]
    described["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": MISTRAL}
    return _saved(tokenizer, folder, settings, {"eos_token_id": 2})


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    return tokenizer


def _saved(tokenizer: Tokenizer, folder: Path, settings: dict[str, Any], generation: dict[str, Any]) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return load_tokenizer(str(folder))


FORMATS = {"llama": llama, "mistral": mistral, "qwen": qwen}
