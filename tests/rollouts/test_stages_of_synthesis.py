"""Programs in stages: what is asked when, how often, and what is judged."""

from __future__ import annotations

import pytest
from played import Script, judged_by, make, play

from jaxrl.config import RolloutConfig
from jaxrl.runs.prompts import prompt_tokens
from jaxrl.runs.tokenizer import train_tokenizer
from rollouts.engine import UnsupportedError
from rollouts.environments import synthesis
from rollouts.environments.dialogue import Budget
from rollouts.environments.synthesis import (
    AGAIN,
    BLAME,
    CHECK,
    DESCRIBE,
    DESCRIBE_AGAIN,
    IMPLEMENT,
    REFINE,
)
from rollouts.episode import Problem
from sandbox.verdict import CallTest

TESTS = (CallTest("f", (1,), 3), CallTest("f", (5,), 7))
ADD = Problem("add", ({"role": "user", "content": "Write f."},), tests=TESTS, public_tests=TESTS[:1])
GOOD, BAD = (f"```python\ndef f(x): return x + {n}\n```" for n in (2, 1))
FAILED = "Your program is wrong:\nf(1) gave 2, expected 3"


@pytest.fixture(scope="module")
def small():
    return train_tokenizer([f"user assistant {GOOD} {BLAME} {REFINE} {DESCRIBE} RIGHT CODE adds two"] * 3, 400)


def episode(small, pool, *answers: str, problem: Problem = ADD, tokens: int = 20_000, **settings):
    environment = make(synthesis, small, judge=judged_by(pool), budget=Budget(tokens), **settings)
    rollout = RolloutConfig(environment=environment.settings, instruction="", max_prompt_length=1_000)
    environment.encode = lambda p: prompt_tokens(small, p, rollout)
    return play(environment, Script(small, *answers), problem)


def asked(played) -> list[str]:
    return [t.text for t in played.turns if not t.sampled]


def test_all_stages(small, pool):
    """Two refinements, a wrong program, blame for the code, then for the description."""
    played = episode(
        small, pool, "adds one", "adds two", "RIGHT", BAD, "CODE: off by one", BAD, "**Description**", "adds 2", GOOD
    )
    assert asked(played) == [
        REFINE, REFINE, IMPLEMENT, f"{FAILED}\n{BLAME}", AGAIN, f"{FAILED}\n{BLAME}", DESCRIBE_AGAIN, IMPLEMENT
    ]  # fmt: skip
    assert played.status == "finished" and played.reward.solved and "x + 2" in (played.submission.program or "")
    assert [(a.public, a.solved) for a in played.attempts] == [(False, False), (False, False), (True, True)]
    assert played.problem is ADD  # and not the one whose message asks for a description
    assert DESCRIBE in small.decode(played.prompt) and not any(t.learned for t in played.turns if not t.sampled)


def test_the_third_program_passes(small, pool):
    """The fixture of the refinement loop: two fail, the third passes."""
    played = episode(small, pool, "adds", "RIGHT", BAD, "CODE", BAD, "CODE", GOOD)
    assert len(played.attempts) == 3 and played.reward.solved


def test_it_gives_up_after_fifty_programs(small, pool):
    played = episode(small, pool, "adds", *[BAD] * 50, refinements=0, introspect=False, tokens=100_000)
    assert len(played.attempts) == 50 and played.status == "out_of_turns" and not played.reward.solved


def test_the_description_is_refined_ten_times_at_most(small, pool):
    played = episode(small, pool, "adds", *["better"] * 10, GOOD)
    assert asked(played) == [*[REFINE] * 10, IMPLEMENT] and played.reward.solved


@pytest.mark.parametrize(
    ("answers", "settings", "questions"),
    [
        ([BAD, GOOD], {"describe": False, "refinements": 0, "introspect": False}, [f"{FAILED}\n{AGAIN}"]),
        (["adds", BAD, GOOD], {"refinements": 0, "introspect": False}, [IMPLEMENT, f"{FAILED}\n{AGAIN}"]),
        (["adds", GOOD], {"refinements": 0, "programs": 1, "introspect": False}, [IMPLEMENT]),
        (["adds", GOOD, "RIGHT"], {"refinements": 0, "execute": False}, [IMPLEMENT, f"{CHECK}\n{BLAME}"]),
        (["adds", BAD, "it adds 1", GOOD, "Right."], {"refinements": 0, "execute": False, "introspect": False},
         [IMPLEMENT, CHECK, AGAIN, CHECK]),
    ],
)  # fmt: skip
def test_ablations(small, pool, answers, settings, questions):
    played = episode(small, pool, *answers, **settings)
    assert asked(played) == questions and played.status == "finished" and played.reward.solved
    assert (DESCRIBE in small.decode(played.prompt)) == settings.get("describe", True)


def test_without_runs_nothing_of_the_tests_is_seen(small, pool):
    played = episode(small, pool, "adds", BAD, "RIGHT", refinements=0, execute=False)
    assert not played.reward.solved and played.status == "finished"
    assert not any("expected" in text for text in asked(played))


def test_public_tests_are_seen_and_all_decide(small, pool):
    three = "```python\ndef f(x): return 3\n```"
    played = episode(small, pool, "adds", "RIGHT", three)
    assert played.attempts[-1].public and not played.reward.solved


def test_what_is_judged_when_tokens_run_out(small, pool):
    """The last program, also when a message comes after it; nothing where there is none."""
    played = episode(small, pool, "adds", "RIGHT", BAD, "CODE " * 400, tokens=400)
    assert played.status == "truncated" and "x + 1" in (played.submission.program or "")
    played = episode(small, pool, "adds " * 100, tokens=30)
    assert played.status == "truncated" and not played.attempts and not played.reward.solved


def test_an_answer_that_is_no_program_is_a_wrong_one(small, pool):
    played = episode(small, pool, "adds", "RIGHT", "```python\ndef f(:\n```", "CODE", GOOD)
    assert [a.valid for a in played.attempts] == [False, True] and played.reward.solved


def test_settings_that_do_nothing_are_refused():
    for settings, message in (
        ({"describe": False}, "describe = False needs"),
        ({"programs": 1}, "programs = 1 needs"),
    ):
        with pytest.raises(UnsupportedError, match=rf"^rollout\.environment\.{message}"):
            synthesis.Settings(**settings).check()
    synthesis.Settings().check()
    synthesis.Settings(describe=False, refinements=0, introspect=False).check()


def test_problems_without_public_tests_are_refused(small, pool):
    with pytest.raises(UnsupportedError, match="has no public tests"):
        episode(small, pool, "adds", problem=Problem("p", ADD.messages, tests=TESTS))
