"""Messages, small tokenizers, and an engine that answers with given tokens, for tests of chat templates."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
import pytest
from tokenizer_formats import FORMATS

from jaxrl.runs.tokenizer import load_tokenizer
from rollouts.chat import chat_prompt, stop_tokens
from rollouts.engine import Completion, SamplingParams
from rollouts.environments.dialogue import Budget
from rollouts.episode import Problem, Reward
from rollouts.services import Services
from sandbox.session import CallResult


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The small tokenizers, and the folders of their files."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: make(folder / name) for name, make in FORMATS.items()} | {"folder": folder}


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def ask(*messages: dict[str, Any]) -> Problem:
    return Problem("p", messages)


def template_tokens(tokenizer, messages, prompt: bool = False) -> list[int]:
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


class Says:
    """An engine that answers with these tokens."""

    max_length, version = 10_000, 0

    def __init__(self, *answers: list[int]):
        self.answers, self.prompts = list(answers), []

    async def sample(self, prompt: np.ndarray, params: SamplingParams) -> list[Completion]:
        self.prompts.append(prompt)
        tokens = np.array(self.answers.pop(0), np.int32)
        return [Completion(tokens, np.zeros(len(tokens), np.float32), "stop", 0)]

    def release(self, sequence: int) -> None: ...


async def no_reward(problem: Problem, text: str) -> Reward:
    return Reward(0.0, False)


def play(kind, tokenizer, engine, problem: Problem, strings: tuple[str, ...] = (), open_session=None, **settings):
    params = SamplingParams(max_new_tokens=500, stop_tokens=stop_tokens(tokenizer), stop_strings=strings)
    encode = lambda p: chat_prompt(tokenizer, p)  # noqa: E731
    own, services = sys.modules[kind.__module__].Settings(**settings), Services(open_session=open_session)
    environment = kind(tokenizer, encode, no_reward, params, Budget(500), services=services, settings=own)
    return asyncio.run(environment.play(problem, engine, 1))


class Echo:
    async def run_async(self, code):
        return CallResult("passed", stdout='say "42"\n')

    def close(self): ...


CALL = [{"type": "function", "function": {"name": "run", "arguments": {"code": "1"}}}]


CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
PREFILLED = (
    "{% for m in messages %}{% set said = m.content %}{% if m.role == 'assistant' and '</think>' in said %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


def with_template(built, template: str, name: str = "qwen") -> Any:
    tokenizer = load_tokenizer(str(built["folder"] / name))
    tokenizer.chat_template = template
    return tokenizer
