"""Pass rates, problems chosen by them, and pairs: against AceCoder's rules by hand and by enumeration."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest

from jaxrl.preferences import is_pair, main, make_pairs
from jaxrl.tasks.rates import Sample, Sampled, band, hard_quarter, read_rates
from jaxrl.tasks.rows import DataError

BEST, GAP = Fraction("0.8"), Fraction("0.4")


def sampled(passed, tests=10, kept=10):
    flags = [tuple(i < n for i in range(tests)) for n in passed]
    samples = [Sample(f"answer {k}", f, "") for k, f in enumerate(flags)]
    return Sampled("q", [{"role": "user", "content": "?"}], tuple(i < kept for i in range(tests)), samples)


def rates_of(pairs):
    return sorted((p["chosen_rate"], p["rejected_rate"]) for p in pairs)


def test_pairs_of_the_paper():
    assert rates_of(make_pairs(sampled([10, 5, 1]), BEST, GAP, "paper", "kept")) == [(1.0, 0.1), (1.0, 0.5)]


def test_a_rate_of_zero_never_enters():
    for rule, pairs in (("code", [(1.0, 0.6)]), ("paper", [])):  # the paper's gap must be more than 0.4
        assert rates_of(make_pairs(sampled([10, 6, 0]), BEST, GAP, rule, "kept")) == pairs


def test_the_codes_comparison_takes_the_limits():
    assert not is_pair(BEST, GAP, BEST, GAP, "paper")
    assert is_pair(BEST, GAP, BEST, GAP, "code")
    assert is_pair(Fraction(7, 10), Fraction(3, 10), Fraction("0.7"), GAP, "code")  # 0.7 - 0.3 < 0.4 in floats


def test_removed_tests_bite_with_all():
    problem = sampled([20, 4], tests=20, kept=15)
    assert problem.rates("kept") == [1, Fraction(4, 15)]
    assert problem.rates("all") == [Fraction(3, 4), Fraction(1, 5)]
    assert len(make_pairs(problem, BEST, GAP, "code", "kept")) == 1
    assert not make_pairs(problem, BEST, GAP, "code", "all")


@pytest.mark.parametrize("rule", ["paper", "code"])
def test_pairs_by_enumeration(rule):
    passed = np.random.default_rng(0).integers(0, 11, 16).tolist()
    more = (lambda a, b: a > b) if rule == "paper" else (lambda a, b: a >= b)
    wanted = [(a / 10, b / 10) for a in passed for b in passed if more(a, 8) and more(a - b, 4) and b > 0]
    assert rates_of(make_pairs(sampled(passed), BEST, GAP, rule, "kept")) == sorted(wanted)


def test_repeated_texts_and_other_models():
    problem = sampled([10, 10, 3])
    same = problem._replace(samples=[s._replace(text="a") if k < 2 else s for k, s in enumerate(problem.samples)])
    assert len(make_pairs(same, BEST, GAP, "paper", "kept")) == 1
    other = problem._replace(samples=[s._replace(model=str(k)) for k, s in enumerate(problem.samples)])
    assert not make_pairs(other, BEST, GAP, "paper", "kept")


def test_hard_quarter_and_band():
    rates = {"a": [1, 1], "b": [0, 1], "c": [0, 0], "d": [0.2, 0.4], "e": [0.9, 1], "f": [1, 0.8], "g": [0, 0.6]}
    rates["h"] = [0.7, 0.9]
    assert hard_quarter(rates) == ["b", "g"]  # means of c, d, g, b are lowest; g and b vary most
    assert band(rates, 0.25, 0.5) == ["b", "d", "g"]
    assert band(rates, 1, 1) == ["a"]


def test_command(tmp_path, capsys):
    problem, file, out = sampled([10, 5, 1]), tmp_path / "rates.jsonl", tmp_path / "pairs.jsonl"
    samples = [{"text": s.text, "tests": s.tests} for s in problem.samples]
    file.write_text(json.dumps({"id": "q", "messages": problem.messages, "samples": samples}) + "\n")
    assert main([str(file), str(out)]) == 0
    pairs = [json.loads(line) for line in out.read_text().splitlines()]
    assert list(pairs[0]) == ["id", "messages", "chosen", "rejected", "chosen_rate", "rejected_rate"]
    assert rates_of(pairs) == [(1.0, 0.1), (1.0, 0.5)]
    assert "pairs  2" in capsys.readouterr().out
    assert main([str(file), str(out), "--gap", "1"]) == 1
    assert "no two samples are a pair" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept": [True]}, "tests must have 1 items, has 2"),
        ({"kept": [False, False]}, "needs a test that was kept"),
        ({"samples": []}, "samples must not be empty"),
        ({"samples": [{"text": "x", "tests": [1, 0]}]}, r"tests\[0\] must be true or false"),
    ],
)
def test_rows_that_are_refused(tmp_path, change, message):
    row = {"id": "q", "messages": [], "samples": [{"text": "x", "tests": [True, False]}]}
    (tmp_path / "r.jsonl").write_text(json.dumps(row | change) + "\n")
    with pytest.raises(DataError, match=message):
        read_rates(str(tmp_path / "r.jsonl"))
