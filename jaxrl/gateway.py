"""An OpenAI-compatible endpoint in front of the engine: agents from elsewhere solve a task's held-out problems.

    python -m jaxrl.gateway --config FILE --config.rollout.environment=agent --config.rollout.environment.port=8200

    POST /sessions {"problem": ID}        a session of a problem, or without ID of the next one: its "url" and messages
    POST URL/chat/completions             the agent's requests (URL is the session's, ends with /v1)
    POST /sessions/SESSION/end {"submission": TEXT}
                                          judges the text, or without it the last answer: "reward", "solved", "status"

Every ended session is an episode with the exact tokens, logprobs and versions, appended to
runs_dir/NAME/samples/gateway.jsonl. A session that is not ended within rollout.environment.agent_s ends itself. Ends
with Ctrl-C, and open sessions with it. To train with an agent, give rollout.environment.command instead
(rollouts/environments/agent.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

from jaxrl.config import Config
from jaxrl.config.command_line import read_config
from jaxrl.config.plugins import settle
from jaxrl.config.rules import check_settings
from jaxrl.errors import UserError, command
from jaxrl.files import append_line, resume_lines
from jaxrl.runs.engines import make_engine
from jaxrl.runs.environments import make_environment, make_services
from jaxrl.runs.folder import open_run
from jaxrl.runs.host import prepare_process
from jaxrl.runs.log import sample_line
from jaxrl.runs.policy import make_policy
from jaxrl.runs.prompts import check_problems, without_long_prompts
from jaxrl.tasks import load_task
from rollouts.collect import episode_seed
from rollouts.engine import Engine
from rollouts.environments import agent
from rollouts.environments.gateway import RequestError, Session
from rollouts.episode import Episode, Problem

GATEWAY = 6  # stream of random numbers, beside those of training, evaluation, traces and potentials


class Desk:
    """Opens and ends sessions, on the event loop that it is made in.

    Args:
        file: finished episodes are appended to it.
    """

    def __init__(self, environment: agent.Agent, engine: Engine, problems: list[Problem], seed: int, file: Path):
        self.loop = asyncio.get_running_loop()
        self._environment, self._engine, self._seed, self._file = environment, engine, seed, file
        self._problems = problems
        self._count = len(resume_lines(file))  # other seeds than before
        self._by_id = {problem.id: i for i, problem in enumerate(problems)}
        self._playing: dict[str, asyncio.Task[Episode]] = {}
        self._opening = asyncio.Lock()
        self.solved: list[bool] = []

    def answer(self, path: list[str], body: dict[str, Any]) -> dict[str, Any]:
        """The response to a POST that is not an agent's, called from the server's threads. Raises RequestError."""
        if path == ["sessions"]:
            return self._wait(self._open(body.get("problem")))
        if len(path) == 3 and path[0] == "sessions" and path[2] == "end":
            return self._wait(self._end(path[1], body.get("submission")))
        raise RequestError("there are POST /sessions, /sessions/SESSION/end and URL/chat/completions", 404, "not_found")

    def _wait(self, coroutine: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    async def _open(self, name: Any) -> dict[str, Any]:
        if name is not None and name not in self._by_id:
            raise RequestError(f"there is no held-out problem {name!r}", 404, "no_problem")
        async with self._opening:  # so that the session is this problem's
            place = self._count % len(self._problems) if name is None else self._by_id[name]
            problem, seed = self._problems[place], episode_seed((self._seed, GATEWAY), place, self._count)
            self._count += 1
            playing = asyncio.create_task(self._environment.play(problem, self._engine, seed))
            opened = asyncio.create_task(self._environment.opened.get())
            await asyncio.wait({playing, opened}, return_when=asyncio.FIRST_COMPLETED)
            if not opened.done():  # the episode ended before there was a session: its prompt is too long, say
                opened.cancel()
                reason = playing.exception() or "its episode has ended"
                raise RequestError(f"problem {problem.id} cannot be opened: {reason}", 500, "no_session")
            session: Session = opened.result()
        self._playing[session.name] = playing
        url = agent.gateway(self._environment.settings.port).url(session)
        return {"session": session.name, "url": url, "problem": agent.shown(problem)}

    async def _end(self, name: str, submission: Any) -> dict[str, Any]:
        if name not in self._playing:
            raise RequestError("there is no such session, or it is over", 404, "no_session")
        if submission is not None and not isinstance(submission, str):
            raise RequestError("submission must be a text")
        session = agent.gateway(self._environment.settings.port).sessions.get(name)
        if session is not None:
            session.submission = submission
            session.ended.set()
        episode = await self._playing.pop(name)
        append_line(self._file, json.loads(sample_line(episode, 0, "gateway")))
        self.solved.append(episode.reward.solved)
        print(f"{len(self.solved)} sessions ended, {sum(self.solved)} solved; problem {episode.problem.id}", flush=True)
        reward = episode.reward
        return {
            "problem": episode.problem.id,
            "reward": reward.value,
            "solved": reward.solved,
            "status": episode.status,
        }


def serve(config: Config) -> None:
    """Serves until it is interrupted. Raises UserError for a config with another environment."""
    settle(config)
    settings = config.rollout.environment
    if not isinstance(settings, agent.Settings) or settings.command:
        raise UserError(
            "python -m jaxrl.gateway needs rollout.environment = 'agent' without a command: agents come from elsewhere"
        )
    check_settings(config)
    with open_run(config) as folder:
        task = load_task(config.task, config.seed)
        policy = make_policy(config, task, folder, sampling=True)
        if config.rollout.reject_long_prompts:
            task = without_long_prompts(task, policy.tokenizer, config.rollout)
        check_problems(config, None, task)
        with make_services(config, task) as services, closing(make_engine(config, policy, folder)) as engine:
            engine.load_weights(policy.initial(), 0)
            environment = make_environment(config, task, policy.tokenizer, services, config.rollout.temperature)
            if not isinstance(environment, agent.Agent):
                raise UserError(f"task {task.name} has environments of its own, which agents cannot play")
            environment.served = True
            (folder / "samples").mkdir(exist_ok=True)
            server = agent.gateway(settings.port)

            async def run() -> None:
                file = folder / "samples" / "gateway.jsonl"
                server.other = Desk(environment, engine, list(task.held_out), config.seed, file).answer
                print(f"serving {len(task.held_out)} problems of {task.name} at {server.address}", flush=True)
                await asyncio.Event().wait()

            with contextlib.suppress(KeyboardInterrupt):
                asyncio.run(run())


@command()
def main(arguments: list[str]) -> int:
    """The command: serves until Ctrl-C; 1 with one line on stderr where it cannot."""
    config = read_config(arguments)
    prepare_process()
    serve(config)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
