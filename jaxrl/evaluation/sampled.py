"""Answers to any problems by a config's model and engine, outside of training: kept problem by problem.

For commands that may run for days: what is finished is on the disk, memory does not grow with the number of problems,
and the same command carries on.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxrl.config import Config
from jaxrl.errors import TrainingError, UserError
from jaxrl.runs.engines import make_engine, make_openai_engine
from jaxrl.runs.environments import make_environment, make_services
from jaxrl.runs.log import Progress
from jaxrl.runs.policy import make_policy, make_tokenizer
from jaxrl.runs.prompts import prompt_tokens
from jaxrl.runs.teacher import check_same
from jaxrl.tasks import Task
from jaxrl.tasks.rewards import every_test
from models.stored import fingerprint
from rollouts.collect import play_each
from rollouts.engine import Engine, PromptTooLongError
from rollouts.episode import Episode, Group, Problem, Reward, Submission
from rollouts.services import Services

AHEAD = 4  # episodes at a time for each that the engine decodes together
UNJUDGED = 20  # problems in a row that the sandbox could not judge: it is broken


@dataclass
class Player:
    """An engine with the model's weights, a tokenizer and the sandbox."""

    config: Config
    engine: Engine
    tokenizer: Any
    services: Services
    progress: Progress

    @property
    def model(self) -> str:
        """What the model is called in files."""
        rollout = self.config.rollout
        return rollout.sidecar.model if rollout.engine == "openai" else self.config.model.path or "random weights"

    def fits(self, problem: Problem) -> bool:
        """Whether its prompt is not too long. Raises PromptTooLongError unless such problems are to be rejected."""
        try:
            prompt_tokens(self.tokenizer, problem, self.config.rollout)
        except PromptTooLongError:
            if not self.config.rollout.reject_long_prompts:
                raise
            return False
        return True

    def play(
        self,
        name: str,
        task: Task,
        problems: Sequence[Problem],
        samples: int,
        temperature: float,
        seed: Sequence[int],
        done: Collection[int],
        keep: Callable[[int, Group], None],
    ) -> int:
        """`samples` episodes of each problem whose place is not in `done`, each test judged (see `every_test`).

        `keep` gets each problem's place and episodes as soon as they are finished. Problems of which the sandbox could
        not judge an episode are not kept: their number is returned, and the next try has them again.

        Raises TrainingError where the sandbox is broken.
        """
        rollout, task = self.config.rollout, judging_every_test(task)
        left = [p for p in range(len(problems)) if p not in done]
        environment = make_environment(self.config, task, self.tokenizer, self.services, temperature)
        width = rollout.slots if rollout.engine == "jax" else rollout.sidecar.concurrency * rollout.sidecar.replicas
        self.progress.stage(name, len(problems) * samples, len(done) * samples)
        groups = _Groups(samples, keep, self.progress, len(done) * samples)
        numbers = (p * samples + g for p in left for g in range(samples))
        at_once = min(AHEAD * width, len(left) * samples)
        play_each(self.engine, environment, problems, samples, seed, numbers, groups.finished, at_once)
        return groups.unjudged


class _Groups:
    """Puts the episodes of a problem together, whatever their order, and shows how far they are."""

    def __init__(self, samples: int, keep: Callable[[int, Group], None], progress: Progress, before: int):
        self._samples, self._keep, self._progress, self._before = samples, keep, progress, before
        self._waiting: dict[int, dict[int, Episode]] = {}
        self._count = self._solved = self._tokens = 0
        self._began = time.monotonic()
        self.unjudged = self._in_a_row = 0

    def finished(self, number: int, episode: Episode) -> None:
        self._show(episode)
        p, g = divmod(number, self._samples)
        episodes = self._waiting.setdefault(p, {})
        episodes[g] = episode
        if len(episodes) < self._samples:
            return
        del self._waiting[p]
        if any(e.status == "sandbox_error" for e in episodes.values()):
            self.unjudged, self._in_a_row = self.unjudged + 1, self._in_a_row + 1
            if self._in_a_row == UNJUDGED:
                raise TrainingError(f"{UNJUDGED} problems in a row could not be judged; see python -m sandbox doctor")
            return
        self._in_a_row = 0
        self._keep(p, Group(episode.problem, [episodes[i] for i in range(self._samples)]))

    def _show(self, episode: Episode) -> None:
        self._count, self._solved = self._count + 1, self._solved + episode.reward.solved
        self._tokens += episode.sampled_length
        rate = self._tokens / max(time.monotonic() - self._began, 1e-9)
        self._progress.update(self._before + self._count, pass_rate=self._solved / self._count, tokens_per_s=rate)


@contextmanager
def open_player(config: Config, task: Task, folder: Path) -> Iterator[Player]:
    """The player of a run in its folder; `task` is what a small model's tokenizer is trained on.

    Raises UserError for several processes, and for other weights than those that the folder was begun with.
    """
    if config.processes.count > 1:
        raise UserError(f"processes.count = {config.processes.count} must be 1: this command runs in one process")
    with ExitStack() as held:
        progress = held.enter_context(Progress())
        if config.rollout.engine == "openai":
            tokenizer = make_tokenizer(config.model, task, folder)
            engine: Engine = held.enter_context(closing(make_openai_engine(config, tokenizer)))
        else:
            policy = make_policy(config, task, folder, sampling=True)
            tokenizer, params = policy.tokenizer, policy.initial()
            found = {"dtype": policy.compute.dtype.name, "fingerprint": fingerprint(params)}
            check_same(folder / "weights.json", found, f"model.path = {config.model.path!r}", writes=True)
            engine = held.enter_context(closing(make_engine(config, policy, folder, say=progress.print)))
            engine.load_weights(params, 0)
            del params  # the engine has its own
        services = held.enter_context(make_services(config, task))
        yield Player(config, engine, tokenizer, services, progress)


def judging_every_test(task: Task) -> Task:
    """The task whose verdicts have a result of its own for each test."""

    async def judge(problem: Problem, submission: Submission, services: Services) -> Reward:
        reward = await task.judge(problem, submission, services)
        if reward.verdict is None or reward.verdict.status == "sandbox_error":
            return reward
        return dataclasses.replace(reward, verdict=await every_test(problem, submission, reward.verdict, services))

    return dataclasses.replace(task, judge=judge)


def passed(problem: Problem, reward: Reward) -> list[bool]:
    """Which tests of the problem the submission passes; of a task without tests, whether it solves the problem."""
    verdict = reward.verdict
    if verdict is None or not problem.tests:
        return [reward.solved]
    flags = [result.status == "passed" for result in verdict.tests]
    return flags if len(flags) == len(problem.tests) else [False] * len(problem.tests)  # it was never run
