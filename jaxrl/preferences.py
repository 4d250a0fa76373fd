"""Makes pairs of a better and a worse answer from stored pass rates, as AceCoder does (arXiv 2502.01718, equation 3).

    python -m jaxrl.preferences rates.jsonl pairs.jsonl
    python -m jaxrl.preferences rates.jsonl pairs.jsonl --rule code --rates-of all

The better answer passes more than --best of the tests and --gap more than the worse, which passes some. --rule paper
compares with >, as the paper does; --rule code with >=, as its published code does (and with > 0 for the worse).
"""

from __future__ import annotations

import argparse
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

from jaxrl.errors import UserError, command
from jaxrl.files import write_beside
from jaxrl.tasks.rates import Denominator, Sampled, read_rates

Rule = Literal["paper", "code"]


def is_pair(high: Fraction, low: Fraction, best: Fraction, gap: Fraction, rule: Rule) -> bool:
    """Whether answers with these pass rates are a pair. Exact: 0.7 is 0.4 above 0.3."""
    if low <= 0:
        return False
    return (high > best and high - low > gap) if rule == "paper" else (high >= best and high - low >= gap)


def make_pairs(problem: Sampled, best: Fraction, gap: Fraction, rule: Rule, of: Denominator) -> list[dict[str, Any]]:
    """All pairs among one model's samples of a problem; the same two texts are a pair once."""
    rated = list(zip(problem.rates(of), problem.samples, strict=True))
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for high, better in rated:
        for low, worse in rated:
            if better.model == worse.model and better.text != worse.text and is_pair(high, low, best, gap, rule):
                pair = {"id": problem.id, "messages": problem.messages, "chosen": better.text, "rejected": worse.text}
                rates = {"chosen_rate": float(high), "rejected_rate": float(low)}
                pairs.setdefault((better.text, worse.text), pair | rates)
    return list(pairs.values())


def statistics(problems: list[Sampled], pairs: list[dict[str, Any]], of: Denominator) -> dict[str, float]:
    """What the paper's table of its data says: sizes, tests before and after the filter, pairs."""
    rates = [float(r) for p in problems for r in p.rates(of)]
    with_pairs = len({p["id"] for p in pairs})
    return {
        "questions": len(problems),
        "tests per question": sum(len(p.kept) for p in problems) / len(problems),
        "tests kept per question": sum(sum(p.kept) for p in problems) / len(problems),
        "samples": len(rates),
        "mean pass rate": sum(rates) / len(rates),
        "pairs": len(pairs),
        "questions with pairs": with_pairs,
        "share of questions with pairs": with_pairs / len(problems),
        "pairs per question with pairs": len(pairs) / with_pairs if with_pairs else 0.0,
    }


def share(text: str) -> Fraction:
    """An option from 0 to 1, exact: the text 0.4 is 2/5."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(-1)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, is {text!r}")
    return value


@command()
def main(arguments: list[str]) -> int:
    """The command: writes the pairs and prints the statistics; 1, with one line on stderr, if it finds no pairs."""
    parser = argparse.ArgumentParser(prog="python -m jaxrl.preferences", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rates", help="samples and the tests that they pass, .jsonl")
    parser.add_argument("pairs", help="the .jsonl to write")
    parser.add_argument("--best", type=share, default=share("0.8"), help="pass rate of the better answer (0.8)")
    parser.add_argument("--gap", type=share, default=share("0.4"), help="how much lower the worse one's is (0.4)")
    parser.add_argument("--rule", choices=get_args(Rule), default="paper", help="paper: >, code: >= (paper)")
    parser.add_argument("--rates-of", choices=get_args(Denominator), default="kept", help="of which tests (kept)")
    options = parser.parse_args(arguments)
    problems = read_rates(options.rates)
    rules = options.best, options.gap, options.rule, options.rates_of
    pairs = [pair for problem in problems for pair in make_pairs(problem, *rules)]
    for name, value in statistics(problems, pairs, options.rates_of).items():
        print(f"{name}  {value:.4g}" if isinstance(value, float) else f"{name}  {value}")
    if not pairs:
        raise UserError(f"{options.rates}: no two samples are a pair; lower --best or --gap, or draw more samples")
    write_beside(Path(options.pairs), "".join(json.dumps(pair) + "\n" for pair in pairs))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
