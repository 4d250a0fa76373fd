"""Issues that only a picture explains: who looks can solve them, who does not is right by chance."""

from __future__ import annotations

import asyncio
import collections
import dataclasses

import pytest
from played import Script, make, play

from jaxrl.runs.tokenizer import train_tokenizer
from jaxrl.tasks import load_task, visual
from rollouts.environments import repository
from rollouts.environments.dialogue import Budget
from rollouts.episode import Submission
from rollouts.services import Services
from rollouts.unified import write_patch
from sandbox.pool import Pool


def task(**settings):
    return load_task(visual.Settings(train_problems=400, held_out_problems=40, demonstrations=40, **settings), 0)


@pytest.fixture(scope="module")
def services():
    with Pool(1) as pool:
        yield Services(pool=pool)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(task().corpus(), 500)


def played(problem, answers, services, tokenizer):
    async def judge(problem, submission):
        return await visual.judge(problem, submission, services)

    environment = make(repository, tokenizer, judge=judge, budget=Budget(2000))
    return play(dataclasses.replace(environment, services=services), Script(tokenizer, *answers), problem)


def test_the_demonstration_is_what_the_environment_says_and_solves(services, tokenizer):
    for problem in task().demonstrations[:3]:
        answers = [turn["content"] for turn in problem.demonstration if turn["role"] == "assistant"]
        shown = [turn["content"] for turn in problem.demonstration if turn["role"] == "user"]
        episode = played(problem, answers, services, tokenizer)
        assert episode.reward.solved and episode.status == "finished"
        assert [turn.text for turn in episode.turns if not turn.sampled] == shown


def test_without_the_image_the_issue_says_nothing_of_what_is_right(services, tokenizer):
    """Issues are the same for different right values; the one that a picture would show occurs nowhere."""
    seen = collections.defaultdict(set)
    for problem in task(images=False).train:
        seen[problem.messages[0]["content"]].add((problem.meta["wrong"], problem.tests[0].expected))
        assert problem.tests[0].expected not in problem.messages[0]["content"]
        assert not problem.meta[repository.TREE].images
    blind = task(images=False).train[0]
    assert blind.messages == task().train[0].messages
    episode = played(blind, ["image 1", "submit"], services, tokenizer)
    assert "there is no image 1" in episode.turns[1].text and not episode.reward.solved


def test_patches_that_draw_something_else_or_nothing_are_worth_nothing(services):
    problem = task().train[0]
    program = problem.meta[repository.TREE].files["draw.py"]
    wrong = write_patch({"draw.py": program}, {"draw.py": program + "\n# the same picture\n"})
    gone = write_patch({"draw.py": program}, {"draw.py": ""})
    for state in ("", "no patch", wrong, gone):
        reward = asyncio.run(visual.judge(problem, Submission("", state=state), services))
        assert (reward.value, reward.solved) == (0.0, False)


def test_held_out_pairs_of_values_never_occur_in_training():
    def pairs(problems):
        return {
            (p.meta["wrong"], *(turn["content"] for turn in p.demonstration if "SEARCH" in turn["content"]))
            for p in problems
        }

    assert not pairs(task().held_out) & (pairs(task().train) | pairs(task().demonstrations))
