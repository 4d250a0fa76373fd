"""How the episodes of a run go: its environments, and the sandbox behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

from jaxrl.config import Config
from jaxrl.config.plugins import PLUGINS, Named, chosen, load_plugin, settle
from jaxrl.errors import UserError
from jaxrl.runs.prompts import prompt_tokens
from jaxrl.tasks import Task
from rollouts.chat import split_stops, stop_tokens
from rollouts.collect import Environment
from rollouts.engine import Engine, SamplingParams
from rollouts.environments.dialogue import Budget
from rollouts.episode import Episode, Problem
from rollouts.services import Services
from sandbox.checkouts import TREES, Checkouts
from sandbox.layers import LEAST, IsolationError
from sandbox.pool import Pool
from sandbox.session import Sessions
from sandbox.verdict import Limits


@dataclass
class ByPart:
    """Each problem in the environment of its part of a mixture, or in the run's."""

    environments: dict[str, Environment]
    default: Environment

    async def play(self, problem: Problem, engine: Engine, seed: int) -> Episode:
        environment = self.environments.get(problem.meta["part"], self.default)
        return await environment.play(problem, engine, seed)


def make_environment(config: Config, task: Task, tokenizer: Any, services: Services, temperature: float) -> Environment:
    """The environment of config.rollout with the task's judge; of a mixture, that of each part.

    Raises UserError naming the nearest environment.
    """
    settle(config)
    rollout = config.rollout
    stops, strings = split_stops(tokenizer, rollout.stop_strings)
    params = SamplingParams(
        max_new_tokens=rollout.max_new_tokens,
        temperature=temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        min_p=rollout.min_p,
        stop_tokens=tuple(dict.fromkeys((*stop_tokens(tokenizer), *stops))),
        stop_strings=strings,
    )

    def make(settings: Named) -> Environment:
        return load_plugin(PLUGINS["environment"], settings.name).make_environment(
            tokenizer=tokenizer,
            encode=lambda problem: prompt_tokens(tokenizer, problem, rollout),
            judge=lambda problem, submission: task.judge(problem, submission, services),
            extract=lambda problem, text: task.submission(problem, text).program,
            params=params,
            budget=Budget(rollout.max_new_tokens, rollout.max_turns, rollout.max_turn_tokens, rollout.wall_s),
            learn_inserted=rollout.learn_inserted,
            services=services,
            others=task.train,
            settings=settings,
        )

    default = make(rollout.environment)
    return ByPart({p: make(s) for p, s in task.environments.items()}, default) if task.environments else default


def environments_of(config: Config, *tasks: Task) -> list[Any]:
    """The settings of all environments that episodes may be played in."""
    return [*chosen(config, "environment"), *(e for task in tasks for e in task.environments.values())]


def has_turns(config: Config, *tasks: Task) -> bool:
    """Whether episodes may have several turns of the model."""
    return any(environment.name != "single_turn" for environment in environments_of(config, *tasks))


@contextmanager
def make_services(config: Config, *tasks: Task) -> Iterator[Services]:
    """The sandbox's judge pool and working trees, and its interpreters where an environment needs them.

    Raises UserError where this machine cannot isolate programs as config.sandbox wants.
    """
    calls = [e for e in environments_of(config, *tasks) if getattr(e, "sessions", False)]
    at_once = max((e.trees for e in environments_of(config, *tasks) if hasattr(e, "trees")), default=TREES)
    with make_pool(config) as pool, ExitStack() as stack:
        sessions = stack.enter_context(_make_sessions(config, calls)) if calls else None
        memory_mb = config.sandbox.tree_memory_mb
        trees = Checkouts(at_once, memory_mb, memory_mb // 2, least=config.sandbox.least or LEAST)
        stack.enter_context(trees)
        yield Services(pool, sessions.open if sessions else None, trees=trees)


def make_pool(config: Config) -> Pool:
    """The sandbox of config.sandbox. Raises UserError where it cannot be as wanted."""
    s = config.sandbox
    limits = Limits(s.wall_s, s.cpu_s, s.memory_mb, s.output_kb, s.processes)
    try:
        if s.ray_address:
            from sandbox.ray_pool import RayPool

            return cast(Pool, RayPool(s.ray_address, s.workers, limits, s.least or LEAST))  # the same interface
        return Pool(s.workers, limits, s.least or LEAST)
    except (IsolationError, ValueError) as error:
        raise UserError(f"config.sandbox.least: {error}") from None
    except ImportError:
        raise UserError("config.sandbox.ray_address needs Ray: pip install 'jaxrl[ray]'") from None


def _make_sessions(config: Config, environments: Sequence[Any]) -> Sessions:
    """Interpreters with the most that one of the environments gives a call."""
    s = config.sandbox
    wall_s, cpu_s = max(e.wall_s for e in environments), max(e.cpu_s for e in environments)
    limits = Limits(wall_s, cpu_s, s.memory_mb, s.output_kb, s.processes)
    try:
        return Sessions(limits, least=s.least or LEAST, concurrency=max(e.concurrency for e in environments))
    except (IsolationError, ValueError) as error:
        raise UserError(f"config.sandbox.least: {error}") from None
