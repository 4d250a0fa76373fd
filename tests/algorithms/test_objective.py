"""Which groups have a signal, for every objective, and what dynamic sampling makes of it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from test_credit import group_of

from jaxrl.algorithms import policy_gradient, ppo, set_objectives, spo
from jaxrl.algorithms.objective import Objective
from jaxrl.config import Config
from jaxrl.training.packing import make_batch
from jaxrl.training.reinforce import draw
from jaxrl.training.replay import Replay
from rollouts.episode import Group, Problem, Reward

MIXED, RIGHT, WRONG = group_of([0, 1, 1]), group_of([1, 1]), group_of([0, 0])
BROKEN = group_of([0, 1], ["sandbox_error", "finished"])  # the difference is the sandbox's
NONE = group_of([])


def solved(*rewards: int) -> Group:
    group = group_of([float(r) for r in rewards])
    for e in group.episodes:
        e.reward = Reward(e.reward.value, e.reward.value > 0)
    return group


def of(module, **settings) -> Objective:
    return module.make_objective(module.Settings(**settings), max_new_tokens=2)


@pytest.mark.parametrize(("objective", "groups", "expected"), [
    (of(policy_gradient), (MIXED, RIGHT, WRONG, BROKEN, NONE), "+----"),
    (of(policy_gradient, advantage="leave_one_out", kl_in_reward=0.1), (MIXED, RIGHT, WRONG, BROKEN, NONE), "+----"),
    (of(policy_gradient, advantage="reward"), (MIXED, RIGHT, WRONG, BROKEN, NONE), "++-+-"),
    (of(set_objectives, objective_k=4), (solved(1, 0, 0, 0), solved(1, 1, 0, 0), solved(1, 0, 0), NONE), "+---"),
    (of(set_objectives, objective_k=2), (solved(1, 1, 0, 0), solved(1, 1, 1, 0), solved(1, 1, 1)), "++-"),
    (of(set_objectives, advantage="pkpo", objective_k=2), (solved(1, 1), solved(0, 0)), "+-"),
    (of(ppo), (MIXED, RIGHT, BROKEN, NONE), "+++-"),
    (of(spo), (MIXED, RIGHT, BROKEN, NONE), "+++-"),
], ids=["group_std", "kl_in_reward", "reward", "all", "pairs", "pkpo", "ppo", "spo"])  # fmt: skip
def test_a_signal_is_an_advantage_that_is_not_zero(objective, groups, expected):
    assert "".join("-+"[objective.signal(group)] for group in groups) == expected


def test_a_penalty_is_a_signal_and_the_batch_counts_as_dynamic_sampling_does():
    """Two right answers, one of which is too long: their advantages differ, whatever the task's rewards."""
    group = group_of([1.0, 1.0])
    (turn,) = group.episodes[1].turns
    assert turn.logprobs is not None
    longer = dataclasses.replace(turn, tokens=turn.tokens.repeat(2), logprobs=turn.logprobs.repeat(2))
    group.episodes[1] = dataclasses.replace(group.episodes[1], turns=[longer])
    for overlong, signal in (("none", False), ("penalty", True)):
        objective = of(policy_gradient, overlong=overlong, overlong_buffer=1)
        assert objective.signal(group) == signal
        _, log = make_batch([group, WRONG], objective, row_length=8, microbatch_rows=1)
        assert log["groups_without_signal"] == 2 - signal


def test_dynamic_sampling_keeps_the_first_groups_with_a_signal():
    config = Config()
    config.grpo.problems_per_step, config.grpo.loss.dynamic_sampling_max_draws = 2, 3
    others = [solved(1, 1, 1, 1), solved(1, 0, 0, 0), solved(1, 1, 0, 0), solved(0, 0, 0, 0), solved(0, 0, 1, 0), WRONG]
    drawn: list[int] = []

    def collect(name, engine, environment, problems, group_size, seed):
        drawn.append(len(problems))
        at = sum(drawn) - len(problems)
        for g in others[at : at + len(problems)]:
            for e in g.episodes:
                e.timings["sample"] = 0.0
        return others[at : at + len(problems)]

    t = SimpleNamespace(
        config=config,
        selection=SimpleNamespace(next=lambda place, size: [Problem(str(i)) for i in range(size)],
                                  observe=lambda groups: None),
        processes=SimpleNamespace(collect=collect), engine=None, environment=None,
    )  # fmt: skip
    # With k = 4 every set holds all four episodes: two right ones give no signal, and a third draw is needed.
    objective = of(set_objectives, objective_k=4)
    config.grpo.loss.dynamic_sampling = True
    found = draw(t, objective, 1, Replay())  # pyright: ignore[reportArgumentType]
    assert found.groups == [others[1], others[4]] and found.drawn == others and drawn == [2, 2, 2]
    drawn.clear()
    config.grpo.loss.dynamic_sampling = False
    found = draw(t, objective, 1, Replay())  # pyright: ignore[reportArgumentType]
    assert found.groups == found.drawn == others[:2] and drawn == [2]
