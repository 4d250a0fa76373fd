"""Prompting strategies side by side: the cells of a grid, what an episode of each contributes, and their table.

Zheng et al. (arXiv 2410.08105) compare reasoning prompts, instructions, kinds of feedback and numbers of turns. Cells
of different turns are compared at equal numbers of programs and at equal numbers of sampled tokens, those of reasoning
included.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import zlib
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np

from jaxrl.config import Config
from jaxrl.errors import UserError
from jaxrl.evaluation.estimators import bootstrap_interval, n_at_k_of_episodes, n_at_share
from jaxrl.tasks.extract import normal_form
from rollouts.environments import feedback
from rollouts.episode import Episode, Group
from rollouts.strategies import PROMPTS, STRATEGIES

FEEDBACK = ("binary", "failed", "failed_and_passed", "trace")
SCHEDULES = ("first", "every", "retry")
STUCK = 0.95  # programs that are more alike than this are the same attempt again
BINS = 10
_BEGINS_A_PROGRAM = re.compile(r"^\s*(?:```|def |class |import |from \w+ import )", re.MULTILINE)


class Cell(NamedTuple):
    """A strategy of the grid. One turn has no feedback (""), and no prompts no schedule but "first"."""

    reasoning: str
    instruction: str
    feedback: str
    turns: int
    schedule: str

    @property
    def name(self) -> str:
        """Of its files."""
        prompts = [_slug(text) for text in (self.reasoning, self.instruction)]
        return "-".join([*prompts, self.feedback or "none", str(self.turns), self.schedule])


def _slug(text: str) -> str:
    words = "_".join(re.findall(r"\w+", text.lower()))[:24] or "none"
    return words if words in (text, "none") else f"{words}_{zlib.crc32(text.encode()):08x}"


def choices(given: Sequence[str], all_of: Sequence[str], option: str, own_texts: bool = False) -> list[str]:
    """The values of an option, "none" as "": names with commas between them, "all", or (several words) a text.

    Raises UserError for a name that there is not.
    """
    found: list[str] = []
    for value in given:
        text = own_texts and len(value.split()) > 1 and "," not in value.split()[0]
        for name in [value] if text else [part.strip() for part in value.split(",")]:
            names = all_of if name == "all" else [name]
            wrong = next((n for n in names if not text and n not in all_of), None)
            if wrong is not None:
                raise UserError(f"{option} {wrong!r} must be one of: all, {', '.join(all_of)}")
            found += ["" if n == "none" else n for n in names]
    return list(dict.fromkeys(found))


def make_cells(
    reasoning: Sequence[str],
    instruction: Sequence[str],
    kinds: Sequence[str],
    turns: Sequence[int],
    schedules: Sequence[str],
    strategies: Sequence[str] = (),
) -> list[Cell]:
    """All combinations, each once, and the named strategies with each feedback.

    What does nothing is left out of a combination: feedback and a schedule where there is one turn, a schedule where
    there are no prompts.
    """
    cells = [_plain(Cell(r, i, f, t, s)) for t, r, i, s, f in product(turns, reasoning, instruction, schedules, kinds)]
    for name, kind in product(strategies, kinds):
        strategy = STRATEGIES[name]
        longest = max(*turns, strategy.last_change() + 1)
        cells.append(Cell(strategy.reasoning, strategy.instruction, kind, longest, strategy.schedule))
    return list(dict.fromkeys(cells))


def _plain(cell: Cell) -> Cell:
    if cell.turns == 1:
        unsaid = {"reasoning": "", "instruction": ""} if cell.schedule == "retry" else {}
        cell = cell._replace(feedback="", schedule="first", **unsaid)
    return cell if cell.reasoning or cell.instruction else cell._replace(schedule="first")


def config_of(config: Config, cell: Cell) -> Config:
    """The config with the cell's strategy in its environment, which is feedback."""
    made = copy.deepcopy(config)
    settings: Any = made.rollout.environment
    fields = {"max_turns": cell.turns, "schedule": cell.schedule, "feedback": cell.feedback or settings.feedback}
    made.rollout.environment = dataclasses.replace(settings, **fields, **dict(zip(PROMPTS, cell[:2])))
    return made


