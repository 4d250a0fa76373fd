"""Problems to tokens: instructions, prompts and demonstrations, and the problems that are too long."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrl.config import Config, RolloutConfig, row_length
from jaxrl.config.plugins import PLUGINS, load_plugin
from jaxrl.errors import UserError
from jaxrl.tasks import Task, load_task
from rollouts.chat import chat_prompt, conversation
from rollouts.engine import PromptTooLongError
from rollouts.episode import Problem


def instruction(rollout: RolloutConfig, problem: Problem) -> str:
    """What is put after the problem: the setting of its part of a mixture or of the run, or the environment's own."""
    text = problem.meta.get("part.instruction", "auto")
    text = rollout.instruction if text == "auto" else text
    if text != "auto":
        return text
    environment = problem.meta.get("part.environment") or rollout.environment.name
    return getattr(load_plugin(PLUGINS["environment"], environment), "INSTRUCTION", "")


def shown(rollout: RolloutConfig, problem: Problem) -> Problem:
    """The problem as the model sees it: with the instruction, and what the strategy of its environment begins with."""
    problem = instructed(problem, instruction(rollout, problem))
    own = problem.meta.get("part.environment")
    return instructed(problem, problem.meta["part.opening"] if own else getattr(rollout.environment, "opening", ""))


def prompt_tokens(tokenizer: Any, problem: Problem, rollout: RolloutConfig) -> np.ndarray:
    """i32[n], of the problem as it is `shown`. Raises PromptTooLongError if n > rollout.max_prompt_length."""
    tokens = chat_prompt(tokenizer, shown(rollout, problem))
    if len(tokens) > rollout.max_prompt_length:
        raise PromptTooLongError(
            f"problem {problem.id}: its prompt has {len(tokens)} tokens, more than rollout.max_prompt_length = "
            f"{rollout.max_prompt_length}; raise that, or set rollout.reject_long_prompts"
        )
    return tokens


def instructed(problem: Problem, text: str) -> Problem:
    """The problem with an instruction after its last message, or after its plain prompt."""
    if not text:
        return problem
    if not problem.messages:
        return dataclasses.replace(problem, prompt=f"{problem.prompt}\n{text}\n")
    *before, last = problem.messages
    return dataclasses.replace(problem, messages=(*before, last | {"content": f"{last['content']}\n{text}"}))


def demonstration_tokens(tokenizer: Any, problem: Problem, rollout: RolloutConfig) -> tuple[np.ndarray, np.ndarray]:
    """tokens i32[n] and learned bool[n] of a problem's demonstration, as its episode would have them.

    A demonstration of several messages comes with its own instruction.
    """
    answer = problem.demonstration or ""
    if isinstance(answer, str):
        problem = instructed(problem, instruction(rollout, problem))
        answer = ({"role": "assistant", "content": answer},)
    tokens, learned = conversation(tokenizer, [*problem.messages, *answer], problem.prompt or "")
    if rollout.learn_inserted:
        learned = np.maximum.accumulate(learned)
    return tokens, learned


def without_long_prompts(task: Task, tokenizer: Any, rollout: RolloutConfig) -> Task:
    """The task without the problems and demonstrations whose prompts are too long, counted in `rejected`."""

    def fits(problem: Problem) -> bool:
        return len(chat_prompt(tokenizer, shown(rollout, problem))) <= rollout.max_prompt_length

    def kept(problems: Sequence[Problem]) -> list[Problem]:
        return [p for p in problems if fits(p)]

    train, held_out, demonstrations = kept(task.train), kept(task.held_out), kept(task.demonstrations)
    none_left = not held_out or (len(task.train) and not train)  # a task that is only evaluated trains on none
    if none_left or (len(task.demonstrations) and not demonstrations):
        what = "problem" if none_left else "demonstration"
        raise UserError(f"no {what} fits rollout.max_prompt_length = {rollout.max_prompt_length}")
    rejected = Counter(task.rejected)
    rejected["prompt too long"] += len(task.train) + len(task.held_out) - len(train) - len(held_out)
    rejected["demonstration too long"] += len(task.demonstrations) - len(demonstrations)
    return dataclasses.replace(
        task, train=train, held_out=held_out, demonstrations=demonstrations, rejected=dict(+rejected)
    )


def without_long_demonstrations(task: Task, tokenizer: Any, config: Config) -> Task:
    """The task without the demonstrations that do not fit a row, counted in `rejected`.

    Where they are not to be rejected, those with the most characters are looked at (of a task that makes them, the
    first), which takes no time, and one that does not fit raises UserError or PromptTooLongError. UserError if none is
    left.
    """

    def tokens(problem: Problem) -> int:
        return len(demonstration_tokens(tokenizer, problem, config.rollout)[0])

    longest = row_length(config)
    if not config.rollout.reject_long_prompts:
        some = task.demonstrations
        if isinstance(some, list):
            some = sorted(some, key=lambda p: -len(f"{p.prompt}{p.messages}{p.demonstration}"))
        for problem in (some[i] for i in range(min(64, len(some)))):
            if (count := tokens(problem)) > longest:
                prompt_tokens(tokenizer, problem, config.rollout)  # raises where it is the prompt that is too long
                raise UserError(
                    f"demonstration {problem.id}: its {count} tokens do not fit a row of {longest} (batch.row_length); "
                    "raise that, or set rollout.reject_long_prompts"
                )
        return task
    kept = [p for p in task.demonstrations if tokens(p) <= longest]
    if task.demonstrations and not kept:
        raise UserError(f"no demonstration fits a row of {longest} tokens (batch.row_length)")
    rejected = Counter(task.rejected)
    rejected["demonstration too long"] += len(task.demonstrations) - len(kept)
    return dataclasses.replace(task, demonstrations=kept, rejected=dict(+rejected))


def tasks_that_fit(config: Config, task: Task, tokenizer: Any) -> tuple[Task, Task]:
    """The task to train on and the one to evaluate on, without what is too long where that is to be rejected."""
    test = evaluation_task(config, task)
    if config.rollout.reject_long_prompts:
        task, test = (without_long_prompts(t, tokenizer, config.rollout) for t in (task, test))
    if config.sft.steps:
        task = without_long_demonstrations(task, tokenizer, config)
    return task, test


def evaluation_task(config: Config, task: Task) -> Task:
    """The task whose held-out problems are for evaluation: config.evaluation.task, or the run's own."""
    return load_task(config.evaluation.task, config.seed) if config.evaluation.task.name else task


def check_problems(config: Config, task: Task | None, test: Task) -> None:
    """Raises UserError where there is nothing to train on (`task`, None: no training) or to evaluate on (`test`)."""
    if not len(test.held_out):
        raise UserError(f"task {test.name} has no held-out problems to evaluate on (task.held_out_path, or its data)")
    if task is not None and config.sft.steps and not len(task.demonstrations):
        raise UserError(f"task {task.name} has no demonstrations; set sft.steps to 0, or task.demonstrations")
    if task is not None and config.grpo.steps and not len(task.train):
        raise UserError(f"task {task.name} has no training problems")
