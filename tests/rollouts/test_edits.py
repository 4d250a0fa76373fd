"""Programs repaired by edits: states, feedback, and what each turn earns."""

from __future__ import annotations

import dataclasses

import pytest
from played import Script, judged_by, make, play

from jaxrl.algorithms.policy_gradient import Settings, make_objective
from jaxrl.errors import UserError
from jaxrl.runs.tokenizer import train_tokenizer
from rollouts.engine import UnsupportedError
from rollouts.environments import edits
from rollouts.environments.dialogue import Budget
from rollouts.episode import Problem
from sandbox.verdict import CallTest

ASKED = ({"role": "user", "content": "Repair f."},)
TESTS = (CallTest("f", (1,), 3), CallTest("f", (5,), 7))
ADD = Problem(
    "add", ASKED, tests=TESTS, public_tests=TESTS[:1], meta={"broken": "def f(x):\n    return x - 1\n    y = 1"}
)
RIGHT, WRONG = "### REPL 2 >>>    return x + 2", "### REPL 2 >>>    return x"


@pytest.fixture(scope="module")
def small():
    return train_tokenizer(["### REPL 2 >>>    return x - 1\n### EXIT user assistant L 1 def f(x):"] * 3, 400)


def episode(small, pool, *answers: str, budget: Budget = Budget(2000), problem: Problem = ADD, **settings):
    return play(make(edits, small, judge=judged_by(pool), budget=budget, **settings), Script(small, *answers), problem)


def test_a_repair(small, pool):
    played = episode(small, pool, "### DELL 3", RIGHT, "### EXIT")
    assert played.reward.turns == (0, 1, 0) and played.reward.value == 1 and played.reward.solved
    assert played.status == "finished" and played.submission.program == "def f(x):\n    return x + 2"
    assert [a.solved for a in played.attempts] == [False, True]
    assert [t.text for t in played.turns if not t.sampled] == [
        "L 1 def f(x):\nL 2     return x - 1\n***\nf(1) gave 0, expected 3",
        "L 1 def f(x):\nL 2     return x + 2\n***",
    ]
    assert not any(t.learned for t in played.turns if not t.sampled)


@pytest.mark.parametrize(
    ("answers", "rewards", "solved", "settings"),
    [
        (["hello", RIGHT, WRONG], (-0.5, 1, -0.5), False, {"max_turns": 3}),  # the last turn breaks it, without EXIT
        ([RIGHT, WRONG, RIGHT, "### EXIT"], (1, 0, 0, 0), True, {}),  # the first time alone earns
        (["### EXIT"], (0,), False, {}),
        ([WRONG], (-0.5,), False, {"max_turns": 1}),
        (["### DELL 9"], (-0.5,), False, {"max_turns": 1}),  # malformed, and the last: not both
        (["### DELL 9"], (-0.7,), False, {"max_turns": 1, "no_exit_penalty": 0.7}),
        ([RIGHT], (0.5,), True, {"max_turns": 1}),
        (["what", "### EXIT"], (-0.2, 0), False, {"malformed_penalty": 0.2}),
    ],
)
def test_what_turns_earn(small, pool, answers, rewards, solved, settings):
    played = episode(small, pool, *answers, **settings)
    assert played.reward.turns == pytest.approx(rewards) and played.reward.solved == solved
    assert played.reward.value == pytest.approx(sum(rewards)) == pytest.approx(sum(played.reward.parts.values()))


def test_a_malformed_command_changes_nothing_and_is_said(small, pool):
    played = episode(small, pool, "### DELL 3", "### DELL 3", "### EXIT")
    assert (
        played.turns[3].text == "L 1 def f(x):\nL 2     return x - 1\n***\nmalformed command\nf(1) gave 0, expected 3"
    )
    assert played.submission.program == "def f(x):\n    return x - 1"


def test_public_tests_are_seen_and_all_decide(small, pool):
    """It returns 3 for 1, which is all that is seen of it."""
    played = episode(small, pool, "### REPL 2 >>>    return 3", "### EXIT")
    assert played.turns[1].text.endswith("***") and not played.reward.solved and played.reward.turns == (0, 0)


def test_a_command_that_is_cut_off_is_malformed(small, pool):
    tokens = len(small.encode("### DELL 3"))
    played = episode(small, pool, "### DELL 3", RIGHT, budget=Budget(tokens + 60))
    assert played.status == "truncated" and played.reward.turns[-1] == -0.5
    assert len(played.reward.turns) == sum(t.sampled for t in played.turns)


def test_lines_that_do_not_run_are_told_once(small, pool):
    played = episode(small, pool, "### REPL 1 >>>def f(x)", "### EXIT", problem=ADD)
    (said,) = played.turns[1].text.split("***\n")[1:]
    assert said.startswith("SyntaxError") and len(said.splitlines()) == 1


def test_a_problem_without_a_program_is_an_error(small, pool):
    with pytest.raises(UnsupportedError, match="problem p has no program to repair"):
        episode(small, pool, "### EXIT", problem=Problem("p", ASKED, tests=TESTS))


def test_turns_are_credited_apart(small, pool):
    """Of two episodes the first turn of one earns; the second turn is worth the same in both."""
    settings = Settings(credit="turn", std_ddof=0, advantage_epsilon=0.0)
    objective = make_objective(settings, max_new_tokens=100)
    both = [episode(small, pool, RIGHT, "### EXIT"), episode(small, pool, WRONG, "### EXIT")]
    credits = objective.credit(both)
    for played, credit, advantage in zip(both, credits, (1, -1)):
        first = len(played.turns[0].tokens)
        assert (credit.advantage[:first] == advantage).all() and (credit.advantage[first:] == 0).all()
        assert len(credit.advantage) == played.sampled_length


@pytest.mark.parametrize("other", [{"overlong": "penalty"}, {"kl_in_reward": 0.1}])
def test_credit_of_turns_goes_with_nothing_that_changes_episodes(other):
    (name,) = other
    with pytest.raises(UserError, match=rf"credit = 'turn' must be 'episode' with grpo\.loss\.{name}"):
        make_objective(Settings(credit="turn", **other), max_new_tokens=100)


def test_credit_of_turns_needs_rewards_of_turns(small, pool):
    played = episode(small, pool, "### EXIT")
    plain = dataclasses.replace(played, reward=dataclasses.replace(played.reward, turns=None))
    with pytest.raises(UserError, match="needs an environment that rewards each turn"):
        make_objective(Settings(credit="turn"), max_new_tokens=100).credit([plain, plain])
