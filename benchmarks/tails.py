"""An environment with heavy tails: an answer, then tokens that nobody reads, then a simulated tool (stragglers.py)."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from rollouts.environments.dialogue import Dialogue, DialogueEnvironment

SIGMA = math.log(10) / 2.326  # of log-normal numbers whose 99th percentile is 10 times the median


@dataclass
class Settings:
    """The tails of an episode; 0: none."""

    name: str = ""
    tokens: Annotated[int, Ge(0)] = 24  # sampled and thrown away, the median
    tool_s: Annotated[float, Ge(0)] = 0.3  # of the simulated tool, the median


class Tails(DialogueEnvironment):
    """An answer, then tokens that nobody reads, then a tool."""

    continues = False
    settings: Settings

    async def converse(self, dialogue: Dialogue) -> None:
        draw = np.random.default_rng(dialogue.params.seed)
        tokens, seconds = np.exp(SIGMA * draw.standard_normal(2)) * (self.settings.tokens, self.settings.tool_s)
        await dialogue.sample()
        if tokens >= 1:
            most = min(int(tokens), self.budget.tokens)
            thrown = dataclasses.replace(dialogue.params, max_new_tokens=most, stop_tokens=(), stop_strings=())
            await dialogue.engine.sample(dialogue.prompt, thrown)
        await dialogue.tool(asyncio.sleep(seconds))


def make_environment(**fields: Any) -> Tails:
    return Tails(**fields)
