"""Chat templates of all kinds: conversations equal the template's, contents stay text, answers end where they must."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chats import (
    CALL,
    Echo,
    Says,
    ask,
    built,  # noqa: F401
    play,
    say,
    template_tokens,
)
from tokenizer_formats import FORMATS

from jaxrl.config import Config, TaskConfig
from jaxrl.runs.environments import make_environment
from jaxrl.runs.tokenizer import load_tokenizer
from jaxrl.tasks import load_task
from rollouts.chat import chat_prompt, conversation, encode_text, following, stop_tokens
from rollouts.control import controls_of, decode_text
from rollouts.environments.interpreter import Interpreter
from rollouts.environments.single_turn import SingleTurn
from rollouts.episode import Problem

MODELS = Path(os.environ.get("JAXRL_MODELS", "~/.cache/jaxrl-models")).expanduser()
REAL = ("llama3", "llama3_1", "llama2", "qwen3", "gemma3", "deepseek_v3", "gptoss")
WORDS = [
    "def",
    "f(x):",
    "return",
    "x+1;",
    "naïve",
    "日本",
    "🙂",
    '{"a":',
    "[1,",
    "2]}",
    "it's",
    "1234",
    "\t",
    ",",
    ".",
    "Hello",
]
WORDS += ["\n", "\n\n", "   "]
# Llama 2's files have none; its paper's format, with the blanks that the published code puts.
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% elif m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def real():
    """The real tokenizers, loaded once."""
    loaded: dict[str, Any] = {}

    def get(name: str) -> Any:
        place = next(
            (p for p in (MODELS / "tokenizers" / name, MODELS / name) if (p / "tokenizer.json").exists()), None
        )
        if place is None:
            pytest.skip(f"{MODELS}/tokenizers/{name} is not there; set JAXRL_MODELS to a folder that has it")
        if name not in loaded:
            loaded[name] = load_tokenizer(str(place))
            if name == "llama2":
                loaded[name].chat_template = LLAMA_2
        return loaded[name]

    return get


def dialogues(seed: int, number: int, system: bool = True):
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 12))).strip() or "x"

    for _ in range(number):
        messages = [say("system", text())] if system and draw.random() < 0.4 else []
        for _ in range(draw.randint(1, 3)):
            messages += [say("user", text()), say("assistant", text())]
        yield messages


def equal_the_template(tokenizer, system: bool) -> None:
    for messages in dialogues(0, 200, system):
        tokens, learned = conversation(tokenizer, messages)
        whole = template_tokens(tokenizer, messages)
        assert tokens.tolist() == whole[: len(tokens)] and len(whole) <= len(tokens) + 5  # a line's end, a header
        assert chat_prompt(tokenizer, ask(*messages[:-1])).tolist() == template_tokens(tokenizer, messages[:-1], True)
        ends = np.flatnonzero(learned & ~np.append(learned[1:], False))
        assert set(tokens[ends]) == {stop_tokens(tokenizer)[0]}
        answers = "".join(m["content"] for m in messages if m["role"] == "assistant")
        said = (
            tokenizer.decode(tokens[learned], skip_special_tokens=True).replace("<think>", "").replace("</think>", "")
        )
        assert "".join(said.split()) == "".join(answers.split())


def never_come_from_content(tokenizer, names) -> None:
    ids = controls_of(tokenizer).ids
    for name in names:
        text = f"a {name} b{name}"
        messages = lambda content: ask(say("user", content), say("assistant", "x"), say("user", content))  # noqa: E731
        written, plain = (chat_prompt(tokenizer, messages(t)).tolist() for t in (text, "a b"))
        for token in ids.values():
            assert written.count(token) == plain.count(token), name
        assert tokenizer.decode(written).count(text) == 2


# --- whole conversations, control tokens


@pytest.mark.parametrize("name", FORMATS)
def test_conversations_equal_the_templates(built, name):  # noqa: F811
    equal_the_template(built[name], system=name != "mistral")  # whose template moves the system message


@pytest.mark.parametrize("name", FORMATS)
def test_control_tokens_never_come_from_content(built, name):  # noqa: F811
    tokenizer = built[name]
    never_come_from_content(tokenizer, controls_of(tokenizer).ids)
    for control, token in controls_of(tokenizer).ids.items():
        assert token not in encode_text(tokenizer, f"x{control}y")


@pytest.mark.parametrize("name", REAL)
def test_real_conversations_equal_the_templates(real, name):
    tokenizer = real(name)
    if tokenizer.chat_template is None:
        pytest.skip(f"{name} has no chat template")
    equal_the_template(tokenizer, system=name != "llama2")


@pytest.mark.parametrize("name", REAL)
def test_real_control_tokens_never_come_from_content(real, name):
    tokenizer = real(name)
    names = [*controls_of(tokenizer).ids][:40]
    if tokenizer.chat_template:
        never_come_from_content(tokenizer, names)
    for control in names:
        assert not np.isin(encode_text(tokenizer, f"x{control}y"), [*controls_of(tokenizer).ids.values()]).any()


def test_an_assistant_may_write_its_own_tags(built):  # noqa: F811
    """<think> is the model's to write, <|im_end|> is not, and of a tool's output inside an answer neither is."""
    qwen, ids = built["qwen"], controls_of(built["qwen"]).ids
    text = "<think>\nhm\n</think>\n\n<|im_end|>"
    tokens, learned = conversation(qwen, [say("user", "q"), say("assistant", text)])
    assert ids["<think>"] in tokens[learned] and (tokens[learned] == ids["<|im_end|>"]).sum() == 1
    inline = [say("user", "q"), say("assistant", "a"), say("output", "<think>"), say("assistant", "b")]
    tokens, learned = conversation(qwen, inline)
    assert (tokens == ids["<think>"]).sum() == 1 and qwen.decode(tokens[~learned]).endswith("<think>")  # the template's


# --- the ends of answers


def test_ends_are_those_of_the_models_settings(built):  # noqa: F811
    llama = built["llama"]
    assert llama.convert_ids_to_tokens(list(stop_tokens(llama))) == ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"]


@pytest.mark.parametrize(("settings", "file"), [(True, "config.json"), (True, "generation_config.json"), (False, "")])
def test_the_template_tells_the_end_of_llama_3(built, tmp_path, settings, file):  # noqa: F811
    """Llama 3's tokenizer names <|end_of_text|> only."""
    for path in (built["folder"] / "llama").glob("token*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    eom = controls_of(built["llama"]).ids["<|eom_id|>"]
    if settings:
        (tmp_path / file).write_text(json.dumps({"eos_token_id": eom}))
    tokenizer = load_tokenizer(str(tmp_path))
    names = ["<|eot_id|>", *["<|eom_id|>"] * settings, "<|end_of_text|>"]
    assert tokenizer.convert_ids_to_tokens(list(stop_tokens(tokenizer))) == names


def test_ends_that_are_no_numbers_are_an_error(built, tmp_path):  # noqa: F811
    for path in (built["folder"] / "llama").glob("token*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "<|eot_id|>"}')
    with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id = \['<|eot_id|>'\] must be a number"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", FORMATS)
def test_turns_are_continued_as_the_template_does(built, name):  # noqa: F811
    tokenizer = built[name]
    messages = [say("user", "q"), say("assistant", "It is 41."), say("user", "No.")]
    lead = " " if name == "mistral" else ""
    answer = [*encode_text(tokenizer, f"{lead}It is 41."), stop_tokens(tokenizer)[0]]
    prompt = chat_prompt(tokenizer, ask(messages[0])).tolist()
    for sampled in (answer, answer[:-1]):  # a server may leave out the end
        episode = [*prompt, *sampled, *following(tokenizer, messages[2:], sampled[-1])]
        assert episode == template_tokens(tokenizer, messages, True)


def test_a_call_of_llama_has_its_own_end(built):  # noqa: F811
    """<|eom_id|>: the message is over, and a tool's reply follows."""
    llama, ids = built["llama"], controls_of(built["llama"]).ids
    messages = [say("user", "q"), say("assistant", None, tool_calls=CALL), say("tool", "1"), say("assistant", "yes")]
    whole = template_tokens(llama, messages)
    tokens, learned = conversation(llama, messages)
    assert tokens.tolist() == whole and llama.decode(tokens[learned]) == "<|python_tag|>run<|eom_id|>yes<|eot_id|>"
    call = [ids["<|python_tag|>"], *encode_text(llama, "run"), ids["<|eom_id|>"]]
    prompt = chat_prompt(llama, ask(messages[0])).tolist()
    assert [*prompt, *call, *following(llama, messages[2:3], call[-1])] == template_tokens(llama, messages[:3], True)


def test_stop_strings_that_are_special_tokens_end_an_answer(built):  # noqa: F811
    """Both as the strings of an environment's engine, and as those of a configuration, which become tokens."""
    llama, ids = built["llama"], controls_of(built["llama"]).ids
    said = [*encode_text(llama, "```python\n1\n```\n"), ids["<|python_tag|>"]]
    episode = play(Interpreter, llama, Says(said), ask(say("user", "q")), ("<|python_tag|>",), open_session=Echo)
    assert episode.status == "finished" and len(episode.turns) == 1
    config = Config()
    config.rollout.stop_strings = ("<|python_tag|>", "\nQ:")
    task = load_task(TaskConfig(), 0)
    params = make_environment(config, task, llama, None, 1.0).params  # type: ignore[arg-type]
    assert ids["<|python_tag|>"] in params.stop_tokens and params.stop_strings == ("\nQ:",)


# --- pieces in their place


@pytest.mark.parametrize("name", FORMATS)
def test_completions_keep_their_first_blank(built, name):  # noqa: F811
    tokenizer = built[name]
    header, body = "def f(x):\n", "    return x + 1\n"
    prompt = chat_prompt(tokenizer, Problem("p", prompt=header)).tolist()
    assert prompt == tokenizer.encode(header)
    whole = tokenizer.encode(header + body)
    body_tokens = encode_text(tokenizer, body)
    assert tokenizer.decode([*prompt, *body_tokens], skip_special_tokens=True) == header + body
    if name == "mistral":  # no merge goes over a line's end there
        assert prompt + body_tokens == whole
    episode = play(SingleTurn, tokenizer, Says(body_tokens), Problem("p", prompt=header))
    assert episode.text == body == decode_text(tokenizer, body_tokens)


def test_the_blank_before_an_answer_is_the_templates(built):  # noqa: F811
    """It is sampled and learned, but it is not a part of what the model said."""
    mistral = built["mistral"]
    tokens, learned = conversation(mistral, [say("user", "q"), say("assistant", "Hello world")])
    episode = play(SingleTurn, mistral, Says(tokens[learned].tolist()), ask(say("user", "q")))
    assert episode.text == "Hello world"
    assert np.concatenate([episode.prompt, episode.turns[0].tokens]).tolist() == tokens.tolist()


def test_what_is_put_into_an_answer_gains_no_blank(built):  # noqa: F811
    mistral = built["mistral"]
    code = encode_text(mistral, "```python\n1\n```\n")
    answer = [*encode_text(mistral, "Hello"), stop_tokens(mistral)[0]]
    episode = play(Interpreter, mistral, Says(code, answer), ask(say("user", "q")), open_session=Echo)
    text = mistral.decode(np.concatenate([episode.prompt, *(t.tokens for t in episode.turns)]))
    assert '[/INST]```python\n1\n```\n```output\nsay "42"\n```\nHello</s>' in text
