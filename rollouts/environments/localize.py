"""Which files first, then the patch: the model names paths of a tree, sees those files whole, and edits them.

The first two stages of Agentless mini (SWE-RL, arXiv 2502.18449).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from rollouts.engine import UnsupportedError
from rollouts.environments.dialogue import Dialogue, DialogueEnvironment
from rollouts.episode import Submission

FILES, REQUEST = "files", "request"  # in Problem.meta: contents by path, and what is said after them
_AROUND = re.compile(r"^[\s`*'\"-]*(?:\d+[.)]\s+)?[\s`*'\"]*|[\s`*'\",:;]*$")


@dataclass
class Settings:
    """The files that the model names, then its answer."""

    name: str = ""
    max_files: Annotated[int, Ge(1)] = 5  # that are shown; further ones that it names are not
    shuffle: bool = True  # in another order in each episode; else as they are named


class Localize(DialogueEnvironment):
    """The first answer names files of meta["files"], one a line; the second one is judged.

    An answer that names none of them ends the episode, and is judged. The submission's state are the named paths.
    """

    settings: Settings

    async def converse(self, dialogue: Dialogue) -> None:
        problem = dialogue.problem
        if FILES not in problem.meta:
            raise UnsupportedError(f"problem {problem.id} has no files to name, which environment 'localize' needs")
        files = problem.meta[FILES]
        dialogue.state = named = named_files(await dialogue.sample(), files, self.settings.max_files)
        if named:
            order = random.Random(dialogue.params.seed).sample(named, len(named)) if self.settings.shuffle else named
            dialogue.reply(show_files({path: files[path] for path in order}, problem.meta.get(REQUEST, "")))
            await dialogue.sample()

    def submission(self, dialogue: Dialogue) -> Submission:
        """The last answer, and the paths that were named."""
        answers = [turn.text for turn in dialogue.turns if turn.sampled]
        return self.submit(dialogue.problem, answers[-1] if answers else "", tuple(dialogue.state or ()))


def named_files(text: str, paths: Iterable[str], most: int) -> list[str]:
    """The paths that stand alone on a line of the text, list marks and quotes aside; the first `most`, each once."""
    known = {*paths}
    named = dict.fromkeys(_AROUND.sub("", line) for line in text.splitlines())
    return [path for path in named if path in known][:most]


def show_files(files: Mapping[str, str], request: str = "") -> str:
    """Files as prompts have them, and what is said after them."""
    shown = "\n\n".join(f"### {path}\n{content}" for path, content in files.items())
    return f"{shown}\n\n{request}" if request else shown


def make_environment(**fields: Any) -> Localize:
    return Localize(**fields)