def prepare(config: Config) -> Config:
    """The config with environment feedback, of which the cells set the strategy.

    Raises UserError for settings that a grid sets itself, or that do nothing in one.
    """
    config = copy.deepcopy(config)
    if config.rollout.environment.name != "feedback":
        config.rollout.environment = feedback.Settings(name="feedback")
    given, usual = config.rollout.environment, feedback.Settings(name="feedback")
    for name in ("reasoning", "instruction", "schedule", "strategy", "feedback"):
        if getattr(given, name) != getattr(usual, name):
            raise UserError(f"rollout.environment.{name} = {getattr(given, name)!r} must not be set: the grid does")
    for name in ("best_of", "regenerate", "k"):
        if getattr(config.evaluation, name):
            raise UserError(f"evaluation.{name} = {getattr(config.evaluation, name)!r} does nothing in a grid")
    return config


# ---------------------------------------------------------------------- episodes


def outcomes(groups: Sequence[Group]) -> dict[str, list[dict[str, Any]]]:
    """What the table needs to know of each episode, by the problem's id; plain data.

    attempts: [passes the public tests, passes all] of each program; tokens: sampled, `thought` of them in turns that
    are no program; `thoughts` such turns, `early` of which hold a program, which counts nowhere; similar: of each
    program to the one before it.
    """
    return {group.problem.id: [outcome(e) for e in group.episodes] for group in groups}


def outcome(episode: Episode) -> dict[str, Any]:
    thoughts = [turn for turn in episode.turns if turn.sampled and turn.kind == "text"]
    return {
        "attempts": [[bool(public), bool(solved)] for public, solved, _ in episode.attempts],
        "solved": episode.reward.solved,
        "tokens": episode.sampled_length,
        "thought": sum(len(turn.tokens) for turn in thoughts),
        "thoughts": len(thoughts),
        "early": sum(bool(_BEGINS_A_PROGRAM.search(turn.text)) for turn in thoughts),
        "similar": [
            round(similarity(a.program or a.text, b.program or b.text), 4) for a, b in pairwise(episode.submissions)
        ],
    }


def similarity(one: str, other: str) -> float:
    """How alike two programs are, 0 to 1: difflib's ratio, without their layout and comments."""
    a, b = (normal_form(text) or " ".join(text.split()) for text in (one, other))
    return SequenceMatcher(None, a, b, autojunk=False).ratio()


def histogram(values: Sequence[float]) -> list[int]:
    """How many of these similarities are in [0, .1), [.1, .2), ..., [.9, 1]."""
    return np.histogram(values, bins=BINS, range=(0.0, 1.0))[0].tolist()


# ---------------------------------------------------------------------- the table


class Budgets(NamedTuple):
    """What all cells may use for a problem."""

    programs: int
    tokens: float


def budgets(results: Mapping[Cell, dict[str, list[dict[str, Any]]]], programs: int = 0, tokens: int = 0) -> Budgets:
    """The budgets of a comparison; by default the programs of the longest cell, and the tokens that they cost it.

    No more than the samples of every cell provide. Raises UserError where they do not provide what is wanted.
    """
    programs = programs or max(cell.turns for cell in results)
    costly, least = 0.0, float("inf")
    for cell, problems in results.items():
        samples, mean = min(map(len, problems.values())), mean_tokens(problems)
        k = programs // cell.turns
        if k < 1:
            raise UserError(f"--programs {programs} must be at least {cell.turns}, the turns of cell {cell.name}")
        if k > samples:
            raise UserError(
                f"evaluation.samples = {samples} must be at least {k}: {programs} programs of {cell.turns} a sample"
            )
        costly, least = max(costly, k * mean), min(least, samples * mean)
    if tokens > least:
        raise UserError(f"--tokens {tokens} must be at most {int(least)}, what the samples of every cell provide")
    return Budgets(programs, tokens or min(costly, least))


def mean_tokens(problems: Mapping[str, Sequence[Mapping[str, Any]]]) -> float:
    """Sampled tokens of an episode."""
    return float(np.mean([e["tokens"] for episodes in problems.values() for e in episodes]))


