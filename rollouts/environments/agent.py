"""An agent from outside plays the episode: any program that talks to an OpenAI-compatible server.

Each episode starts `command` in an empty folder, with the address of its own session (gateway.py beside this) in
OPENAI_BASE_URL and JAXRL_URL, and the problem, without its tests and answer, in the JSON file that JAXRL_PROBLEM names.
When it ends, what it has written into the file submission.txt of its folder is judged; without that file, the model's
last answer. The agent is not in the sandbox: what it runs of the model's code is its own care.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import stat
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from rollouts import supervisor
from rollouts.engine import UnsupportedError
from rollouts.environments.dialogue import Dialogue, DialogueEnvironment, EpisodeOverError
from rollouts.environments.gateway import Gateway, Session
from rollouts.episode import Problem, Submission
from sandbox.checkouts import Room

SUBMISSION, PROBLEM = "submission.txt", "problem.json"
TAIL = 300  # characters of an agent's last words in an error
LONGEST = 16 << 20  # bytes of a submission
NO_COMMAND = 127  # exit code where the program is not found, as in a shell
KILL_S = 40.0  # time for a supervisor to end an agent


@dataclass
class Settings:
    """The program that plays, and what it may do."""

    name: str = ""
    command: str = ""  # of the agent, with its arguments; "": it is started elsewhere (python -m jaxrl.gateway)
    agent_s: Annotated[float, Gt(0)] = 600.0  # until an agent is ended; its last answer is judged
    ignore_sampling: bool = False  # requests for another temperature and so on are answered, with the run's own
    concurrency: Annotated[int, Ge(1)] = 16  # agents at a time
    port: Annotated[int, Ge(0), Le(65535)] = 0  # of the endpoint, on 127.0.0.1; 0: any free one

    def check(self, where: str = "rollout.environment") -> None:
        """Raises ValueError for a command with a quote that does not end, or of blanks alone."""
        try:
            if self.command and not shlex.split(self.command):
                raise ValueError("blanks are not a command; '' waits for agents that are started elsewhere")
        except ValueError as error:
            raise ValueError(f"{where}.command = {self.command!r}: {error}") from None


class Agent(DialogueEnvironment):
    """See the module. An agent that fails, or breaks its session, gives an episode that is not trained on."""

    settings: Settings

    def __init__(self, **fields: Any):
        super().__init__(**fields)
        self.opened: asyncio.Queue[Session] = asyncio.Queue()  # sessions of agents that are started elsewhere
        self.served = False  # by python -m jaxrl.gateway
        self._room = Room(self.settings.concurrency)

    async def converse(self, dialogue: Dialogue) -> None:
        if not self.settings.command and not self.served:
            raise UnsupportedError(
                "rollout.environment.command is empty: only python -m jaxrl.gateway serves agents from elsewhere"
            )
        session = Session(dialogue, self.encode, self.settings.ignore_sampling)
        dialogue.state = session
        server = gateway(self.settings.port)
        server.open(session)
        try:
            if self.settings.command:
                async with self._room:
                    await self._run(dialogue.problem, session, server.url(session))
            else:
                self.opened.put_nowait(session)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.settings.agent_s):
                        await session.ended.wait()
        finally:
            server.close(session)
            await session.stop()  # before the engine releases the sequence
        if session.error is not None:
            raise session.error
        if session.over is not None:
            raise session.over
        if not dialogue.turns and session.submission is None:
            raise EpisodeOverError("sandbox_error", "the agent has asked the model nothing and submitted nothing")

    async def _run(self, problem: Problem, session: Session, url: str) -> None:
        """Starts the agent, waits for its end, and reads its submission."""
        with tempfile.TemporaryDirectory(prefix="jaxrl-agent-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            (folder / PROBLEM).write_text(json.dumps(shown(problem)))
            environment = os.environ | {
                "OPENAI_BASE_URL": url, "OPENAI_API_BASE": url, "JAXRL_URL": url, "OPENAI_API_KEY": "jaxrl",
                "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
                "JAXRL_PROBLEM": str(folder / PROBLEM), "JAXRL_SUBMISSION": str(folder / SUBMISSION),
            }  # fmt: skip
            # Not a pipe, which whatever the agent leaves running would hold open.
            with open(folder / "stderr.txt", "wb") as log:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), start_new_session=True,
                    cwd=folder, env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
                    stderr=log,
                )  # fmt: skip
            assert process.stdin is not None
            process.stdin.write(json.dumps(shlex.split(self.settings.command)).encode() + b"\n")
            late = False
            try:
                async with asyncio.timeout(self.settings.agent_s):
                    await process.wait()
            except TimeoutError:
                late = True
            finally:
                await asyncio.shield(_end(process))
            if (folder / SUBMISSION).exists():
                session.submission = _text(folder / SUBMISSION)
            elif process.returncode and not late and session.over is None and session.error is None:
                words = session.refused or _text(folder / "stderr.txt").strip()[-TAIL:]
                setting = "rollout.environment.command: " if process.returncode == NO_COMMAND else ""
                raise EpisodeOverError("sandbox_error", f"{setting}the agent ended with {process.returncode}: {words}")

    def submission(self, dialogue: Dialogue) -> Submission:
        """What the agent handed in, else the model's last answer."""
        session = dialogue.state
        answers = [turn.text for turn in dialogue.turns if turn.sampled]
        handed = session.submission if session is not None else None
        return self.submit(dialogue.problem, handed if handed is not None else answers[-1] if answers else "")


def shown(problem: Problem) -> dict[str, Any]:
    """What an agent may know of a problem."""
    return {"id": problem.id, "messages": list(problem.messages), "prompt": problem.prompt}


@cache
def gateway(port: int) -> Gateway:
    """The server of this process at a port, started when it is first wanted. Raises OSError for a port in use."""
    try:
        return Gateway(port)
    except OSError as error:
        raise OSError(f"rollout.environment.port = {port}: {error.strerror}") from None


def _text(path: Path) -> str:
    """What an agent has written. EpisodeOverError where it cannot be read, or is too much."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise EpisodeOverError("sandbox_error", f"{path.name} of the agent is not a file")
            data = file.read(LONGEST + 1)
        if len(data) > LONGEST:
            raise EpisodeOverError("sandbox_error", f"{path.name} of the agent is longer than {LONGEST >> 20} MB")
        return data.decode(errors="replace")
    except OSError as error:
        raise EpisodeOverError("sandbox_error", f"{path.name} of the agent: {error.strerror}") from None


async def _end(process: asyncio.subprocess.Process) -> None:
    """Has the supervisor end the agent and all that it has started, also where the agent has stopped the supervisor."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        process.send_signal(signal.SIGCONT)
    try:
        async with asyncio.timeout(KILL_S):
            await process.wait()
    except TimeoutError:
        await asyncio.to_thread(supervisor.kill_descendants, process.pid)
    with contextlib.suppress(ProcessLookupError):  # what an agent that has killed the supervisor leaves in its group
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def make_environment(**fields: Any) -> Agent:
    return Agent(**fields)
