"""One prompt, one answer, one verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rollouts.environments.dialogue import Dialogue, DialogueEnvironment


@dataclass
class Settings:
    """The model answers once."""

    name: str = ""


class SingleTurn(DialogueEnvironment):
    """The model answers once and the answer is judged."""

    continues = False

    async def converse(self, dialogue: Dialogue) -> None:
        await dialogue.sample()


def make_environment(**fields: Any) -> SingleTurn:
    return SingleTurn(**fields)
