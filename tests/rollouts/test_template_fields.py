"""The tokenizer of a run's folder, and the fields of messages: learned, or an error."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from chats import (
    CALL,
    ask,
    built,  # noqa: F401
    say,
    template_tokens,
    with_template,
)
from tokenizer_formats import FORMATS

from jaxrl.config import Config, TaskConfig
from jaxrl.runs.policy import make_tokenizer
from jaxrl.tasks import load_task
from jaxrl.tasks.conversations import read_conversations
from jaxrl.tasks.rows import DataError
from rollouts.chat import TemplateError, chat_prompt, conversation, stop_tokens
from rollouts.control import controls_of

# --- a run's folder


def test_the_date_of_a_run_is_fixed(built, tmp_path):  # noqa: F811
    config = Config()
    config.model.path = str(built["folder"] / "llama")
    task = load_task(TaskConfig(), 0)
    first = make_tokenizer(config.model, task, tmp_path)
    assert datetime.now().strftime("%Y") in first.decode(chat_prompt(first, ask(say("user", "q"))))
    kept = tmp_path / "model" / "template_time.json"
    kept.write_text(json.dumps({"now": "2020-02-29T12:00:00"}))
    again = make_tokenizer(config.model, task, tmp_path)
    prompt = again.decode(chat_prompt(again, ask(say("user", "q"))))
    assert "Today: 29 Feb 2020\n" in prompt
    with pytest.raises(TemplateError, match="line 1 of the chat template formats the time"):
        chat_prompt(with_template(built, "{{ strftime_now(format) }}"), ask(say("user", "q")))


@pytest.mark.parametrize("name", FORMATS)
def test_a_runs_tokenizer_is_its_own_files(built, tmp_path, name):  # noqa: F811
    config = Config()
    config.model.tokenizer = str(built["folder"] / name)
    tokenizer = make_tokenizer(config.model, load_task(TaskConfig(), 0), tmp_path)
    kept = {p.name: p.read_bytes() for p in (tmp_path / "model" / "tokenizer").iterdir()}
    assert kept == {p.name: p.read_bytes() for p in (built["folder"] / name).iterdir()}
    assert stop_tokens(tokenizer) == stop_tokens(built[name])


def test_the_ends_of_the_model_go_with_a_tokenizer_that_names_none(built, tmp_path):  # noqa: F811
    alone, config = tmp_path / "alone", Config()
    alone.mkdir()
    for path in (built["folder"] / "llama").glob("token*"):
        (alone / path.name).write_bytes(path.read_bytes())
    kept = tmp_path / "model"
    config.model.tokenizer, config.model.path = str(alone), str(built["folder"] / "llama")
    for _ in range(2):  # a resumed run too
        tokenizer = make_tokenizer(config.model, load_task(TaskConfig(), 0), tmp_path)
        assert stop_tokens(tokenizer) == stop_tokens(built["llama"])
        (kept / "hf_config.json").write_text(json.dumps({"eos_token_id": controls_of(tokenizer).ids["<|python_tag|>"]}))


def test_an_imported_model_names_its_ends(built, tmp_path):  # noqa: F811
    """In hf_config.json, where there is no generation_config.json."""
    (tmp_path / "tokenizer").mkdir()
    for path in (built["folder"] / "llama").glob("token*"):
        (tmp_path / "tokenizer" / path.name).write_bytes(path.read_bytes())
    ids = controls_of(built["llama"]).ids
    (tmp_path / "hf_config.json").write_text(json.dumps({"eos_token_id": [ids["<|eom_id|>"], 3]}))  # 3 is text
    config = Config()
    config.model.path = str(tmp_path)
    tokenizer = make_tokenizer(config.model, load_task(TaskConfig(), 0), tmp_path / "run")
    names = ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"]
    assert tokenizer.convert_ids_to_tokens(list(stop_tokens(tokenizer))) == names


def test_a_trained_tokenizer_is_written_for_transformers_4_too(tmp_path):
    make_tokenizer(Config().model, load_task(TaskConfig(), 0), tmp_path)
    settings = json.loads((tmp_path / "model" / "tokenizer" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<|im_start|>"] and "extra_special_tokens" not in settings


# --- fields of messages


def test_tool_calls_and_reasoning_are_learned(built):  # noqa: F811
    qwen, ids = built["qwen"], controls_of(built["qwen"]).ids
    messages = [
        say("user", "q"), say("assistant", None, tool_calls=CALL, reasoning="hm"), say("tool", "1"),
        say("assistant", "yes"),
    ]  # fmt: skip
    tokens, learned = conversation(qwen, messages)
    text = qwen.decode(tokens[learned])
    assert text.startswith("<think>\nhm\n</think>\n\n\n<tool_call>\n{") and '"name": "run"' in text
    assert ids["<tool_call>"] in tokens[learned] and ids["<tool_response>"] in tokens[~learned]
    assert tokens.tolist() == template_tokens(qwen, messages)[: len(tokens)]


def test_an_answer_of_weight_0_is_not_learned(built):  # noqa: F811
    llama = built["llama"]
    messages = [
        say("user", "q"),
        say("assistant", "bad", weight=0),
        say("user", "r"),
        say("assistant", "good", weight=1),
    ]
    tokens, learned = conversation(llama, messages)
    assert llama.decode(tokens[learned]) == "good<|eot_id|>" and "bad<|eot_id|>" in llama.decode(tokens[~learned])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            say("assistant", "a", reasoning_content="hm"),
            "the chat template leaves out the reasoning_content of an answer",
        ),
        (say("assistant", "a", audio={"id": 1}), "a message of role 'assistant' has audio, which would be ignored"),
        (
            say("assistant", [{"type": "text", "text": "a"}]),
            "the content of a message of role 'assistant' must be text",
        ),
        (say("assistant", "a", weight=0.5), "weight = 0.5 must be 0"),
    ],
)
def test_fields_that_would_be_ignored_are_errors(built, message, words):  # noqa: F811
    with pytest.raises(TemplateError, match=words):
        conversation(built["llama"], [say("user", "q"), message])


def test_tool_calls_need_a_place_in_the_template(built):  # noqa: F811
    with pytest.raises(TemplateError, match="leaves out the tool_calls of an answer"):
        conversation(built["mistral"], [say("user", "q"), say("assistant", "a", tool_calls=CALL)])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [say("user", "q"), say("assistant", "a", audio=1)]}, r"1: messages\[1\]: a message .* has audio"),
        (
            {"messages": [say("user", "q"), say("assistant", "a")], "tools": [{"name": "f"}]},
            "1: tools would be ignored",
        ),
        ({"messages": [say("user", "q"), say("assistant", "a", weight=0)]}, "no message .* has a weight other than 0"),
    ],
)
def test_a_data_set_keeps_the_fields_or_is_refused(tmp_path, row, words):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=words):
        read_conversations(str(path))
    kept = {
        "messages": [
            say("user", "q"),
            say("assistant", "a", weight=0),
            say("user", "r"),
            say("assistant", None, tool_calls=CALL),
        ]
    }
    path.write_text(json.dumps(kept) + "\n")
    (problem,) = read_conversations(str(path))
    assert [*problem.messages, *(problem.demonstration or ())] == [
        {k: v for k, v in m.items() if v is not None} for m in kept["messages"]
    ]
