"""A tokenizer's chat template: conversations as text, with the places where the model's answers begin and end.

Templates are programs: they trim contents, write tool replies as JSON, inspect contents, drop reasoning from earlier
answers. So whole conversations are rendered, with their contents, and the needed part is cut out of the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

from rollouts.control import MARK, Controls, controls_of

Message = dict[str, Any]  # "role", "content", and optionally FIELDS
Piece = tuple[str, bool]  # escaped text, and whether the model learns it

OUTPUT = "output"  # the role of a tool's text inside the model's own message
REASONING = ("reasoning_content", "reasoning", "thinking")  # common names of one field
# What messages may have beside role and content.
FIELDS = {"assistant": ("weight", "tool_calls", *REASONING), "tool": ("name", "tool_call_id")}
_BEFORE: tuple[Message, ...] = ({"role": "user", "content": "."},)
_TIME = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class TemplateError(ValueError):
    """Messages that the tokenizer's chat template cannot render."""


def check_message(message: Message) -> None:
    """Raises TemplateError for content that is not text, and for unknown fields, naming them."""
    role, content = message["role"], message.get("content")
    known = FIELDS.get(role, ())
    unknown = sorted(name for name, value in message.items() if name not in ("role", "content", *known) and value)
    if unknown:
        allowed = f"allowed: {', '.join(('role', 'content', *known))}"
        raise TemplateError(f"a message of role {role!r} has {', '.join(unknown)}, which would be ignored; {allowed}")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise TemplateError(f"the content of a message of role {role!r} must be text, not {type(content).__name__}")
    if message.get("weight") not in (None, 0, 1):
        raise TemplateError(f"weight = {message['weight']!r} must be 0 (not learned) or 1")


