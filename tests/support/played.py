"""Episodes with an engine that says what a test tells it to."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from jaxrl.tasks.extract import code_block
from rollouts.chat import chat_prompt, encode_text, stop_tokens
from rollouts.engine import Completion, SamplingParams
from rollouts.environments.dialogue import Budget
from rollouts.episode import Episode, Problem, Reward, Submission
from rollouts.services import Services
from sandbox.verdict import Program

USER = {"role": "user", "content": "What is 6 * 7?"}


class Script:
    """An engine that says these texts, one a request, as a model would: cut at stop strings, ended by `end`."""

    max_length, version = 10_000, 3

    def __init__(self, tokenizer, *texts: str):
        self.tokenizer, self.texts, self.prompts, self.released = tokenizer, list(texts), [], []

    async def sample(self, prompt: np.ndarray, params: SamplingParams) -> list[Completion]:
        self.prompts.append(prompt)
        text = self.texts.pop(0)
        ended = not any(text.endswith(s) for s in params.stop_strings)
        tokens = encode_text(self.tokenizer, text)
        tokens = np.array((tokens + [stop_tokens(self.tokenizer)[0]] * ended)[: params.max_new_tokens], np.int32)
        reason = "length" if len(tokens) == params.max_new_tokens else "stop"
        return [Completion(tokens, np.full(len(tokens), -0.5, np.float32), reason, self.version)]

    def release(self, sequence: int) -> None:
        self.released.append(sequence)

    def load_weights(self, params: Any, version: int) -> None: ...

    def close(self) -> None: ...


async def boxed(problem: Problem, submission: Submission) -> Reward:
    solved = f"\\boxed{{{problem.answer}}}" in submission.text
    return Reward(float(solved), solved, {"solved": float(solved)})


def make(environment, tokenizer, budget: Budget = Budget(500), judge=boxed, open_session=None, others=(), **settings):
    return environment.make_environment(
        tokenizer=tokenizer,
        encode=lambda p: chat_prompt(tokenizer, p),
        judge=judge,
        params=SamplingParams(max_new_tokens=budget.tokens, stop_tokens=stop_tokens(tokenizer)),
        budget=budget,
        extract=lambda problem, text: code_block(text),
        services=Services(open_session=open_session),
        others=others,
        settings=environment.Settings(**settings),
    )


def play(environment, engine, problem: Problem = Problem("p", (USER,), answer="42"), seed: int = 5) -> Episode:
    return asyncio.run(environment.play(problem, engine, seed))


def whole(tokenizer, episode: Episode) -> str:
    return tokenizer.decode(np.concatenate([episode.prompt, *(t.tokens for t in episode.turns)]))


def judged_by(pool):
    async def judge(problem: Problem, submission: Submission) -> Reward:
        verdict = await pool.run_async(Program(submission.program or "", problem.tests))
        return Reward(float(verdict.passed), verdict.passed, {}, verdict)

    return judge