def row(
    cell: Cell, problems: Mapping[str, list[dict[str, Any]]], budget: Budgets, submissions: int, bootstrap: int
) -> dict[str, Any]:
    """What the table says of a cell. (mean, low, high) where it is a mean over problems."""
    episodes = [e for es in problems.values() for e in es]
    attempts = [[e["attempts"] for e in es] for es in problems.values()]
    similar = [s for e in episodes for s in e["similar"]]
    tokens, thoughts = mean_tokens(problems), sum(e["thoughts"] for e in episodes)
    k = min(budget.tokens / max(tokens, 1e-9), len(attempts[0]))
    return {
        "cell": cell,
        "solved": _interval([float(np.mean([e["solved"] for e in es])) for es in problems.values()], bootstrap),
        "at_programs": _interval(
            [n_at_k_of_episodes(es, submissions, budget.programs // cell.turns) for es in attempts], bootstrap
        ),
        "at_tokens": _interval([n_at_share(es, submissions, k) for es in attempts], bootstrap),
        "tokens": tokens,
        "thought": sum(e["thought"] for e in episodes) / max(sum(e["tokens"] for e in episodes), 1),
        "early": sum(e["early"] for e in episodes) / thoughts if thoughts else None,
        "similar": float(np.mean(similar)) if similar else None,
        "stuck": float(np.mean([s > STUCK for s in similar])) if similar else None,
        "histogram": histogram(similar) if similar else None,
    }


def _interval(values: Sequence[float], bootstrap: int) -> tuple[float, float, float]:
    mean = float(np.mean(values))
    low, high = bootstrap_interval(values, 0.95, bootstrap) if bootstrap else (mean, mean)
    return mean, low, high


def columns(rows: Sequence[Mapping[str, Any]], budget: Budgets, submissions: int) -> list[list[str]]:
    """The table as text, its header first."""
    names = ["reasoning", "instruction", "feedback", "turns", "schedule", "solved"]
    names += [f"{submissions}@{budget.programs} programs", f"{submissions} of {budget.tokens:.0f} tokens"]
    lines = [[*names, "tokens", "reasoning tokens", "similarity", "stuck"]]
    for found in rows:
        cell: Cell = found["cell"]
        shown = [cell.reasoning or "-", cell.instruction or "-", cell.feedback or "-", str(cell.turns), cell.schedule]
        shown += [_percent(*found[name]) for name in ("solved", "at_programs", "at_tokens")]
        similar = "-" if found["similar"] is None else f"{found['similar']:.2f}"
        stuck = "-" if found["stuck"] is None else f"{found['stuck']:.0%}"
        lines.append([*shown, f"{found['tokens']:.0f}", f"{found['thought']:.0%}", similar, stuck])
    return lines


def _percent(mean: float, low: float, high: float) -> str:
    return f"{mean:.1%}" if low == high == mean else f"{mean:.1%} [{low:.1%}, {high:.1%}]"


def markdown(rows: Sequence[Mapping[str, Any]], budget: Budgets, submissions: int, about: str) -> str:
    """The table, the histograms of similarities, and what the numbers are."""
    similar = [r for r in rows if r["histogram"]]
    bins = [f"{i / BINS:.1f}" for i in range(BINS)]
    shares = [[r["cell"].name, *(f"{n / max(sum(r['histogram']), 1):.0%}" for n in r["histogram"])] for r in similar]
    early = [[r["cell"].name, f"{r['early']:.1%}"] for r in rows if r["early"] is not None]
    meaning = (
        "Brackets: 95% bootstrap over the problems. *solved*: of single episodes, by all tests. The two columns after "
        f"it compare cells at equal cost: at most {submissions} submitted of the programs that pass the public tests, "
        f"among {budget.programs} programs, or among episodes of {budget.tokens:.0f} sampled tokens on average. "
        f"*stuck*: pairs of consecutive programs that are more than {STUCK:.0%} alike."
    )
    parts = ["# Prompting over turns", about, _table(columns(rows, budget, submissions)), meaning]
    parts += ["## Similarity of consecutive programs", _table([["cell", *bins], *shares])] if similar else []
    heading = "## Programs written where a text was asked for, and ignored"
    parts += [heading, _table([["cell", "share of reasoning answers"], *early])] if early else []
    return "\n\n".join(parts) + "\n"


def _table(lines: Sequence[Sequence[str]]) -> str:
    header, *body = [f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines]
    return "\n".join([header, "|" + " --- |" * len(lines[0]), *body])
