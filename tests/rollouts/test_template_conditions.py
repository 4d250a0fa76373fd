"""What templates do: replies, reasoning, counting, conditions; and what they leave out."""

from __future__ import annotations

import pytest
from chats import (
    CHATML,
    PREFILLED,
    Echo,
    Says,
    ask,
    built,  # noqa: F401
    play,
    say,
    template_tokens,
    with_template,
)
from tokenizer_formats import QWEN

from rollouts.chat import TemplateError, chat_prompt, conversation, encode_text, following, stop_tokens
from rollouts.environments.interpreter import Interpreter
from rollouts.template_check import differences

# --- what templates do


def test_a_tools_reply_is_the_templates_json(built):  # noqa: F811
    llama = built["llama"]
    messages = [say("user", "q"), say("assistant", "a"), say("tool", 'say "42"\n')]
    episode = [*chat_prompt(llama, ask(messages[0])), *encode_text(llama, "a")]
    episode += [*following(llama, messages[2:], episode[-1])]
    assert episode == template_tokens(llama, messages, True)
    assert '"say \\"42\\"\\n"<|eot_id|>' in llama.decode(episode)
    played = play(
        Interpreter, llama, Says(encode_text(llama, "```python\n1\n```"), [stop_tokens(llama)[0]]),
        ask(say("user", "q")), open_session=Echo, output_to="tool",
    )  # fmt: skip
    assert 'ipython<|end_header_id|>\n\n"```output\\nsay \\"42\\"\\n```"<|eot_id|>' in llama.decode(
        played.turns[1].tokens
    )


def test_a_template_without_generation_prompt_gets_the_header_of_an_answer(built):  # noqa: F811
    tokenizer = with_template(built, CHATML)
    prompt = tokenizer.decode(chat_prompt(tokenizer, ask(say("user", "q"))))
    assert prompt == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    more = tokenizer.decode(following(tokenizer, [say("user", "r")], stop_tokens(tokenizer)[0]))
    assert more == "\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("answer", "prompt_ends", "learned_text"),
    [
        ("<think>\nhm\n</think>\n\nyes", "<think>\n", "hm\n</think>\n\nyes<|im_end|>"),
        ("<think>hm</think>yes", "<think>", "hm</think>yes<|im_end|>"),
        ("hm\n</think>\n\nyes", "<think>\n", "hm\n</think>\n\nyes<|im_end|>"),  # as an episode has it
        ("<b>yes", "assistant\n", "<b>yes<|im_end|>"),
    ],
)
def test_reasoning_that_the_prompt_opens_is_opened_once(built, answer, prompt_ends, learned_text):  # noqa: F811
    tokenizer = with_template(built, PREFILLED)
    tokens, learned = conversation(tokenizer, [say("user", "q"), say("assistant", answer)])
    assert tokenizer.decode(tokens[learned]) == learned_text
    assert tokenizer.decode(tokens[~learned]).endswith(prompt_ends)
    begun = chat_prompt(tokenizer, ask(say("user", "q"), say("assistant", answer)))
    assert begun.tolist() == tokens[:-1].tolist()


def test_replies_after_a_plain_prompt(built):  # noqa: F811
    llama = built["llama"]
    history = [say("assistant", "a"), say("user", "b")]
    between = following(llama, [say("user", "c")], stop_tokens(llama)[0], history)
    assert between.tolist() == following(llama, [say("user", "c")], stop_tokens(llama)[0]).tolist()
    messages = [say("assistant", "a"), say("user", "b"), say("assistant", "c")]
    tokens, learned = conversation(llama, messages, prompt="Q: 1\n")
    assert llama.decode(tokens[learned]) == "a<|eot_id|>c<|eot_id|>"
    assert llama.decode(tokens).startswith("<|begin_of_text|>Q: 1\na<|eot_id|><|start_header_id|>user")


COUNTING = (  # like DeepSeek-V3's: the first tool reply of a conversation opens a list
    "{% set ns = namespace(first=true) %}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ ('<|im_start|>tools' if ns.first else '') + '<tool_response>' + m.content }}{% set ns.first = false %}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)


def test_templates_that_count_see_what_was_said(built):  # noqa: F811
    tokenizer = with_template(built, COUNTING)
    call = encode_text(tokenizer, "```python\n1\n```")
    end = stop_tokens(tokenizer)[0]
    episode = play(
        Interpreter, tokenizer, Says([*call, end], [*call, end], [end]), ask(say("user", "q")),
        open_session=Echo, output_to="tool",
    )  # fmt: skip
    replies = [tokenizer.decode(t.tokens) for t in episode.turns if t.role == "tool"]
    assert [r.count("<|im_start|>tools") for r in replies] == [1, 0] and all("<tool_response>" in r for r in replies)


def test_reasoning_of_earlier_answers_stays_as_in_an_episode(built):  # noqa: F811
    qwen = built["qwen"]
    thought = "<think>\nhm\n</think>\n\nyes"
    messages = [say("user", "q"), say("assistant", thought), say("user", "r"), say("assistant", thought)]
    tokens, learned = conversation(qwen, messages)
    assert qwen.decode(tokens[learned]) == f"{thought}<|im_end|>" * 2
    first = chat_prompt(qwen, ask(messages[0]))
    episode = [*first, *tokens[learned][: learned.sum() // 2], *following(qwen, messages[2:3], stop_tokens(qwen)[0])]
    assert episode == tokens[: len(episode)].tolist()


def test_contents_are_seen_by_the_templates_conditions(built):  # noqa: F811
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + ('!' if 'x' in m.content else m.role) + m.content }}{% endfor %}"
    )
    tokenizer = with_template(built, template)
    assert tokenizer.decode(chat_prompt(tokenizer, ask(say("user", "x")))).startswith("<|im_start|>!x")


def test_a_role_that_is_left_out_is_an_error(built):  # noqa: F811
    template = CHATML.replace("{{", "{% if m.role != 'tool' %}{{").replace("}}", "}}{% endif %}")
    tokenizer = with_template(built, template)
    with pytest.raises(TemplateError, match="the chat template leaves out messages of role 'tool'"):
        following(tokenizer, [say("tool", "42")], 0)


def test_differences_name_the_line(built):  # noqa: F811
    assert differences(built["llama"]) == []
    (line,) = differences(built["qwen"])
    number = next(i for i, text in enumerate(QWEN.splitlines(), 1) if text == "{{- said }}")
    assert line == (
        f"the chat template changes the text before a second turn after reasoning (line {number}: {{{{- said }}}}); "
        "episodes keep the original"
    )
    (line,) = differences(built["mistral"])
    assert "a second turn after a system message (line 7: {{- '[INST] ' + (rules if " in line
