"""The journal of an evaluation: what a kill leaves of it is taken up again, to the same files in the end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT

from jaxrl.evaluate import main
from jaxrl.runs.journal import Journal
from jaxrl.runs.log import Progress
from rollouts.episode import Episode, EpisodeStatus, Problem, Reward, Turn

TINY = [
    "--config", "configs/scramble.py", "--config.model.shape.hidden_size=32", "--config.model.tokenizer_size=300",
    "--config.model.shape.intermediate_size=64", "--config.model.shape.num_hidden_layers=1",
    "--config.task.held_out_problems=24", "--config.rollout.slots=4", "--config.evaluation.samples=2",
    "--config.name=e",
]  # fmt: skip
PROBLEM = Problem("p")


def episode(number: int, status: EpisodeStatus = "finished") -> Episode:
    turn = Turn("assistant", np.arange(number, dtype=np.int32), True, np.zeros(number, np.float32), text=str(number))
    return Episode(PROBLEM, np.zeros(3, np.int32), [turn], Reward(number % 2, bool(number % 2)), status, str(number))


def journal(folder, identity="weights", index=0, total=4) -> Journal:
    return Journal(folder, "evaluation", identity, total, Progress(quiet=True), index)


def known(kept: Journal) -> list[int]:
    found = {number: kept.known((1, 2), number, PROBLEM) for number in range(8)}
    assert all(e is None or (e.text == str(n) and e.problem is PROBLEM) for n, e in found.items())
    assert all(np.array_equal(e.turns[0].tokens, np.arange(n)) for n, e in found.items() if e)
    return [number for number, e in found.items() if e]


def test_a_file_cut_anywhere_loses_what_is_cut(tmp_path):
    ends = []
    with journal(tmp_path) as kept:
        for number in range(3):
            kept.finished((1, 2), number, episode(number))
            ends.append((tmp_path / "evaluation.0.journal").stat().st_size)
    whole = (tmp_path / "evaluation.0.journal").read_bytes()
    for cut in [*range(0, len(whole), 7), *ends]:
        (tmp_path / "evaluation.0.journal").write_bytes(whole[:cut])
        with journal(tmp_path) as kept:
            assert known(kept) == list(range(sum(end <= cut for end in ends)))
            kept.finished((1, 2), 7, episode(7))
        with journal(tmp_path) as kept:
            assert known(kept) == [*range(sum(end <= cut for end in ends)), 7]
    flipped = whole[: ends[0] + 30] + b"?" + whole[ends[0] + 31 :]
    (tmp_path / "evaluation.0.journal").write_bytes(flipped)
    with journal(tmp_path) as kept:
        assert known(kept) == [0]


def test_only_the_same_episode_of_the_same_weights_is_known(tmp_path):
    with journal(tmp_path) as kept:
        kept.finished((1, 2), 1, episode(1))
        kept.finished((1, 2), 2, episode(2, status="sandbox_error"))
        assert kept.so_far() == "2 of 4 episodes are finished, 50.0% of them solved"
    with journal(tmp_path) as kept:
        assert known(kept) == [1]  # what the sandbox could not judge is played again
        assert kept.known((1, 3), 1, PROBLEM) is None
        assert kept.known((1, 2), 1, Problem("another")) is None
    with journal(tmp_path, index=1) as other:  # another process, or one process fewer than before
        assert known(other) == [1]
        other.remove()
    assert not list(tmp_path.glob("*.journal"))
    with journal(tmp_path) as kept:
        kept.finished((1, 2), 1, episode(1))
    with journal(tmp_path, identity="other weights") as kept:
        assert known(kept) == []


def evaluate(folder, *settings) -> int:
    with contextlib.chdir(ROOT):
        return main([*TINY, f"--config.runs_dir={folder}", *settings])


@pytest.mark.parametrize("environment", ["single_turn", "interpreter"])
def test_an_interrupted_evaluation_carries_on(tmp_path, monkeypatch, capsys, environment):
    settings = [f"--config.rollout.environment={environment}", "--config.evaluation.regenerate=1"]
    settings += ["--config.rollout.max_prompt_length=200"]
    assert evaluate(tmp_path / "whole", *settings) == 0
    finished, played = Journal.finished, Counter[int]()

    def stop_after(most):
        def watched(self, seed, number, episode):
            finished(self, seed, number, episode)
            played[number] += 1
            if played.total() == most:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(Journal, "finished", watched)

    for most in (5, 17):
        stop_after(most)
        assert evaluate(tmp_path / "parts", *settings) == 130
        done = re.search(r"(\d+) of 48 episodes are finished", capsys.readouterr().out)
        assert done and most <= int(done[1]) < 48
        assert not (tmp_path / "parts/e/evaluation.json").exists()
    stop_after(0)
    assert evaluate(tmp_path / "parts", *settings) == 0
    for name in ("samples/evaluation.jsonl", "evaluation.json"):
        whole, parts = ((tmp_path / run / "e" / name).read_bytes() for run in ("whole", "parts"))
        assert whole == parts
    assert not list((tmp_path / "parts/e").glob("*.journal"))


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_file(tmp_path):
    command = [sys.executable, "-m", "jaxrl.evaluate", *TINY, "--config.task.held_out_problems=400"]
    kept = tmp_path / "killed/e/evaluation.0.journal"
    for share in (0.2, 0.5, 0.8):
        process = subprocess.Popen([*command, f"--config.runs_dir={tmp_path / 'killed'}"], cwd=ROOT)
        size = kept.stat().st_size if kept.exists() else 0
        while process.poll() is None and (not kept.exists() or kept.stat().st_size < size + 400 * share):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert kept.stat().st_size > size
    for run in ("killed", "whole"):
        subprocess.run([*command, f"--config.runs_dir={tmp_path / run}"], cwd=ROOT, check=True)
    whole, killed = ((tmp_path / run / "e/samples/evaluation.jsonl").read_bytes() for run in ("whole", "killed"))
    assert whole == killed and len(whole.splitlines()) == 800
    assert json.loads(whole.splitlines()[0])["problem"]
