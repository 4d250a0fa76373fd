"""Batches out of a stream: how old their tokens may be, what is resumed, and that a replay is the same run."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
from support.fake_turns import FakeTurns, Tools

from jaxrl.errors import CheckpointError
from jaxrl.tasks.sampling import Uniform
from jaxrl.training.draws import Draw
from jaxrl.training.step_metrics import staleness
from jaxrl.training.streaming import Plan, Streaming, token_versions
from rollouts.episode import Problem
from rollouts.schedule import Live, Replayed, Steps

PROBLEMS = [Problem(f"p{i}") for i in range(7)]


def streaming(folder: Path, schedule, seed: int = 0, lanes: int = 8, longest_s: float = 0.004, **plan) -> Streaming:
    """Of twelve steps, four groups of two each."""
    settings = {"start": 0, "last": 12, "size": 4, "group_size": 2, "max_staleness": 2, "due": lambda v: v % 4 == 0}
    engine = FakeTurns(slots=6)
    return Streaming(
        Plan(**(settings | plan)), engine, Tools(np.random.default_rng(seed), longest_s), Uniform(PROBLEMS, 0),
        schedule, lanes=lanes, delay=24, change_weights=engine.change_weights, load_weights=engine.load_weights,
        copy=lambda params: params, folder=folder / "pending", keep=3,
    )  # fmt: skip


def train(stream: Streaming, done: int = 0, last: int = 12, stop: int = 99) -> list[Draw]:
    """The batches of the steps done + 1 .. stop, as a trainer asks for them."""
    draws = []
    stream.publish(f"weights {done}", done)
    stream.restore(done)
    for step in range(done + 1, min(last, stop) + 1):
        draws.append(stream.take(step))
        stream.publish(f"weights {step}", step)
        if step % 4 == 0:
            stream.save(step)
    stream.close(wait=True)
    return draws


def told(draws: list[Draw]) -> list:
    """All that a trainer learns from."""
    return [
        [(g.problem.id, [(t.tokens.tolist(), str(t.versions), str(t.fresh)) for t in e.turns], e.weight_versions)
         for g in draw.groups for e in g.episodes]
        for draw in draws
    ]  # fmt: skip


@pytest.fixture(params=["steps", "live"])
def schedule(request):
    return Steps() if request.param == "steps" else Live()


@pytest.mark.parametrize("limit", [0, 1, 2, 4])
@pytest.mark.parametrize("stale", ["mask", "drop"])
def test_no_learned_token_is_older_than_the_limit(tmp_path, schedule, limit, stale):
    draws = train(streaming(tmp_path, schedule, max_staleness=limit, stale=stale))
    assert len(draws) == 12 and all(len(d.groups) == 4 for d in draws)
    for step, draw in enumerate(draws, 1):
        metrics = staleness(draw.groups, step, limit)  # raises for an older one
        assert stale == "mask" or metrics.get("staleness/masked", 0) == 0
    groups = [id(g) for d in draws for g in d.groups]
    drawn = [id(g) for d in draws for g in d.drawn]
    assert len(set(groups)) == len(groups) == 48 and len(set(drawn)) == len(drawn) and set(groups) <= set(drawn)


def test_several_versions_in_one_episode(tmp_path):
    draws = train(streaming(tmp_path, Steps(), max_staleness=4))
    ages = [
        set((step - 1 - token_versions(e)).tolist())
        for step, d in enumerate(draws, 1) for g in d.groups for e in g.episodes
    ]  # fmt: skip
    assert any(len(a) > 1 for a in ages) and set().union(*ages) > {0, 1}


def test_by_steps_the_run_does_not_depend_on_the_time(tmp_path):
    first = told(train(streaming(tmp_path / "a", Steps(), 0)))
    assert told(train(streaming(tmp_path / "b", Steps(), 1))) == first
    assert told(train(streaming(tmp_path / "c", Steps(), 2, longest_s=0.0))) == first


def test_replayed_and_killed(tmp_path):
    """A recorded run, killed twice and resumed, and its replay with other tools, killed twice elsewhere."""
    record, recorded = tmp_path / "schedule.jsonl", {}
    for done, stop in ((0, 6), (4, 10), (8, 12)):
        draws = train(streaming(tmp_path / "a", Live(record), done, due=lambda v: v % 4 == 0), done, stop=stop)
        recorded |= dict(zip(itertools.count(done + 1), told(draws)))
    replayed = {}
    for done, stop in ((0, 5), (4, 9), (8, 12)):
        draws = train(streaming(tmp_path / "b", Replayed(record), 7 + done, longest_s=0.01), done, stop=stop)
        replayed |= dict(zip(itertools.count(done + 1), told(draws)))
    whole = told(train(streaming(tmp_path / "c", Replayed(record), 9)))
    assert replayed == recorded and [recorded[step] for step in range(1, 13)] == whole


def test_resumed_by_steps_is_the_same(tmp_path):
    whole = told(train(streaming(tmp_path / "a", Steps(), 0)))
    train(streaming(tmp_path / "b", Steps(), 1), stop=7)
    resumed = told(train(streaming(tmp_path / "b", Steps(), 2), 4))
    assert resumed == whole[4:]


def test_a_live_run_saves_whenever_it_is_stopped(tmp_path):
    stream = streaming(tmp_path, Live())
    stream.publish("weights 0", 0)
    for step in (1, 2, 3):
        stream.take(step)
        stream.publish(f"weights {step}", step)
    assert stream.can_save(3)
    time.sleep(0.5)  # the sampler is as far ahead as it may be, and waits for the weights of step 4
    stream.save(3)
    stream.close()
    assert len(train(streaming(tmp_path, Live()), 3)) == 9
    exact = streaming(tmp_path / "other", Steps())
    assert not exact.can_save(3) and exact.can_save(4)


def test_a_replay_passes_a_place_where_the_recorded_run_was_stopped(tmp_path):
    """The record has lanes that were emptied for a checkpoint that the replay does not write."""
    record, drawn = tmp_path / "schedule.jsonl", []
    stream = streaming(tmp_path / "a", Live(record), 0)
    stream.publish("weights 0", 0)
    for step in (1, 2, 3):
        drawn.append(stream.take(step))
        stream.publish(f"weights {step}", step)
    time.sleep(0.3)
    stream.save(3)
    stream.close()
    drawn += train(streaming(tmp_path / "a", Live(record), 1), 3)
    assert told(train(streaming(tmp_path / "b", Replayed(record), 2))) == told(drawn)
    assert told(train(streaming(tmp_path / "c", Replayed(record), 3, longest_s=0.0))) == told(drawn)


def test_without_what_was_sampled_before_a_run_goes_on_with_later_problems(tmp_path):
    train(streaming(tmp_path, Steps()), stop=6)
    for path in (tmp_path / "pending").iterdir():
        path.unlink()
    assert len(train(streaming(tmp_path, Steps()), 4)) == 8
    with pytest.raises(CheckpointError, match="a recorded schedule cannot continue without it"):
        streaming(tmp_path / "b", Live(tmp_path / "schedule.jsonl")).restore(4)


def test_the_end_does_not_wait_for_a_tool(tmp_path):
    stream = streaming(tmp_path, Steps(), longest_s=0.0)
    stream.publish("weights 0", 0)
    stream.take(1)
    stream._stream.environment.longest_s = 1e6  # from now on tools take for ever
    time.sleep(0.1)
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 2


def test_nothing_of_the_parameters_is_kept_at_the_end(tmp_path):
    for schedule in (Steps(), Live()):
        stream = streaming(tmp_path / type(schedule).__name__, schedule)
        train(stream)
        assert stream._published is None


def test_groups_without_a_signal_are_left_out(tmp_path):
    def signal(group, step):
        return len(set(group.rewards.tolist())) > 1

    draws = train(streaming(tmp_path, Steps(), signal=signal, draws=4))
    assert all(signal(g, 0) for d in draws for g in d.groups)
    assert sum(len(d.drawn) for d in draws) > sum(len(d.groups) for d in draws)


def test_processes_share_the_problems(tmp_path):
    """Two processes with half of each batch play the episodes of one with whole batches."""

    def first(episodes, process, processes):
        stream = streaming(tmp_path, Steps(), size=4 // processes, process=process, processes=processes)
        work = [stream.next() for _ in range(episodes)]
        return {(w.problem.id, w.seed) for w in work if w is not None}

    assert first(32, 0, 1) == first(16, 0, 2) | first(16, 1, 2)


def test_an_error_of_an_episode_reaches_the_trainer(tmp_path):
    stream = streaming(tmp_path, Live())

    async def broken(*_):
        raise KeyError("broken")

    environment = type("Broken", (), {"play": broken})()
    make = stream._make_stream

    def with_broken():
        made = make()
        made.environment = environment
        return made

    stream._make_stream = with_broken
    stream.publish("weights 0", 0)
    with pytest.raises(KeyError, match="broken"):
        stream.take(1)
    stream.close()
