"""One prompt, one answer, one verdict."""

from __future__ import annotations

from dataclasses import dataclass

from rollouts.environments.dialogue import Dialogue, DialogueEnvironment


@dataclass
class SingleTurn(DialogueEnvironment):
    """The model answers once and the answer is scored."""

    continues = False

    async def converse(self, dialogue: Dialogue) -> None:
        await dialogue.sample()
