"""Texts judged by a task as an episode's last turn would be."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from jaxrl.tasks import Task
from rollouts.episode import Problem, Reward
from rollouts.services import Services

# Two rows of mbpp.jsonl: the first is held out, the second for training.
MBPP = [
    {"task_id": i, "text": "Add one.", "code": "def add(n): return n + 1", "test_list": [f"assert add({i}) == {i + 1}"]}
    for i in (11, 511)
]  # fmt: skip


def judge(task: Task, problem: Problem, text: str, pool: Any = None) -> Reward:
    """The reward of a text."""
    return judge_all(task, [problem], [text], pool)[0]


def judge_all(task: Task, problems: Sequence[Problem], texts: Sequence[str], pool: Any = None) -> list[Reward]:
    """The rewards of a text for each problem, judged at the same time."""

    async def rewards() -> list[Reward]:
        judging = (task.judge(p, task.submission(p, t), Services(pool)) for p, t in zip(problems, texts))
        return list(await asyncio.gather(*judging))

    return asyncio.run(rewards())