class Template:
    """The chat template of a tokenizer. Its methods take messages from `prepare` and return escaped text."""

    def __init__(self, tokenizer: Any, now: datetime):
        self.tokenizer, self.controls = tokenizer, controls_of(tokenizer)
        self.source: str | None = None
        if tokenizer.chat_template is not None:
            self.source = with_time(tokenizer.get_chat_template(), now)

    # --- messages

    def prepare(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with the control tokens that they spell escaped.

        Content that is a list alternates between the model's text and a tool's; marks separate them afterwards. Where
        the template does not take a system message, it is prepended to the first message. Raises TemplateError for a
        role that the template leaves out.
        """
        escaped: list[Message] = []
        for message in messages:
            plain = {name: value for name, value in message.items() if name != "weight" and value is not None}
            reasoning = next((plain[name] for name in REASONING if name in plain), None)
            plain |= {"reasoning_content": reasoning} if reasoning else {}
            content = plain.pop("content", None)
            by_model = message["role"] == "assistant"
            if isinstance(content, list):
                content = MARK.join(self.controls.escape(part, i % 2 == 0) for i, part in enumerate(content))
            elif content is not None:
                content = self.controls.escape(content, by_model)
            escaped.append(_mapped(plain, self.controls, by_model) | {"content": content})
        if len(escaped) > 1 and escaped[0]["role"] == "system" and not self._has_place_for("system"):
            system, first, *rest = escaped
            escaped = [first | {"content": f"{system['content']}\n\n{first['content']}"}, *rest]
        for role in {m["role"] for m in escaped if m["content"]} - {"user", "assistant", "system"}:
            if not self._has_place_for(role):
                raise TemplateError(f"the chat template leaves out messages of role {role!r}")
        return escaped

    def _has_place_for(self, role: str) -> bool:
        if role not in self._places:
            message = {"role": role, "content": MARK}
            probe = (
                [message, *_BEFORE] if role == "system" else [*_BEFORE, {"role": "assistant", "content": "."}, message]
            )
            try:
                text = self.render(probe)
                self._places[role] = MARK in text or json.dumps(MARK) in text
            except TemplateError:
                self._places[role] = role != "system"  # other messages raise it when they are rendered
        return self._places[role]

    @cached_property
    def _places(self) -> dict[str, bool]:
        return {}

    # --- text

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """The rendered text, with the beginning of the next answer if it is a prompt."""
        from jinja2.exceptions import TemplateError as JinjaError

        if self.source is None:
            raise TemplateError("chat messages need a tokenizer with a chat template, and this one has none")
        try:
            text: Any = self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.source, add_generation_prompt=prompt, tokenize=False
            )
        except (JinjaError, TypeError) as error:  # TypeError: null, for example, where the template needs text
            roles = ", ".join(m["role"] for m in messages)
            raise TemplateError(f"the chat template refuses messages with the roles {roles}: {error}") from None
        return text

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text before the answer to these messages.

        Where the template ignores add_generation_prompt, the header that it puts before an answer's content is added,
        without the blank that belongs to the answer's first word.
        """
        text = self.render(messages, prompt=True)
        if self._knows_prompts:
            return text
        try:
            header = self._before_content(messages)
        except TemplateError:
            return text
        return text + header[len(text) :].rstrip(" ") if header.startswith(text) else text

    @cached_property
    def _knows_prompts(self) -> bool:
        return self.render(_BEFORE, prompt=True) != self.render(_BEFORE)

    def _before_content(self, messages: Sequence[Message]) -> str:
        """The text before the content of an answer that is part of the conversation."""
        text = self.render([*messages, {"role": "assistant", "content": MARK}])
        if MARK not in text:
            raise TemplateError("the chat template leaves out messages of role 'assistant'")
        return text[: text.rindex(MARK)]

    def between(self, history: Sequence[Message], messages: Sequence[Message]) -> str:
        """The text between an answer to `history` and the next answer, with these messages between them.

        Rendered without the system message, which some templates put into the last message.
        """
        answer, history = {"role": "assistant", "content": MARK}, [m for m in history if m["role"] != "system"]
        begun = _BEFORE if not history or history[0]["role"] == "assistant" else ()  # after a plain prompt
        text = self.prompt([*begun, *history, answer, *messages])
        if MARK not in text:
            raise TemplateError("the chat template leaves out earlier messages of role 'assistant'")
        return text[text.rindex(MARK) + 1 :]

    @cached_property
    def tail(self) -> str:
        """The text after an answer, up to the control token that ends it; "" if the template has none."""
        try:
            text = self.render([*_BEFORE, {"role": "assistant", "content": MARK}])
        except TemplateError:
            return ""
        after = text[text.rindex(MARK) + 1 :] if MARK in text else ""
        found = self.controls.pattern.search(after)
        return after[: found.end()] if found else ""

    @property
    def end(self) -> str:
        """The control token that the template puts after an answer; "" if it has none."""
        return self.controls.last(self.tail)

    # --- answers

    def answer_begun(self, messages: Sequence[Message], content: str) -> tuple[str, str]:
        """The prompt for an answer with exactly this content, and the rest of the answer.

        Reasoning that the prompt opens (<think>) is not opened twice: the content may begin with the same tag, continue
        after it, or have no reasoning.
        """
        prompt = self.prompt(messages)
        try:
            header = self._before_content(messages)
        except TemplateError:
            header = prompt
        shorter, longer = sorted((prompt, header), key=len)
        base = header if longer.startswith(shorter) else prompt
        tag = re.match(r"\s*<(\w+)>", longer[len(shorter) :]) if base == header else None
        if tag and content.lstrip().startswith(f"<{tag[1]}>"):
            base = shorter
        elif tag and f"</{tag[1]}>" in content:
            base = longer
        return _split(prompt, base + content)

    @cached_property
    def lead(self) -> str:
        """The blank that the template puts before an answer and leaves to the model."""
        try:
            return " " if self._before_content(_BEFORE) == f"{self.prompt(_BEFORE)} " else ""
        except TemplateError:
            return ""

    def answer(self, history: Sequence[Message], message: Message, ends: Sequence[str]) -> tuple[str, str]:
        """The prompt and the rest of an answer to `history`, with its end, as the template renders a last message.

        Where the template drops a part of the content, the answer is the unchanged content. Raises TemplateError if it
        drops the other fields.
        """
        prompt, text = self.prompt(history), self.render([*history, message])
        before, rest = _split(prompt, text)
        if len(before) >= min(len(prompt), len(self.render(history))):
            own = _up_to(rest, ends)
            if own and not missing(message, own):
                return before, own
        lost = missing(message | {"content": None}, text[len(before) :])
        if lost:
            raise TemplateError(f"the chat template leaves out the {lost} of an answer")
        before, rest = self.answer_begun(history, message["content"] or "")
        return before, rest + (self.tail or ends[0])

    def whole(self, messages: Sequence[Message], ends: Sequence[str]) -> list[Piece] | None:
        """The conversation as the template renders it at once; None where that changes earlier answers."""
        text, place, pieces = self.render(messages), 0, []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.prompt(messages[:i])
            before, rest = _split(prompt, text)
            own = _up_to(rest, ends)
            if not own or len(before) < place or missing(message, own):
                return None
            if len(before) < min(len(prompt), len(self.render(messages[:i]))):
                return None
            pieces += [(before[place:], False), (own, True)]
            place = len(before) + len(own)
        return pieces

    def turn_by_turn(self, messages: Sequence[Message], ends: Sequence[str]) -> list[Piece]:
        """The conversation as an environment plays it: earlier answers stay as they were sampled."""
        pieces: list[Piece] = []
        answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        for last, i in zip([None, *answers], answers):
            prompt, history = self.prompt(messages[:i]), messages[:i]
            opening = prompt if last is None else self.between(messages[:last], messages[last + 1 : i])
            if last is not None and self.end:
                opening = opening.partition(self.end)[2]
            before, rest = self.answer(history, messages[i], ends)
            pieces += [(opening[: len(opening) - (len(prompt) - len(before))], False), (rest, True)]
        return pieces


def common(one: str, other: str) -> int:
    """The length of the common prefix of two texts."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def _split(prompt: str, text: str) -> tuple[str, str]:
    """Splits a text where it differs from the prompt, or before the tag that the prompt opens if that differs."""
    same = common(prompt, text)
    opened = re.search(r"<\w+>\s*\Z", prompt)
    if opened and opened.start() < same < opened.end() and not text.startswith(opened[0].rstrip(), opened.start()):
        same = opened.start()
    return text[:same], text[same:]


def _up_to(text: str, ends: Sequence[str]) -> str:
    """The text up to the first of these ends, inclusive; "" if there is none."""
    return text[: min((i + len(end) for end in ends if (i := text.find(end)) >= 0), default=0)]


def _mapped(value: Any, controls: Controls, by_model: bool) -> Any:
    """The value with all strings in it escaped."""
    if isinstance(value, str):
        return controls.escape(value, by_model)
    if isinstance(value, dict):
        return {name: _mapped(v, controls, by_model) for name, v in value.items()}
    return [_mapped(v, controls, by_model) for v in value] if isinstance(value, list) else value


def missing(message: Message, text: str) -> str:
    """The name of a field whose value the text of a message does not contain, blanks aside; "" if there is none."""
    squeezed = "".join(text.replace(MARK, "").split())

    def there(part: Any) -> bool:
        return "".join(str(part).replace(MARK, "").split()) in squeezed

    for name in ("content", *REASONING):
        if message.get(name) and not there(message[name]):
            return name
    calls = message.get("tool_calls") or []
    names = [(call.get("function") or call).get("name", "") for call in calls]
    return "" if all(map(there, names)) else "tool_calls"


def with_time(template: str, now: datetime) -> str:
    """The template with this time in place of the current one. Raises TemplateError where that is impossible."""
    fixed = _TIME.sub(lambda m: json.dumps(now.strftime(m[2])), template)
    if "strftime_now(" in fixed:
        line = fixed[: fixed.index("strftime_now(")].count("\n") + 1
        raise TemplateError(f"line {line} of the chat template formats the time, but not with a literal format")
    return fixed


def template_of(tokenizer: Any) -> Template:
    """The tokenizer's chat template (cached). Its time is `tokenizer.now`, or that of its first use."""
    template = tokenizer.chat_template
    source = json.dumps(template) if isinstance(template, dict) else template
    return _template(tokenizer, len(tokenizer), tokenizer.eos_token, source, getattr(tokenizer, "now", None))


@lru_cache(maxsize=8)
def _template(tokenizer: Any, size: int, eos: str, source: str | None, now: datetime | None) -> Template:
    return Template(tokenizer, now or datetime.now())
