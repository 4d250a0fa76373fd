"""Finds where a chat template renders a conversation differently from a multi-turn episode, and in which line."""

from __future__ import annotations

from typing import Any

from rollouts.template import Message, Template, TemplateError, common, template_of

_ASKED, _SAID = {"role": "user", "content": "A question."}, {"role": "assistant", "content": "An answer."}
_REASONED = {"role": "assistant", "content": "<think>\nA thought.\n</think>\n\nAn answer."}
_PROBES: dict[str, list[Message]] = {
    "a second turn": [_ASKED, _SAID, _ASKED],
    "a second turn after a system message": [{"role": "system", "content": "A rule."}, _ASKED, _SAID, _ASKED],
    "a second turn after reasoning": [_ASKED, _REASONED, _ASKED],
    "a tool's reply": [_ASKED, _SAID, {"role": "tool", "content": "Output."}],
}


def differences(tokenizer: Any) -> list[str]:
    """A line for each kind of conversation that the template renders differently from turn by turn.

    An episode keeps what was sampled, however the template would render it later, so these are notes, not errors.
    Conversations that the template refuses are skipped: they raise TemplateError when they occur.
    """
    if tokenizer.chat_template is None:
        return []
    template, found = template_of(tokenizer), []
    for what, messages in _PROBES.items():
        try:
            prepared = template.prepare(messages)
            whole, episode = template.prompt(prepared), _turn_by_turn(template, prepared)
        except TemplateError:
            continue
        if whole != episode:
            line = _line_at(template, prepared, common(whole, episode))
            found.append(f"the chat template changes the text before {what}{line}; episodes keep the original")
    return found


def _turn_by_turn(template: Template, messages: list[Message]) -> str:
    """The text of an episode: the last message follows the model's answer."""
    *before, answer, after = messages
    sampled = template.lead + str(answer["content"]) + template.tail
    following = template.between(before, [after])
    return template.prompt(before) + sampled + (following.partition(template.end)[2] if template.end else following)


def _line_at(template: Template, messages: list[Message], place: int) -> str:
    """ " (line N: its text)" for the line of the template that writes this place of the rendered prompt."""
    try:
        from transformers.utils.chat_template_utils import _compile_jinja_template as compiled
    except ImportError:  # not part of transformers' public API
        return ""
    program = compiled(template.source)
    names = template.tokenizer.special_tokens_map | {"messages": messages, "add_generation_prompt": True, "tools": None}
    generated: Any = program.root_render_func(program.new_context(names))
    written = 0
    for text in generated:
        written += len(text)
        if written > place:
            number = program.get_corresponding_lineno(generated.gi_frame.f_lineno)
            source = (template.source or "").splitlines()[number - 1].strip()
            return f" (line {number}: {source[:100]})"
    return ""
