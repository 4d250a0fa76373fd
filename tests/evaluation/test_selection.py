"""Best-of-n side by side: by enumeration of subsets, at its bounds, stored and read again."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from test_evaluate import TEXTS, Scripted, run, task

from jaxrl.config import EvaluationConfig
from jaxrl.errors import UserError
from jaxrl.evaluation.run import evaluate
from jaxrl.evaluation.selection import (
    ORACLE,
    RANDOM,
    Judged,
    best_of_table,
    best_of_values,
    read_judged,
    table_text,
    write_judged,
)
from jaxrl.score import main
from jaxrl.tasks.rows import DataError


def problems(count: int = 5, samples: int = 6) -> list[Judged]:
    rng = np.random.default_rng(0)
    return [
        Judged(str(i), (rng.random(samples) < 0.4).tolist(), {"reward": rng.normal(size=samples).tolist()})
        for i in range(count)
    ]


def test_every_scorer_is_the_mean_over_subsets():
    for problem in problems():
        for n in (1, 2, 4, 6):
            subsets = list(combinations(range(6), n))
            reward = problem.scores["reward"]
            chosen = [problem.solved[max(s, key=lambda i: reward[i])] for s in subsets]
            values = best_of_values(problem, n)
            assert values["reward"] == pytest.approx(np.mean(chosen))
            assert values[ORACLE] == pytest.approx(np.mean([any(problem.solved[i] for i in s) for s in subsets]))
            assert values[RANDOM] == pytest.approx(np.mean(problem.solved))


def test_pass_rates_as_scores_are_an_oracle_and_equal_scores_are_random():
    for problem in problems():
        rates = [1.0 if solved else 0.5 * i / 6 for i, solved in enumerate(problem.solved)]
        values = best_of_values(problem._replace(scores={"rates": rates, "equal": [0.0] * 6}), 3)
        assert values["rates"] == pytest.approx(values[ORACLE])
        assert values["equal"] == pytest.approx(values[RANDOM])


def test_a_stored_table_is_the_same(tmp_path, capsys):
    judged = problems()
    judged[0].scores["reward"][2] = -np.inf  # an episode without tokens
    write_judged(tmp_path / "scores.jsonl", judged)
    assert read_judged(str(tmp_path / "scores.jsonl")) == judged
    table = best_of_table(judged, (1, 4))
    value, low, high = table["reward"][4]
    assert low <= value <= high
    assert table[RANDOM][1][0] == pytest.approx(table["reward"][1][0]) == pytest.approx(table[ORACLE][1][0])
    assert main([str(tmp_path / "scores.jsonl"), "--best-of", "1,4"]) == 0
    assert capsys.readouterr().out.strip() == table_text(table)
    assert main([str(tmp_path / "scores.jsonl"), "--best-of", "7"]) == 1
    assert "has 6 samples, best-of-7 needs more" in capsys.readouterr().err
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "solved": [true], "scores": {"reward": [1, 2]}}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:1: scores.reward must be a list of 1 numbers"):
        read_judged(str(tmp_path / "bad.jsonl"))


def test_all_scorers_side_by_side_in_an_evaluation(tmp_path):
    def reward(groups):
        return [[float(e.reward.solved) for e in group.episodes] for group in groups]

    environment, settings = Scripted(TEXTS), EvaluationConfig(samples=4, k=(2,), best_of="all", bootstrap=0)
    metrics, _ = evaluate(
        None, environment, task(), settings, (0, 2), reward=reward, scores_file=tmp_path / "scores.jsonl"
    )
    names = {name.rpartition("/")[2] for name in metrics if name.startswith("held_out/best_of_4/")}
    assert names == {"reward", "logprob", "logprob_sum", "random", "oracle"}  # without a sandbox, not by public tests
    best = {name: metrics[f"held_out/best_of_2/{name}"] for name in names}
    assert best["reward"] == pytest.approx(best["oracle"]) == pytest.approx(metrics["held_out/pass@2"])
    assert best["random"] == pytest.approx(metrics["held_out/pass@1"])
    stored = best_of_table(read_judged(str(tmp_path / "scores.jsonl")), (2,), 0)
    assert best == pytest.approx({name: row[2][0] for name, row in stored.items()})
    with pytest.raises(UserError, match=r"best_of = 'reward' needs reward\.model"):
        run(Scripted(TEXTS), best_of="reward")
